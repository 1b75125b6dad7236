// Package agent is the inside of a container: PID 1, which reaps, runs sessions for clients of the gateway, and tells
// what the container uses.
//
// It serves the wire of internal/agentproto on a unix socket that only root of the container and its host can open,
// and, as break-glass, SSH on standard input and output. It needs nothing of the image: no shell, no libc, no sshd, no
// sftp-server. What a session does happens in a child with its user's identity; this process does nothing on a user's
// behalf.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/agentproto"
	"berth/internal/pinned"
	"berth/internal/version"
)

// selfExe is this program, also where its file cannot be seen.
const selfExe = "/proc/self/exe"

const helloTimeout = 15 * time.Second

// Options configures a Server.
type Options struct {
	Environ   []string  // of the image, for every session
	AcceptEnv AcceptEnv // nil: the default
	Log       *slog.Logger
	// Init is set in PID 1, which waits for all processes of the container.
	Init bool
	// User is whom the image's command runs as, as an image's configuration says it: NAME or UID, with :GROUP or :GID. Empty
	// means root.
	User string
	// Prepared is a file that must be there before Init lets anybody in; empty: none.
	Prepared string
	// Passwd and Group are the account files; empty means those in /etc.
	Passwd, Group string
	// Listen opens the container's address for paired gateways; nil: all of its addresses, on the port for that.
	Listen func() (net.Listener, error)
}

// Server serves gateways.
type Server struct {
	environ       []string
	acceptEnv     AcceptEnv
	log           *slog.Logger
	procs         *processes
	passwd, group string
	user          string // of the image
	budget        *agentproto.Budget
	logs          logbook
	poller        poller
	listen        func() (net.Listener, error)
	paired        paired

	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // connections and attachments

	sessions sync.WaitGroup

	mu      sync.Mutex // guards what follows
	closing bool
	conns   int
}

// Bounds on what root of the container, or its gateways, may have open.
const (
	maxConns  = 64
	maxOffers = 256      // channels that one client opens before they are looked at: as many as a gateway lets it have
	maxInput  = 64 << 20 // bytes of input that may wait for commands
)

