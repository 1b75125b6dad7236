package k8s

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"berth/internal/compute"
	"berth/internal/pinned"
)

// agentAt is the end of an agent that listens on an address and has been told one key.
type agentAt struct {
	keys     *pinned.Identity
	listener net.Listener
	known    pinned.Key
}

func newAgentAt(t *testing.T, address string) *agentAt {
	t.Helper()
	keys, err := pinned.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	a := &agentAt{keys: keys, listener: l}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				defer cancel()
				if c, err := a.keys.Accept(ctx, nc, func(k pinned.Key) bool { return k == a.known }); err == nil {
					_, _ = io.Copy(c, c)
					_ = c.Close()
				}
			}()
		}
	}()
	return a
}

// loopback is an address of this machine's that nobody else uses: the port is the same for all.
func loopback() string { return fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), rand.N(256), 1+rand.N(254)) }

func podAt(t *testing.T, ip string) *corev1.Pod {
	t.Helper()
	return &corev1.Pod{Status: corev1.PodStatus{PodIP: ip}}
}

func at(ip string) string { return netip.AddrPortFrom(netip.MustParseAddr(ip), pinned.Port).String() }

func TestAddresses(t *testing.T) {
	here, elsewhere := loopback(), loopback()
	var there *agentAt
	asked := 0
	a := newAddresses(slog.New(slog.DiscardHandler), execer{})
	a.run = func(_ context.Context, r compute.Ref, limit int, command ...string) ([]byte, error) {
		asked++
		if r != box || len(command) != 3 || command[1] != "pair" {
			t.Errorf("exec of %v in %v", command, r)
		}
		k, err := pinned.ParseKey(command[2])
		there.known = k
		return []byte(there.keys.Public().String() + "\n")[:limit], err
	}
	there = newAgentAt(t, at(here))
	if nc := a.again(t.Context(), box); nc != nil {
		t.Error("it knows an agent that it never met")
	}
	check := func(nc net.Conn) {
		t.Helper()
		if nc == nil {
			t.Fatal("not reached at its address")
		}
		if _, err := nc.Write([]byte("hello")); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(nc, make([]byte, 5)); err != nil {
			t.Error(err)
		}
		if err := nc.Close(); err != nil {
			t.Error(err)
		}
	}
	check(a.first(t.Context(), box, podAt(t, here)))
	for range 3 {
		check(a.again(t.Context(), box))
	}
	if asked != 1 {
		t.Errorf("it was asked %d times", asked)
	}
	// It runs elsewhere, and something else where it was.
	_ = there.listener.Close()
	stranger := newAgentAt(t, at(here))
	stranger.known = there.known
	if nc := a.again(t.Context(), box); nc != nil {
		t.Error("another agent was taken for it")
	}
	before := there.known
	there = newAgentAt(t, at(elsewhere))
	check(a.first(t.Context(), box, podAt(t, elsewhere)))
	if there.known == before {
		t.Error("one key was used with two agents")
	}
	// Another container has a key of its own, too.
	before = there.known
	other := compute.Ref{Owner: 7, ID: "ffffffff"}
	run := a.run
	a.run = func(ctx context.Context, _ compute.Ref, limit int, command ...string) ([]byte, error) {
		return run(ctx, box, limit, command...)
	}
	check(a.first(t.Context(), other, podAt(t, elsewhere)))
	if there.known == before {
		t.Error("one key was used with two containers")
	}
}

// What cannot be reached at its address, or says nonsense, is reached by pod exec, and not asked again for a while.
func TestAddressesUnreachable(t *testing.T) {
	keys, err := pinned.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	nobody, mute := loopback(), loopback()
	silent, err := net.Listen("tcp", at(mute)) // takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for what, tc := range map[string]struct {
		ip, said string
		err      error
	}{
		"nobody listens":              {nobody, keys.Public().String(), nil},
		"it says nothing":             {mute, keys.Public().String(), nil},
		"a key that is none":          {nobody, strings.Repeat("x", 64), nil},
		"no key":                      {nobody, "", nil},
		"no address":                  {"", keys.Public().String(), nil},
		"an address that is none":     {"pod.example.com", keys.Public().String(), nil},
		"an agent of before all this": {nobody, "usage: agent COMMAND", errors.New("command terminated with exit code 2")},
	} {
		asked := 0
		a := newAddresses(slog.New(slog.DiscardHandler), execer{})
		a.run = func(context.Context, compute.Ref, int, ...string) ([]byte, error) {
			asked++
			return []byte(tc.said), tc.err
		}
		for range 3 {
			if a.first(t.Context(), box, podAt(t, tc.ip)) != nil || a.again(t.Context(), box) != nil {
				t.Errorf("%s: reached", what)
			}
		}
		if asked > 1 || len(a.pairs) != 0 {
			t.Errorf("%s: asked %d times; %d are remembered", what, asked, len(a.pairs))
		}
		if wait := a.without[box].wait; wait != tryAgain {
			t.Errorf("%s: it is tried again after %v", what, wait)
		}
		for range 8 { // it stays like that
			a.without[box] = failure{time.Now(), a.without[box].wait}
			_ = a.first(t.Context(), box, podAt(t, tc.ip))
		}
		if wait := a.without[box].wait; wait != tryAgainLast {
			t.Errorf("%s: in the end it is tried again after %v", what, wait)
		}
	}
}

// A container's own process in the agent's place may leave the exchange of keys unanswered.
func TestAddressesSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAddresses(slog.New(slog.DiscardHandler), execer{})
		a.run = func(ctx context.Context, _ compute.Ref, _ int, _ ...string) ([]byte, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if nc := a.first(ctx, box, podAt(t, "192.0.2.1")); nc != nil || ctx.Err() != nil {
			t.Errorf("%v, %v: no time is left for another way", nc, ctx.Err())
		}
		if wait := a.without[box].wait; wait != tryAgain {
			t.Errorf("it is tried again after %v", wait)
		}
	})
}

func TestAddressesBound(t *testing.T) {
	m := map[compute.Ref]int{}
	for i := range maxPairings + 10 {
		bound(m)
		m[compute.Ref{Owner: compute.UserID(i)}] = i
	}
	if len(m) != maxPairings || m[compute.Ref{Owner: maxPairings + 9}] == 0 {
		t.Errorf("%d are remembered", len(m))
	}
}
