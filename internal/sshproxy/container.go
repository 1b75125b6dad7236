package sshproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"berth/internal/compute"
	"berth/internal/route"
	"berth/internal/session"
)

var errLost = compute.Errorf(compute.CodeUnavailable,
	"The connection to the container was lost; did it stop or restart?")

// attachmentSlot is a client's presence in its container, made for the first of its channels and shared by all.
type attachmentSlot struct {
	token chan struct{} // taken while it is looked at or made, so that it is made once
	att   *session.Attachment
}

func (a *attachmentSlot) close() {
	a.token <- struct{}{}
	defer func() { <-a.token }()
	if a.att != nil {
		_ = a.att.Close()
		a.att = nil
	}
}

// warm begins to connect to a container while the client still waits for the answer to its login.
func (c *conn) warm(id compute.ContainerID, key string) {
	c.work(func() {
		ctx, cancel := context.WithTimeout(c.ctx, c.g.o.Limits.OpenTimeout)
		defer cancel()
		if t, err := c.g.target(ctx, id, key); err == nil && t.Container.Entry() == nil {
			c.g.o.Sessions.Warm(t.Container.Ref())
		}
	})
}

// attach returns the client's attachment, and makes it anew if the container was restarted meanwhile.
func (c *conn) attach(ctx context.Context, ref compute.Ref, user string) (*session.Attachment, error) {
	select {
	case c.agent.token <- struct{}{}:
		defer func() { <-c.agent.token }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if a := c.agent.att; a != nil {
		select {
		case <-a.Done():
			_ = a.Close()
			c.agent.att = nil
		default:
			return a, nil
		}
	}
	a, err := c.g.o.Sessions.Attach(ctx, ref, session.Client{
		User: user, Remote: c.nc.RemoteAddr().String(), Local: c.nc.LocalAddr().String(),
	})
	if err != nil {
		return nil, err
	}
	c.agent.att = a
	return a, nil
}

// serveContainer connects the session to one in the container.
func (s *sessionChannel) serveContainer(id identity, login route.Login) {
	agent, err := s.open(id, login)
	if err != nil {
		if s.ctx.Err() != nil {
			err = context.Cause(s.ctx)
		}
		s.audit.refused(err)
		s.refuse(err)
		return
	}
	s.relay(agent)
}

// open authorizes the session anew and opens it in the container.
func (s *sessionChannel) open(id identity, login route.Login) (session.Channel, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.g.o.Limits.OpenTimeout)
	defer cancel()
	t, err := s.g.authorize(ctx, login.Container, id.key)
	if err != nil {
		return nil, err
	}
	att, err := s.c.attach(ctx, t.Container.Ref(), login.User)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	ch, err := att.Open(ctx, "session", nil)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	return ch, nil
}

// relay copies between the client and the container until both are done. Whoever ends first, the other one learns of it
// by the same message; the exit status waits until all output is out.
func (s *sessionChannel) relay(agent session.Channel) {
	defer agent.Close()
	started := make(chan struct{})   // closed when the client knows that its command was begun: output comes after it
	forwarded := make(chan struct{}) // closed when no request is under way to the container any more
	output := make(chan struct{})    // closed when all output is with the client
	s.c.wg.Go(func() {
		defer close(forwarded)
		s.forwardRequests(agent, sync.OnceFunc(func() { close(started) }))
	})
	s.c.wg.Go(func() {
		defer close(output)
		select {
		case <-started:
		case <-forwarded:
		}
		var both sync.WaitGroup
		both.Go(func() { _ = copyStream(stderrWriter{s}, agent.Stderr()) })
		_ = copyStream(stdoutWriter{s.ch}, agent)
		both.Wait()
	})
	s.c.wg.Go(func() {
		if err := copyStream(agent, s.input); err == nil {
			_ = agent.CloseWrite()
			return
		}
		// Nobody reads the input any more: the client must not hang on it.
		_, _ = io.Copy(io.Discard, s.input)
	})
	told, ok := s.relayEnd(agent.Requests(), output)
	switch {
	case !ok:
		s.stop()
		return
	case told:
		return
	}
	<-forwarded
	select {
	case <-started:
		s.fail(errLost)
	default:
		s.refuse(errLost)
	}
}

