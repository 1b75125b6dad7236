package agentproto

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
)

const (
	maxRequests = 64 // of a channel that its reader has not taken, and of ours that are not answered
	pace        = 32 // one request in so many is answered, so that nobody sends them faster than they are taken
)

// Errors of channels.
var (
	ErrClosed   = errors.New("the channel is closed")
	errCredit   = errors.New("the peer sent more than its credit")
	errFlood    = errors.New("the peer sent more requests than fit")
	errProtocol = errors.New("the peer broke the protocol")
	errLost     = errors.New("the transport was lost")
)

// Channel is one SSH channel, the same at both ends. Read, Stderr's Read and Write are for one goroutine each; they and
// all other methods may run at the same time as each other.
//
// Whoever runs a command sends its output, then the request exit-status or exit-signal, then CloseWrite, then Close. So
// a reader that reads data and stderr to io.EOF finds the request in Requests. Everybody calls Close in the end.
type Channel struct {
	conn       *Conn
	id         uint32
	parent     *Attachment   // that it belongs to; nil for the stream of an attachment, which carries requests alone
	attachment *Attachment   // whose stream this is, if it is one's
	opened     chan error    // of capacity 1: the answer to this end's open
	done       chan struct{} // closed when ended

	out outgoing // guarded by conn.out.mu

	requests chan *Request
	sizes    [maxRequests]uint32 // of the latest requests, a ring; only for the goroutine that receives
	pushed   int

	mu       sync.Mutex // guards what follows; may be held while conn.out.mu is taken, and not the other way round
	readable sync.Cond  // signalled when there is more to read, or never will be
	writable sync.Cond  // the same for credit
	in, errs queue
	open     bool // accepted: data may come
	eof      bool // the peer sends no more data
	ended    bool // nothing more comes of the peer, or is of use
	closed   bool // this end closed
	fault    error
	credit   int64 // what this end may send
	window   int64 // what the peer may have on its way, in all; 0 once given back
	unused   int64 // … of it
	consumed int64 // read since credit was given
	unpaced  int   // requests sent since one was answered
	waiting  []chan reply
}

type reply struct {
	ok      bool
	payload []byte
}

func newChannel(c *Conn, id uint32, parent *Attachment) *Channel {
	ch := &Channel{
		conn: c, id: id, parent: parent, opened: make(chan error, 1), done: make(chan struct{}),
		requests: make(chan *Request, maxRequests),
	}
	ch.readable.L, ch.writable.L = &ch.mu, &ch.mu
	return ch
}

// takeWindow takes the initial window, before the peer learns of it.
func (c *Channel) takeWindow() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended:
		return c.lost()
	case !c.conn.cfg.Budget.take(initialWindow, 0):
		return refuseBudget
	}
	c.window, c.unused = initialWindow, initialWindow
	return nil
}

func (c *Channel) isOpen() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open && !c.ended
}

// Request is a request on a channel or an attachment (RFC 4254, sections 4 and 5.4). One that wants a reply must be
// answered once, in the order of arrival.
type Request struct {
	Name      string
	WantReply bool
	Payload   []byte

	c *Channel
}

// Reply answers the request, if it wants an answer. The payload means something on an attachment alone.
func (r *Request) Reply(ok bool, payload []byte) error {
	if !r.WantReply {
		return nil
	}
	b := append(appendBool(make([]byte, 0, 1+len(payload)), ok), payload...)
	return r.c.send(context.Background(), frameReply, b, nil)
}

// Read reads data. io.EOF comes after the peer's CloseWrite or Close; another error when the channel was lost.
func (c *Channel) Read(p []byte) (int, error) { return c.read(&c.in, p) }

// WriteTo writes data to w until the peer's CloseWrite or Close, without a copy of its own.
func (c *Channel) WriteTo(w io.Writer) (int64, error) { return c.writeTo(&c.in, w) }

// Stderr reads the peer's stderr.
func (c *Channel) Stderr() io.Reader { return stderr{c} }

type stderr struct{ c *Channel }

func (s stderr) Read(p []byte) (int, error) { return s.c.read(&s.c.errs, p) }

