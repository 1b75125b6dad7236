package agentproto

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	maxCalls  = 64 // of ours that are not answered
	maxAnswer = 8  // of the peer's that are answered at the same time
	callPing  = "ping"
)

// calls are this end's questions to the peer, and the peer's to this end.
type calls struct {
	mu      sync.Mutex // guards what follows
	slots   int        // taken by those that are answered
	next    uint32
	over    bool
	waiting map[uint32]chan answer
}

// Call asks the peer something outside all attachments, such as "stats", and returns its answer.
func (c *Conn) Call(ctx context.Context, name string, payload []byte) ([]byte, error) {
	number, answered, err := c.calls.begin()
	if err != nil {
		return nil, err
	}
	defer c.calls.forget(number)
	b, err := call{number: number, name: name, payload: payload}.encode()
	if err != nil {
		return nil, err
	}
	if err := c.send(ctx, frameCall, b); err != nil {
		return nil, err
	}
	select {
	case a, there := <-answered:
		switch {
		case !there:
			return nil, c.why()
		case !a.ok:
			return nil, fmt.Errorf("the peer refused %s: %.200q", name, a.payload)
		}
		return a.payload, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Ping returns how long the peer takes to answer.
func (c *Conn) Ping(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	_, err := c.Call(ctx, callPing, nil)
	return time.Since(began), err
}

// send hands over a frame without a stream, once there is room for it.
func (c *Conn) send(ctx context.Context, t frameType, payload []byte) error {
	for {
		if c.ctx.Err() != nil {
			return c.why()
		}
		c.out.mu.Lock()
		err := c.out.append(softPending, t, 0, payload)
		c.out.mu.Unlock()
		if !errors.Is(err, errFull) {
			return err
		}
		if err := c.out.await(ctx, nil, c.ctx.Done()); err != nil {
			return err
		}
	}
}

func (c *calls) begin() (uint32, chan answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.over:
		return 0, nil, errLost
	case len(c.waiting) >= maxCalls:
		return 0, nil, errors.New("too many calls wait for an answer")
	}
	if c.waiting == nil {
		c.waiting = make(map[uint32]chan answer)
	}
	c.next++
	answered := make(chan answer, 1)
	c.waiting[c.next] = answered
	return c.next, answered, nil
}

func (c *calls) forget(number uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, number)
}

// end tells all who wait that no answer comes.
func (c *calls) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	for number, answered := range c.waiting {
		close(answered)
		delete(c.waiting, number)
	}
}

// answered hands over an answer; one that nobody waits for any more is dropped.
func (c *calls) answered(a answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.waiting[a.number]; w != nil {
		delete(c.waiting, a.number)
		w <- a
	}
}

// take takes one of the places for answering.
func (c *calls) take() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slots >= maxAnswer {
		return false
	}
	c.slots++
	return true
}

func (c *calls) give() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slots--
}

// handleCall handles a frame without a stream.
func (c *Conn) handleCall(t frameType, payload []byte) error {
	switch t {
	case framePing:
		c.queue(framePong, 0, nil)
		return nil
	case framePong:
		return nil
	case frameAnswer:
		a, err := decodeAnswer(payload)
		if err == nil {
			c.calls.answered(a)
		}
		return err
	case frameCall:
		q, err := decodeCall(payload)
		if err == nil {
			c.called(q)
		}
		return err
	}
	return fmt.Errorf("%w: frame %d without a stream", errProtocol, t)
}

// called answers a call, without holding up what else the peer sends.
func (c *Conn) called(q call) {
	switch {
	case q.name == callPing:
		c.queue(frameAnswer, 0, answer{number: q.number, ok: true}.encode())
	case c.cfg.OnCall == nil:
		c.queue(frameAnswer, 0, answer{number: q.number, payload: []byte("there is no such call")}.encode())
	case !c.calls.take():
		c.queue(frameAnswer, 0, answer{number: q.number, payload: []byte("too many calls")}.encode())
	default:
		c.owned.Go(func() {
			defer c.calls.give()
			c.answer(q)
		})
	}
}

func (c *Conn) answer(q call) {
	a := answer{number: q.number, ok: true}
	var err error
	if a.payload, err = c.cfg.OnCall(c.ctx, q.name, q.payload); err == nil && len(a.payload) > MaxAnswer {
		err = errors.New("the answer is too long")
	}
	if err != nil {
		text := err.Error()
		a.ok, a.payload = false, []byte(text[:min(len(text), maxMessage)])
	}
	_ = c.send(c.ctx, frameAnswer, a.encode()) // fails when the connection is lost, which tells so elsewhere
}
