package agentproto

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	closeTimeout  = 10 * time.Second // for the peer to close a stream that this end closed
	greetTimeout  = 15 * time.Second // for the first frame of a stream that the peer opened
	keepAlive     = 30 * time.Second
	lostAfter     = 2 * time.Minute // without an answer to a keepalive; shorter ones killed live sessions (devsy#760)
	maxOpening    = 128             // streams that wait for their first frame or its answer; below yamux's backlog
	maxBroken     = 16              // channels that a peer may break before it loses the transport
	defaultStream = 1024
	callPing      = "ping"
)

// Limits bounds what a peer may open. A zero field takes its default.
type Limits struct {
	Streams  int // attachments and channels at the same time; 1024
	Channels int // that wait to be accepted, in one attachment; 16
}

func (l Limits) withDefaults() Limits {
	if l.Streams == 0 {
		l.Streams = defaultStream
	}
	if l.Channels == 0 {
		l.Channels = 16
	}
	return l
}

// Config is what one end brings. Budget may be nil.
type Config struct {
	Hello  Hello // the versions may be left out
	Limits Limits
	Budget *Budget
	// OnCall answers the peer's calls; nil answers none. It may be called concurrently, with a context that ends with the
	// connection.
	OnCall func(ctx context.Context, name string, payload []byte) ([]byte, error)
}

// Conn is one transport with hello done.
type Conn struct {
	cfg     Config
	mux     *yamux.Session
	control *Channel
	peer    Hello
	version uint32
	gateway bool

	ctx     context.Context // ends with the connection
	cancel  context.CancelCauseFunc
	owned   sync.WaitGroup
	opening chan struct{} // a token for each stream that greets

	mu          sync.Mutex // guards what follows
	nextID      uint64
	attachments map[uint64]*Attachment
	streams     int
	broken      int
	arrived     chan *Attachment
}

// Dial begins the protocol as a gateway on nc, which it owns from then on. ctx bounds the hello alone.
func Dial(ctx context.Context, nc net.Conn, c Config) (*Conn, error) {
	return start(ctx, nc, c, true)
}

// Accept begins the protocol as an agent on nc, which it owns from then on. ctx bounds the hello alone.
func Accept(ctx context.Context, nc net.Conn, c Config) (*Conn, error) {
	return start(ctx, nc, c, false)
}

func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.KeepAliveInterval = keepAlive
	c.ConnectionWriteTimeout = lostAfter
	c.MaxStreamWindowSize = maxWindow // never what holds data up: a channel's credit is, and its reader always reads
	c.StreamCloseTimeout = closeTimeout
	c.StreamOpenTimeout = 0 // opens have deadlines of their own, and none ends the others' transport
	c.LogOutput = io.Discard
	return c
}

func start(ctx context.Context, nc net.Conn, cfg Config, gateway bool) (_ *Conn, err error) {
	cfg.Limits, cfg.Hello = cfg.Limits.withDefaults(), cfg.Hello.withVersions()
	c := &Conn{
		cfg: cfg, gateway: gateway, opening: make(chan struct{}, maxOpening),
		attachments: make(map[uint64]*Attachment), arrived: make(chan *Attachment, maxOpening),
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			c.cancel(err)
			_ = nc.Close()
			if c.mux != nil {
				_ = c.mux.Close()
			}
			c.owned.Wait()
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			err = fmt.Errorf("greet the peer: %w", err)
		}
	}()
	if gateway {
		c.mux, err = yamux.Client(&coalescing{Conn: nc}, muxConfig())
	} else {
		c.mux, err = yamux.Server(&coalescing{Conn: nc}, muxConfig())
	}
	if err != nil {
		return nil, err
	}
	if err := c.greet(); err != nil {
		return nil, err
	}
	c.owned.Go(c.control.receive)
	c.owned.Go(c.answerCalls)
	c.owned.Go(c.acceptStreams)
	c.owned.Go(func() {
		<-c.mux.CloseChan()
		c.cancel(errLost)
	})
	return c, nil
}

// greet opens the control stream and exchanges hellos on it.
func (c *Conn) greet() error {
	var s net.Conn
	var err error
	if c.gateway {
		s, err = c.mux.OpenStream()
	} else {
		s, err = c.mux.AcceptStream()
	}
	if err != nil {
		return err
	}
	hello, err := c.cfg.Hello.encode()
	if err != nil {
		return err
	}
	if _, err := s.Write(appendFrame(nil, frameHello, hello)); err != nil {
		return err
	}
	t, payload, err := readFrame(s)
	if err != nil {
		return unexpected(err)
	}
	if t != frameHello {
		return fmt.Errorf("%w: frame %d instead of hello", errProtocol, t)
	}
	if c.peer, err = decodeHello(payload); err != nil {
		return err
	}
	c.control = newChannel(s, c.cfg.Budget, func(bool) { _ = c.mux.Close() })
	c.version, err = agree(c.cfg.Hello, c.peer)
	return err
}