// NewServer returns a Server. It does no I/O.
func NewServer(o Options) *Server {
	s := &Server{
		environ: o.Environ, acceptEnv: o.AcceptEnv, log: o.Log, procs: newProcesses(o.Init),
		passwd: o.Passwd, group: o.Group, user: o.User,
		budget: agentproto.NewBudget(maxInput),
	}
	if s.acceptEnv == nil {
		s.acceptEnv = DefaultAcceptEnv()
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.passwd == "" {
		s.passwd = "/etc/passwd"
	}
	if s.group == "" {
		s.group = "/etc/group"
	}
	if s.listen = o.Listen; s.listen == nil {
		s.listen = listenForPods
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s
}

var errClosing = errors.New("the agent is ending")

// stopWork refuses what is new from now on.
func (s *Server) stopWork() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
}

// Close ends all sessions and waits for them. Until ctx ends it leaves them time to end by themselves.
func (s *Server) Close(ctx context.Context) error {
	s.stopWork()
	ended := make(chan struct{})
	go func() { // ends with the sessions, which the end of s.ctx ends
		s.sessions.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	s.cancel(errClosing)
	s.wg.Wait()
	<-ended
	s.poller.close()
	return nil
}

// goDo runs f, which wg then waits for, unless Close has begun.
func (s *Server) goDo(wg *sync.WaitGroup, f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	wg.Go(f)
	return true
}

// Serve accepts connections until l is closed. Peers that are neither root in here nor on the host are turned away.
func (s *Server) Serve(l net.Listener) error {
	return s.accept(l, func(nc net.Conn) error {
		if err := checkPeer(nc); err != nil {
			return err
		}
		return s.take(nc)
	})
}

// accept has connections admitted until l is closed.
func (s *Server) accept(l net.Listener, admit func(net.Conn) error) error {
	stop := context.AfterFunc(s.ctx, func() { _ = l.Close() })
	defer stop()
	for {
		nc, err := l.Accept()
		switch {
		case s.ctx.Err() != nil:
			if err == nil {
				_ = nc.Close()
			}
			return nil
		case isPassing(err):
			s.log.Warn("accept", "err", err)
			if !s.pause() {
				return nil
			}
			continue
		case err != nil:
			return fmt.Errorf("accept: %w", err)
		}
		if err := admit(nc); err != nil {
			s.log.Warn("refused a connection", "err", err)
			_ = nc.Close()
		}
	}
}

// isPassing says whether accepting may succeed later: the end of PID 1 would be the end of the container.
func isPassing(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// pause lets others give back what accepting needs. It says false when the server ends.
func (s *Server) pause() bool {
	t := time.NewTimer(100 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// take serves nc, whose peer may come in, if there are not too many.
func (s *Server) take(nc net.Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return errClosing
	case s.conns >= maxConns:
		return fmt.Errorf("there are %d connections", s.conns)
	}
	s.conns++
	s.wg.Go(func() {
		s.ServeConn(nc)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.conns--
	})
	return nil
}

// checkPeer admits root of this user namespace, and processes that this PID namespace does not have: the host's. Nobody
// else in the container gets here unless the socket's directory was opened up, and then this holds.
func checkPeer(nc net.Conn) error {
	u, ok := nc.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("%T is not a unix socket", nc)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	if cred.Uid != 0 && cred.Pid != 0 {
		return fmt.Errorf("pid %d has uid %d", cred.Pid, cred.Uid)
	}
	return nil
}

// ServeConn serves one gateway on nc until either ends.
func (s *Server) ServeConn(nc net.Conn) {
	ctx, cancel := context.WithTimeout(s.ctx, helloTimeout)
	defer cancel()
	conn, err := agentproto.Accept(ctx, nc, agentproto.Config{
		Hello: agentproto.Hello{Software: "berth-agent " + version.String()}, OnCall: s.call,
		Limits: agentproto.Limits{Channels: maxOffers}, Budget: s.budget,
	})
	if err != nil {
		s.log.Warn("hello", "err", err)
		return
	}
	defer conn.Close()
	for {
		a, err := conn.AcceptAttachment(s.ctx)
		if err != nil {
			return
		}
		if !s.goDo(&s.wg, func() { s.serveAttachment(a) }) {
			_ = a.Close()
		}
	}
}

func (s *Server) serveAttachment(a *agentproto.Attachment) {
	defer a.Close()
	s.wg.Go(func() { // requests about the whole client: there are none yet
		for r := range a.Requests() {
			if r.Reply(false, nil) != nil {
				return
			}
		}
	})
	for {
		n, err := a.AcceptChannel(s.ctx)
		if err != nil {
			return
		}
		s.open(n, a.Info())
	}
}

// open begins a session or a log, or refuses it.
func (s *Server) open(n *agentproto.NewChannel, info agentproto.Attach) {
	switch n.Kind {
	case "session":
	case agentproto.KindLogs:
		s.openLogs(n)
		return
	default:
		_ = n.Reject(agentproto.ReasonUnknownKind, "this agent opens sessions and logs alone")
		return
	}
	user, err := findAccount(s.passwd, s.group, info.User)
	if err != nil {
		s.log.Debug("look an account up", "err", err)
		_ = n.Reject(agentproto.ReasonProhibited, fmt.Sprintf("there is no user %.64q in the container", info.User))
		return
	}
	if !s.goDo(&s.sessions, func() {
		ch, err := n.Accept()
		if err != nil {
			return // the client is gone
		}
		newSession(s, wireChannel{ch}, client{account: user, remote: info.Remote, local: info.Local}).serve()
	}) {
		_ = n.Reject(agentproto.ReasonShortOfSupply, errClosing.Error())
	}
}

// wireChannel is a channel of agentproto.
type wireChannel struct{ *agentproto.Channel }

func (c wireChannel) next() (request, bool) {
	r, ok := <-c.Requests()
	if !ok {
		return request{}, false
	}
	return request{name: r.Name, payload: r.Payload, reply: func(ok bool) error { return r.Reply(ok, nil) }}, true
}

// call answers what a gateway asks about the container.
func (s *Server) call(_ context.Context, name string, payload []byte) ([]byte, error) {
	switch {
	case name == "stats":
		return json.Marshal(readStats())
	case name == callPair && len(payload) == len(pinned.Key{}):
		ours, err := s.pair(pinned.Key(payload))
		return ours[:], err
	}
	return nil, errors.New("there is no such call")
}
