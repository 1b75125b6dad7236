package agentproto_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"berth/internal/agentproto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// socketpair returns two ends of a real socket.
func socketpair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

func context20(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// connect returns a gateway's and an agent's end.
func connect(t testing.TB, gw, ag agentproto.Config) (gateway, agent *agentproto.Conn) {
	t.Helper()
	a, b := socketpair(t)
	ctx := context20(t)
	var wg sync.WaitGroup
	var err error
	wg.Go(func() { agent, err = agentproto.Accept(ctx, b, ag) })
	gateway, gerr := agentproto.Dial(ctx, a, gw)
	wg.Wait()
	if err != nil || gerr != nil {
		t.Fatal(err, gerr)
	}
	t.Cleanup(func() {
		gateway.Close()
		agent.Close()
	})
	return gateway, agent
}

// attach returns both ends of an attachment.
func attach(t testing.TB, gateway, agent *agentproto.Conn) (g, a *agentproto.Attachment) {
	t.Helper()
	g, err := gateway.Attach(context20(t), agentproto.Attach{User: "alice", Remote: "192.0.2.1:5"})
	if err != nil {
		t.Fatal(err)
	}
	if a, err = agent.AcceptAttachment(context20(t)); err != nil {
		t.Fatal(err)
	}
	return g, a
}

// open returns both ends of a channel that from opens.
func open(t testing.TB, from, to *agentproto.Attachment) (mine, theirs *agentproto.Channel) {
	t.Helper()
	var wg sync.WaitGroup
	var err error
	wg.Go(func() {
		var n *agentproto.NewChannel
		if n, err = to.AcceptChannel(context20(t)); err == nil {
			theirs, err = n.Accept()
		}
	})
	mine, oerr := from.Open(context20(t), "session", []byte("payload"))
	wg.Wait()
	if err != nil || oerr != nil {
		t.Fatal(err, oerr)
	}
	return mine, theirs
}

func TestHelloAndCalls(t *testing.T) {
	gateway, agent := connect(t, agentproto.Config{Hello: agentproto.Hello{Software: "gw"}}, agentproto.Config{
		Hello: agentproto.Hello{Software: "ag", Features: []string{"x"}},
		OnCall: func(_ context.Context, name string, p []byte) ([]byte, error) {
			if name != "stats" {
				return nil, errors.New("no")
			}
			return append([]byte("got "), p...), nil
		},
	})
	if gateway.Peer().Software != "ag" || !gateway.Peer().Has("x") || agent.Peer().Software != "gw" {
		t.Errorf("peers are %+v and %+v", gateway.Peer(), agent.Peer())
	}
	if got, err := gateway.Call(context20(t), "stats", []byte("it")); err != nil || string(got) != "got it" {
		t.Errorf("Call = %q, %v", got, err)
	}
	if _, err := gateway.Call(context20(t), "other", nil); err == nil {
		t.Error("an unknown call is answered")
	}
	if _, err := gateway.Ping(context20(t)); err != nil {
		t.Error(err)
	}
	if _, err := agent.Ping(context20(t)); err != nil {
		t.Error(err)
	}
}

func TestNoCommonVersion(t *testing.T) {
	a, b := socketpair(t)
	done := make(chan error)
	go func() {
		_, err := agentproto.Accept(context20(t), b, agentproto.Config{Hello: agentproto.Hello{Min: 7, Max: 9}})
		done <- err
	}()
	if _, err := agentproto.Dial(context20(t), a, agentproto.Config{}); err == nil {
		t.Error("versions that do not meet were agreed on")
	}
	if err := <-done; err == nil {
		t.Error("versions that do not meet were agreed on")
	}
}

func TestHelloHasADeadline(t *testing.T) {
	a, b := socketpair(t)
	defer b.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := agentproto.Dial(ctx, a, agentproto.Config{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
}

func TestOrderOfACommand(t *testing.T) {
	gateway, agent := connect(t, agentproto.Config{}, agentproto.Config{})
	g, a := attach(t, gateway, agent)
	mine, theirs := open(t, g, a)
	if a.Info().User != "alice" {
		t.Errorf("Info() = %+v", a.Info())
	}
	out, in := make([]byte, 5<<20), make([]byte, 3<<20)
	rand.Read(out)
	rand.Read(in)
	var wg sync.WaitGroup
	wg.Go(func() { // the agent's side of a command
		got, err := io.ReadAll(theirs)
		if err != nil || !bytes.Equal(got, in) {
			t.Errorf("stdin is %d bytes, %v", len(got), err)
		}
		for _, p := range [][]byte{out[:1], out[1 : 4<<20], out[4<<20:]} {
			if _, err := theirs.Write(p); err != nil {
				t.Error(err)
			}
		}
		if _, err := theirs.WriteStderr([]byte("oops")); err != nil {
			t.Error(err)
		}
		if _, err := theirs.Request(context20(t), "exit-status", false, []byte{0, 0, 0, 7}); err != nil {
			t.Error(err)
		}
		theirs.CloseWrite()
		theirs.Close()
	})
	if ok, err := mine.Request(context20(t), "late", false, nil); !ok || err != nil {
		t.Error(err)
	}
	wg.Go(func() {
		mine.Write(in)
		mine.CloseWrite()
	})
	got, err := io.ReadAll(mine)
	if err != nil || !bytes.Equal(got, out) {
		t.Errorf("output is %d bytes, %v", len(got), err)
	}
	if e, err := io.ReadAll(mine.Stderr()); err != nil || string(e) != "oops" {
		t.Errorf("stderr is %q, %v", e, err)
	}
	wg.Wait()
	r := <-mine.Requests()
	if r == nil || r.Name != "exit-status" || !bytes.Equal(r.Payload, []byte{0, 0, 0, 7}) {
		t.Errorf("request is %+v", r)
	}
	if r, ok := <-mine.Requests(); ok {
		t.Errorf("one more request: %+v", r)
	}
	<-mine.Done()
	mine.Close()
}

// A reader that takes nothing holds up neither requests on its channel nor other channels.
func TestStalledReader(t *testing.T) {
	gateway, agent := connect(t, agentproto.Config{}, agentproto.Config{})
	g, a := attach(t, gateway, agent)
	stalled, stalledPeer := open(t, g, a)
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		_, _ = stalledPeer.Write(make([]byte, 8<<20))
	}()
	go func() { _, _ = stalled.Write(make([]byte, 8<<20)) }()
	ok := make(chan bool, 1)
	go func() {
		r := <-stalledPeer.Requests()
		ok <- r.Reply(r.Name == "signal", nil) == nil
	}()
	if yes, err := stalled.Request(context20(t), "signal", true, []byte("TERM")); !yes || err != nil || !<-ok {
		t.Errorf("a request beside stalled data: %v, %v", yes, err)
	}
	mine, theirs := open(t, g, a)
	go func() { _, _ = io.Copy(theirs, theirs); theirs.CloseWrite() }()
	want := make([]byte, 4<<20)
	go func() { _, _ = mine.Write(want); mine.CloseWrite() }()
	if got, err := io.ReadAll(mine); err != nil || len(got) != len(want) {
		t.Errorf("echo beside a stalled channel: %d bytes, %v", len(got), err)
	}
	select {
	case <-wrote:
		t.Error("8 MiB fit where nobody reads")
	default:
	}
	stalled.Close()
	<-wrote
}

func TestRejectAndUnknownAttachment(t *testing.T) {
	gateway, agent := connect(t, agentproto.Config{}, agentproto.Config{})
	g, a := attach(t, gateway, agent)
	go func() {
		if n, err := a.AcceptChannel(context20(t)); err == nil {
			_ = n.Reject(agentproto.ReasonUnknownKind, "no "+n.Kind+" here")
		}
	}()
	_, err := g.Open(context20(t), "x11", nil)
	var refusal *agentproto.OpenError
	if !errors.As(err, &refusal) || refusal.Reason != agentproto.ReasonUnknownKind || refusal.Message != "no x11 here" {
		t.Errorf("error is %v", err)
	}
	a.Close()
	<-g.Done()
	if _, err := g.Open(context20(t), "session", nil); err == nil {
		t.Error("a channel opened in an attachment that is over")
	}
}

func TestAnAttachmentEndsItsChannels(t *testing.T) {
	gateway, agent := connect(t, agentproto.Config{}, agentproto.Config{})
	g, a := attach(t, gateway, agent)
	other, otherPeer := attach(t, gateway, agent)
	_, theirs := open(t, g, a)
	fromAgent, gw := open(t, a, g)
	survivor, survivorPeer := open(t, other, otherPeer)
	g.Close()
	for name, done := range map[string]<-chan struct{}{
		"attachment": a.Done(), "channel": theirs.Done(), "agent's channel": fromAgent.Done(), "its end": gw.Done(),
	} {
		select {
		case <-done:
		case <-time.After(patience):
			t.Errorf("the %s goes on", name)
		}
	}
	if _, err := survivor.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(survivorPeer, make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// A channel that was over before its opener had its turn has been opened all the same, and what was written to it is there.
func TestAChannelThatEndsAtOnce(t *testing.T) {
	gateway, agent := connect(t, agentproto.Config{}, agentproto.Config{})
	g, a := attach(t, gateway, agent)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer gateway.Close()
	wg.Go(func() {
		for {
			n, err := a.AcceptChannel(context20(t))
			if err != nil {
				return
			}
			if ch, err := n.Accept(); err == nil {
				_, _ = io.WriteString(ch, "all")
				_ = ch.CloseWrite()
				_ = ch.Close()
			}
		}
	})
	for i := range 2000 {
		ch, err := g.Open(context20(t), "short", nil)
		if err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		if text, err := io.ReadAll(ch); err != nil || string(text) != "all" {
			t.Fatalf("%d: %q, %v", i, text, err)
		}
		ch.Close()
	}
}

// late is a connection whose reader has not had its turn yet, once it is held.
type late struct {
	net.Conn
	held atomic.Bool
	goOn chan struct{}
}

func (l *late) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p[:1]) // no more than that before it is held
	if l.held.Load() {
		<-l.goOn
	}
	return n, err
}

// What an agent said before it ended is read, also when its gateway learns of its end first by writing to it.
func TestLastWordsAreRead(t *testing.T) {
	a, b := socketpair(t)
	slow := &late{Conn: a, goOn: make(chan struct{})}
	var wg sync.WaitGroup
	var agent *agentproto.Conn
	wg.Go(func() { agent, _ = agentproto.Accept(context20(t), b, agentproto.Config{}) })
	gateway, err := agentproto.Dial(context20(t), slow, agentproto.Config{})
	wg.Wait()
	if err != nil || agent == nil {
		t.Fatal(err)
	}
	defer gateway.Close()
	defer agent.Close()
	g, at := attach(t, gateway, agent)
	mine, theirs := open(t, g, at)
	slow.held.Store(true)
	for _, do := range []func() error{
		func() error { _, err := io.WriteString(theirs, "last words"); return err }, theirs.CloseWrite, theirs.Close, agent.Close,
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(mine, "are you there?"); err == nil {
		t.Error("who is gone took it")
	}
	close(slow.goOn)
	if text, err := io.ReadAll(mine); err != nil || string(text) != "last words" {
		t.Errorf("%q, %v", text, err)
	}
	select {
	case <-gateway.Done():
	case <-time.After(patience):
		t.Error("the connection stays")
	}
}

func TestALostTransportIsAnError(t *testing.T) {
	gateway, agent := connect(t, agentproto.Config{}, agentproto.Config{})
	g, a := attach(t, gateway, agent)
	mine, _ := open(t, g, a)
	agent.Close()
	if _, err := mine.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("reading on a lost transport: %v", err)
	}
	<-gateway.Done()
	if gateway.Err() == nil {
		t.Error("no reason")
	}
}

func TestBudgetIsGivenBack(t *testing.T) {
	budget := agentproto.NewBudget(512 << 10)
	gateway, agent := connect(t, agentproto.Config{Budget: budget}, agentproto.Config{})
	g, a := attach(t, gateway, agent)
	var wg sync.WaitGroup
	for range 4 {
		mine, theirs := open(t, g, a)
		wg.Go(func() {
			_, _ = theirs.Write(make([]byte, 6<<20))
			_ = theirs.CloseWrite()
		})
		wg.Go(func() {
			if n, err := io.Copy(io.Discard, mine); n != 6<<20 || err != nil {
				t.Errorf("%d bytes, %v", n, err)
			}
			if u := budget.Used(); u > 512<<10 {
				t.Errorf("%d bytes are used", u)
			}
			_ = mine.Close()
		})
	}
	wg.Wait()
	if u := budget.Used(); u != 0 {
		t.Errorf("%d bytes are not given back", u)
	}
}

func TestManyChannelsAtOnce(t *testing.T) {
	gateway, agent := connect(t, agentproto.Config{}, agentproto.Config{Limits: agentproto.Limits{Channels: 100}})
	g, a := attach(t, gateway, agent)
	go func() {
		for {
			n, err := a.AcceptChannel(context.Background())
			if err != nil {
				return
			}
			c, err := n.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.CloseWrite()
				_ = c.Close()
			}()
		}
	}()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			c, err := g.Open(context20(t), "session", nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			want := bytes.Repeat(fmt.Appendf(nil, "%d,", i), 20_000)
			go func() {
				_, _ = c.Write(want)
				_ = c.CloseWrite()
			}()
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
				t.Errorf("echo of %d bytes is %d, %v", len(want), len(got), err)
			}
		})
	}
	wg.Wait()
	g.Close()
}

func BenchmarkDownload(b *testing.B) {
	gateway, agent := connect(b, agentproto.Config{}, agentproto.Config{})
	g, a := attach(b, gateway, agent)
	mine, theirs := open(b, g, a)
	buf := make([]byte, 32<<10)
	b.SetBytes(int64(len(buf)))
	go func() {
		for {
			if _, err := theirs.Write(buf); err != nil {
				return
			}
		}
	}()
	into := make([]byte, len(buf))
	for b.Loop() {
		if _, err := io.ReadFull(mine, into); err != nil {
			b.Fatal(err)
		}
	}
	mine.Close()
}