func (s stderr) WriteTo(w io.Writer) (int64, error) { return s.c.writeTo(&s.c.errs, w) }

func (c *Channel) read(q *queue, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.mu.Lock()
	if err := c.await(q); err != nil {
		c.mu.Unlock()
		return 0, err
	}
	n := q.read(p)
	c.unlockConsumed(int64(n))
	return n, nil
}

func (c *Channel) writeTo(q *queue, w io.Writer) (total int64, err error) {
	for {
		c.mu.Lock()
		if err := c.await(q); err != nil {
			c.mu.Unlock()
			if err == io.EOF { // never wrapped by await
				return total, nil
			}
			return total, err
		}
		p := q.pop()
		c.mu.Unlock()
		n, err := w.Write(p.data)
		p.release()
		total += int64(n)
		c.mu.Lock()
		c.unlockConsumed(int64(len(p.data)))
		if err != nil {
			return total, err
		}
	}
}

// await waits until q has something. c.mu is held.
func (c *Channel) await(q *queue) error {
	for q.empty() && !c.eof && !c.ended {
		c.readable.Wait()
	}
	switch {
	case c.closed:
		return ErrClosed
	case !q.empty():
		return nil
	case c.fault != nil:
		return c.fault
	}
	return io.EOF
}

// unlockConsumed counts n bytes as read, unlocks c.mu, and gives credit for them: half a window at a time, and more to
// a peer that was held up by it.
func (c *Channel) unlockConsumed(n int64) {
	c.consumed += n
	if c.ended || c.eof || c.consumed < c.window/2 {
		c.mu.Unlock()
		return
	}
	grant := c.consumed
	if more := min(c.window, maxWindow-c.window); more > 0 && c.unused < c.window/2 && c.in.empty() && c.errs.empty() {
		if c.conn.takeExtra(more) {
			c.window += more
			grant += more
		}
	}
	c.consumed = 0
	c.unused += grant
	c.mu.Unlock()
	c.conn.queue(frameWindow, c.id, binary.BigEndian.AppendUint32(make([]byte, 0, 4), uint32(grant)))
}

// Write sends data, and waits while the peer gives no credit. It returns ErrClosed once either end closed.
func (c *Channel) Write(p []byte) (int, error) { return c.write(frameData, p) }

// WriteStderr sends stderr, as Write does.
func (c *Channel) WriteStderr(p []byte) (int, error) { return c.write(frameStderr, p) }

func (c *Channel) write(t frameType, p []byte) (sent int, err error) {
	for sent < len(p) {
		n, err := c.spend(len(p) - sent)
		if err != nil {
			return sent, err
		}
		if err := c.writeFrames(t, p[sent:sent+n]); err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// spend waits for credit and takes at most want of it, as much as fits a write.
func (c *Channel) spend(want int) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.credit == 0 && !c.ended {
		c.writable.Wait()
	}
	if c.ended {
		return 0, c.lost()
	}
	n := min(want, maxBatch*MaxPayload, int(c.credit))
	c.credit -= int64(n)
	return n, nil
}

// lost is the error of an operation on a channel that has ended. c.mu is held.
func (c *Channel) lost() error {
	if c.fault != nil && !c.closed {
		return c.fault
	}
	return ErrClosed
}

func (c *Channel) writeFrames(t frameType, p []byte) error {
	s := c.conn.out
	select {
	case s.token <- struct{}{}:
	case <-c.done:
		return ErrClosed
	case <-c.conn.ctx.Done():
		return errLost
	}
	err := s.data(t, c.id, &c.out, p)
	<-s.token
	if err != nil && !errors.Is(err, ErrClosed) {
		c.conn.unwritable(err)
	}
	return err
}

// CloseWrite tells the peer that no data or stderr follows.
func (c *Channel) CloseWrite() error {
	s := c.conn.out
	s.mu.Lock()
	var err error
	if !c.out.eof && !c.out.closed {
		c.out.eof = true
		err = s.append(hardPending, frameEOF, c.id, nil)
	}
	s.mu.Unlock()
	if err != nil {
		c.conn.fail(err)
	}
	return err
}

// send hands a frame over once there is room for it. Before that it calls sent, with c.mu held.
func (c *Channel) send(ctx context.Context, t frameType, payload []byte, sent func() error) error {
	s := c.conn.out
	for {
		err := c.trySend(t, payload, sent)
		if !errors.Is(err, errFull) {
			return err
		}
		if err := s.await(ctx, c.done, c.conn.ctx.Done()); err != nil {
			return err
		}
	}
}

func (c *Channel) trySend(t frameType, payload []byte, sent func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return c.lost()
	}
	s := c.conn.out
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case c.out.closed:
		return ErrClosed
	case !s.fits(softPending, len(payload)):
		return errFull
	}
	if sent != nil {
		if err := sent(); err != nil {
			return err
		}
	}
	return s.append(softPending, t, c.id, payload)
}

