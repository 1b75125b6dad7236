package sshproxy

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"
)

// loggedInRaw is a raw client in the lobby.
func loggedInRaw(t *testing.T, g *gatewayUnderTest, user string, key gossh.Signer) *rawClient {
	t.Helper()
	c := dialRaw(t, g.addr)
	if got, err := c.sign(user, key.PublicKey(), key); err != nil || got != authSuccess {
		t.Fatal(got, err)
	}
	return c
}

// openMessage is SSH_MSG_CHANNEL_OPEN (RFC 4254, section 5.1).
func openMessage(kind string, number, window uint32) []byte {
	b := appendString([]byte{90}, []byte(kind))
	b = binary.BigEndian.AppendUint32(b, number)
	b = binary.BigEndian.AppendUint32(b, window)
	return binary.BigEndian.AppendUint32(b, 1<<15)
}

// TestChannelLimit opens more sessions than one connection may have, and then closes one.
func TestChannelLimit(t *testing.T) {
	w := newWorld(t)
	key := newKey(t)
	w.key(w.user("alice"), key)
	g := startGateway(t, Options{Directory: w, Limits: Limits{Channels: 4}})
	c := g.dial(t, "alice", key)
	var open []gossh.Channel
	for range 4 {
		ch, reqs, err := c.OpenChannel("session", nil)
		if err != nil {
			t.Fatal(err)
		}
		go gossh.DiscardRequests(reqs)
		open = append(open, ch)
	}
	_, _, err := c.OpenChannel("session", nil)
	if err == nil || !strings.Contains(err.Error(), "too many channels in one connection (at most 4)") {
		t.Errorf("the fifth: %v", err)
	}
	if err := open[0].Close(); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "a place comes free", func() {
		for {
			if ch, reqs, err := c.OpenChannel("session", nil); err == nil {
				go gossh.DiscardRequests(reqs)
				ch.Close()
				return
			}
		}
	})
}

// TestUnreadRefusals opens channels for ever and reads none of the answers: the gateway must not keep them all.
func TestUnreadRefusals(t *testing.T) {
	w := newWorld(t)
	key := newKey(t)
	w.key(w.user("alice"), key)
	g := startGateway(t, Options{Directory: w, Limits: Limits{Channels: 8}})
	c := loggedInRaw(t, g, "alice", key)
	before := runtime.NumGoroutine()
	most := 0
	for i := range uint32(1 << 20) {
		if err := c.write(openMessage("session", i, 0)); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("the connection stays open after %d channels", i)
			}
			return
		}
		if i%512 == 0 {
			if n := runtime.NumGoroutine() - before; n > most {
				if most = n; n > 1000 {
					t.Fatalf("%d goroutines after %d channels", n, i)
				}
			}
		}
	}
	t.Error("the connection stays open")
}

// TestUnconfirmedCloses lets sessions end and never agrees to it: x/crypto keeps such channels, so they must count.
func TestUnconfirmedCloses(t *testing.T) {
	w := newWorld(t)
	key := newKey(t)
	w.key(w.user("alice"), key)
	g := startGateway(t, Options{Directory: w, Limits: Limits{Channels: 4}, Lobby: func(context.Context, LobbySession) int { return 0 }})
	c := loggedInRaw(t, g, "alice", key)
	for i := range 4 {
		if _, err := c.exec("x"); err != nil { // reads CLOSE, and does not answer it
			t.Fatalf("session %d: %v", i, err)
		}
	}
	if _, err := c.exec("x"); err == nil || !strings.Contains(err.Error(), "channel refused") {
		t.Errorf("the fifth: %v", err)
	}
}

// TestRequestFlood sends requests on one session without end while another one works.
func TestRequestFlood(t *testing.T) {
	w := newWorld(t)
	key := newKey(t)
	w.key(w.user("alice"), key)
	started := make(chan struct{})
	g := startGateway(t, Options{Directory: w, Lobby: func(ctx context.Context, s LobbySession) int {
		if s.Command == "echo" {
			_, _ = io.Copy(s.Stdout, s.Stdin)
			return 0
		}
		close(started)
		<-ctx.Done()
		return 0
	}})
	c := g.dial(t, "alice", key)
	flooded, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer flooded.Close()
	if err := flooded.Start("hold"); err != nil {
		t.Fatal(err)
	}
	<-started
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := flooded.SendRequest("env", false, make([]byte, 1000)); err != nil {
					return
				}
			}
		}
	}()
	defer func() {
		close(stop)
		<-stopped
	}()
	for range 20 {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		s.Stdin = strings.NewReader("hello")
		within(t, 5*time.Second, "echo beside a flood", func() {
			if out, err := s.Output("echo"); err != nil || string(out) != "hello" {
				t.Errorf("%q, %v", out, err)
			}
		})
	}
}

// TestGlobalRequests are answered by the gateway, and none silently.
func TestGlobalRequests(t *testing.T) {
	w := newWorld(t)
	key := newKey(t)
	alice := w.user("alice")
	w.container("aaaaaaaa", alice, w.key(alice, key))
	g := startGateway(t, Options{Directory: w})
	c := g.dial(t, "aaaaaaaa", key)
	for name, want := range map[string]bool{
		"keepalive@openssh.com": true, "keepalive@golang.org": true, "no-more-sessions@openssh.com": true,
		"hostkeys-prove-00@openssh.com": false,
		"tcpip-forward":                 false, "streamlocal-forward@openssh.com": false, "cancel-tcpip-forward": false, "x": false,
	} {
		if ok, _, err := c.SendRequest(name, true, nil); err != nil || ok != want {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var stderr strings.Builder
	s.Stderr = &stderr
	_ = s.Run("true")
	if !strings.Contains(stderr.String(), "berth: remote forwarding (-R) is not offered yet\n") {
		t.Errorf("stderr: %q", stderr.String())
	}
}

// TestChannelsNotOffered are refused at once, with a message that a person understands.
func TestChannelsNotOffered(t *testing.T) {
	w := newWorld(t)
	key := newKey(t)
	alice := w.user("alice")
	w.container("aaaaaaaa", alice, w.key(alice, key))
	g := startGateway(t, Options{Directory: w})
	c := g.dial(t, "aaaaaaaa", key)
	for kind, want := range map[string]string{
		"direct-tcpip":                   "forwarding into a container",
		"direct-streamlocal@openssh.com": "forwarding into a container",
		"x11":                            `channels of kind \"x11\" are not offered`,
		"tun@openssh.com":                "not offered",
		"\x1b[2J":                        `channels of kind \"?[2J\" are not offered`,
	} {
		_, _, err := c.OpenChannel(kind, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", kind, err)
		}
	}
}

// TestNoMoreSessions is what a stock client sends right behind the session that it opens: that session must come up,
// however the two are dispatched.
func TestNoMoreSessions(t *testing.T) {
	w := newWorld(t)
	key := newKey(t)
	w.key(w.user("alice"), key)
	g := startGateway(t, Options{Directory: w})
	for range 50 {
		c := loggedInRaw(t, g, "alice", key)
		if err := c.write(openMessage("session", 0, 1<<20)); err != nil {
			t.Fatal(err)
		}
		if err := c.write(append(appendString([]byte{80}, []byte("no-more-sessions@openssh.com")), 0)); err != nil {
			t.Fatal(err)
		}
		if p, err := c.read(); err != nil || p[0] != 91 {
			t.Fatalf("the session is refused: %v, %v", p, err)
		}
	}
}
