package httpapi

import (
	"context"
	"sync"
	"sync/atomic"

	"berth/internal/compute"
)

// seats holds the number of requests that last to limits, together and of one account, and knows when all are gone.
type seats struct {
	max, perUser int
	what         string // is taken, as users read it, in the plural
	refused      atomic.Uint64

	mu      sync.Mutex
	closed  bool // guarded by mu, as what follows
	taken   int
	ofUsers map[compute.UserID]int
	running sync.WaitGroup // those taken; Add under mu, before closed
}

func newSeats(limit, perUser int, what string) *seats {
	return &seats{max: limit, perUser: perUser, what: what, ofUsers: make(map[compute.UserID]int)}
}

// reserve takes a seat for the user, until leave is called.
func (s *seats) reserve(user compute.UserID) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, errStopped
	case s.taken >= s.max:
		s.refused.Add(1)
		return nil, compute.Errorf(compute.CodeUnavailable, "There are too many %s; try again in a moment.", s.what)
	case s.ofUsers[user] >= s.perUser:
		s.refused.Add(1)
		return nil, compute.Errorf(codeTooMany, "You have %d %s; end one first.", s.perUser, s.what)
	}
	s.taken++
	s.ofUsers[user]++
	s.running.Add(1)
	return func() {
		s.mu.Lock()
		s.taken--
		if s.ofUsers[user]--; s.ofUsers[user] == 0 {
			delete(s.ofUsers, user)
		}
		s.mu.Unlock()
		s.running.Done()
	}, nil
}

// count returns how many are taken.
func (s *seats) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

// close lets nobody in any more.
func (s *seats) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
}

// wait returns once all are gone, or with ctx's error when that ends first; they go on to leave. It follows close.
func (s *seats) wait(ctx context.Context) error {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		s.running.Wait()
	}()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
