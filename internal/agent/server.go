// Package agent is the inside of a container: PID 1, which reaps, runs sessions for clients of the gateway, and tells what
// the container uses.
//
// It serves the wire of internal/agentproto on a unix socket that only root of the container and its host can open, and, as
// break-glass, SSH on standard input and output. It needs nothing of the image: no shell, no libc, no sshd, no sftp-server.
// What a session does happens in a child with its user's identity; this process does nothing on a user's behalf.
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
	// Passwd and Group are the account files; empty means those in /etc.
	Passwd, Group string
}

// Server serves gateways.
type Server struct {
	environ       []string
	accept        AcceptEnv
	log           *slog.Logger
	procs         *processes
	passwd, group string
	logs          ring

	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // connections, attachments, sessions

	mu      sync.Mutex // guards what follows
	closing bool
}

// NewServer returns a Server. It does no I/O.
func NewServer(o Options) *Server {
	s := &Server{
		environ: o.Environ, accept: o.AcceptEnv, log: o.Log, procs: newProcesses(o.Init), passwd: o.Passwd, group: o.Group,
	}
	if s.accept == nil {
		s.accept = DefaultAcceptEnv()
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
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s
}

var errClosing = errors.New("the agent is ending")

// Close ends all sessions and waits for them.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.cancel(errClosing)
	s.wg.Wait()
	return nil
}

// goDo runs f, which Close waits for, unless it has begun.
func (s *Server) goDo(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.wg.Go(f)
	return true
}

// Serve accepts connections until l is closed. Peers that are neither root in here nor on the host are turned away.
func (s *Server) Serve(l net.Listener) error {
	stop := context.AfterFunc(s.ctx, func() { _ = l.Close() })
	defer stop()
	for {
		nc, err := l.Accept()
		if err != nil {
			if s.ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept: %w", err)
		}
		if err := checkPeer(nc); err != nil {
			s.log.Warn("refused a connection", "err", err)
			_ = nc.Close()
			continue
		}
		if !s.goDo(func() { s.ServeConn(nc) }) {
			_ = nc.Close()
		}
	}
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
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
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

// maxOffers is how many channels one client may open at once before they are looked at: as many as a gateway lets it have.
const maxOffers = 256

// ServeConn serves one gateway on nc until either ends.
func (s *Server) ServeConn(nc net.Conn) {
	ctx, cancel := context.WithTimeout(s.ctx, helloTimeout)
	defer cancel()
	conn, err := agentproto.Accept(ctx, nc, agentproto.Config{
		Hello: agentproto.Hello{Software: "berth-agent " + version.String()}, OnCall: s.call,
		Limits: agentproto.Limits{Channels: maxOffers},
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
		if !s.goDo(func() { s.serveAttachment(a) }) {
			return
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
		if n.Kind != "session" {
			_ = n.Reject(agentproto.ReasonUnknownKind, "this agent opens sessions alone")
			continue
		}
		info := a.Info()
		user, err := findAccount(s.passwd, s.group, info.User)
		if err != nil {
			s.log.Debug("look an account up", "err", err)
			_ = n.Reject(agentproto.ReasonProhibited, fmt.Sprintf("there is no user %.64q in the container", info.User))
			continue
		}
		ch, err := n.Accept()
		if err != nil {
			continue
		}
		run := newSession(s, wireChannel{ch}, client{account: user, remote: info.Remote, local: info.Local})
		if !s.goDo(run.serve) {
			return
		}
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
func (s *Server) call(_ context.Context, name string, _ []byte) ([]byte, error) {
	switch name {
	case "stats":
		return json.Marshal(readStats())
	case "logs":
		return s.logs.tail(agentproto.MaxPayload - 1), nil
	}
	return nil, errors.New("there is no such call")
}