// relayEnd waits for the end of a session in the container, and tells the client how it ended, if the container does.
// OK is false when the session is to end before that.
func (s *sessionChannel) relayEnd(reqs <-chan *session.Request, output <-chan struct{}) (told, ok bool) {
	r := exitHolder{s: s}
	var early <-chan time.Time
	for reqs != nil || output != nil {
		select {
		case req, ok := <-reqs:
			if !ok {
				reqs = nil
				continue
			}
			r.request(req)
		case <-output:
			output = nil
			// The agent sends the status before the end of its output: if it came, it is in the queue by now.
			if reqs = r.takeAll(reqs); r.exit != nil {
				r.finish()
			}
			r.out, early = true, time.After(earlyEOF)
		case <-early:
			s.sendEOF()
		case <-s.ctx.Done():
			return false, false
		}
	}
	return r.told, true
}

// earlyEOF is how long the end of a command's output waits for the end of the command. If the container is lost
// instead, there is something to say, and nothing can be said after EOF.
const earlyEOF = 100 * time.Millisecond

// exitHolder holds back what ends a session until its output is out.
type exitHolder struct {
	s    *sessionChannel
	out  bool             // the output is out
	exit *session.Request // held back
	told bool             // the client knows how it ended
}

// request handles one from the container: only those that end a session are for the client.
func (r *exitHolder) request(req *session.Request) {
	ok := validExit(req) && r.exit == nil && !r.told
	_ = req.Reply(ok, nil)
	if !ok {
		return
	}
	if r.exit = req; r.out {
		r.finish()
	}
}

// finish tells the client how the command ended, then that its output is out.
func (r *exitHolder) finish() {
	_, _ = r.s.ch.SendRequest(r.exit.Name, false, r.exit.Payload)
	r.s.sendEOF()
	r.exit, r.told = nil, true
}

// takeAll handles the requests that have come, and returns nil when no more will.
func (r *exitHolder) takeAll(reqs <-chan *session.Request) <-chan *session.Request {
	for {
		select {
		case req, ok := <-reqs:
			if !ok {
				return nil
			}
			r.request(req)
		default:
			return reqs
		}
	}
}

// validExit accepts the requests of RFC 4254, section 6.10, well formed.
func validExit(r *session.Request) bool {
	const maxExit = 4096
	switch {
	case len(r.Payload) > maxExit:
		return false
	case r.Name == "exit-status":
		return len(r.Payload) == 4
	case r.Name == "exit-signal":
		var m struct {
			Signal     string
			CoreDumped bool
			Message    string
			Language   string
		}
		return gossh.Unmarshal(r.Payload, &m) == nil
	}
	return false
}

// forwardRequests hands the client's requests to the container, in order, and answers those that never go there. It
// calls started when a command was begun.
func (s *sessionChannel) forwardRequests(agent session.Channel, started func()) {
	for {
		r := s.queue.next(agent.Done())
		if r == nil {
			return
		}
		switch r.Type {
		case "pty-req", "env", "window-change", "signal", "break", "eow@openssh.com":
			if r.Type == "pty-req" {
				s.pty.Store(true)
			}
			ok, err := s.forward(agent, r)
			_ = r.Reply(ok && err == nil, nil)
		case "shell", "exec", "subsystem":
			ok, err := s.forward(agent, r)
			// When the container was lost, the client learns of it as of the end of its command.
			_ = r.Reply(ok || err != nil, nil)
			if ok || err != nil {
				s.audit.opened(kindOf(r))
				started()
			}
		case "auth-agent-req@openssh.com":
			s.tell("agent forwarding (-A) is not offered yet")
			_ = r.Reply(false, nil)
		case "x11-req":
			s.tell("X11 forwarding (-X) is not offered yet")
			_ = r.Reply(false, nil)
		default:
			_ = r.Reply(false, nil)
		}
	}
}

// forward asks the container what the client asked. An answer that does not come in time ends the session.
func (s *sessionChannel) forward(agent session.Channel, r *gossh.Request) (bool, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.g.o.Limits.RequestTimeout)
	defer cancel()
	ok, err := agent.Request(ctx, r.Type, r.WantReply, r.Payload)
	if errors.Is(err, context.DeadlineExceeded) {
		s.cancel(err)
	}
	return ok, err
}

// stdoutWriter hides everything of a channel but Write.
type stdoutWriter struct{ io.Writer }
