package httpapi

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"berth/internal/compute"
)

const (
	defaultMaxFeeds        = 10_000
	defaultMaxFeedsPerUser = 100
)

// feedTimes are what a client of the feed has time for. Zero takes the default.
type feedTimes struct {
	write     time.Duration // for taking one message
	pingEvery time.Duration
	pongWait  time.Duration // for answering a ping
}

func (t feedTimes) withDefaults() feedTimes {
	return feedTimes{
		write:     cmp.Or(t.write, 10*time.Second),
		pingEvery: cmp.Or(t.pingEvery, 30*time.Second),
		pongWait:  cmp.Or(t.pongWait, 60*time.Second),
	}
}

// FeedStats counts clients of the feed since the start, those that are there now apart.
type FeedStats struct {
	Clients   int    // now
	Refused   uint64 // beyond a limit
	Slow      uint64 // dropped: they did not take a message in time
	Silent    uint64 // dropped: they answered no ping
	Relisted  uint64 // times that a client which fell behind was told the list again
	Forbidden uint64 // whose token ended or was revoked while they listened
}

// feeds knows every client of the feed: it holds their number to its limits and can end them all.
type feeds struct {
	max, perUser int
	times        feedTimes

	base context.Context // of every client's; ends with stop
	end  context.CancelCauseFunc

	refused, slow, silent, relisted, forbidden atomic.Uint64

	mu      sync.Mutex
	stopped bool // guarded by mu, as what follows
	clients int
	ofUsers map[compute.UserID]int
	running sync.WaitGroup // clients; Add under mu, before stopped
}

func newFeeds(limit, perUser int, times feedTimes) *feeds {
	f := &feeds{max: limit, perUser: perUser, times: times.withDefaults(), ofUsers: make(map[compute.UserID]int)}
	f.base, f.end = context.WithCancelCause(context.Background())
	return f
}

// Feeds counts the feed's clients.
func (s *Server) Feeds() FeedStats {
	f := s.feeds
	f.mu.Lock()
	clients := f.clients
	f.mu.Unlock()
	return FeedStats{
		Clients: clients, Refused: f.refused.Load(), Slow: f.slow.Load(), Silent: f.silent.Load(),
		Relisted: f.relisted.Load(), Forbidden: f.forbidden.Load(),
	}
}

// reserve counts a client of the user's in, until leave is called.
func (f *feeds) reserve(user compute.UserID) (leave func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.stopped:
		return nil, errStopped
	case f.clients >= f.max:
		f.refused.Add(1)
		return nil, compute.Errorf(compute.CodeUnavailable, "There are too many clients of the feed; try again in a moment.")
	case f.ofUsers[user] >= f.perUser:
		f.refused.Add(1)
		return nil, compute.Errorf(codeTooMany, "You have %d clients of the feed; close one first.", f.perUser)
	}
	f.clients++
	f.ofUsers[user]++
	f.running.Add(1)
	return func() {
		f.mu.Lock()
		f.clients--
		if f.ofUsers[user]--; f.ofUsers[user] == 0 {
			delete(f.ofUsers, user)
		}
		f.mu.Unlock()
		f.running.Done()
	}, nil
}

// stop says goodbye to all clients and lets no more in.
func (f *feeds) stop() {
	f.mu.Lock()
	f.stopped = true
	f.mu.Unlock()
	f.end(errGoingAway)
}

// wait returns once all clients are gone, or with ctx's error when that ends first; the clients go on to leave. It follows
// stop.
func (f *feeds) wait(ctx context.Context) error {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		f.running.Wait()
	}()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
