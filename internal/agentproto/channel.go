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
)

const (
	maxRequests  = 64 // of a channel that its reader has not taken, and of ours that are not answered
	writeTimeout = time.Minute
)

// Errors of channels.
var (
	ErrClosed   = errors.New("the channel is closed")
	errCredit   = errors.New("the peer sent more than its credit")
	errFlood    = errors.New("the peer sent more requests than fit")
	errProtocol = errors.New("the peer broke the protocol")
	errLost     = errors.New("the transport was lost")
	errGoodbye  = errors.New("the peer closed the channel")
)

// Channel is one SSH channel, the same at both ends. Reads and writes of data may run at the same time as each other and as
// requests; Read, Stderr's Read and Write are for one goroutine each.
//
// Whoever runs a command sends its output, then the request exit-status or exit-signal, then CloseWrite, then Close. So a
// reader that reads data and stderr to io.EOF finds the request in Requests.
type Channel struct {
	s        net.Conn // the stream
	budget   *Budget
	release  func(broken bool) // frees the channel's place; broken: the peer did not keep to the protocol
	requests chan *Request
	longest  int // payload of a request from the peer

	write chan struct{} // of capacity 1: a token for who writes a frame

	mu       sync.Mutex // guards what follows; changed is signalled when any of it changes
	changed  *sync.Cond
	in, errs queue
	eof      bool // the peer sends no more data
	sentEOF  bool
	ended    bool // the peer closed, or the stream ended
	closed   bool // this end closed
	fault    error
	credit   int64 // what this end may send
	window   int64 // what the peer may have on its way, in all
	open     int64 // … and has not used yet
	consumed int64 // read since the last grant
	waiting  []chan reply

	done chan struct{} // closed with ended
}

type reply struct {
	ok      bool
	payload []byte
}

// Request is a request on a channel or an attachment (RFC 4254, sections 4 and 5.4). One that wants a reply must be answered
// once, in the order of arrival.
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
	b := make([]byte, 1, 1+len(payload))
	if ok {
		b[0] = 1
	}
	return r.c.send(context.Background(), frameReply, append(b, payload...))
}

func newChannel(s net.Conn, b *Budget, release func(broken bool)) *Channel {
	c := &Channel{
		s: s, budget: b, release: release, requests: make(chan *Request, maxRequests), longest: MaxPayload,
		write: make(chan struct{}, 1), window: initialWindow, open: initialWindow, done: make(chan struct{}),
	}
	c.changed = sync.NewCond(&c.mu)
	return c
}

// onRelease has f run when the channel is over, after what else does. It is for before the channel runs.
func (c *Channel) onRelease(f func()) {
	first := c.release
	c.release = func(broken bool) {
		first(broken)
		f()
	}
}

// receive reads the peer's frames until the stream ends. It never waits for whoever reads the channel.
func (c *Channel) receive() {
	err := c.receiveFrames()
	c.mu.Lock()
	if errors.Is(err, io.EOF) {
		err = errLost // no goodbye: the stream went with its transport, or this end closed it
	}
	if !errors.Is(err, errGoodbye) && !c.closed {
		c.fault = err
	}
	c.mu.Unlock()
	c.end()
	broken := errors.Is(err, errFrame) || errors.Is(err, errCredit) || errors.Is(err, errFlood) || errors.Is(err, errProtocol)
	if broken {
		_ = c.Close()
	}
	c.release(broken)
}

func (c *Channel) receiveFrames() error {
	var scratch [headerLen]byte
	for {
		t, n, err := readHeader(c.s, scratch[:], c.longest)
		if err != nil {
			return err
		}
		if t == frameData || t == frameStderr {
			if err := c.receiveData(t, n); err != nil {
				return err
			}
			continue
		}
		payload := make([]byte, n)
		if _, err := io.ReadFull(c.s, payload); err != nil {
			return unexpected(err)
		}
		switch t {
		case frameEOF:
			c.set(func() { c.eof = true })
		case frameWindow:
			err = c.receiveCredit(payload)
		case frameRequest:
			err = c.receiveRequest(payload)
		case frameReply:
			err = c.receiveReply(payload)
		case frameClose:
			return errGoodbye
		default:
			err = fmt.Errorf("%w: frame %d", errProtocol, t)
		}
		if err != nil {
			return err
		}
	}
}

