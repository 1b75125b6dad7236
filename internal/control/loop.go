package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"berth/internal/compute"
)

// Bounds of the loop. A container that stays up for steadyAfter has its restarts forgotten.
const (
	maxPasses      = 16
	passesOfOwner  = 4 // so that one owner's slow passes leave others theirs
	firstRetry     = 500 * time.Millisecond
	longestRetry   = time.Minute
	takenAtOnce    = 4 * maxPasses // containers whose first pass after a sync is due
	steadyAfter    = time.Minute
	passTimeout    = 15 * time.Minute
	patientFailure = 3 // passing faults that an owner is not yet told of as "failed"
)

var errSuperseded = errors.New("a newer desired state is stored")

// loop drives every container to its desired state: level-triggered, one goroutine for each container that has work, none for
// the others. What it remembers only saves work: all of it can be lost at any instant.
type loop struct {
	s      *Service
	passes chan struct{} // holds one for each pass under way
	wg     sync.WaitGroup

	mu       sync.Mutex // guards all below; never held over I/O
	ctx      context.Context
	watching bool // the engine has listed its containers and goes on to tell of them
	items    map[compute.ContainerID]*item
	owned    map[compute.UserID]chan struct{} // holds one for each pass under way over an owner's containers
	left     int                              // containers that syncs have yet to take up
}

// item is what the loop knows of one container.
type item struct {
	active bool                    // a goroutine works on it
	room   chan struct{}           // of the sync that took it up; nil once it had a pass since
	since  time.Time               // it is active
	dirty  bool                    // it must look again
	cancel context.CancelCauseFunc // ends the pass under way
	aim    int64                   // the generation that the pass under way drives to; 0 before it knows
	newest int64                   // the newest generation that was asked for
	turns  chan struct{}           // its owner's passes
	wake   chan struct{}           // ends a wait between passes

	retry    *backoff.ExponentialBackOff
	delay    time.Duration // before the next pass: it died soon after its start
	failures int
	upSince  time.Time

	seen     compute.Observation // the engine's last word
	seenMark uint64              // of the watch that saw it last
	seenSeq  uint64              // counts its observations
}

func newLoop(s *Service) *loop {
	return &loop{
		s: s, passes: make(chan struct{}, maxPasses),
		items: make(map[compute.ContainerID]*item), owned: make(map[compute.UserID]chan struct{}),
	}
}

func (l *loop) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	l.forget()
	defer func() {
		l.mu.Lock() // so that start sees the end before Wait begins
		cancel()
		l.mu.Unlock()
		l.wg.Wait()
	}()
	retry := newRetry()
	for mark := uint64(1); ; mark++ {
		err := l.s.engine.Watch(ctx, func(o compute.Observation) { l.observe(o, mark) }, func() {
			retry.Reset()
			l.synced(ctx, mark)
		})
		l.mu.Lock()
		l.watching = false
		l.mu.Unlock()
		if ctx.Err() != nil {
			return nil
		}
		l.s.log.Warn("engine watch ended; watching again", "err", err)
		if !pause(ctx, retry.NextBackOff(), nil) {
			return nil
		}
	}
}

// forget drops what an earlier run knew: others may have driven the engine since.
func (l *loop) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ctx = nil
	l.items = make(map[compute.ContainerID]*item)
	l.owned = make(map[compute.UserID]chan struct{})
}

func newRetry() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier = firstRetry, longestRetry, 2
	return b
}

// pause waits for d, for wake or for ctx, and says whether ctx goes on.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-wake:
	}
	return ctx.Err() == nil
}

// kick begins a pass over a container whose desired state is stored with generation. A pass under way that drives to an
// older one begins anew; one that drives to it already goes on, so that asking again and again holds nothing up. Before
// the first sync it does nothing: the sync takes up every container.
func (l *loop) kick(r compute.Ref, generation int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx == nil || l.ctx.Err() != nil {
		return
	}
	it := l.item(r)
	it.newest = max(it.newest, generation)
	if it.cancel != nil && it.aim >= it.newest {
		return
	}
	if it.cancel != nil && it.aim != 0 {
		it.cancel(errSuperseded)
	}
	it.delay = 0
	it.retry.Reset()
	l.start(r.ID, it)
}

// kickNewer is kick for what another process has stored: only where that is news here.
func (l *loop) kickNewer(r compute.Ref, generation int64) {
	l.mu.Lock()
	it := l.items[r.ID]
	known := it != nil && max(it.newest, it.aim) >= generation
	l.mu.Unlock()
	if !known {
		l.kick(r, generation)
	}
}

// item returns what is known of a container. l.mu is held.
func (l *loop) item(r compute.Ref) *item {
	it := l.items[r.ID]
	if it == nil {
		if l.owned[r.Owner] == nil {
			l.owned[r.Owner] = make(chan struct{}, passesOfOwner)
		}
		it = &item{retry: newRetry(), turns: l.owned[r.Owner], wake: make(chan struct{}, 1)}
		l.items[r.ID] = it
	}
	return it
}

