package agentproto

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// Attachment is one client's presence on a connection. The channels opened in it end with it.
type Attachment struct {
	conn *Conn
	id   uint64
	info Attach
	c    *Channel // carries its requests

	offers chan *NewChannel

	mu       sync.Mutex // guards channels
	channels map[*Channel]struct{}
}

// register makes an attachment that lives as long as ch.
func (c *Conn) register(r attachRequest, ch *Channel) (*Attachment, error) {
	a := &Attachment{
		conn: c, id: r.ID, info: r.Attach, c: ch,
		offers: make(chan *NewChannel, c.cfg.Limits.Channels), channels: make(map[*Channel]struct{}),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.attachments[a.id] != nil {
		return nil, fmt.Errorf("%w: an attachment that is there already", errProtocol)
	}
	c.attachments[a.id] = a
	ch.onRelease(a.finish)
	return a, nil
}

// finish closes the attachment's channels once it is over.
func (a *Attachment) finish() {
	a.conn.mu.Lock()
	delete(a.conn.attachments, a.id)
	a.conn.mu.Unlock()
	_ = a.c.Close()
	a.mu.Lock()
	list := a.channels
	a.channels = nil
	a.mu.Unlock()
	for c := range list {
		_ = c.Close()
	}
	for {
		select {
		case n := <-a.offers:
			_ = n.s.Close()
		default:
			return
		}
	}
}

// keep has ch end with the attachment.
func (a *Attachment) keep(ch *Channel) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.channels == nil {
		return ErrClosed
	}
	a.channels[ch] = struct{}{}
	ch.onRelease(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.channels, ch)
	})
	return nil
}

// Attach begins an attachment. Only a gateway does.
func (c *Conn) Attach(ctx context.Context, info Attach) (*Attachment, error) {
	c.mu.Lock()
	c.nextID++
	req := attachRequest{ID: c.nextID, Attach: info}
	c.mu.Unlock()
	payload, err := req.encode()
	if err != nil {
		return nil, err
	}
	var a *Attachment
	_, err = c.openStream(ctx, frameAttach, payload, func(ch *Channel) error {
		a, err = c.register(req, ch)
		return err
	})
	return a, err
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

// Info returns what the client's end said of it.
func (a *Attachment) Info() Attach { return a.info }

// Done is closed when the attachment is over, at either end.
func (a *Attachment) Done() <-chan struct{} { return a.c.Done() }

// Close ends the attachment and all that was opened in it: a hang-up.
func (a *Attachment) Close() error {
	err := a.c.Close()
	a.c.end()
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
	b, err := open{attachment: a.id, kind: kind, payload: payload}.encode()
	if err != nil {
		return nil, err
	}
	return a.conn.openStream(ctx, frameOpen, b, a.keep)
}

// NewChannel is a channel that the peer wants to open. It must be accepted or rejected.
type NewChannel struct {
	Kind    string
	Payload []byte

	conn *Conn
	a    *Attachment
	s    net.Conn
}

func (a *Attachment) deliver(n *NewChannel) error {
	n.a = a
	select {
	case a.offers <- n:
	default:
		return &OpenError{Reason: ReasonShortOfSupply, Message: messageTooMany}
	}
	select {
	case <-a.Done(): // endWithIt may have emptied the queue before this one came
		select {
		case n := <-a.offers:
			_ = n.s.Close()
		default:
		}
	default:
	}
	return nil
}

// AcceptChannel waits for the peer to open a channel.
func (a *Attachment) AcceptChannel(ctx context.Context) (*NewChannel, error) {
	select {
	case n := <-a.offers:
		return n, nil
	case <-a.Done():
		return nil, ErrClosed
	case <-a.conn.Done():
		return nil, a.conn.Err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Accept opens the channel at this end.
func (n *NewChannel) Accept() (*Channel, error) {
	ch, err := n.conn.accept(n.s, n.a.keep)
	if err != nil {
		_ = n.s.Close()
	}
	return ch, err
}

// Reject refuses the channel, with a reason of RFC 4254, section 5.1.
func (n *NewChannel) Reject(reason uint32, message string) error {
	err := reject(n.s, &OpenError{Reason: reason, Message: message})
	_ = n.s.Close()
	return err
}