func (c *Channel) receiveData(t frameType, n int) error {
	c.mu.Lock()
	if c.open -= int64(n); c.open < 0 || c.eof {
		c.mu.Unlock()
		return errCredit
	}
	c.mu.Unlock()
	p, err := readChunk(c.s, n)
	if err != nil {
		return err
	}
	c.set(func() {
		switch {
		case c.closed:
			p.release()
		case t == frameData:
			c.in.push(p)
		default:
			c.errs.push(p)
		}
	})
	return nil
}

func (c *Channel) receiveCredit(payload []byte) error {
	n, err := uint32Of(payload)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.credit += int64(n); c.credit > 1<<32 {
		return fmt.Errorf("%w: %d bytes of credit", errProtocol, c.credit)
	}
	c.changed.Broadcast()
	return nil
}

func (c *Channel) receiveRequest(payload []byte) error {
	name, want, body, err := decodeRequest(payload)
	if err != nil {
		return err
	}
	select {
	case c.requests <- &Request{Name: name, WantReply: want, Payload: body, c: c}:
		return nil
	default:
		return errFlood
	}
}

func (c *Channel) receiveReply(payload []byte) error {
	if len(payload) < 1 || payload[0] > 1 {
		return errFrame
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting) == 0 {
		return fmt.Errorf("%w: a reply to nothing", errProtocol)
	}
	c.waiting[0] <- reply{ok: payload[0] == 1, payload: payload[1:]}
	c.waiting = c.waiting[1:]
	return nil
}

func (c *Channel) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	c.changed.Broadcast()
}

// end notes that nothing more comes from the peer.
func (c *Channel) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.ended, c.eof = true, true
	for _, w := range c.waiting {
		close(w)
	}
	c.waiting = nil
	close(c.requests)
	close(c.done)
	c.changed.Broadcast()
}

// Read reads data. io.EOF comes after the peer's CloseWrite or Close; another error when the channel was lost.
func (c *Channel) Read(p []byte) (int, error) { return c.read(&c.in, p) }

// Stderr reads the peer's stderr.
func (c *Channel) Stderr() io.Reader { return stderr{c} }

type stderr struct{ c *Channel }

func (s stderr) Read(p []byte) (int, error) { return s.c.read(&s.c.errs, p) }

func (c *Channel) read(q *queue, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.mu.Lock()
	for q.empty() && !c.eof && !c.closed {
		c.changed.Wait()
	}
	if q.empty() {
		defer c.mu.Unlock()
		switch {
		case c.closed:
			return 0, ErrClosed
		case c.fault != nil:
			return 0, c.fault
		}
		return 0, io.EOF
	}
	n := q.read(p)
	grant := c.consume(int64(n))
	c.mu.Unlock()
	if grant > 0 {
		// If the stream is lost, the next read tells.
		_ = c.send(context.Background(), frameWindow, binary.BigEndian.AppendUint32(nil, uint32(grant)))
	}
	return n, nil
}

// consume counts n bytes as read and returns how much credit to give for it: half a window at a time, and more of it to a
// peer that was held up by it. c.mu is held.
func (c *Channel) consume(n int64) (grant int64) {
	c.consumed += n
	if c.ended || c.closed || c.consumed < c.window/2 {
		return 0
	}
	grant = c.consumed
	if c.open < c.window/2 && c.window < maxWindow && c.in.empty() && c.errs.empty() {
		if more := min(c.window, maxWindow-c.window); c.budget.take(more) {
			c.window += more
			grant += more
		}
	}
	c.consumed = 0
	c.open += grant
	return grant
}

// Write sends data, and waits while the peer gives no credit. It returns ErrClosed once either end closed.
func (c *Channel) Write(p []byte) (int, error) { return c.writeData(frameData, p) }

// WriteStderr sends stderr, as Write does.
func (c *Channel) WriteStderr(p []byte) (int, error) { return c.writeData(frameStderr, p) }

func (c *Channel) writeData(t frameType, p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		n, err := c.spend(len(p) - sent)
		if err != nil {
			return sent, err
		}
		if err := c.send(context.Background(), t, p[sent:sent+n]); err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// spend waits for credit and takes at most want of it, as much as fits a frame.
func (c *Channel) spend(want int) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.credit == 0 && !c.ended && !c.closed && !c.sentEOF {
		c.changed.Wait()
	}
	if c.ended || c.closed || c.sentEOF {
		return 0, c.lost()
	}
	n := min(want, MaxPayload, int(c.credit))
	c.credit -= int64(n)
	return n, nil
}

