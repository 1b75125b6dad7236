// Package sshproxy is the SSH gateway: it authenticates clients by public key, routes them by user name or by jump host
// to a container, and copies channels and requests between the client and the container's agent.
//
// What arrives is trusted in neither direction: identity comes only from the finished handshake, only listed kinds of
// channels and requests pass, and every queue, handshake and wait is bounded. The package reads who may enter through
// Directory, reaches agents through internal/session, and knows nothing of databases, engines or the agent's wire.
package sshproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/charmbracelet/ssh"
	"github.com/charmbracelet/wish"
	gossh "golang.org/x/crypto/ssh"

	"berth/internal/compute"
	"berth/internal/route"
	"berth/internal/session"
)

// Directory says who may enter. Both methods leave out disabled users and what is theirs. With words for the
// client, CodeUnavailable when it cannot say, and CodeForbidden when nobody may be here, those who are in neither.
type Directory interface {
	// Target returns a container with the keys that open it; CodeNotFound when there is none.
	Target(ctx context.Context, id compute.ContainerID) (compute.Target, error)
	// Accounts returns the users under whom a key stands, by its SHA-256 fingerprint; none is no error.
	Accounts(ctx context.Context, fingerprint string) ([]compute.User, error)
}

// LobbySession is a client that runs a command on the apex.
type LobbySession struct {
	Principal compute.Principal
	Login     string // what the client typed before the @
	Command   string // empty: an interactive session
	Terminal  bool
	Stdin     io.Reader
	Stdout    io.Writer
	Stderr    io.Writer
}

// Changes subscribes to what is committed from now on, so that those who may no longer enter are put out. A reader that
// is too slow has its channel closed; it subscribes again, and looks at everything anew.
type Changes func() (events <-chan compute.Event, cancel func())

// Options are what a Gateway is made of. Lobby, Changes, Record, Limits and Log may be left out.
type Options struct {
	Zone      route.Zone
	HostKeys  []gossh.Signer
	Directory Directory
	Sessions  *session.Multiplexer
	Lobby     func(ctx context.Context, s LobbySession) (exit int)
	Changes   Changes
	Record    func(compute.AuditRecord) // takes logins, refusals and sessions; must not wait
	Balancers []netip.Prefix            // load balancers, which tell by PROXY protocol who connects; nobody else is believed
	Limits    Limits
	Log       *slog.Logger
}

// Limits bounds what clients can make the gateway do. A zero field takes its default.
type Limits struct {
	KexTimeout        time.Duration // from the connection to the first login attempt: no person is waited for
	LoginTimeout      time.Duration // from there to the login: a person may type a passphrase or touch a token
	LoginAttempts     int
	Startups          int           // connections that have not logged in, those inside jumps included
	StartupsPerSource int           // … of one address
	Channels          int           // of one connection
	OpenTimeout       time.Duration // for reaching a container
	RequestTimeout    time.Duration // for an agent's answer
	Backlog           int           // bytes that one connection may have sent and nobody has read
	BacklogTimeout    time.Duration // how long a connection may stand still for that
}

func (l Limits) withDefaults() Limits {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	num := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	def(&l.KexTimeout, 20*time.Second)
	def(&l.LoginTimeout, 2*time.Minute)
	num(&l.LoginAttempts, 20)
	num(&l.Startups, 512)
	num(&l.StartupsPerSource, 128)
	num(&l.Channels, 256)
	def(&l.OpenTimeout, 15*time.Second)
	def(&l.RequestTimeout, 15*time.Second)
	num(&l.Backlog, 64<<20)
	def(&l.BacklogTimeout, 2*time.Minute)
	return l
}

// version is what the gateway calls itself in its identification string. It tells no release: that is nobody's
// business. Only to servers whose name begins like this do OpenSSH's clients say that nobody reads a command's output
// any more (eow@openssh.com); without, "ssh … yes | head" would run for ever.
const version = "OpenSSH_compatible Berth"

// Causes of the end of a connection that a user may read.
var (
	errShutdown = errors.New("the gateway is shutting down; connect again")
	errRevoked  = errors.New("the container was deleted, its account was disabled, or this key opens it no more")
	errStranger = errors.New("this key stands under no account any more")
)

// Gateway serves SSH on the apex. Make one with New; Serve it on listeners; Shutdown ends it.
type Gateway struct {
	o        Options
	log      *slog.Logger
	server   *ssh.Server // wish's: handshakes and dispatch, for outer and inner connections alike
	startups *startups
	sessions atomic.Int64

	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // connections, and the watcher of changes

	mu        sync.Mutex // guards what follows; no I/O under it
	closing   bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	picky     map[netip.Prefix]struct{} // sources of clients that refused AES-GCM alone
}

