package session

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/agentproto"
	"berth/internal/compute"
)

// programs is an agent whose sessions run f for what they are asked to.
func programs(f func(e agentproto.Exec, ch *agentproto.Channel)) func(*agentproto.Conn) {
	return func(c *agentproto.Conn) {
		var wg sync.WaitGroup
		defer wg.Wait()
		for {
			a, err := c.AcceptAttachment(context.Background())
			if err != nil {
				return
			}
			wg.Go(func() {
				n, err := a.AcceptChannel(context.Background())
				if err != nil {
					return
				}
				if a.Info().User == "nobody" {
					_ = n.Reject(agentproto.ReasonProhibited, "there is no such user")
					return
				}
				ch, err := n.Accept()
				if err != nil {
					return
				}
				defer ch.Close()
				r, ok := <-ch.Requests()
				if !ok {
					return
				}
				e, err := agentproto.DecodeExec(r.Payload)
				if r.Name != agentproto.RequestExec || err != nil || e.Argv[0] == "old" {
					_ = r.Reply(false, nil)
					return
				}
				_ = r.Reply(true, nil)
				f(e, ch)
			})
		}
	}
}

func ask(ch *agentproto.Channel, name string, payload []byte) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, _ = ch.Request(ctx, name, false, payload)
}

func status(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func killedBy(name string) []byte {
	return append(status(uint32(len(name))), name+"\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
}

// awaitSignal returns the next signal that the command is sent.
func awaitSignal(ch *agentproto.Channel) string {
	for r := range ch.Requests() {
		if r.Name == "signal" && len(r.Payload) > 4 {
			return string(r.Payload[4:])
		}
	}
	return ""
}

func TestRun(t *testing.T) {
	const limit = 100
	m := start(t, Options{Dialer: newHost(t, programs(func(e agentproto.Exec, ch *agentproto.Channel) {
		switch e.Argv[0] {
		case "cat":
			_, _ = io.Copy(ch, ch)
			_, _ = ch.WriteStderr([]byte(strings.Join(append(e.Env, e.Dir), " ")))
			ask(ch, "exit-status", status(7))
		case "much":
			_, _ = io.WriteString(ch, strings.Repeat("x", 3<<20))
			ask(ch, "exit-status", status(0))
		case "killed":
			ask(ch, "exit-signal", killedBy(e.Argv[1]))
		case "liar":
			ask(ch, "exit-status", []byte("long payload"))
			ask(ch, "exit-signal", status(1<<31))
			ask(ch, "exit-signal", killedBy("<script>"))
			ask(ch, "shutdown", nil)
			ask(ch, "exit-status", status(1<<31))
			ask(ch, "exit-status", status(3))
		case "lost":
		}
		_ = ch.CloseWrite()
	}))})
	run := func(c Client, cmd Command) (Result, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		return m.Run(ctx, box, c, cmd, limit)
	}
	root := Client{User: "root"}
	for _, tc := range []struct {
		cmd       Command
		code      int
		signal    string
		out, errs string
		truncated bool
	}{
		{Command{Argv: []string{"cat"}, Env: []string{"A=b"}, Dir: "/srv", Stdin: []byte("hello")}, 7, "", "hello", "A=b /srv", false},
		{Command{Argv: []string{"much"}, Stdin: []byte(strings.Repeat("never read", 1<<20))}, 0, "", strings.Repeat("x", limit), "", true},
		{Command{Argv: []string{"killed", "SEGV"}}, 139, "SEGV", "", "", false},
		{Command{Argv: []string{"killed", "SIG@openssh.com"}}, 255, "SIG@openssh.com", "", "", false},
		{Command{Argv: []string{"liar"}}, 255, "", "", "", false},
	} {
		r, err := run(root, tc.cmd)
		if err != nil || !r.Ended || r.ExitCode != tc.code || r.Signal != tc.signal || string(r.Stdout.Bytes) != tc.out ||
			string(r.Stderr.Bytes) != tc.errs || r.Stdout.Truncated != tc.truncated {
			t.Errorf("%v: %+v, %v", tc.cmd.Argv, r, err)
		}
	}
	for _, tc := range []struct {
		c    Client
		argv string
		code compute.Code
	}{
		{root, "lost", compute.CodeUnavailable},
		{root, "old", compute.CodeConflict},
		{root, "", compute.CodeInvalid},
		{Client{User: "nobody"}, "cat", compute.CodeInvalid},
	} {
		if r, err := run(tc.c, Command{Argv: []string{tc.argv}}); compute.CodeOf(err) != tc.code || r.Ended {
			t.Errorf("%q as %s: %+v, %v; want %s", tc.argv, tc.c.User, r, err, tc.code)
		}
	}
}

// A command whose time is over is asked to end, and then made to; one that takes neither is left.
func TestRunEnds(t *testing.T) {
	began := make(chan struct{}, 1)
	m := start(t, Options{Dialer: newHost(t, programs(func(e agentproto.Exec, ch *agentproto.Channel) {
		_, _ = io.WriteString(ch, "began")
		began <- struct{}{}
		name := awaitSignal(ch)
		if e.Argv[0] != "polite" {
			name = awaitSignal(ch)
		}
		if e.Argv[0] == "immortal" {
			<-ch.Done()
			return
		}
		ask(ch, "exit-signal", killedBy(name))
		_ = ch.CloseWrite()
	}))})
	over := errors.New("the time is over")
	for argv, want := range map[string]Result{
		"polite": {Ended: true, ExitCode: 143, Signal: "TERM"}, "stubborn": {Ended: true, ExitCode: 137, Signal: "KILL"}, "immortal": {},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			<-began
			cancel(over)
		}()
		r, err := m.Run(ctx, box, Client{User: "root"}, Command{Argv: []string{argv}}, 100)
		if !errors.Is(err, over) || r.Ended != want.Ended || r.ExitCode != want.ExitCode || r.Signal != want.Signal ||
			string(r.Stdout.Bytes) != "began" {
			t.Errorf("%s: %+v, %v", argv, r, err)
		}
	}
}
