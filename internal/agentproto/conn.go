package agentproto

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	keepAlive  = 15 * time.Second
	lostAfter  = 2 * time.Minute // without a sign of the peer; shorter ones killed live sessions (devsy#760)
	maxBroken  = 16              // channels that a peer may break before it loses the transport
	maxArrived = 128             // attachments that wait to be accepted
)

// Limits bounds what a peer may open. A zero field takes its default.
type Limits struct {
	Streams  int // attachments and channels at the same time, whoever opened them; 1024
	Channels int // that wait to be accepted, in one attachment; 16
}

func (l Limits) withDefaults() Limits {
	if l.Streams == 0 {
		l.Streams = 1024
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
	// OnCall answers the peer's calls; nil answers none. It may be called concurrently, with a context that ends with
	// the connection.
	OnCall func(ctx context.Context, name string, payload []byte) ([]byte, error)
}

// Conn is one transport with hello done.
type Conn struct {
	cfg     Config
	nc      net.Conn
	in      *reader
	out     *sender
	peer    Hello
	version uint32
	gateway bool

	ctx    context.Context // ends with the connection
	cancel context.CancelCauseFunc
	owned  sync.WaitGroup

	frames    atomic.Uint64 // received
	extra     atomic.Int64  // what windows have beyond their initial size
	broken    int           // only for the goroutine that receives
	unwritten sync.Once
	arrived   chan *Attachment
	calls     calls

	mu       sync.Mutex // guards what follows; taken after a channel's, before out.mu
	over     bool
	streams  map[uint32]*Channel
	next     uint32 // stream that this end opens
	last     uint32 // stream that the peer opened
	watchdog *time.Timer
}

// Dial begins the protocol as a gateway on nc, which it owns from then on. ctx bounds the hello alone.
func Dial(ctx context.Context, nc net.Conn, c Config) (*Conn, error) {
	return start(ctx, nc, c, true)
}

// Accept begins the protocol as an agent on nc, which it owns from then on. ctx bounds the hello alone.
func Accept(ctx context.Context, nc net.Conn, c Config) (*Conn, error) {
	return start(ctx, nc, c, false)
}

func start(ctx context.Context, nc net.Conn, cfg Config, gateway bool) (_ *Conn, err error) {
	cfg.Limits, cfg.Hello = cfg.Limits.withDefaults(), cfg.Hello.withVersions()
	c := &Conn{
		cfg: cfg, nc: nc, in: newReader(nc, longestRequest(!gateway)), out: newSender(nc), gateway: gateway,
		arrived: make(chan *Attachment, maxArrived), streams: make(map[uint32]*Channel), next: 2,
	}
	if gateway {
		c.next = 1
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	err = c.greet()
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.cancel(err)
		_ = nc.Close()
		return nil, fmt.Errorf("greet the peer: %w", err)
	}
	c.watch(0, 0, 0)
	c.owned.Go(c.receive)
	c.owned.Go(c.flush)
	return c, nil
}

// longestRequest is what an agent or a gateway takes.
func longestRequest(agent bool) int {
	if agent {
		return MaxRequest
	}
	return MaxPayload
}

// greet exchanges hellos. The gateway speaks first.
func (c *Conn) greet() (err error) {
	if c.gateway {
		if err := c.sayHello(); err != nil {
			return err
		}
	}
	h, err := c.in.header()
	if err != nil {
		return unexpected(err)
	}
	if h.kind != frameHello || h.stream != 0 || h.length > maxHello {
		return fmt.Errorf("%w: frame %d of %d bytes instead of hello", errProtocol, h.kind, h.length)
	}
	payload, err := c.in.payload(h.length)
	if err != nil {
		return err
	}
	if c.peer, err = decodeHello(payload); err != nil {
		return err
	}
	if !c.gateway { // also when the versions do not meet: the gateway can say so then
		if err := c.sayHello(); err != nil {
			return err
		}
	}
	c.version, err = agree(c.cfg.Hello, c.peer)
	return err
}

func (c *Conn) sayHello() error {
	hello, err := c.cfg.Hello.encode()
	if err != nil {
		return err
	}
	_, err = c.nc.Write(appendFrame(nil, frameHello, 0, hello))
	return err
}

// Peer returns what the other end said of itself.
func (c *Conn) Peer() Hello { return c.peer }

// Done is closed when the connection has ended; Err then says why.
func (c *Conn) Done() <-chan struct{} { return c.ctx.Done() }

// Err returns why the connection ended, or nil while it lives.
func (c *Conn) Err() error { return context.Cause(c.ctx) }

// Close ends the connection, with all attachments and channels, and waits for what served them. What was sent before
// goes out first, if the peer takes it soon.
func (c *Conn) Close() error {
	if c.nc.SetWriteDeadline(time.Now().Add(lastWords)) == nil { // a write that is under way ends by then too
		c.out.token <- struct{}{}
		_ = c.out.flush() // the peer may be gone
		<-c.out.token
	}
	c.fail(ErrClosed)
	c.owned.Wait()
	return nil
}

// fail ends the connection.
func (c *Conn) fail(why error) {
	c.cancel(why)
	_ = c.nc.Close()
}

// flush writes what waits, when nobody else does.
func (c *Conn) flush() {
	for {
		select {
		case <-c.out.wake:
		case <-c.ctx.Done():
			return
		}
		select {
		case c.out.token <- struct{}{}:
		case <-c.ctx.Done():
			return
		}
		err := c.out.flush()
		<-c.out.token
		if err != nil {
			c.unwritable(fmt.Errorf("%w: %w", errLost, err))
			return
		}
	}
}

// unwritable ends the connection to a peer that takes nothing any more, as one that has ended, but not before what it said last
// is read.
func (c *Conn) unwritable(why error) {
	c.unwritten.Do(func() {
		if c.nc.SetReadDeadline(time.Now().Add(lastWords)) != nil {
			c.fail(why)
		}
	})
}

// queue hands over a frame that need not wait for room.
func (c *Conn) queue(t frameType, stream uint32, payload []byte) {
	if err := c.out.queue(t, stream, payload); err != nil {
		c.fail(err)
	}
}

// watch looks after the connection from time to time: a peer that says nothing is asked whether it is there, and one
// that does not answer or takes nothing for long is given up.
func (c *Conn) watch(frames, writes uint64, silent time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	c.watchdog = time.AfterFunc(keepAlive, func() {
		f := c.frames.Load()
		w, writing := c.out.progress()
		if quiet := f == frames; quiet || writing && w == writes {
			silent += keepAlive
			if quiet {
				c.queue(framePing, 0, nil)
			}
		} else {
			silent = 0
		}
		if silent >= lostAfter {
			c.fail(errStuck)
			return
		}
		c.watch(f, w, silent)
	})
}

// takeExtra takes n bytes for a window beyond its initial size.
func (c *Conn) takeExtra(n int64) bool {
	if n > share(maxExtra-c.extra.Add(n)+n) || !c.cfg.Budget.take(0, n) {
		c.extra.Add(-n)
		return false
	}
	return true
}

func (c *Conn) giveWindow(n int64) {
	if n == 0 {
		return
	}
	c.extra.Add(initialWindow - n)
	c.cfg.Budget.give(initialWindow, n-initialWindow)
}

// openStream opens a stream with ch's first frame, and waits for the answer. On an error ch is closed.
func (c *Conn) openStream(ctx context.Context, t frameType, ch *Channel, payload []byte) error {
	err := c.begin(ctx, t, ch, payload)
	if err != nil {
		c.out.mu.Lock()
		ch.out.closed = true // the peer never hears of it
		c.out.mu.Unlock()
		_ = ch.Close()
		return err
	}
	if ch.parent != nil && !ch.parent.c.isOpen() {
		_ = ch.Close() // its attachment ended before the channel was one of it
	}
	select {
	case err = <-ch.opened:
	case <-ch.done:
		select {
		case err = <-ch.opened: // it has ended since, and what came before that can be read
		default:
			err = c.why()
		}
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = ch.Close() // the peer may have accepted it by now
	}
	return err
}

// why is the reason that a stream ended for while it was opened.
func (c *Conn) why() error {
	if err := c.Err(); err != nil {
		return err
	}
	return ErrClosed
}

// begin gives ch a number and sends its first frame.
func (c *Conn) begin(ctx context.Context, t frameType, ch *Channel, payload []byte) error {
	for {
		err := c.tryBegin(t, ch, payload)
		if !errors.Is(err, errFull) {
			return err
		}
		if err := c.out.await(ctx, nil, c.ctx.Done()); err != nil {
			return err
		}
	}
}

func (c *Conn) tryBegin(t frameType, ch *Channel, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.over:
		return c.why()
	case len(c.streams) >= c.cfg.Limits.Streams:
		return refuseTooMany
	case c.next > math.MaxUint32-2:
		return errors.New("the connection has no more streams")
	}
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if err := c.out.append(softPending, t, c.next, payload); err != nil {
		return err
	}
	ch.id = c.next
	c.next += 2
	c.streams[ch.id] = ch
	return nil
}

// remove frees ch's place.
func (c *Conn) remove(ch *Channel) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams[ch.id] == ch {
		delete(c.streams, ch.id)
	}
}

// children are the channels of an attachment.
func (c *Conn) children(a *Attachment) (list []*Channel) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range c.streams {
		if ch.parent == a {
			list = append(list, ch)
		}
	}
	return list
}
