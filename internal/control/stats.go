package control

import (
	"context"
	"errors"
	"time"

	"berth/internal/compute"
)

// Observer is told how the reconcile loop does; it must not block. The zero value is told nothing.
type Observer struct {
	Passed  func(took time.Duration, err error) // of each pass that was not cut short
	Settled func(took time.Duration)            // of each container that is as desired, since it began not to be
}

func (o Observer) passed(began time.Time, err error) {
	if o.Passed != nil && !errors.Is(err, errSuperseded) && !errors.Is(err, context.Canceled) {
		o.Passed(time.Since(began), err)
	}
}

func (o Observer) settled(since time.Time) {
	if o.Settled != nil {
		o.Settled(time.Since(since))
	}
}

// Backlog is what the reconcile loop has to do.
type Backlog struct {
	Containers int           // that are not yet as desired, as far as is known
	Passes     int           // under way
	Failing    int           // containers whose last pass failed
	Oldest     time.Duration // since the one that waits longest began to
}

// Backlog returns what there is to do now.
func (s *Service) Backlog() Backlog {
	l := s.loop
	b := Backlog{Passes: len(l.passes)}
	l.mu.Lock()
	defer l.mu.Unlock()
	b.Containers = l.left
	for _, it := range l.items {
		if !it.active {
			continue
		}
		b.Containers++
		if it.failures > 0 {
			b.Failing++
		}
		b.Oldest = max(b.Oldest, time.Since(it.since))
	}
	return b
}

// Ready returns nil while the engine tells what becomes of containers: only then does what is desired become real.
func (s *Service) Ready() error {
	s.loop.mu.Lock()
	defer s.loop.mu.Unlock()
	if !s.loop.watching {
		return compute.Errorf(compute.CodeUnavailable, "The engine does not tell of its containers.")
	}
	return nil
}