// lost is the error of an operation on a channel that has ended. c.mu is held.
func (c *Channel) lost() error {
	if c.fault != nil {
		return c.fault
	}
	return ErrClosed
}

// send writes one frame, in one piece.
func (c *Channel) send(ctx context.Context, t frameType, payload []byte) error {
	if err := c.lockWrite(ctx); err != nil {
		return err
	}
	defer c.unlockWrite()
	return c.writeFrame(ctx, t, payload)
}

func (c *Channel) lockWrite(ctx context.Context) error {
	select {
	case c.write <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *Channel) unlockWrite() { <-c.write }

// writeFrame writes one frame; the write lock is held.
func (c *Channel) writeFrame(ctx context.Context, t frameType, payload []byte) error {
	buf := frames.Get().(*[headerLen + MaxPayload]byte)
	defer frames.Put(buf)
	deadline := time.Now().Add(writeTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = c.s.SetWriteDeadline(deadline) // a stream that has ended tells at the write
	if _, err := c.s.Write(appendFrame(buf[:0], t, payload)); err != nil {
		// Part of a frame may be out: nothing can follow it.
		_ = c.s.Close()
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return nil
}

// CloseWrite tells the peer that no data or stderr follows.
func (c *Channel) CloseWrite() error {
	c.mu.Lock()
	if c.sentEOF || c.closed || c.ended {
		c.mu.Unlock()
		return nil
	}
	c.sentEOF = true
	c.changed.Broadcast()
	c.mu.Unlock()
	return c.send(context.Background(), frameEOF, nil)
}

// Request sends a request. With wantReply it waits for the answer, or for ctx.
func (c *Channel) Request(ctx context.Context, name string, wantReply bool, payload []byte) (bool, error) {
	ok, _, err := c.request(ctx, name, wantReply, payload)
	return ok, err
}

func (c *Channel) request(ctx context.Context, name string, wantReply bool, payload []byte) (bool, []byte, error) {
	b, err := encodeRequest(name, wantReply, payload)
	if err != nil {
		return false, nil, err
	}
	if !wantReply {
		return true, nil, c.send(ctx, frameRequest, b)
	}
	answer := make(chan reply, 1)
	if err := c.sendWaiting(ctx, b, answer); err != nil {
		return false, nil, err
	}
	select {
	case r, ok := <-answer:
		if !ok {
			return false, nil, ErrClosed
		}
		return r.ok, r.payload, nil
	case <-ctx.Done():
		return false, nil, context.Cause(ctx) // the answer, if it comes, is dropped
	}
}

// sendWaiting sends a request and registers who waits for its answer, in the same order.
func (c *Channel) sendWaiting(ctx context.Context, payload []byte, answer chan reply) error {
	if err := c.lockWrite(ctx); err != nil {
		return err
	}
	defer c.unlockWrite()
	c.mu.Lock()
	switch {
	case c.ended || c.closed:
		defer c.mu.Unlock()
		return c.lost()
	case len(c.waiting) >= maxRequests:
		c.mu.Unlock()
		return errors.New("too many requests wait for an answer")
	}
	c.waiting = append(c.waiting, answer)
	c.mu.Unlock()
	return c.writeFrame(ctx, frameRequest, payload)
}

// Requests returns the peer's requests. It is closed when the channel ends, after the last of them.
func (c *Channel) Requests() <-chan *Request { return c.requests }

// Done is closed when the peer has closed the channel, or it was lost. What has arrived can still be read.
func (c *Channel) Done() <-chan struct{} { return c.done }

// Close ends the channel at this end; what was received and not read is dropped. A second Close does nothing.
func (c *Channel) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.in.clear()
	c.errs.clear()
	c.budget.give(c.window - initialWindow)
	c.window = initialWindow
	ended := c.ended
	c.changed.Broadcast()
	c.mu.Unlock()
	if !ended {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		_ = c.send(ctx, frameClose, nil) // a stream that is lost needs no goodbye
	}
	return c.s.Close()
}
