package httpapi

import (
	"cmp"
	"context"
	"sync/atomic"
	"time"
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
	*seats
	times feedTimes

	base context.Context // of every client's; ends with stop
	end  context.CancelCauseFunc

	slow, silent, relisted, forbidden atomic.Uint64
}

func newFeeds(limit, perUser int, times feedTimes) *feeds {
	f := &feeds{seats: newSeats(limit, perUser, "feeds and streams of events"), times: times.withDefaults()}
	f.base, f.end = context.WithCancelCause(context.Background())
	return f
}

// Feeds counts the feed's clients.
func (s *Server) Feeds() FeedStats {
	f := s.feeds
	return FeedStats{
		Clients: f.count(), Refused: f.refused.Load(), Slow: f.slow.Load(), Silent: f.silent.Load(),
		Relisted: f.relisted.Load(), Forbidden: f.forbidden.Load(),
	}
}

// stop says goodbye to all clients and lets no more in.
func (f *feeds) stop() {
	f.close()
	f.end(errGoingAway)
}
