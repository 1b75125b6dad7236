// Package session is the multiplexer: it keeps one transport to each container's agent, opened on first use and shared
// by everybody, and gives each client an attachment on it that owns what was made for that client.
//
// It declares the Dialer that an engine implements, and its types hide the agent's wire from those who use it. It
// trusts nothing that comes from an agent: every open and request has a deadline, and all transports share one budget
// of bytes.
package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"berth/internal/agentproto"
	"berth/internal/compute"
)

// Dialer connects to a container's agent; CodeNotRunning when there is none.
type Dialer interface {
	DialAgent(ctx context.Context, r compute.Ref) (net.Conn, error)
}

// Options are what a Multiplexer is made of. Only Dialer is required.
type Options struct {
	Dialer       Dialer
	Software     string        // how the gateway names itself to agents
	DialTimeout  time.Duration // for connecting and the hello
	IdleTimeout  time.Duration // a transport without attachments is kept that long
	PingInterval time.Duration
	PingTimeout  time.Duration // an agent that does not answer that long is given up: a bad network takes its time
	Budget       int64         // bytes of all agents' output that may wait in memory for clients
	Log          *slog.Logger
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.DialTimeout, 10*time.Second)
	def(&o.IdleTimeout, 5*time.Minute)
	def(&o.PingInterval, 30*time.Second)
	def(&o.PingTimeout, 2*time.Minute)
	if o.Software == "" {
		o.Software = "berth"
	}
	if o.Budget == 0 {
		o.Budget = 512 << 20
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Causes of the end of a transport.
var (
	errClosed = errors.New("the gateway is shutting down")
	errIdle   = errors.New("nobody used the connection")
	errDead   = errors.New("the agent does not answer")
)

// Multiplexer keeps the transports. Its methods may be called concurrently.
type Multiplexer struct {
	o      Options
	budget *agentproto.Budget
	ctx    context.Context // ends at Close
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // transports and attachments

	mu         sync.Mutex // guards what follows; no I/O under it
	closed     bool
	transports map[compute.Ref]*transport
}

// New returns a Multiplexer. It does no I/O.
func New(o Options) *Multiplexer {
	m := &Multiplexer{o: o.withDefaults(), transports: make(map[compute.Ref]*transport)}
	m.budget = agentproto.NewBudget(m.o.Budget)
	m.ctx, m.cancel = context.WithCancelCause(context.Background())
	return m
}

// Close ends all transports and what stands on them, and waits until ctx ends.
func (m *Multiplexer) Close(ctx context.Context) error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel(errClosed)
	done := make(chan struct{})
	go func() {
		m.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Warm begins to connect to a container's agent, in the background, if nothing does yet: somebody is about to attach.
func (m *Multiplexer) Warm(r compute.Ref) {
	if t, err := m.take(r); err == nil {
		m.release(t)
	}
}

// Client is who an attachment is for.
type Client struct {
	User   string // in the container
	Remote string // the client's address and port
	Local  string // those that it connected to
}

// Attach attaches a client to a container. Close the attachment when the client is gone.
func (m *Multiplexer) Attach(ctx context.Context, r compute.Ref, c Client) (*Attachment, error) {
	for again := true; ; again = false {
		t, err := m.connect(ctx, r)
		if err != nil {
			return nil, err
		}
		att, err := t.conn.Attach(ctx, agentproto.Attach{User: c.User, Remote: c.Remote, Local: c.Local})
		if err == nil {
			return newAttachment(m, t, att), nil
		}
		m.release(t)
		select {
		case <-t.conn.Done():
			// The container was restarted since somebody used the transport last: there is a new agent to dial.
			if again {
				m.forget(t)
				continue
			}
		default:
		}
		return nil, unavailable(ctx, "attach", err)
	}
}

// Call asks a container's agent a question on the transport that is there or is made.
func (m *Multiplexer) Call(ctx context.Context, r compute.Ref, name string, payload []byte) ([]byte, error) {
	t, err := m.connect(ctx, r)
	if err != nil {
		return nil, err
	}
	defer m.release(t)
	answer, err := t.conn.Call(ctx, name, payload)
	if err != nil {
		return nil, unavailable(ctx, "call "+name, err)
	}
	return answer, nil
}

// unavailable turns a failure of the wire into words for the client.
func unavailable(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return context.Cause(ctx)
	}
	return &compute.Error{
		Code: compute.CodeUnavailable, Message: "The container does not answer as it should; try again.",
		Cause: fmt.Errorf("%s: %w", op, err),
	}
}

// connect returns the container's transport, connected, with one use counted.
func (m *Multiplexer) connect(ctx context.Context, r compute.Ref) (*transport, error) {
	t, err := m.take(r)
	if err != nil {
		return nil, err
	}
	select {
	case <-t.ready:
	case <-ctx.Done():
		m.release(t)
		return nil, context.Cause(ctx)
	}
	if t.err != nil {
		m.release(t)
		return nil, t.err
	}
	return t, nil
}

// transport is the connection to one container's agent.
type transport struct {
	m     *Multiplexer
	ref   compute.Ref
	ready chan struct{}    // closed once conn or err is set
	conn  *agentproto.Conn // read after ready
	err   error

	uses int         // guarded by m.mu
	idle *time.Timer // fires when nobody used the transport for long
}

// take returns the container's transport, which may still be connecting, and counts one use of it.
func (m *Multiplexer) take(r compute.Ref) (*transport, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, compute.Errorf(compute.CodeUnavailable, "The gateway is shutting down; connect again.")
	}
	t := m.transports[r]
	if t == nil {
		t = &transport{m: m, ref: r, ready: make(chan struct{}), idle: time.NewTimer(m.o.IdleTimeout)}
		m.transports[r] = t
		m.wg.Go(t.run)
	}
	t.uses++
	return t, nil
}

