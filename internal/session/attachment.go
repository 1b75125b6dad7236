package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"berth/internal/agentproto"
	"berth/internal/compute"
)

// Request is what either end asks about a channel, with the names and payloads of RFC 4254. Reply to each.
type Request = agentproto.Request

// Channel is one stream to a container's agent, with its requests; it is to SSH's channels what the agent's wire is to
// SSH.
type Channel interface {
	io.Reader // the container's output; io.EOF after all of it
	io.Writer // its input
	Stderr() io.Reader
	CloseWrite() error // the end of its input
	// Request asks the agent and, with wantReply, waits for the answer.
	Request(ctx context.Context, name string, wantReply bool, payload []byte) (bool, error)
	// Requests is what the agent asks. It is closed after the last one, when the channel is.
	Requests() <-chan *Request
	Done() <-chan struct{} // closed when the channel is, by either end or with its transport
	Close() error          // hangs up
}

// Attachment is one client's presence in a container: what runs for the client hangs on it, and gets SIGHUP when it
// closes.
type Attachment struct {
	m    *Multiplexer
	t    *transport
	att  *agentproto.Attachment
	once sync.Once
}

func newAttachment(m *Multiplexer, t *transport, att *agentproto.Attachment) *Attachment {
	a := &Attachment{m: m, t: t, att: att}
	m.wg.Go(a.refuseAll)
	return a
}

// refuseAll turns away what the agent opens or asks by itself: no client has asked for anything of that kind yet.
func (a *Attachment) refuseAll() {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for r := range a.att.Requests() {
			_ = r.Reply(false, nil)
		}
	})
	for {
		nc, err := a.att.AcceptChannel(a.m.ctx)
		if err != nil {
			return
		}
		_ = nc.Reject(1, "nobody asked for this") // administratively prohibited: RFC 4254, section 5.1
	}
}

// Open opens a channel of a kind of RFC 4254. CodeUnavailable with the agent's words when it refuses.
func (a *Attachment) Open(ctx context.Context, kind string, payload []byte) (Channel, error) {
	ch, err := a.att.Open(ctx, kind, payload)
	var refused *agentproto.OpenError
	switch {
	case errors.As(err, &refused):
		return nil, &compute.Error{
			Code: compute.CodeUnavailable, Message: fmt.Sprintf("The container refused: %.200s", refused.Message), Cause: err,
		}
	case err != nil:
		return nil, unavailable(ctx, "open "+kind, err)
	}
	return ch, nil
}

// Done is closed when the attachment is gone, by Close or with its transport.
func (a *Attachment) Done() <-chan struct{} { return a.att.Done() }

// Close ends the attachment: what runs for the client is told that the client hung up.
func (a *Attachment) Close() error {
	var err error
	a.once.Do(func() {
		err = a.att.Close()
		a.m.release(a.t)
	})
	return err
}