// Peer returns what the other end said of itself.
func (c *Conn) Peer() Hello { return c.peer }

// Done is closed when the connection has ended; Err then says why.
func (c *Conn) Done() <-chan struct{} { return c.ctx.Done() }

// Err returns why the connection ended, or nil while it lives.
func (c *Conn) Err() error { return context.Cause(c.ctx) }

// Close ends the connection, with all attachments and channels, and waits for what served them.
func (c *Conn) Close() error {
	c.cancel(ErrClosed)
	err := c.mux.Close()
	c.owned.Wait()
	return err
}

// Call asks the peer something outside all attachments, such as "stats", and returns its answer.
func (c *Conn) Call(ctx context.Context, name string, payload []byte) ([]byte, error) {
	ok, answer, err := c.control.request(ctx, name, true, payload)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("the peer refused %s: %.200q", name, answer)
	}
	return answer, nil
}

// Ping returns how long the peer takes to answer.
func (c *Conn) Ping(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	_, err := c.Call(ctx, callPing, nil)
	return time.Since(began), err
}

// answerCalls answers the peer's calls, one after the other: their order is the answers'.
func (c *Conn) answerCalls() {
	for r := range c.control.Requests() {
		var answer []byte
		err := errors.New("there is no such call")
		switch {
		case r.Name == callPing:
			err = nil
		case c.cfg.OnCall != nil:
			answer, err = c.cfg.OnCall(c.ctx, r.Name, r.Payload)
		}
		if err == nil && len(answer) >= MaxPayload {
			err = errors.New("the answer is too long")
		}
		if err != nil {
			answer = []byte(err.Error())
			answer = answer[:min(len(answer), maxMessage)]
		}
		if r.Reply(err == nil, answer) != nil {
			return // the connection is lost, and tells so elsewhere
		}
	}
}

// admit counts one more stream, unless there are too many.
func (c *Conn) admit() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams >= c.cfg.Limits.Streams {
		return false
	}
	c.streams++
	return true
}

func (c *Conn) leave(broken bool) {
	c.mu.Lock()
	c.streams--
	if broken {
		c.broken++
	}
	hostile := c.broken > maxBroken
	c.mu.Unlock()
	if hostile {
		c.cancel(errProtocol)
		_ = c.mux.Close()
	}
}

// openStream opens a stream with its first frame and waits for the answer. After f, the channel runs.
func (c *Conn) openStream(
	ctx context.Context, t frameType, payload []byte, f func(ch *Channel) error,
) (*Channel, error) {
	if !c.admit() {
		return nil, &OpenError{Reason: ReasonShortOfSupply, Message: messageTooMany}
	}
	ch, err := c.greetStream(ctx, t, payload)
	if err != nil {
		c.leave(false)
		return nil, err
	}
	if err := f(ch); err != nil {
		_ = ch.Close()
		ch.end()
		ch.release(false)
		return nil, err
	}
	c.owned.Go(ch.receive)
	return ch, nil
}

func (c *Conn) greetStream(ctx context.Context, t frameType, payload []byte) (_ *Channel, err error) {
	select {
	case c.opening <- struct{}{}:
		defer func() { <-c.opening }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-c.ctx.Done():
		return nil, c.Err()
	}
	s, err := c.mux.OpenStream()
	if err != nil {
		return nil, c.why(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			_ = s.Close()
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
		}
	}()
	if _, err := s.Write(appendFrame(nil, t, payload)); err != nil {
		return nil, c.why(err)
	}
	t, answer, err := readFrame(s)
	if err != nil {
		return nil, c.why(unexpected(err))
	}
	switch t {
	case frameAccept:
		ch := c.newChannel(s)
		if err := ch.receiveCredit(answer); err != nil {
			return nil, err
		}
		// The peer sends nothing before this: it has no credit yet.
		return ch, ch.send(ctx, frameWindow, binary.BigEndian.AppendUint32(nil, initialWindow))
	case frameReject:
		refusal, err := decodeReject(answer)
		if err != nil {
			return nil, err
		}
		return nil, refusal
	}
	return nil, fmt.Errorf("%w: frame %d answers an open", errProtocol, t)
}

