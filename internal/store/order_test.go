package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"berth/internal/compute"
)

// polls counts how often a reader has looked, and lets writers wait for it.
type polls struct {
	mu   sync.Mutex
	cond *sync.Cond
	n    int
	over bool
}

func newPolls() *polls {
	p := &polls{}
	p.cond = sync.NewCond(&p.mu)
	return p
}

func (p *polls) add() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	p.cond.Broadcast()
}

func (p *polls) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	p.cond.Broadcast()
}

// wait returns when the reader has looked n times more.
func (p *polls) wait(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for until := p.n + n; p.n < until && !p.over; {
		p.cond.Wait()
	}
}

var errGivenUp = errors.New("given up")

// Committers are slow: each has its number for a while before anybody can see it, and some give up then. A reader that looks
// all the time, from its last number on, sees every number once and in order, and never one before a smaller one.
func TestSlowCommitters(t *testing.T) {
	ctx := t.Context()
	source := newSource(t)
	stores := []*Store{openAt(t, source, Options{}), openAt(t, source, Options{}), openAt(t, source, Options{})}
	start, err := stores[0].LastEvent(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 8
	looked := newPolls()
	var writers, reader sync.WaitGroup
	var done sync.Once
	finished := make(chan struct{})
	seen := start
	reader.Go(func() {
		defer looked.end()
		for last := false; ; {
			select {
			case <-finished:
				last = true
			default:
			}
			list, err := stores[0].Events(ctx, seen, 100)
			if err != nil {
				t.Error(err)
				return
			}
			for _, e := range list {
				if e.Seq != seen+1 {
					t.Errorf("after event %d came %d", seen, e.Seq)
				}
				seen = e.Seq
			}
			looked.add()
			if last {
				return
			}
		}
	})
	defer done.Do(func() { close(finished) })
	for i, s := range stores {
		writers.Go(func() {
			for n := range rounds {
				err := s.write(context.WithoutCancel(ctx), "commit slowly", func(tx *tx) error {
					if err := tx.event(compute.Event{Kind: compute.EventGatewayChanged}); err != nil {
						return err
					}
					looked.wait(5)
					if n%3 == i {
						return fmt.Errorf("writer %d: %w", i, errGivenUp)
					}
					return nil
				})
				if err != nil && !errors.Is(err, errGivenUp) {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	done.Do(func() { close(finished) })
	reader.Wait()
	given := 0
	for i := range stores {
		for n := range rounds {
			if n%3 != i {
				given++
			}
		}
	}
	if seen != start+int64(given) {
		t.Fatalf("%d events were seen after %d, and %d were committed", seen-start, start, given)
	}
}
