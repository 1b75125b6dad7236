package agentproto

import (
	"context"
	"encoding/binary"
	"errors"
)

// Attachment is one client's presence on a connection. The channels opened in it end with it.
type Attachment struct {
	info   Attach
	c      *Channel // carries its requests
	offers chan *NewChannel
}

func (c *Conn) newAttachment(info Attach, stream uint32) *Attachment {
	a := &Attachment{info: info, offers: make(chan *NewChannel, c.cfg.Limits.Channels)}
	a.c = newChannel(c, stream, nil)
	a.c.attachment = a
	return a
}

// Attach begins an attachment. Only a gateway does.
func (c *Conn) Attach(ctx context.Context, info Attach) (*Attachment, error) {
	payload, err := info.encode()
	if err != nil {
		return nil, err
	}
	a := c.newAttachment(info, 0)
	if err := c.openStream(ctx, frameAttach, a.c, payload); err != nil {
		return nil, err
	}
	return a, nil
}

// AcceptAttachment waits for the peer to attach a client. Only an agent does.
func (c *Conn) AcceptAttachment(ctx context.Context) (*Attachment, error) {
	select {
	case a := <-c.arrived:
		return a, nil
	case <-c.Done():
		return nil, c.Err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// attached begins an attachment that the peer asks for.
func (c *Conn) attached(stream uint32, payload []byte) error {
	info, err := decodeAttach(payload)
	if err != nil {
		return err
	}
	a := c.newAttachment(info, stream)
	a.c.open = true // channels of it may follow at once
	err = c.arrive(stream, a.c)
	var refusal *OpenError
	switch {
	case errors.As(err, &refusal):
		c.refuse(a.c, refusal)
		return nil
	case err != nil:
		return err
	}
	select {
	case c.arrived <- a:
		c.queue(frameAccept, stream, make([]byte, 4))
	default:
		c.remove(a.c)
		a.c.lose(ErrClosed)
		c.refuse(a.c, refuseTooMany)
	}
	return nil
}

// endChildren ends the channels of an attachment that the peer ended, if ch is one's stream. What they have received can
// still be read.
func (c *Conn) endChildren(ch *Channel) {
	if ch.attachment == nil {
		return
	}
	for _, child := range c.children(ch.attachment) {
		child.lose(ErrClosed)
		child.sendClose()
	}
}

// Info returns what the client's end said of it.
func (a *Attachment) Info() Attach { return a.info }

// Done is closed when the attachment is over, at either end.
func (a *Attachment) Done() <-chan struct{} { return a.c.Done() }

// Close ends the attachment and all that was opened in it: a hang-up.
func (a *Attachment) Close() error {
	err := a.c.Close()
	for _, child := range a.c.conn.children(a) {
		_ = child.Close()
	}
	return err
}

// Request sends a request about the whole client, such as tcpip-forward (RFC 4254, section 4).
func (a *Attachment) Request(ctx context.Context, name string, wantReply bool, payload []byte) (bool, []byte, error) {
	return a.c.request(ctx, name, wantReply, payload)
}

// Requests returns the peer's requests about the whole client.
func (a *Attachment) Requests() <-chan *Request { return a.c.Requests() }

// Open opens a channel (RFC 4254, section 5.1). A refusal is an *OpenError.
func (a *Attachment) Open(ctx context.Context, kind string, payload []byte) (*Channel, error) {
	c := a.c.conn
	b, err := open{credit: initialWindow, attachment: a.c.id, kind: kind, payload: payload}.encode()
	if err != nil {
		return nil, err
	}
	ch := newChannel(c, 0, a)
	if err := ch.takeWindow(); err != nil {
		return nil, err
	}
	if err := c.openStream(ctx, frameOpen, ch, b); err != nil {
		return nil, err
	}
	return ch, nil
}

// NewChannel is a channel that the peer wants to open. It must be accepted or rejected.
type NewChannel struct {
	Kind    string
	Payload []byte

	ch *Channel
}

// opened hands a channel that the peer opens to its attachment.
func (c *Conn) opened(stream uint32, payload []byte) error {
	o, err := decodeOpen(payload)
	if err != nil {
		return err
	}
	c.mu.Lock()
	parent := c.streams[o.attachment]
	c.mu.Unlock()
	var a *Attachment
	if parent != nil {
		a = parent.attachment
	}
	ch := newChannel(c, stream, a)
	ch.credit = int64(o.credit)
	switch err = c.arrive(stream, ch); {
	case err != nil:
	case a == nil || !parent.isOpen(): // from here on, its end is this channel's too
		err = refuseNoAttachment
	default:
		select {
		case a.offers <- &NewChannel{Kind: o.kind, Payload: o.payload, ch: ch}:
		default:
			err = refuseTooMany
		}
	}
	var refusal *OpenError
	if errors.As(err, &refusal) {
		c.remove(ch)
		c.refuse(ch, refusal)
		return nil
	}
	return err
}

// AcceptChannel waits for the peer to open a channel.
func (a *Attachment) AcceptChannel(ctx context.Context) (*NewChannel, error) {
	select {
	case n := <-a.offers:
		return n, nil
	case <-a.Done():
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Accept opens the channel at this end.
func (n *NewChannel) Accept() (*Channel, error) {
	ch := n.ch
	err := ch.takeWindow()
	if err == nil {
		err = ch.accept()
	}
	var refusal *OpenError
	switch {
	case err == nil:
		return ch, nil
	case errors.As(err, &refusal):
		_ = n.Reject(refusal.Reason, refusal.Message)
	}
	_ = ch.Close()
	return nil, err
}

// accept tells the peer that the channel is open, unless it is over.
func (c *Channel) accept() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return c.lost()
	}
	c.open = true
	s := c.conn.out
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.append(hardPending, frameAccept, c.id, binary.BigEndian.AppendUint32(nil, initialWindow))
}

// Reject refuses the channel, with a reason of RFC 4254, section 5.1.
func (n *NewChannel) Reject(reason uint32, message string) error {
	n.ch.conn.remove(n.ch)
	n.ch.lose(ErrClosed)
	n.ch.conn.refuse(n.ch, &OpenError{Reason: reason, Message: message})
	return nil
}
