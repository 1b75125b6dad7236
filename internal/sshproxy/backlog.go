package sshproxy

import (
	"context"
	"io"
	"sync"
	"time"

	"berth/internal/compute"
)

// What the estimate takes for the packets that it does not see.
const (
	packetCost = 64 // of the packet around what was read, or a request
	answerCost = 48 // of a packet that only asks for one of ours: a ping, a window
	settled    = 10 * time.Millisecond
)

var errBacklog = compute.Errorf(compute.CodeLimit, "This connection sent too much that nobody reads.")

// backlog estimates how much of what a client sent waits to be read, from what came in on the wire and what was read of
// channels. x/crypto gives every channel 2 MiB, whatever we want, and keeps each packet apart, so that packets of one
// byte cost it a hundred times their data. While there is too much, the connection is not read: its client waits, and
// nobody else. One that stands still for long is ended, since nothing tells whether its client is still there.
type backlog struct {
	limit    int64
	patience time.Duration
	changed  chan struct{} // has a token after a change that may let a waiting connection go on

	mu       sync.Mutex // guards what follows
	in, out  int64      // bytes that came, and that were accounted for since
	busy     int        // channels that may hold something that their reader has not asked for
	lastBusy time.Time  // when there was one last
}

func newBacklog(limit int, patience time.Duration) *backlog {
	return &backlog{limit: int64(limit), patience: patience, changed: make(chan struct{}, 1)}
}

// came counts bytes from the wire.
func (b *backlog) came(n int) {
	b.mu.Lock()
	b.in += int64(n)
	b.mu.Unlock()
}

// gone accounts for bytes that came.
func (b *backlog) gone(n int) {
	b.mu.Lock()
	b.out = min(b.out+int64(n), b.in)
	b.mu.Unlock()
	b.signal()
}

// hold counts a channel in (1) or out (-1) of those that may hold something.
func (b *backlog) hold(n int) {
	b.mu.Lock()
	b.busy += n
	b.lastBusy = time.Now()
	b.mu.Unlock()
	if n < 0 {
		b.signal()
	}
}

func (b *backlog) signal() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// full says whether too much waits. Where every reader has been waiting for a moment, nothing does, and the count
// begins anew: the estimate errs a little with every packet.
func (b *backlog) full() (full, idle bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.in-b.out <= b.limit {
		return false, false
	}
	idle = b.busy <= 0
	if idle && time.Since(b.lastBusy) >= settled {
		b.out = b.in
		return false, true
	}
	return true, idle
}

// wait returns when the connection may be read, or with why it must end.
func (b *backlog) wait(ctx context.Context) error {
	full, idle := b.full()
	if !full {
		return nil
	}
	end := time.NewTimer(b.patience)
	defer end.Stop()
	look := time.NewTicker(settled)
	defer look.Stop()
	for full {
		var settle <-chan time.Time
		if idle {
			settle = look.C
		}
		select {
		case <-b.changed:
		case <-settle:
		case <-end.C:
			return errBacklog
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		full, idle = b.full()
	}
	return nil
}

// counted reads a channel's data for its one reader. Until finish or EOF, the channel may hold something whenever it is
// not being read.
type counted struct {
	io.Reader
	b    *backlog
	over sync.Once
}

func (b *backlog) counted(r io.Reader) *counted {
	b.hold(1)
	return &counted{Reader: r, b: b}
}

func (c *counted) Read(p []byte) (int, error) {
	c.b.hold(-1)
	n, err := c.Reader.Read(p)
	c.b.hold(1)
	c.b.gone(n + packetCost)
	if err != nil {
		c.finish()
	}
	return n, err
}

func (c *counted) finish() { c.over.Do(func() { c.b.hold(-1) }) }
