// Package audit takes records of who did what from where they come up to where they are kept: the store, and files of JSON
// lines beside it.
//
// Nothing here may slow a login. Records wait in a bounded queue for whoever writes them, and one that finds it full is lost,
// counted, and told of in a record of its own. Refusals that anybody can cause are put together: the first of a kind is
// recorded at once, the others of the same minute as one with their number. What changes something does not come this way;
// the store records it with the change.
package audit

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"berth/internal/compute"
)

// Sink keeps records. An error that is a compute.RecordsLost says that it keeps some of them.
type Sink interface {
	AppendAudit(ctx context.Context, records []compute.AuditRecord) error
}

const (
	// maxWaiting is how many records wait to be written, some 2 MB of them.
	maxWaiting = 4096
	// maxBatch is how many are written at once.
	maxBatch = 256
	// window is the time in which refusals alike are put together.
	window = time.Minute
	// maxKinds is how many kinds of refusals are told apart in a window; the others of it are one kind.
	maxKinds = 1024
	// maxKindsOfOrigin is how many kinds of one origin are: beyond, what it tried is not told apart.
	maxKindsOfOrigin = 64
	// writeTimeout bounds one write, and the last ones when the process ends.
	writeTimeout = 10 * time.Second
)

// Queue is where records wait. Its methods may be called concurrently.
type Queue struct {
	sink    Sink
	gateway string
	log     *slog.Logger
	waiting chan compute.AuditRecord
	failing bool          // the last write kept not all; of the goroutine that writes
	missed  atomic.Uint64 // records that were lost, ever

	mu       sync.Mutex
	lost     int64                // guarded by mu, as what follows
	refusals map[kind]*repetition // of the window that began last
	origins  map[origin]int       // how many kinds there are of each
}

// NewQueue returns a Queue to sink, of records that name gateway as where they come from. It does no I/O; Run does.
func NewQueue(sink Sink, gateway string, log *slog.Logger) *Queue {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Queue{
		sink: sink, gateway: gateway, log: log, waiting: make(chan compute.AuditRecord, maxWaiting),
		refusals: make(map[kind]*repetition), origins: make(map[origin]int),
	}
}

// Record takes a record. It never waits.
func (q *Queue) Record(r compute.AuditRecord) {
	if r.At.IsZero() {
		r.At = time.Now()
	}
	r.Gateway = q.gateway
	r = r.Bounded()
	q.mu.Lock()
	defer q.mu.Unlock()
	if r.Outcome != compute.OutcomeAllowed && q.repeats(r) {
		return
	}
	q.put(r)
}

// put hands r to the writer, or loses it. q.mu is held.
func (q *Queue) put(r compute.AuditRecord) {
	select {
	case q.waiting <- r:
	default:
		q.lost += r.Count
		q.missed.Add(uint64(r.Count))
	}
}

// Missed counts the records that were lost since the start.
func (q *Queue) Missed() uint64 { return q.missed.Load() }

// Run writes what comes until ctx ends, and then what is left.
func (q *Queue) Run(ctx context.Context) error {
	t := time.NewTicker(window)
	defer t.Stop()
	for {
		select {
		case r := <-q.waiting:
			q.write(ctx, q.batch(r))
		case <-t.C:
			q.sum()
		case <-ctx.Done():
			q.sum()
			q.drain(context.WithoutCancel(ctx))
			return nil
		}
	}
}

// batch returns r and what waits behind it.
func (q *Queue) batch(r compute.AuditRecord) []compute.AuditRecord {
	list := []compute.AuditRecord{r}
	for len(list) < maxBatch {
		select {
		case r := <-q.waiting:
			list = append(list, r)
		default:
			return list
		}
	}
	return list
}

// drain writes what still waits, for as long as a write may take.
func (q *Queue) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	for ctx.Err() == nil {
		select {
		case r := <-q.waiting:
			q.write(ctx, q.batch(r))
		default:
			q.tellLost(ctx)
			return
		}
	}
}

// write stores records, and then how many were lost before. A sink that goes on failing is logged once.
func (q *Queue) write(ctx context.Context, list []compute.AuditRecord) {
	err := q.append(ctx, list)
	if err == nil {
		q.failing = false
		q.tellLost(ctx)
		return
	}
	if !q.failing {
		q.failing = true
		q.log.Error("audit records are not stored, and are lost until they are again", "records", len(list), "err", err)
	}
	n := int64(0)
	for _, r := range list {
		n += r.Count
	}
	var some compute.RecordsLost
	if errors.As(err, &some) {
		n = int64(some)
	}
	q.missed.Add(uint64(n))
	q.lose(n)
}

// tellLost stores how many records were lost, where some were.
func (q *Queue) tellLost(ctx context.Context) {
	r, lost := q.takeLost()
	if !lost {
		return
	}
	q.log.Error("audit records were lost", "records", r.Count)
	if err := q.append(ctx, []compute.AuditRecord{r}); err != nil {
		q.lose(r.Count) // for the next time
	}
}

func (q *Queue) append(ctx context.Context, list []compute.AuditRecord) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	return q.sink.AppendAudit(ctx, list)
}

func (q *Queue) lose(n int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lost += n
}

// takeLost returns a record of those that were lost since the last one.
func (q *Queue) takeLost() (r compute.AuditRecord, lost bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lost == 0 {
		return r, false
	}
	r = compute.AuditRecord{
		At: time.Now(), Action: compute.ActionAuditLost, Outcome: compute.OutcomeFailed, Code: compute.CodeUnavailable,
		Via: compute.ViaItself, Gateway: q.gateway, Count: q.lost,
	}
	q.lost = 0
	return r, true
}
