package sshproxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"berth/internal/agentproto"
	"berth/internal/compute"
	"berth/internal/session"
)

// scripted is a container whose agent its tenant has replaced: each of its sessions does what the script says.
type scripted struct {
	script func(ch *agentproto.Channel)
	wg     sync.WaitGroup
}

func (s *scripted) DialAgent(context.Context, compute.Ref) (net.Conn, error) {
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	s.wg.Go(func() {
		c, err := agentproto.Accept(context.Background(), theirs, agentproto.Config{})
		if err != nil {
			return
		}
		defer c.Close()
		for {
			a, err := c.AcceptAttachment(context.Background())
			if err != nil {
				return
			}
			s.wg.Go(func() {
				for {
					n, err := a.AcceptChannel(context.Background())
					if err != nil {
						return
					}
					ch, err := n.Accept()
					if err != nil {
						continue
					}
					s.wg.Go(func() {
						defer ch.Close()
						s.script(ch)
					})
				}
			})
		}
	})
	return ours, nil
}

// withAgent is a client in a container with that agent.
func withAgent(t *testing.T, limits Limits, script func(ch *agentproto.Channel)) *gossh.Client {
	t.Helper()
	w := newWorld(t)
	key := newKey(t)
	alice := w.user("alice")
	w.container("aaaaaaaa", alice, w.key(alice, key))
	engine := &scripted{script: script}
	t.Cleanup(engine.wg.Wait)
	g := startGateway(t, Options{
		Directory: w, Limits: limits, Sessions: startSessions(t, session.Options{Dialer: engine}),
	})
	return g.dial(t, "aaaaaaaa", key)
}

// begin answers requests up to the one that starts something.
func begin(ch *agentproto.Channel) {
	for r := range ch.Requests() {
		_ = r.Reply(true, nil)
		if r.Name == "exec" {
			return
		}
	}
}

func status(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func TestOutputEndsBeforeTheCommand(t *testing.T) {
	goOn := make(chan struct{})
	c := withAgent(t, Limits{}, func(ch *agentproto.Channel) {
		begin(ch)
		_, _ = io.WriteString(ch, "first")
		_ = ch.CloseWrite()
		<-goOn
		_, _ = ch.Request(context.Background(), "exit-status", false, status(6))
	})
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("x"); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "the output ends while the command runs", func() {
		if b, err := io.ReadAll(out); string(b) != "first" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	})
	close(goOn)
	var exit *gossh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 6 {
		t.Errorf("the session ended with %v", err)
	}
}

func TestAgentMisbehaves(t *testing.T) {
	ctx := context.Background()
	for what, tt := range map[string]struct {
		script func(ch *agentproto.Channel)
		stdout string
		stderr string
		status int
	}{
		"closes without a word":  {func(ch *agentproto.Channel) { begin(ch) }, "", "The connection to the container was lost", 255},
		"closes after output":    {func(ch *agentproto.Channel) { begin(ch); _, _ = io.WriteString(ch, "out") }, "out", "The connection to the container was lost", 255},
		"closes before it began": {func(*agentproto.Channel) {}, "", "The connection to the container was lost", 255},
		"two exits": {func(ch *agentproto.Channel) {
			begin(ch)
			_, _ = ch.Request(ctx, "exit-status", false, status(3))
			_, _ = ch.Request(ctx, "exit-status", false, status(4))
			_ = ch.CloseWrite()
		}, "", "", 3},
		"a malformed exit": {func(ch *agentproto.Channel) {
			begin(ch)
			_, _ = ch.Request(ctx, "exit-status", false, []byte{1})
			_, _ = ch.Request(ctx, "exit-signal", false, []byte{0, 0, 0, 9, 1})
			_, _ = ch.Request(ctx, "exit-status", false, status(5))
			_ = ch.CloseWrite()
		}, "", "", 5},
		"requests that are not for clients": {func(ch *agentproto.Channel) {
			begin(ch)
			for _, name := range []string{"exec", "x11-req", "auth-agent-req@openssh.com", "exit-statu"} {
				if ok, err := ch.Request(ctx, name, true, nil); ok || err != nil {
					return
				}
			}
			_, _ = ch.Request(ctx, "exit-status", false, status(8))
			_ = ch.CloseWrite()
		}, "", "", 8},
	} {
		t.Run(what, func(t *testing.T) {
			s, err := withAgent(t, Limits{}, tt.script).NewSession()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var out, errs bytes.Buffer
			s.Stdout, s.Stderr = &out, &errs
			within(t, 10*time.Second, "the session", func() { err = s.Run("x") })
			var exit *gossh.ExitError
			if !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if exit.ExitStatus() != tt.status || out.String() != tt.stdout || !strings.Contains(errs.String(), tt.stderr) ||
				tt.stderr == "" && errs.Len() > 0 {
				t.Errorf("%q, %q, %d", &out, &errs, exit.ExitStatus())
			}
		})
	}
}

// TestAgentDoesNotAnswer leaves a request without an answer: that session ends in time, and no other is held up.
func TestAgentDoesNotAnswer(t *testing.T) {
	c := withAgent(t, Limits{RequestTimeout: 300 * time.Millisecond}, func(ch *agentproto.Channel) {
		r, ok := <-ch.Requests()
		if !ok || bytes.HasSuffix(r.Payload, []byte("deaf")) {
			<-ch.Done()
			return
		}
		_ = r.Reply(true, nil)
		_, _ = ch.Request(context.Background(), "exit-status", false, status(0))
		_ = ch.CloseWrite()
	})
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var stderr bytes.Buffer
	s.Stderr = &stderr
	ended := make(chan error, 1)
	began := time.Now()
	go func() { ended <- s.Run("deaf") }()
	other, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	within(t, 5*time.Second, "another session", func() {
		if err := other.Run("x"); err != nil {
			t.Error(err)
		}
	})
	select {
	case err := <-ended:
		if err == nil || time.Since(began) < 300*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the session waits")
	}
}
