package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/agent"
	"berth/internal/agentproto"
	"berth/internal/pinned"
)

// pod is an agent that serves in this process, on a socket and on an address of its own.
type pod struct {
	t       *testing.T
	socket  string
	address chan string // once it listens there
}

func newPod(t *testing.T) *pod {
	t.Helper()
	p := &pod{t: t, socket: filepath.Join(t.TempDir(), "s"), address: make(chan string, 1)}
	s := agent.NewServer(agent.Options{Listen: func() (net.Listener, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			p.address <- l.Addr().String()
		}
		return l, err
	}})
	l, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := errors.Join(s.Close(ctx), <-served); err != nil {
			t.Error(err)
		}
	})
	return p
}

// pair does as a gateway does by pod exec.
func (p *pod) pair(k pinned.Key) pinned.Key {
	p.t.Helper()
	var out bytes.Buffer
	if err := agent.Pair(p.socket, k.String(), &out); err != nil {
		p.t.Fatal(err)
	}
	theirs, err := pinned.ParseKey(strings.TrimSpace(out.String()))
	if err != nil {
		p.t.Fatal(err)
	}
	return theirs
}

func newKeys(t *testing.T) *pinned.Identity {
	t.Helper()
	i, err := pinned.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// come connects to a pod's address and asks the agent for something.
func come(ctx context.Context, i *pinned.Identity, address string, theirs pinned.Key) error {
	nc, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	if nc, err = i.Dial(ctx, nc, theirs); err != nil {
		return err
	}
	conn, err := agentproto.Dial(ctx, nc, agentproto.Config{})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Call(ctx, "stats", nil)
	return err
}

func TestPair(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p := newPod(t)
	ours := newKeys(t)
	theirs := p.pair(ours.Public())
	address := <-p.address
	if err := come(ctx, ours, address, theirs); err != nil {
		t.Errorf("who is paired: %v", err)
	}
	if err := come(ctx, newKeys(t), address, theirs); err == nil {
		t.Error("somebody else was served")
	}
	if again := p.pair(ours.Public()); again != theirs {
		t.Error("the agent has another key now")
	}
	other := newPod(t)
	if wrong := other.pair(ours.Public()); wrong == theirs {
		t.Error("two agents have one key")
	}
	if err := come(ctx, ours, <-other.address, theirs); err == nil {
		t.Error("another agent was taken for it")
	}
}

// Old keys make room for new ones; who uses one again is the latest.
func TestPairForgets(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p := newPod(t)
	kept, dropped := newKeys(t), newKeys(t)
	theirs := p.pair(dropped.Public())
	p.pair(kept.Public())
	address := <-p.address
	for i := range 63 {
		if i == 62 {
			p.pair(kept.Public())
		}
		p.pair(pinned.Key{byte(i)})
	}
	if err := come(ctx, kept, address, theirs); err != nil {
		t.Errorf("one that was heard of again: %v", err)
	}
	if err := come(ctx, dropped, address, theirs); err == nil {
		t.Error("the oldest of 65 is still served")
	}
}

// Strangers who say nothing keep nobody out for longer than they are given, and no gateway that comes by the socket.
func TestPairStrangers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	p := newPod(t)
	ours := newKeys(t)
	theirs := p.pair(ours.Public())
	address := <-p.address
	closed := make(chan time.Duration, 20)
	for range 20 {
		nc, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		go func() {
			_, _ = io.Copy(io.Discard, nc)
			_ = nc.Close()
			closed <- time.Since(began)
		}()
	}
	for range 4 { // the 16 before them are waited for
		if d := <-closed; d > patience/2 {
			t.Errorf("one too many was let go after %v", d)
		}
	}
	if got := p.pair(ours.Public()); got != theirs {
		t.Error("the socket is held up")
	}
	for range 16 {
		<-closed
	}
	if err := come(ctx, ours, address, theirs); err != nil {
		t.Errorf("after them: %v", err)
	}
}

func TestPairRefuses(t *testing.T) {
	p := newPod(t)
	for _, key := range []string{"", "xyz", strings.Repeat("a", 63), strings.Repeat("g", 64), strings.Repeat("a", 65)} {
		if err := agent.Pair(p.socket, key, io.Discard); err == nil {
			t.Errorf("%q was taken", key)
		}
	}
	nc, err := net.Dial("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := agentproto.Dial(t.Context(), nc, agentproto.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, n := range []int{0, 31, 33} {
		if answer, err := conn.Call(t.Context(), "pair", make([]byte, n)); err == nil {
			t.Errorf("a key of %d bytes: %x", n, answer)
		}
	}
	select {
	case a := <-p.address:
		t.Errorf("it listens at %s, for nobody", a)
	default:
	}
}

// A program of the container may have the port already.
func TestPairWithoutAPort(t *testing.T) {
	s := agent.NewServer(agent.Options{Listen: func() (net.Listener, error) { return nil, errors.New("address in use") }})
	defer s.Close(t.Context())
	ours, theirs := net.Pipe()
	go s.ServeConn(theirs)
	conn, err := agentproto.Dial(t.Context(), ours, agentproto.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Call(t.Context(), "pair", make([]byte, 32)); err == nil || !strings.Contains(fmt.Sprint(err), "address in use") {
		t.Errorf("pair: %v", err)
	}
}
