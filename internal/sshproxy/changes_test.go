package sshproxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"berth/internal/compute"
)

// holdLobby is a lobby whose commands last until they are ended.
func holdLobby(ctx context.Context, s LobbySession) int {
	_, _ = io.WriteString(s.Stdout, "here\n")
	<-ctx.Done()
	return 0
}

// ending is how a session ended: what the client was told, how, and how soon.
type ending struct {
	stderr string
	err    error
	took   time.Duration
}

// endOfSession runs a command that says "here" and lasts, and does what ends it.
func endOfSession(t *testing.T, c *gossh.Client, command string, end func()) ending {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	s.Stderr = &errs
	if err := s.Start(command); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("here\n"))); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	end()
	done := make(chan error, 1)
	go func() { done <- s.Wait() }()
	select {
	case err = <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the session goes on")
	}
	return ending{errs.String(), err, time.Since(began)}
}

// check holds that a session ended within a second, with 255 and one line.
func (e ending) check(t *testing.T, want string) {
	t.Helper()
	var exit *gossh.ExitError
	if !errors.As(e.err, &exit) || exit.ExitStatus() != 255 {
		t.Errorf("the session ended with %v", e.err)
	}
	if !strings.Contains(e.stderr, want) || strings.Count(e.stderr, "\n") != 1 {
		t.Errorf("the client was told %q, want %q", e.stderr, want)
	}
	if e.took > time.Second {
		t.Errorf("it took %v", e.took)
	}
}

func TestRevokedKeyClosesLobby(t *testing.T) {
	w := newWorld(t)
	alice, bob := newKey(t), newKey(t)
	a := w.user("alice")
	id := w.key(a, alice)
	w.key(w.user("bob"), bob)
	g := startGateway(t, Options{Directory: w, Changes: w.subscribe, Lobby: holdLobby})
	other := g.dial(t, "bob", bob)
	c := g.dial(t, "alice", alice)
	e := endOfSession(t, c, "hold", func() {
		if err := w.DeleteKey(t.Context(), a, id); err != nil {
			t.Fatal(err)
		}
	})
	e.check(t, "under no account")
	within(t, 2*time.Second, "the connection closes", func() { _ = c.Wait() })
	if _, _, err := other.SendRequest("keepalive@openssh.com", true, nil); err != nil {
		t.Errorf("somebody else's connection: %v", err)
	}
}

func TestDisabledUserIsPutOut(t *testing.T) {
	w := newWorld(t)
	alice := newKey(t)
	a := w.user("alice")
	w.key(a, alice)
	g := startGateway(t, Options{Directory: w, Changes: w.subscribe, Lobby: holdLobby})
	idle := g.dial(t, "alice", alice) // has no session: it is closed all the same
	e := endOfSession(t, g.dial(t, "alice", alice), "hold", func() {
		if _, err := w.SetUserDisabled(t.Context(), a, true); err != nil {
			t.Fatal(err)
		}
	})
	e.check(t, "under no account")
	within(t, 2*time.Second, "the idle connection closes", func() { _ = idle.Wait() })
}

// TestLostSubscription ends the subscription and changes something before the gateway has a new one.
func TestLostSubscription(t *testing.T) {
	w := newWorld(t)
	alice := newKey(t)
	a := w.user("alice")
	id := w.key(a, alice)
	subscribed := make(chan struct{}, 8)
	first := make(chan compute.Event)
	changes := func() (<-chan compute.Event, func()) {
		defer func() { subscribed <- struct{}{} }()
		if len(subscribed) == 0 && first != nil {
			return first, func() { first = nil }
		}
		return w.subscribe()
	}
	g := startGateway(t, Options{Directory: w, Changes: changes, Lobby: holdLobby})
	e := endOfSession(t, g.dial(t, "alice", alice), "hold", func() {
		if err := w.DeleteKey(t.Context(), a, id); err != nil {
			t.Fatal(err)
		}
		close(first)
	})
	e.check(t, "under no account")
}

func TestShutdownTellsSessions(t *testing.T) {
	w := newWorld(t)
	alice := newKey(t)
	w.key(w.user("alice"), alice)
	g := startGateway(t, Options{Directory: w, Changes: w.subscribe, Lobby: holdLobby})
	g.dial(t, "alice", alice)
	c := g.dial(t, "alice", alice)
	down := make(chan error, 1)
	e := endOfSession(t, c, "hold", func() {
		if n := g.Sessions(); n != 1 {
			t.Errorf("%d sessions", n)
		}
		go func() { down <- g.Shutdown(t.Context()) }()
	})
	e.check(t, "the gateway is shutting down")
	select {
	case err := <-down:
		if err != nil {
			t.Errorf("shutdown: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("shutdown waits")
	}
}

// endable is a directory that may come to say that nobody may be here.
type endable struct {
	*world
	over atomic.Bool
}

var errOver = compute.Errorf(compute.CodeForbidden, "This gateway was taken out of service; use another one.")

func (d *endable) Target(ctx context.Context, id compute.ContainerID) (compute.Target, error) {
	if d.over.Load() {
		return compute.Target{}, errOver
	}
	return d.world.Target(ctx, id)
}

func (d *endable) Accounts(ctx context.Context, fingerprint string) ([]compute.User, error) {
	if d.over.Load() {
		return nil, errOver
	}
	return d.world.Accounts(ctx, fingerprint)
}

// TestOutOfService holds that a gateway which is none any more puts out everybody, and says so to who comes.
func TestOutOfService(t *testing.T) {
	w := newWorld(t)
	alice := newKey(t)
	owner := w.user("alice")
	w.container("a1b2c3d4", owner, w.key(owner, alice))
	d := &endable{world: w}
	subscription := make(chan compute.Event)
	changes := func() (<-chan compute.Event, func()) {
		if d.over.Load() {
			return w.subscribe()
		}
		return subscription, func() {}
	}
	g := startGateway(t, Options{Directory: d, Changes: changes, Lobby: holdLobby})
	idle := g.dial(t, "a1b2c3d4", alice)
	e := endOfSession(t, g.dial(t, "alice", alice), "hold", func() {
		d.over.Store(true)
		close(subscription)
	})
	e.check(t, "taken out of service")
	within(t, 2*time.Second, "the one in a container closes", func() { _ = idle.Wait() })
	if said := banners(t, g, "alice", alice); !slices.Equal(said, []string{compute.UserMessage(errOver) + "\r\n"}) {
		t.Errorf("who comes is told %q", said)
	}
}