// New returns a Gateway. It does no I/O.
func New(o Options) (*Gateway, error) {
	if len(o.HostKeys) == 0 {
		return nil, errors.New("sshproxy: no host keys")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Record == nil {
		o.Record = func(compute.AuditRecord) {}
	}
	o.Limits = o.Limits.withDefaults()
	g := &Gateway{
		o: o, log: o.Log, startups: newStartups(o.Limits.Startups, o.Limits.StartupsPerSource),
		listeners: make(map[net.Listener]struct{}), conns: make(map[*conn]struct{}), picky: make(map[netip.Prefix]struct{}),
	}
	g.ctx, g.cancel = context.WithCancelCause(context.Background())
	server, err := wish.NewServer(
		wish.WithVersion(version),
		// Without this handler, charmbracelet/ssh turns authentication off altogether.
		wish.WithPublicKeyAuth(g.publicKey),
		func(s *ssh.Server) error {
			for _, k := range o.HostKeys {
				s.AddHostKey(k)
			}
			s.ConnCallback = attachConn
			s.ServerConfigCallback = g.serverConfig
			s.ConnectionFailedCallback = g.handshakeFailed
			s.ChannelHandlers = map[string]ssh.ChannelHandler{"default": g.channel}
			s.RequestHandlers = map[string]ssh.RequestHandler{"default": g.globalRequest}
			s.SubsystemHandlers = map[string]ssh.SubsystemHandler{}
			return nil
		},
	)
	if err != nil {
		return nil, fmt.Errorf("sshproxy: %w", err)
	}
	g.server = server
	if o.Changes != nil {
		g.wg.Go(g.watchChanges)
	}
	return g, nil
}

// Sessions returns how many sessions are open, in containers and in the lobby.
func (g *Gateway) Sessions() int { return int(g.sessions.Load()) }

// Serve accepts connections on l until Shutdown, and then returns nil. It closes l.
func (g *Gateway) Serve(l net.Listener) error {
	defer l.Close()
	if !g.track(l) {
		return nil
	}
	defer g.untrack(l)
	pause := time.Duration(0)
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			g.accept(nc)
		case g.ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("sshproxy: %w", err)
		default:
			// Out of file descriptors, most likely; some come back.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			g.log.Warn("accept", "err", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-g.ctx.Done():
			}
		}
	}
}

func (g *Gateway) track(l net.Listener) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closing {
		return false
	}
	g.listeners[l] = struct{}{}
	return true
}

func (g *Gateway) untrack(l net.Listener) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.listeners, l)
}

// accept begins a connection, which takes no time: where a load balancer has yet to tell whose it is, in a goroutine.
func (g *Gateway) accept(nc net.Conn) {
	if tcp := tcpOf(nc); tcp != nil && g.balances(nc.RemoteAddr()) {
		g.wg.Go(func() { g.handOn(tcp) })
		return
	}
	g.begin(nc)
}

// begin serves a client's connection in a goroutine, if there is room for one more that has not logged in.
func (g *Gateway) begin(nc net.Conn) {
	release, ok := g.startups.admit(sourceOf(nc.RemoteAddr()))
	if !ok {
		g.log.Info("refused: too many connections that have not logged in", "remote", nc.RemoteAddr())
		// A fresh socket has room for a line, so this does not wait. Clients show it (RFC 4253, section 4.2).
		_ = nc.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(nc, "Too many connections from you are logging in; try again in a moment.\r\n")
		_ = nc.Close()
		return
	}
	if tcp := tcpOf(nc); tcp != nil {
		// A suspended laptop is gone after some ten minutes, about as long as TCP itself would try.
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{
			Enable: true, Idle: time.Minute, Interval: 30 * time.Second, Count: 20,
		})
	}
	c := newConn(g, nc, release)
	if !g.add(c) {
		release()
		_ = nc.Close()
		return
	}
	g.wg.Go(func() {
		defer g.remove(c)
		c.serve()
	})
}

func (g *Gateway) add(c *conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closing {
		return false
	}
	g.conns[c] = struct{}{}
	return true
}

func (g *Gateway) remove(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.conns, c)
}

func (g *Gateway) live() []*conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := make([]*conn, 0, len(g.conns))
	for c := range g.conns {
		list = append(list, c)
	}
	return list
}

// Shutdown stops accepting, tells every session why it ends, closes all connections and waits for what served them.
// When ctx ends before that it stops waiting and returns its error.
func (g *Gateway) Shutdown(ctx context.Context) error {
	g.cancel(errShutdown)
	g.mu.Lock()
	g.closing = true
	for l := range g.listeners {
		_ = l.Close()
	}
	g.mu.Unlock()
	for _, c := range g.live() {
		c.end(errShutdown)
	}
	done := make(chan struct{})
	go func() {
		g.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	for _, c := range g.live() {
		_ = c.nc.Close()
	}
	return context.Cause(ctx)
}
