package session

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"berth/internal/agentproto"
	"berth/internal/compute"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is an engine whose containers' agents speak the real wire over unix sockets, and do what a test wants with it.
type host struct {
	t      *testing.T
	dials  atomic.Int64
	serve  func(c *agentproto.Conn) // what each agent does; it returns when c ends
	refuse error

	mu    sync.Mutex
	conns []*agentproto.Conn
	wg    sync.WaitGroup
}

func newHost(t *testing.T, serve func(c *agentproto.Conn)) *host {
	h := &host{t: t, serve: serve}
	t.Cleanup(func() {
		h.stop()
		h.wg.Wait()
	})
	return h
}

// stop ends all agents, as when their containers stop.
func (h *host) stop() {
	h.mu.Lock()
	conns := h.conns
	h.conns = nil
	h.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

func (h *host) DialAgent(ctx context.Context, r compute.Ref) (net.Conn, error) {
	h.dials.Add(1)
	if h.refuse != nil {
		return nil, h.refuse
	}
	l, err := net.Listen("unix", filepath.Join(h.t.TempDir(), "s"))
	if err != nil {
		return nil, err
	}
	defer l.Close()
	var d net.Dialer
	ours, err := d.DialContext(ctx, "unix", l.Addr().String())
	if err != nil {
		return nil, err
	}
	theirs, err := l.Accept()
	if err != nil {
		return nil, err
	}
	h.wg.Go(func() {
		c, err := agentproto.Accept(context.Background(), theirs, agentproto.Config{
			OnCall: func(_ context.Context, name string, payload []byte) ([]byte, error) {
				return append([]byte(name+" "), payload...), nil
			},
		})
		if err != nil {
			return
		}
		h.mu.Lock()
		h.conns = append(h.conns, c)
		h.mu.Unlock()
		h.serve(c)
		_ = c.Close()
	})
	return ours, nil
}

// echo is an agent whose sessions give back what they get.
func echo(c *agentproto.Conn) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		a, err := c.AcceptAttachment(context.Background())
		if err != nil {
			return
		}
		wg.Go(func() {
			for {
				n, err := a.AcceptChannel(context.Background())
				if err != nil {
					return
				}
				if n.Kind != "session" {
					_ = n.Reject(3, "unknown kind")
					continue
				}
				ch, err := n.Accept()
				if err != nil {
					continue
				}
				wg.Go(func() {
					defer ch.Close()
					_, _ = io.WriteString(ch, a.Info().User+" ")
					_, _ = io.Copy(ch, ch)
					_ = ch.CloseWrite()
				})
			}
		})
	}
}

func start(t *testing.T, o Options) *Multiplexer {
	t.Helper()
	m := New(o)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return m
}

func (m *Multiplexer) has(r compute.Ref) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.transports[r] != nil
}