// why prefers the reason that the connection ended for to what a stream says of it.
func (c *Conn) why(err error) error {
	if c.ctx.Err() != nil {
		return c.Err()
	}
	return err
}

// acceptStreams takes what the peer opens until the connection ends.
func (c *Conn) acceptStreams() {
	for {
		s, err := c.mux.AcceptStream()
		if err != nil {
			return
		}
		select {
		case c.opening <- struct{}{}:
		default:
			_ = s.Close()
			continue
		}
		c.owned.Go(func() {
			defer func() { <-c.opening }()
			if err := c.greeted(s); err != nil {
				_ = s.Close()
			}
		})
	}
}

// greeted reads the first frame of a stream that the peer opened, and answers a refusal.
func (c *Conn) greeted(s net.Conn) error {
	if err := s.SetReadDeadline(time.Now().Add(greetTimeout)); err != nil {
		return err
	}
	t, payload, err := readFrame(s)
	if err != nil {
		return err
	}
	if err := s.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	switch {
	case t == frameAttach && !c.gateway:
		err = c.attached(s, payload)
	case t == frameOpen:
		err = c.opened(s, payload)
	default:
		return fmt.Errorf("%w: frame %d opens a stream", errProtocol, t)
	}
	var refusal *OpenError
	if errors.As(err, &refusal) {
		_ = reject(s, refusal)
	}
	return err
}

func reject(s net.Conn, e *OpenError) error {
	_ = s.SetWriteDeadline(time.Now().Add(greetTimeout))
	_, err := s.Write(appendFrame(nil, frameReject, e.encode()))
	return err
}

func (c *Conn) newChannel(s net.Conn) *Channel {
	ch := newChannel(s, c.cfg.Budget, c.leave)
	if !c.gateway {
		ch.longest = MaxRequest
	}
	return ch
}

// accept makes a channel of a stream that the peer opened. After f, the peer learns of it, and it runs.
func (c *Conn) accept(s net.Conn, f func(ch *Channel) error) (*Channel, error) {
	if !c.admit() {
		return nil, &OpenError{Reason: ReasonShortOfSupply, Message: messageTooMany}
	}
	ch := c.newChannel(s)
	err := f(ch)
	if err == nil {
		err = ch.send(c.ctx, frameAccept, binary.BigEndian.AppendUint32(nil, initialWindow))
	}
	if err != nil {
		ch.end()
		ch.release(false)
		return nil, err
	}
	c.owned.Go(ch.receive)
	return ch, nil
}

// attached begins an attachment that the peer asks for. It is there before the answer goes out, since channels of it may
// follow at once.
func (c *Conn) attached(s net.Conn, payload []byte) error {
	req, err := decodeAttach(payload)
	if err != nil {
		return err
	}
	var a *Attachment
	if _, err := c.accept(s, func(ch *Channel) error {
		a, err = c.register(req, ch)
		return err
	}); err != nil {
		return err
	}
	select {
	case c.arrived <- a:
		return nil
	default:
		return a.Close()
	}
}

// opened hands a channel that the peer opens to its attachment.
func (c *Conn) opened(s net.Conn, payload []byte) error {
	o, err := decodeOpen(payload)
	if err != nil {
		return err
	}
	c.mu.Lock()
	a := c.attachments[o.attachment]
	c.mu.Unlock()
	if a == nil {
		return &OpenError{Reason: ReasonProhibited, Message: messageNoAttachment}
	}
	n := &NewChannel{Kind: o.kind, Payload: o.payload, conn: c, s: s}
	return a.deliver(n)
}

// coalescing joins the header of a yamux frame, which comes in a write of its own, with the body that follows, so that a
// frame is one system call.
type coalescing struct {
	net.Conn
	header []byte
}

const (
	yamuxHeaderLen = 12
	yamuxTypeData  = 0
)

func (w *coalescing) Write(p []byte) (int, error) {
	if w.header != nil {
		bufs := net.Buffers{w.header, p}
		w.header = nil
		n, err := bufs.WriteTo(w.Conn)
		return max(int(n)-yamuxHeaderLen, 0), err
	}
	if len(p) == yamuxHeaderLen && p[1] == yamuxTypeData && binary.BigEndian.Uint32(p[8:]) > 0 {
		w.header = append(make([]byte, 0, yamuxHeaderLen), p...)
		return len(p), nil
	}
	return w.Conn.Write(p)
}