func (m *Multiplexer) release(t *transport) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.uses--; t.uses == 0 {
		t.idle.Reset(m.o.IdleTimeout)
	}
}

// forget makes the next use dial anew.
func (m *Multiplexer) forget(t *transport) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.transports[t.ref] == t {
		delete(m.transports, t.ref)
	}
}

// forgetIdle does so unless somebody uses the transport.
func (m *Multiplexer) forgetIdle(t *transport) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.uses > 0 {
		return false
	}
	if m.transports[t.ref] == t {
		delete(m.transports, t.ref)
	}
	return true
}

// run connects, and keeps the transport until it is lost, idle, or not answering.
func (t *transport) run() {
	defer t.idle.Stop()
	defer t.m.forget(t)
	conn, err := t.dial()
	if err != nil {
		t.err = err
		t.m.forget(t) // before anybody hears of it: who tries again dials again
		close(t.ready)
		return
	}
	t.conn = conn
	close(t.ready)
	why := t.watch()
	t.m.forget(t)
	_ = conn.Close()
	t.m.o.Log.Debug("transport closed", "container", t.ref, "why", why)
}

func (t *transport) dial() (*agentproto.Conn, error) {
	ctx, cancel := context.WithTimeout(t.m.ctx, t.m.o.DialTimeout)
	defer cancel()
	nc, err := t.m.o.Dialer.DialAgent(ctx, t.ref)
	if err != nil {
		if compute.AsError(err) != nil {
			return nil, err
		}
		return nil, unavailable(ctx, "dial agent", err)
	}
	conn, err := agentproto.Dial(ctx, nc, agentproto.Config{
		Hello: agentproto.Hello{Software: t.m.o.Software}, Budget: t.m.budget,
	})
	if err != nil {
		_ = nc.Close()
		return nil, unavailable(ctx, "agent's hello", err)
	}
	return conn, nil
}

// watch returns why the transport must end.
func (t *transport) watch() error {
	ping := time.NewTicker(t.m.o.PingInterval)
	defer ping.Stop()
	for {
		select {
		case <-t.conn.Done():
			return t.conn.Err()
		case <-t.m.ctx.Done():
			return context.Cause(t.m.ctx)
		case <-t.idle.C:
			if t.m.forgetIdle(t) {
				return errIdle
			}
		case <-ping.C:
			ctx, cancel := context.WithTimeoutCause(t.m.ctx, t.m.o.PingTimeout, errDead)
			_, err := t.conn.Ping(ctx)
			cancel()
			if err != nil {
				t.m.o.Log.Warn("ping agent", "container", t.ref, "err", err)
				return err
			}
		}
	}
}