// transportOf waits for the container's transport and returns it.
func (m *Multiplexer) transportOf(t *testing.T, r compute.Ref) *transport {
	t.Helper()
	tr, err := m.connect(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	m.release(tr)
	return tr
}

var box = compute.Ref{Owner: 1, ID: "a1b2c3d4"}

// say sends text on a new session and returns what comes back.
func say(t *testing.T, a *Attachment, text string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ch, err := a.Open(ctx, "session", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	if _, err := io.WriteString(ch, text); err != nil {
		t.Fatal(err)
	}
	if err := ch.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(ch)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func attach(t *testing.T, m *Multiplexer, r compute.Ref, user string) *Attachment {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	a, err := m.Attach(ctx, r, Client{User: user})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func TestOneTransportIsShared(t *testing.T) {
	h := newHost(t, echo)
	m := start(t, Options{Dialer: h})
	m.Warm(box)
	var wg sync.WaitGroup
	for _, user := range []string{"root", "alice", "bob", "carol"} {
		a := attach(t, m, box, user)
		for range 8 {
			wg.Go(func() {
				if got := say(t, a, "hello"); got != user+" hello" {
					t.Errorf("%s: %q", user, got)
				}
			})
		}
	}
	wg.Wait()
	if n := h.dials.Load(); n != 1 {
		t.Errorf("%d dials for one container", n)
	}
	attach(t, m, compute.Ref{Owner: 2, ID: "deadbeef"}, "root")
	if n := h.dials.Load(); n != 2 {
		t.Errorf("%d dials for two containers", n)
	}
	if answer, err := m.Call(t.Context(), box, "stats", []byte("now")); err != nil || string(answer) != "stats now" {
		t.Errorf("call: %q, %v", answer, err)
	}
}

func TestRedialAfterLoss(t *testing.T) {
	h := newHost(t, echo)
	m := start(t, Options{Dialer: h})
	a := attach(t, m, box, "root")
	h.stop()
	select {
	case <-a.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the attachment outlives its transport")
	}
	if got := say(t, attach(t, m, box, "root"), "again"); got != "root again" {
		t.Errorf("%q", got)
	}
	if n := h.dials.Load(); n != 2 {
		t.Errorf("%d dials", n)
	}
}

func TestDialFailureIsToldToAllAndNotKept(t *testing.T) {
	h := newHost(t, echo)
	h.refuse = compute.Errorf(compute.CodeNotRunning, "Container a1b2c3d4 does not run.")
	m := start(t, Options{Dialer: h})
	if _, err := m.Attach(t.Context(), box, Client{}); compute.CodeOf(err) != compute.CodeNotRunning {
		t.Errorf("attach: %v", err)
	}
	h.refuse = errors.New("some internal")
	_, err := m.Attach(t.Context(), box, Client{})
	if compute.CodeOf(err) != compute.CodeUnavailable || compute.UserMessage(err) == "some internal" {
		t.Errorf("attach: %v", err)
	}
	h.refuse = nil
	if got := say(t, attach(t, m, box, "root"), "x"); got != "root x" {
		t.Errorf("%q", got)
	}
}

func TestIdleTransportIsClosed(t *testing.T) {
	h := newHost(t, echo)
	m := start(t, Options{Dialer: h, IdleTimeout: 300 * time.Millisecond})
	a := attach(t, m, box, "root")
	tr := m.transportOf(t, box)
	select {
	case <-tr.conn.Done():
		t.Fatal("closed while an attachment stands")
	case <-time.After(3 * 300 * time.Millisecond):
	}
	_ = a.Close()
	select {
	case <-tr.conn.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("an idle transport stays")
	}
	if m.has(box) {
		t.Error("an idle transport is handed out")
	}
	if got := say(t, attach(t, m, box, "root"), "x"); got != "root x" {
		t.Errorf("%q", got)
	}
}

// TestDeadAgentIsGivenUp is an agent that stops answering without closing anything.
func TestDeadAgentIsGivenUp(t *testing.T) {
	var relayed sync.WaitGroup
	t.Cleanup(relayed.Wait) // after the multiplexer is closed
	deaf := make(chan struct{})
	h := newHost(t, echo)
	m := start(t, Options{
		Dialer:       dialerFunc(func(ctx context.Context, r compute.Ref) (net.Conn, error) { return through(ctx, h, r, deaf, &relayed) }),
		PingInterval: 50 * time.Millisecond, PingTimeout: 300 * time.Millisecond,
	})
	a := attach(t, m, box, "root")
	if got := say(t, a, "x"); got != "root x" {
		t.Fatalf("%q", got)
	}
	close(deaf)
	select {
	case <-a.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("an agent that is dead is kept")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := m.Attach(ctx, box, Client{}); err == nil {
		t.Error("a deaf agent took an attachment")
	}
}

type dialerFunc func(ctx context.Context, r compute.Ref) (net.Conn, error)

func (f dialerFunc) DialAgent(ctx context.Context, r compute.Ref) (net.Conn, error) { return f(ctx, r) }

// through is a connection to the agent that carries nothing more once deaf is closed.
func through(ctx context.Context, h *host, r compute.Ref, deaf <-chan struct{}, wg *sync.WaitGroup) (net.Conn, error) {
	agent, err := h.DialAgent(ctx, r)
	if err != nil {
		return nil, err
	}
	ours, theirs := socketpair(h.t)
	carry := func(dst, src net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := src.Read(buf)
			if err != nil {
				_ = dst.Close()
				return
			}
			select {
			case <-deaf:
				continue
			default:
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	wg.Go(func() { carry(agent, theirs) })
	wg.Go(func() { carry(theirs, agent) })
	return ours, nil
}

func socketpair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestDeadlines(t *testing.T) {
	// An agent that takes connections and says nothing at all.
	silent := dialerFunc(func(context.Context, compute.Ref) (net.Conn, error) {
		ours, theirs := socketpair(t)
		t.Cleanup(func() { _ = theirs.Close() })
		return ours, nil
	})
	m := start(t, Options{Dialer: silent, DialTimeout: 200 * time.Millisecond})
	began := time.Now()
	if _, err := m.Attach(t.Context(), box, Client{}); err == nil {
		t.Error("a silent agent took an attachment")
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	// One that accepts attachments and answers no open.
	h := newHost(t, func(c *agentproto.Conn) { <-c.Done() })
	m = start(t, Options{Dialer: h})
	a := attach(t, m, box, "root")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := a.Open(ctx, "session", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("open: %v", err)
	}
}

func TestRefusedOpen(t *testing.T) {
	m := start(t, Options{Dialer: newHost(t, echo)})
	_, err := attach(t, m, box, "root").Open(t.Context(), "bogus", nil)
	if compute.CodeOf(err) != compute.CodeUnavailable || compute.UserMessage(err) != "The container refused: unknown kind" {
		t.Errorf("open: %v", err)
	}
}

// TestAgentOpensNothing is an agent that opens channels and asks things that no client asked for.
func TestAgentOpensNothing(t *testing.T) {
	results := make(chan error, 3)
	h := newHost(t, func(c *agentproto.Conn) {
		a, err := c.AcceptAttachment(context.Background())
		if err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err = a.Open(ctx, "forwarded-tcpip", nil)
		results <- err
		ok, _, err := a.Request(ctx, "tcpip-forward", true, nil)
		if ok {
			err = errors.New("granted")
		}
		results <- err
		<-c.Done()
	})
	m := start(t, Options{Dialer: h})
	attach(t, m, box, "root")
	var refused *agentproto.OpenError
	if err := <-results; !errors.As(err, &refused) || refused.Reason != 1 {
		t.Errorf("open: %v", err)
	}
	if err := <-results; err != nil {
		t.Errorf("request: %v", err)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	h := newHost(t, echo)
	m := start(t, Options{Dialer: h})
	a := attach(t, m, box, "root")
	ch, err := a.Open(t.Context(), "session", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := m.Close(ctx); err != nil {
		t.Fatalf("close: %v", err)
	}
	for what, done := range map[string]<-chan struct{}{"attachment": a.Done(), "channel": ch.Done()} {
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			t.Errorf("the %s goes on", what)
		}
	}
	if _, err := m.Attach(t.Context(), box, Client{}); compute.CodeOf(err) != compute.CodeUnavailable {
		t.Errorf("attach after close: %v", err)
	}
	m.Warm(box)
	if m.has(box) {
		t.Error("dials after close")
	}
}
