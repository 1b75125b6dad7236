package sshproxy

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/charmbracelet/ssh"
	gossh "golang.org/x/crypto/ssh"

	"berth/internal/compute"
	"berth/internal/route"
)

// goodbye is how long a connection that is being ended waits for its sessions to tell their clients why.
const goodbye = 500 * time.Millisecond

var (
	errGone          = errors.New("the client is gone")
	errLoginTimeout  = errors.New("the client did not log in in time")
	errInconsistent  = errors.New("the finished handshake is not the one that was authorized")
	errFloodChannels = errors.New("the client opens channels faster than it takes the answers")
)

// identity is who a client proved to be: the key that signed, and the user name that the signature covers.
type identity struct {
	user  string
	key   string         // SHA-256 fingerprint
	owner compute.UserID // whose the key is; 0 where several accounts have it, and the user name is none of theirs
}

// conn is one SSH connection: a client's own, or the inner one of a jump.
type conn struct {
	g    *Gateway
	nc   net.Conn
	jump compute.ContainerID // the container that a jump goes to; empty on a client's own connection

	ctx     context.Context // ends with the connection; its cause may be told to the client
	cancel  context.CancelCauseFunc
	release func()      // gives back the place among those that have not logged in
	timer   *time.Timer // closes the connection unless the handshake goes on
	wire    *wire       // set before the handshake
	pre     gossh.ServerPreAuthConn
	refused identity // the last that was tried and may not log in; of the handshake's goroutine
	backlog *backlog

	apologized bool // of the handshake alone

	mu       sync.Mutex // guards what follows; no I/O under it
	closed   bool       // no channel is begun any more
	channels int
	verified identity // set when the client has proven its key
	loggedIn bool
	notes    map[string]bool
	pending  []string // notes that wait for a session to be shown on
	live     map[*sessionChannel]struct{}
	farewell *time.Timer // closes a connection that is being ended

	opening atomic.Int64 // channels that are being opened or are open
	agent   attachmentSlot
	wg      sync.WaitGroup // channels, and whatever else works for this connection
}

func newConn(g *Gateway, nc net.Conn, release func()) *conn {
	c := &conn{g: g, nc: nc, release: release, notes: make(map[string]bool), live: make(map[*sessionChannel]struct{})}
	c.backlog = newBacklog(g.o.Limits.Backlog, g.o.Limits.BacklogTimeout)
	c.agent.token = make(chan struct{}, 1)
	c.ctx, c.cancel = context.WithCancelCause(g.ctx)
	c.timer = time.AfterFunc(g.o.Limits.KexTimeout, func() { c.abort(errLoginTimeout) })
	return c
}

// contextKey is under which a handshake's context holds its *conn.
type contextKey struct{}

// wireConn is what is handed to charmbracelet/ssh: it finds its way back to the connection, and reads no more of a
// client than others take.
type wireConn struct {
	*wire
	c *conn
}

func (w *wireConn) Read(p []byte) (int, error) {
	if err := w.c.backlog.wait(w.c.ctx); err != nil {
		return 0, err
	}
	n, err := w.wire.Read(p)
	w.c.backlog.came(n)
	return n, err
}

func (w *wireConn) Write(p []byte) (int, error) {
	n, err := w.wire.Write(p)
	w.c.backlog.gone(answerCost + n/1024)
	return n, err
}

// attachConn makes the connection known to the callbacks of its handshake.
func attachConn(ctx ssh.Context, nc net.Conn) net.Conn {
	w, ok := nc.(*wireConn)
	if !ok {
		return nil // closes it
	}
	ctx.SetValue(contextKey{}, w.c)
	return w
}

// connOf returns the connection of a handshake. One without is a fault of ours that must not let anybody in.
func connOf(ctx ssh.Context) *conn {
	c, _ := ctx.Value(contextKey{}).(*conn)
	return c
}

// serve runs the connection and returns when nothing works for it any more.
func (c *conn) serve() {
	defer c.finish()
	w, err := openWire(c.nc, version)
	if err != nil {
		c.g.log.Debug("identification", "remote", c.nc.RemoteAddr(), "err", err)
		return
	}
	c.wire = w
	c.g.server.HandleConn(&wireConn{wire: w, c: c})
}

// finish closes the connection and waits for its channels.
func (c *conn) finish() {
	c.timer.Stop()
	c.release()
	c.cancel(errGone)
	_ = c.nc.Close()
	c.recordRefusal()
	c.mu.Lock()
	c.closed = true
	if c.farewell != nil {
		c.farewell.Stop()
	}
	c.mu.Unlock()
	c.wg.Wait()
	c.agent.close()
}

// begin counts a channel in, unless the connection is ending or has too many; done counts it out.
func (c *conn) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return errGone
	case c.channels >= c.g.o.Limits.Channels:
		return compute.Errorf(compute.CodeLimit, "too many channels in one connection (at most %d)", c.g.o.Limits.Channels)
	}
	c.channels++
	c.wg.Add(1)
	return nil
}

func (c *conn) done() {
	c.mu.Lock()
	c.channels--
	c.mu.Unlock()
	c.wg.Done()
}

// work runs f in a goroutine of the connection, unless that is ending. What serves a channel uses wg itself.
func (c *conn) work(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.wg.Go(f)
	}
}

// abort ends the connection at once.
func (c *conn) abort(cause error) {
	c.cancel(cause)
	_ = c.nc.Close()
}

// end ends the connection. Its sessions tell their clients why; those that do not take the message in time are cut off.
func (c *conn) end(cause error) {
	c.cancel(cause)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.farewell != nil {
		return
	}
	wait := goodbye
	if len(c.live) == 0 {
		wait = 0
	}
	c.farewell = time.AfterFunc(wait, func() { _ = c.nc.Close() })
}

// loggedInAs returns who is logged in, once somebody is.
func (c *conn) loggedInAs() (route.Login, identity, bool) {
	c.mu.Lock()
	id, ok := c.verified, c.loggedIn
	c.mu.Unlock()
	if !ok {
		return route.Login{}, identity{}, false
	}
	login, err := c.login(id)
	return login, id, err == nil
}

// login returns what an identity asks for on this connection.
func (c *conn) login(id identity) (route.Login, error) {
	if c.jump == "" {
		return route.ParseLogin(id.user)
	}
	if !route.ValidUser(id.user) {
		return route.Login{}, compute.NotFound("user")
	}
	return route.Login{Container: c.jump, User: id.user}, nil
}

// identify returns who logged in, from the finished handshake alone.
func (c *conn) identify(sc *gossh.ServerConn) (identity, route.Login, error) {
	c.mu.Lock()
	verified := c.verified
	c.mu.Unlock()
	id, err := provenIdentity(sc.User(), sc.Permissions)
	if err != nil {
		return identity{}, route.Login{}, err
	}
	if id != verified {
		return identity{}, route.Login{}, errInconsistent
	}
	login, err := c.login(id)
	return id, login, err
}