// Request sends a request. With wantReply it waits for the answer, or for ctx.
func (c *Channel) Request(ctx context.Context, name string, wantReply bool, payload []byte) (bool, error) {
	ok, _, err := c.request(ctx, name, wantReply, payload)
	return ok, err
}

func (c *Channel) request(ctx context.Context, name string, wantReply bool, payload []byte) (bool, []byte, error) {
	paced := !wantReply && c.mustPace()
	b, err := encodeRequest(name, wantReply || paced, payload, longestRequest(c.conn.gateway))
	if err != nil {
		return false, nil, err
	}
	if !wantReply && !paced {
		return true, nil, c.send(ctx, frameRequest, b, nil)
	}
	answer := make(chan reply, 1)
	if err := c.send(ctx, frameRequest, b, func() error {
		if len(c.waiting) >= maxRequests {
			return errors.New("too many requests wait for an answer")
		}
		c.waiting = append(c.waiting, answer)
		return nil
	}); err != nil {
		return false, nil, err
	}
	select {
	case r, there := <-answer:
		switch {
		case !there:
			return false, nil, ErrClosed
		case paced:
			return true, nil, nil
		}
		return r.ok, r.payload, nil
	case <-ctx.Done():
		return false, nil, context.Cause(ctx) // the answer, if it comes, is dropped
	}
}

// mustPace counts a request without an answer, and says whether to ask for one.
func (c *Channel) mustPace() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unpaced++
	if c.unpaced < pace {
		return false
	}
	c.unpaced = 0
	return true
}

// Requests returns the peer's requests. It is closed when the channel ends, after the last of them.
func (c *Channel) Requests() <-chan *Request { return c.requests }

// Done is closed when either end has closed the channel, or it was lost. What has arrived can still be read until
// Close.
func (c *Channel) Done() <-chan struct{} { return c.done }

// Close ends the channel; what was received and not read is dropped. It does not wait for the peer. A second Close does
// nothing.
func (c *Channel) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.in.clear()
	c.errs.clear()
	window := c.window
	c.window = 0
	c.end(nil)
	c.mu.Unlock()
	c.conn.giveWindow(window)
	c.sendClose()
	return nil
}

// end notes that nothing more comes from the peer, or is of use. c.mu is held.
func (c *Channel) end(fault error) {
	if c.ended {
		return
	}
	c.ended, c.eof, c.fault = true, true, fault
	for _, w := range c.waiting {
		close(w)
	}
	c.waiting = nil
	close(c.requests)
	close(c.done)
	c.readable.Broadcast()
	c.writable.Broadcast()
}

// lose ends the channel from the peer's side.
func (c *Channel) lose(fault error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end(fault)
}

// sendClose tells the peer that nothing follows, unless it knows.
func (c *Channel) sendClose() {
	s := c.conn.out
	s.mu.Lock()
	var err error
	if !c.out.closed {
		c.out.closed = true
		err = s.append(hardPending, frameClose, c.id, nil)
	}
	s.mu.Unlock()
	if err != nil {
		c.conn.fail(err)
	}
}

// What follows is for the goroutine that receives. It never waits for whoever reads the channel. Once the channel is
// over at this end, what the peer still sends is dropped.
