package agentproto

import (
	"errors"
	"fmt"
	"io"
)

// receive handles the peer's frames until the connection ends.
func (c *Conn) receive() {
	err := c.receiveFrames()
	if errors.Is(err, io.EOF) {
		err = errLost
	}
	c.fail(err)
	c.mu.Lock()
	c.over = true
	c.watchdog.Stop()
	streams := c.streams
	c.streams = nil
	c.mu.Unlock()
	for _, ch := range streams {
		ch.lose(fmt.Errorf("%w: %w", errLost, c.Err()))
	}
	c.calls.end()
}

func (c *Conn) receiveFrames() error {
	var latest *Channel // saves looking it up
	for {
		h, err := c.in.header()
		if err != nil {
			return err
		}
		c.frames.Add(1)
		if latest == nil || latest.id != h.stream {
			c.mu.Lock()
			latest = c.streams[h.stream]
			c.mu.Unlock()
		}
		if latest != nil && (h.kind == frameData || h.kind == frameStderr) {
			broken, err := latest.receiveData(h.kind, h.length, c.in)
			if err != nil {
				return err
			}
			if err := c.blame(latest, broken); err != nil {
				return err
			}
			continue
		}
		payload, err := c.in.payload(h.length)
		if err != nil {
			return err
		}
		if err := c.handle(h, latest, payload); err != nil {
			return err
		}
		if h.kind == frameClose || h.kind == frameReject {
			latest = nil
		}
	}
}

// handle handles a frame other than data for ch, or without a stream. An error ends the connection.
func (c *Conn) handle(h header, ch *Channel, payload []byte) error {
	switch {
	case h.stream == 0:
		return c.handleCall(h.kind, payload)
	case h.kind == frameAttach && !c.gateway:
		return c.attached(h.stream, payload)
	case h.kind == frameOpen:
		return c.opened(h.stream, payload)
	case ch == nil && h.kind == frameClose && c.known(h.stream):
		return nil // it crossed a refusal
	case ch == nil:
		return fmt.Errorf("%w: frame %d on no stream", errProtocol, h.kind)
	}
	switch h.kind {
	case frameAccept, frameReject:
		return c.answered(ch, h.kind, payload)
	case frameClose:
		ch.lose(nil)
		ch.sendClose()
		c.remove(ch)
		c.endChildren(ch)
		return nil
	}
	return c.blame(ch, ch.receive(h.kind, payload))
}

// blame ends a channel for what the peer did on it, if it did.
func (c *Conn) blame(ch *Channel, err error) error {
	if err == nil {
		return nil
	}
	ch.lose(err)
	ch.sendClose()
	c.endChildren(ch)
	if c.broken++; c.broken > maxBroken {
		return fmt.Errorf("%w again and again: %w", errProtocol, err)
	}
	return nil
}

// known says whether a stream has existed.
func (c *Conn) known(stream uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mine(stream) {
		return stream < c.next
	}
	return stream <= c.last
}

// mine says whether a stream has a number of this end's.
func (c *Conn) mine(stream uint32) bool { return (stream%2 == 1) == c.gateway }

// answered handles the answer to a stream that this end opened.
func (c *Conn) answered(ch *Channel, t frameType, payload []byte) error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.open || !c.mine(ch.id) {
		return fmt.Errorf("%w: an answer to nothing", errProtocol)
	}
	if t == frameReject {
		refusal, err := decodeReject(payload)
		if err != nil {
			return err
		}
		c.out.mu.Lock()
		ch.out.closed = true
		c.out.mu.Unlock()
		c.remove(ch)
		ch.opened <- refusal
		return nil
	}
	ch.open = true
	if err := ch.receiveCredit(payload); err != nil {
		return err
	}
	ch.opened <- nil
	return nil
}

// arrive makes a stream of one that the peer opens, if there is room.
func (c *Conn) arrive(stream uint32, ch *Channel) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mine(stream) || stream <= c.last {
		return fmt.Errorf("%w: stream %d is not the peer's next one", errProtocol, stream)
	}
	c.last = stream
	if len(c.streams) >= c.cfg.Limits.Streams {
		return refuseTooMany
	}
	c.streams[stream] = ch
	return nil
}

// refuse answers a stream that the peer opens.
func (c *Conn) refuse(ch *Channel, why *OpenError) {
	s := c.out
	s.mu.Lock()
	var err error
	if !ch.out.closed {
		ch.out.closed = true
		err = s.append(hardPending, frameReject, ch.id, why.encode())
	}
	s.mu.Unlock()
	if err != nil {
		c.fail(err)
	}
}

// receive handles a frame other than data. An error is the peer's fault.
func (c *Channel) receive(t frameType, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil
	}
	if !c.open {
		return fmt.Errorf("%w: frame %d before the channel is accepted", errProtocol, t)
	}
	switch t {
	case frameEOF:
		c.eof = true
		c.readable.Broadcast()
		return nil
	case frameWindow:
		return c.receiveCredit(payload)
	case frameRequest:
		return c.receiveRequest(payload)
	case frameReply:
		return c.receiveReply(payload)
	}
	return fmt.Errorf("%w: frame %d", errProtocol, t)
}

// receiveCredit is with c.mu held, as the next ones.
func (c *Channel) receiveCredit(payload []byte) error {
	n, err := uint32Of(payload)
	if err != nil {
		return err
	}
	if c.credit += int64(n); c.credit > 1<<32 {
		return fmt.Errorf("%w: %d bytes of credit", errProtocol, c.credit)
	}
	c.writable.Broadcast()
	return nil
}

func (c *Channel) receiveRequest(payload []byte) error {
	name, want, body, err := decodeRequest(payload)
	if err != nil {
		return err
	}
	// The reader takes them in order: those that are left are the latest.
	waiting := len(payload)
	for i := range len(c.requests) {
		waiting += int(c.sizes[(c.pushed-1-i)%maxRequests])
	}
	if waiting > 2*c.conn.in.longest {
		return errFlood
	}
	select {
	case c.requests <- &Request{Name: name, WantReply: want, Payload: body, c: c}:
		c.sizes[c.pushed%maxRequests] = uint32(len(payload))
		c.pushed++
		return nil
	default:
		return errFlood
	}
}

func (c *Channel) receiveReply(payload []byte) error {
	ok, body, err := cutBool(payload)
	if err != nil {
		return err
	}
	if len(c.waiting) == 0 {
		return fmt.Errorf("%w: a reply to nothing", errProtocol)
	}
	c.waiting[0] <- reply{ok: ok, payload: body}
	c.waiting = c.waiting[1:]
	return nil
}

// receiveData handles n bytes of data or stderr, which are still to be read from r. Broken is the peer's fault.
func (c *Channel) receiveData(t frameType, n int, r *reader) (broken, err error) {
	c.mu.Lock()
	switch {
	case c.ended:
		c.mu.Unlock()
		return nil, r.discard(n)
	case !c.open || c.eof || int64(n) > c.unused:
		c.mu.Unlock()
		return errCredit, r.discard(n)
	}
	c.unused -= int64(n)
	awaited := c.in.empty() && c.errs.empty()
	c.mu.Unlock()
	p, err := r.chunk(n, awaited)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		p.release()
	case t == frameData:
		c.in.push(p)
	default:
		c.errs.push(p)
	}
	c.readable.Broadcast()
	return nil, nil
}