// start makes sure that a goroutine will look at the item after now. l.mu is held.
func (l *loop) start(id compute.ContainerID, it *item) {
	if l.ctx == nil || l.ctx.Err() != nil {
		return
	}
	it.dirty = true
	select {
	case it.wake <- struct{}{}:
	default:
	}
	if !it.active {
		it.active, it.since = true, time.Now()
		l.wg.Go(func() { l.work(l.ctx, id, it) })
	}
}

// observe takes the engine's word on a container. One that ended by itself soon after its start waits before it is started
// again, longer each time. One that cannot go on is not taken for ended: it may only be out of reach.
func (l *loop) observe(o compute.Observation, mark uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	it := l.item(o.Ref)
	died := it.seen.Phase == compute.PhaseRunning && o.Phase != compute.PhaseRunning && o.Phase != compute.PhaseFailed
	it.seen, it.seenMark = o, mark
	it.seenSeq++
	if died {
		if time.Since(it.upSince) > steadyAfter {
			it.retry.Reset()
		}
		it.delay = it.retry.NextBackOff()
	}
	l.start(o.ID, it)
}

// synced looks at every container anew: those that the engine listed, and those that it should have.
func (l *loop) synced(ctx context.Context, mark uint64) {
	l.mu.Lock()
	l.ctx = ctx // before the list is read: what is asked for after that is not in it
	for _, it := range l.items {
		if it.seenMark != mark {
			it.seen = compute.Observation{}
		}
	}
	l.mu.Unlock()
	list, err := l.s.store.Reconcilable(ctx)
	for err != nil {
		l.s.log.Error("list containers to reconcile", "err", err)
		if !pause(ctx, longestRetry, nil) {
			return
		}
		list, err = l.s.store.Reconcilable(ctx)
	}
	known := make(map[compute.ContainerID]compute.Ref, len(list))
	for _, c := range list {
		known[c.ID] = c.Ref()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watching = true
	for id, it := range l.items {
		if _, ok := known[id]; !ok && it.seen.Phase != "" {
			l.s.log.Warn("the engine has a container that the database does not know; left alone", "container", it.seen.Ref)
		}
	}
	l.left += len(list)
	l.wg.Go(func() { l.takeUp(ctx, list) })
}

// work passes over one container until what is desired is there.
func (l *loop) work(ctx context.Context, id compute.ContainerID, it *item) {
	for {
		l.mu.Lock()
		delay := it.delay
		it.delay = 0
		l.drainWake(it)
		l.mu.Unlock()
		if delay > 0 {
			l.s.down(ctx, id)
			if !pause(ctx, delay, it.wake) {
				return
			}
		}
		done, err := l.pass(ctx, id, it)
		if ctx.Err() != nil {
			return
		}
		l.mu.Lock()
		if it.dirty {
			if errors.Is(err, errSuperseded) {
				it.failures = 0
			}
			l.mu.Unlock()
			continue
		}
		if err == nil {
			it.active, it.failures = false, 0
			since := it.since
			if done {
				delete(l.items, id)
			}
			l.mu.Unlock()
			l.s.observer.settled(since)
			return
		}
		it.failures++
		if it.failures == 1 && time.Since(it.upSince) > steadyAfter {
			it.retry.Reset()
		}
		failures, wait := it.failures, it.retry.NextBackOff()
		l.mu.Unlock()
		l.s.log.Warn("reconcile", "container", id, "failures", failures, "retry_in", wait, "err", err)
		if !pause(ctx, wait, it.wake) {
			return
		}
	}
}

func (l *loop) drainWake(it *item) {
	select {
	case <-it.wake:
	default:
	}
}

// pass runs one reconciliation within the loop's bounds. It reports done when nothing of the container is left to watch.
func (l *loop) pass(ctx context.Context, id compute.ContainerID, it *item) (done bool, err error) {
	select {
	case it.turns <- struct{}{}:
	default: // what waits for the other passes of its owner holds up nobody else
		l.mu.Lock()
		it.leaveRoom()
		l.mu.Unlock()
		select {
		case it.turns <- struct{}{}:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	defer func() { <-it.turns }()
	select {
	case l.passes <- struct{}{}:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	defer func() { <-l.passes }()
	ctx, stop := context.WithTimeout(ctx, passTimeout)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	l.mu.Lock()
	it.dirty = false
	it.cancel, it.aim = cancel, 0
	l.drainWake(it)
	seen, seq, failures := it.seen, it.seenSeq, it.failures
	l.mu.Unlock()

	began := time.Now()
	phase, err := l.s.reconcile(ctx, id, seen, failures, func(generation int64) {
		l.mu.Lock()
		defer l.mu.Unlock()
		it.aim = generation
		if generation < it.newest { // asked for since the row was read
			cancel(errSuperseded)
		}
	})
	if err != nil && context.Cause(ctx) == errSuperseded {
		err = errSuperseded
	}
	l.s.observer.passed(began, err)

	l.mu.Lock()
	defer l.mu.Unlock()
	it.cancel = nil
	it.leaveRoom()
	if err == nil && it.seenSeq == seq && phase != it.seen.Phase {
		it.seen.Phase = phase
		if phase == compute.PhaseRunning {
			it.upSince = time.Now()
		}
	}
	return phase == compute.PhaseAbsent, err
}

// down tells a container's owner that it ended by itself, before the wait for its restart.
func (s *Service) down(ctx context.Context, id compute.ContainerID) {
	c, err := s.store.ReconcileState(ctx, id)
	if err != nil || c.Desired != compute.DesiredRunning {
		return // the next pass looks again, and reports what is wrong with the store
	}
	if err := s.store.SetStatus(ctx, id, c.Generation, compute.StatusPending, "It ended by itself and is started again."); err != nil {
		s.log.Warn("set status", "container", id, "err", err)
	}
}

// reconcile makes one container what its row desires, given what the engine last said of it, and returns the phase that it is
// in then. It tells aim the generation that it read. It may be interrupted at any instant and repeated.
func (s *Service) reconcile(
	ctx context.Context, id compute.ContainerID, seen compute.Observation, failures int, aim func(generation int64),
) (compute.Phase, error) {
	c, err := s.store.ReconcileState(ctx, id)
	if compute.CodeOf(err) == compute.CodeNotFound && err != nil {
		return compute.PhaseAbsent, nil
	}
	if err != nil {
		return "", err
	}
	aim(c.Generation)
	switch c.Desired {
	case compute.DesiredDeleted:
		if err := s.engine.Remove(ctx, c.Ref()); err != nil {
			return "", fmt.Errorf("remove: %w", err)
		}
		return compute.PhaseAbsent, s.store.Purge(ctx, id)
	case compute.DesiredStopped:
		err = s.stop(ctx, c)
		if err == nil {
			return compute.PhaseStopped, nil
		}
	default:
		err = s.startUp(ctx, c, seen)
		if err == nil {
			return compute.PhaseRunning, nil
		}
	}
	if ctx.Err() == nil || context.Cause(ctx) == context.DeadlineExceeded {
		s.tellFailure(ctx, c, err, failures)
	}
	return "", err
}

func (s *Service) stop(ctx context.Context, c compute.Container) error {
	if c.StorageMade { // else nothing was ever made
		if err := s.engine.Apply(ctx, s.spec(c)); err != nil {
			return fmt.Errorf("stop: %w", err)
		}
	}
	return s.store.SetStatus(ctx, c.ID, c.Generation, compute.StatusStopped, "")
}

func (s *Service) startUp(ctx context.Context, c compute.Container, seen compute.Observation) error {
	if c.Status == compute.StatusPending && c.StorageMade {
		// Whoever asked for a start after a stop, or for other mount paths, is promised a fresh one, also where the last run
		// did not end meanwhile. It is pending until that is over, so a kill in between forgets nothing.
		last := s.spec(c)
		last.Running = false
		if err := s.engine.Apply(ctx, last); err != nil {
			return fmt.Errorf("end the last run: %w", err)
		}
	}
	if c.Status == compute.StatusRunning && seen.Phase != compute.PhaseRunning {
		if err := s.store.SetStatus(ctx, c.ID, c.Generation, compute.StatusPending, seen.Message); err != nil {
			return err
		}
		c.Status = compute.StatusPending
	}
	if c.Status == compute.StatusPending {
		if err := s.store.SetStatus(ctx, c.ID, c.Generation, compute.StatusInitializing, ""); err != nil {
			return err
		}
	}
	if !c.StorageMade {
		if err := s.engine.Provision(ctx, s.spec(c)); err != nil {
			return fmt.Errorf("make storage: %w", err)
		}
		if err := s.store.RecordStorage(ctx, c.ID); err != nil {
			return err
		}
	}
	if err := s.engine.Apply(ctx, s.spec(c)); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	return s.store.SetStatus(ctx, c.ID, c.Generation, compute.StatusRunning, "")
}

// tellFailure shows the owner what went wrong. A fault that may pass is shown as one only after it stayed a while. The loop
// goes on trying either way.
func (s *Service) tellFailure(ctx context.Context, c compute.Container, err error, failures int) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), usageTimeout)
	defer cancel()
	switch compute.CodeOf(err) {
	case compute.CodeUnavailable, compute.CodeInternal:
		if failures+1 < patientFailure {
			return
		}
	}
	if err := s.store.SetStatus(ctx, c.ID, c.Generation, compute.StatusFailed, compute.UserMessage(err)); err != nil {
		s.log.Warn("set status", "container", c.ID, "err", err)
	}
}
