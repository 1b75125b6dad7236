package sshproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/charmbracelet/ssh"
	gossh "golang.org/x/crypto/ssh"

	"berth/internal/compute"
	"berth/internal/route"
)

// exitOurs is the exit status that says that the gateway, not a command, ended a session: ssh(1)'s own.
const exitOurs = 255

// rejectSlack is how many refusals may wait for a client that does not read them.
const rejectSlack = 64

// channel is called by charmbracelet/ssh, in a goroutine of its own, for every channel that a client opens.
func (g *Gateway) channel(_ *ssh.Server, sc *gossh.ServerConn, nc gossh.NewChannel, ctx ssh.Context) {
	c := connOf(ctx)
	if c == nil {
		_ = nc.Reject(gossh.Prohibited, "not logged in")
		return
	}
	defer c.opening.Add(-1)
	if int(c.opening.Add(1)) > g.o.Limits.Channels+rejectSlack {
		c.abort(errFloodChannels)
		return
	}
	c.backlog.gone(len(nc.ExtraData()) + packetCost)
	if err := c.begin(); err != nil {
		_ = nc.Reject(gossh.ResourceShortage, reason(err))
		return
	}
	defer c.done()
	id, login, err := c.identify(sc)
	if err != nil {
		g.log.Error("identify", "remote", c.nc.RemoteAddr(), "err", err)
		c.abort(err)
		return
	}
	switch kind := nc.ChannelType(); {
	case kind == "session":
		c.serveSession(nc, id, login)
	case kind == "direct-tcpip" && login.Lobby():
		c.serveJump(nc)
	case kind == "direct-tcpip", kind == "direct-streamlocal@openssh.com":
		_ = nc.Reject(gossh.Prohibited, "forwarding into a container (-L, -D, -W) is not offered yet")
	default:
		_ = nc.Reject(gossh.UnknownChannelType, fmt.Sprintf("channels of kind %q are not offered", printable(kind)))
	}
}

// sessionChannel is one session of a client (RFC 4254, section 6), in a container or in the lobby.
type sessionChannel struct {
	c     *conn
	g     *Gateway
	ch    gossh.Channel
	input *counted // what the client sends
	queue *requestQueue

	ctx    context.Context // ends when the client closes the channel or the connection ends
	cancel context.CancelCauseFunc
	pty    atomic.Bool   // the client has a terminal, in raw mode: lines end in CR LF
	stderr chan struct{} // has a token while somebody writes to stderr or ends the output: x/crypto allows one at a time
	eof    bool          // EOF was sent; guarded by the token

	audit sessionRecord
}

// serveSession accepts a session and serves it to its end. It is accepted whether or not the container can be entered,
// since a refused channel has no stderr to say why.
func (c *conn) serveSession(nc gossh.NewChannel, id identity, login route.Login) {
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	s := &sessionChannel{
		c: c, g: c.g, ch: ch, input: c.backlog.counted(ch), queue: newRequestQueue(), stderr: make(chan struct{}, 1),
	}
	s.audit.begin(c, id)
	s.ctx, s.cancel = context.WithCancelCause(c.ctx)
	collected := make(chan struct{})
	c.wg.Go(func() {
		defer close(collected)
		s.collect(reqs)
	})
	for _, n := range c.enter(s) {
		s.say(n)
	}
	if login.Lobby() {
		s.serveLobby(id, login)
	} else {
		s.serveContainer(id, login)
	}
	_ = ch.Close()
	c.leave(s)
	s.audit.end()
	// Until the client has closed it too, x/crypto keeps the channel, and it counts as one of the client's.
	<-collected
	s.input.finish()
}

// enter makes the session known to the connection, and returns what it has to tell the client.
func (c *conn) enter(s *sessionChannel) (notes []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live[s] = struct{}{}
	c.g.sessions.Add(1)
	notes, c.pending = c.pending, nil
	return notes
}

// leave is the end of a session.
func (c *conn) leave(s *sessionChannel) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.live, s)
	c.g.sessions.Add(-1)
}

// collect takes the client's requests off the connection as they come, so that none of them ever holds it up.
func (s *sessionChannel) collect(reqs <-chan *gossh.Request) {
	defer s.queue.end()
	defer s.cancel(errGone)
	for r := range reqs {
		s.c.backlog.gone(len(r.Payload) + packetCost)
		if !s.queue.push(r) {
			s.cancel(compute.Errorf(compute.CodeLimit, "Too many requests in one session."))
			gossh.DiscardRequests(reqs)
			return
		}
	}
}

// say writes a line of ours to the client's stderr. It gives up when the client takes nothing.
func (s *sessionChannel) say(text string) {
	t := time.NewTimer(goodbye)
	defer t.Stop()
	select {
	case s.stderr <- struct{}{}:
	case <-t.C:
		return
	}
	written := make(chan struct{})
	s.c.wg.Go(func() {
		defer func() { <-s.stderr }()
		defer close(written)
		if s.eof {
			return
		}
		end := "\n"
		if s.pty.Load() {
			end = "\r\n"
		}
		_, _ = io.WriteString(s.ch.Stderr(), "berth: "+printable(text)+end)
	})
	select {
	case <-written:
	case <-t.C:
	}
}

// stderrWriter is the client's stderr for everybody who writes to it.
type stderrWriter struct{ s *sessionChannel }

func (w stderrWriter) Write(p []byte) (int, error) {
	w.s.stderr <- struct{}{} // a writer that waits ends with the connection
	defer func() { <-w.s.stderr }()
	if w.s.eof {
		return 0, io.EOF
	}
	return w.s.ch.Stderr().Write(p)
}

// refuse waits for the client to ask for something to run, and tells it why nothing does. Before that, a client has not
// put its terminal and its streams in order.
func (s *sessionChannel) refuse(why error) {
	wait, cancel := context.WithTimeout(s.ctx, s.g.o.Limits.RequestTimeout)
	defer cancel()
	for {
		r := s.queue.next(wait.Done())
		if r == nil {
			return
		}
		switch r.Type {
		case "pty-req":
			s.pty.Store(true)
			_ = r.Reply(true, nil)
		case "shell", "exec", "subsystem":
			_ = r.Reply(true, nil)
			s.fail(why)
			return
		default:
			_ = r.Reply(false, nil)
		}
	}
}

// fail ends a session that has begun nothing, for a reason of ours: a line on stderr, 255, EOF and, by the caller,
// CLOSE.
func (s *sessionChannel) fail(why error) {
	s.say(reason(why))
	s.exit(exitOurs)
}

// exit sends an exit status of ours and EOF. Nothing may write to the client's stdout any more.
func (s *sessionChannel) exit(status uint32) {
	s.sendStatus(status)
	s.sendEOF()
}

func (s *sessionChannel) sendStatus(status uint32) {
	_, _ = s.ch.SendRequest("exit-status", false, gossh.Marshal(struct{ Status uint32 }{status}))
}

func (s *sessionChannel) sendEOF() {
	s.stderr <- struct{}{}
	defer func() { <-s.stderr }()
	if !s.eof {
		s.eof = true
		_ = s.ch.CloseWrite()
	}
}

// stop ends a session from outside while others may write to it: the client is told why, if it is there, and gets 255
// and, by the caller, CLOSE, which ends the output as well.
func (s *sessionChannel) stop() {
	if why := context.Cause(s.ctx); !errors.Is(why, errGone) {
		s.say(reason(why))
		s.sendStatus(exitOurs)
	}
}
