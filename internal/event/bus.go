// Package event tells committed changes to those who wait for them: it follows the store's stream of events from number to
// number and hands each to the subscriptions that it concerns.
//
// A subscription is bounded. One that does not keep up is ended and counted, never waited for; its reader then reads the
// state anew and subscribes again. The package stores nothing: a reader that needs every event reads the store's stream.
package event

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"berth/internal/compute"
)

// Source is the stream of events. Events returns up to limit events with Seq > after, in order; LastEvent the newest
// number. A first event that is not after + 1 means that older ones were removed before they were read.
type Source interface {
	Events(ctx context.Context, after int64, limit int) ([]compute.Event, error)
	LastEvent(ctx context.Context) (int64, error)
}

// batch is how many events are read at once.
const batch = 512

// A source that fails is asked again after firstRetry, then after twice as long each time up to longestRetry, or at the next
// hint.
const (
	firstRetry   = 100 * time.Millisecond
	longestRetry = 10 * time.Second
)

// Bus hands out events. Its methods may be called concurrently.
type Bus struct {
	src  Source
	log  *slog.Logger
	last int64 // the number handed out last; Run's alone
	hint chan struct{}
	lost atomic.Uint64

	mu     sync.Mutex // guards what follows; no I/O and no waiting under it
	closed bool
	subs   map[compute.UserID]map[*Subscription]struct{} // by owner; 0 are those to all
}

// Open returns a bus that stands at the source's newest event: a subscription gets what is committed after it was made. Log
// may be nil.
func Open(ctx context.Context, src Source, log *slog.Logger) (*Bus, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	last, err := src.LastEvent(ctx)
	if err != nil {
		return nil, err
	}
	return &Bus{
		src: src, log: log, last: last, hint: make(chan struct{}, 1),
		subs: make(map[compute.UserID]map[*Subscription]struct{}),
	}, nil
}

// Hint wakes Run: something was committed. It never blocks.
func (b *Bus) Hint() {
	select {
	case b.hint <- struct{}{}:
	default: // a wake-up is due already, and it reads this commit too
	}
}

// Run hands out events until ctx ends, then ends all subscriptions. It is called once.
func (b *Bus) Run(ctx context.Context) error {
	defer b.close()
	retry := firstRetry
	for {
		var again <-chan time.Time
		var timer *time.Timer
		err := b.drain(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			retry = firstRetry
		} else {
			b.log.Warn("read events; trying again", "after", b.last, "retry_in", retry, "err", err)
			timer = time.NewTimer(retry)
			again = timer.C
			retry = min(2*retry, longestRetry)
		}
		select {
		case <-ctx.Done():
		case <-b.hint:
		case <-again:
		}
		if timer != nil {
			timer.Stop()
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// drain hands out all events that there are.
func (b *Bus) drain(ctx context.Context) error {
	for {
		events, err := b.src.Events(ctx, b.last, batch)
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.Seq != b.last+1 {
				b.log.Warn("events were removed before they were handed out", "after", b.last, "next", e.Seq)
				b.loseAll()
			}
			b.publish(e)
			b.last = e.Seq
		}
		if len(events) < batch {
			return nil
		}
	}
}

func (b *Bus) publish(e compute.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.subs[0] {
		b.send(s, e)
	}
	if e.Owner == 0 {
		return
	}
	for s := range b.subs[e.Owner] {
		b.send(s, e)
	}
}

// send gives e to s, or ends s when it is full. b.mu is held.
func (b *Bus) send(s *Subscription, e compute.Event) {
	select {
	case s.c <- e:
	default:
		b.lose(s)
	}
}

func (b *Bus) loseAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, of := range b.subs {
		for s := range of {
			b.lose(s)
		}
	}
}

// lose ends a subscription that missed something. b.mu is held.
func (b *Bus) lose(s *Subscription) {
	s.lost.Store(true)
	b.lost.Add(1)
	b.end(s)
}

// end closes a subscription that is open. b.mu is held.
func (b *Bus) end(s *Subscription) {
	of := b.subs[s.owner]
	if _, open := of[s]; !open {
		return
	}
	delete(of, s)
	if len(of) == 0 {
		delete(b.subs, s.owner)
	}
	close(s.c)
}

func (b *Bus) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for _, of := range b.subs {
		for s := range of {
			b.end(s)
		}
	}
}

// Lost counts the subscriptions that were ended because they missed events.
func (b *Bus) Lost() uint64 { return b.lost.Load() }

// Subscription is one reader's bounded share of the stream.
type Subscription struct {
	// C yields events in order. It is closed after Close, when Run ends and when the reader missed an event: see Lost.
	C <-chan compute.Event

	c     chan compute.Event
	bus   *Bus
	owner compute.UserID
	lost  atomic.Bool
}

// Subscribe begins a subscription to one owner's events, or to everybody's with owner 0, that holds up to buffer events for a
// slow reader. After Run has ended it is closed from the start. A reader subscribes first and reads the state after that.
func (b *Bus) Subscribe(owner compute.UserID, buffer int) *Subscription {
	c := make(chan compute.Event, max(buffer, 1))
	s := &Subscription{C: c, c: c, bus: b, owner: owner}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		close(c)
		return s
	}
	of := b.subs[owner]
	if of == nil {
		of = make(map[*Subscription]struct{})
		b.subs[owner] = of
	}
	of[s] = struct{}{}
	return s
}

// Close ends the subscription. It may be called more than once, at any time.
func (s *Subscription) Close() {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	s.bus.end(s)
}

// Lost says, once C is closed, whether the reader missed an event: it must read the state anew and subscribe again.
func (s *Subscription) Lost() bool { return s.lost.Load() }
