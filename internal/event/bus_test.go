package event_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"berth/internal/compute"
	"berth/internal/event"
	"berth/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// rig is a bus on a real store.
type rig struct {
	*event.Bus
	store *store.Store
}

// newRig opens both. wrap may stand between them.
func newRig(t testing.TB, o store.Options, wrap func(*store.Store) event.Source) rig {
	t.Helper()
	var bus atomic.Pointer[event.Bus]
	o.OnCommit = func() {
		if b := bus.Load(); b != nil {
			b.Hint()
		}
	}
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "berth.db"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	src := event.Source(s)
	if wrap != nil {
		src = wrap(s)
	}
	b, err := event.Open(t.Context(), src, nil)
	if err != nil {
		t.Fatal(err)
	}
	bus.Store(b)
	return rig{b, s}
}

// run runs the bus until stop is called or the test ends.
func (r rig) run(t testing.TB) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

func (r rig) user(t testing.TB, name string) compute.UserID {
	t.Helper()
	u, err := r.store.CreateUser(t.Context(), name, compute.RoleUser)
	if err != nil {
		t.Fatal(err)
	}
	return u.ID
}

// toggle commits one event of the user's.
func (r rig) toggle(t testing.TB, id compute.UserID) {
	t.Helper()
	u, err := r.store.User(t.Context(), id)
	if err == nil {
		_, err = r.store.SetUserDisabled(t.Context(), id, !u.Disabled)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func next(t testing.TB, s *event.Subscription) compute.Event {
	t.Helper()
	select {
	case e, ok := <-s.C:
		if !ok {
			t.Fatalf("the subscription ended, lost %v", s.Lost())
		}
		return e
	case <-time.After(patience):
		t.Fatal("no event")
	}
	panic("unreachable")
}

// ended reads what is left and waits for the end.
func ended(t testing.TB, s *event.Subscription) (rest []compute.Event) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case e, ok := <-s.C:
			if !ok {
				return rest
			}
			rest = append(rest, e)
		case <-deadline:
			t.Fatal("the subscription does not end")
		}
	}
}

func TestEachGetsTheirOwn(t *testing.T) {
	r := newRig(t, store.Options{}, nil)
	r.run(t)
	everybody := r.Subscribe(0, 10)
	alice := r.user(t, "alice")
	hers := r.Subscribe(alice, 10)
	bob := r.user(t, "bob")
	his := r.Subscribe(bob, 10)
	r.toggle(t, alice)
	r.toggle(t, bob)
	for i, owner := range []compute.UserID{alice, bob, alice, bob} {
		if e := next(t, everybody); e.Seq != int64(i)+1 || e.Owner != owner || e.Kind != compute.EventUserChanged {
			t.Fatalf("event %d is %+v", i+1, e)
		}
	}
	for _, s := range []struct {
		sub  *event.Subscription
		last int64
	}{{hers, 3}, {his, 4}} {
		for e := next(t, s.sub); e.Seq != s.last; e = next(t, s.sub) {
			// What was committed just before the subscription may still come.
			if e.Seq > s.last || e.Owner != map[int64]compute.UserID{3: alice, 4: bob}[s.last] {
				t.Fatalf("a stranger's event: %+v", e)
			}
		}
		s.sub.Close()
		if rest := ended(t, s.sub); len(rest) != 0 || s.sub.Lost() {
			t.Fatalf("after Close: %+v, lost %v", rest, s.sub.Lost())
		}
	}
}

// What is committed after Open is handed out, whenever Run begins; what was before is not.
func TestFromOpenOn(t *testing.T) {
	r := newRig(t, store.Options{}, func(s *store.Store) event.Source {
		if _, err := s.CreateUser(t.Context(), "before", compute.RoleUser); err != nil {
			t.Fatal(err)
		}
		return s
	})
	s := r.Subscribe(0, 10)
	r.user(t, "alice")
	r.run(t)
	if e := next(t, s); e.Seq != 2 {
		t.Fatalf("first came %+v", e)
	}
}

// A subscription that does not keep up is ended and counted; the others go on, and nobody waits.
func TestSlowSubscriberIsDropped(t *testing.T) {
	r := newRig(t, store.Options{}, nil)
	r.run(t)
	alice := r.user(t, "alice")
	fast, slow := r.Subscribe(0, 100), r.Subscribe(alice, 3)
	for range 10 {
		r.toggle(t, alice)
	}
	for e := next(t, fast); e.Seq != 11; e = next(t, fast) {
	}
	rest := ended(t, slow)
	if len(rest) != 3 || !slow.Lost() || r.Lost() != 1 || fast.Lost() {
		t.Fatalf("slow got %+v, lost %v; %d lost in all, fast %v", rest, slow.Lost(), r.Lost(), fast.Lost())
	}
	for i, e := range rest { // what it did get is without gaps
		if e.Seq != rest[0].Seq+int64(i) {
			t.Fatalf("slow got %+v", rest)
		}
	}
	slow.Close() // a second end is none
	again := r.Subscribe(alice, 3)
	r.toggle(t, alice)
	for e := next(t, again); e.Seq != 12; e = next(t, again) {
	}
}

// Events that were removed before they were handed out end every subscription: all must read the state anew.
func TestGapLosesAll(t *testing.T) {
	const events = 600 // the store removes old ones 256 at a time
	r := newRig(t, store.Options{KeepEvents: 5}, nil)
	alice := r.user(t, "alice")
	all, hers, bobs := r.Subscribe(0, 2*events), r.Subscribe(alice, 2*events), r.Subscribe(99, 1)
	for range events {
		r.toggle(t, alice)
	}
	stop := r.run(t)
	for name, s := range map[string]*event.Subscription{"all": all, "hers": hers, "bobs": bobs} {
		if rest := ended(t, s); len(rest) != 0 || !s.Lost() {
			t.Errorf("%s: %d events, lost %v", name, len(rest), s.Lost())
		}
	}
	after := r.Subscribe(alice, 2*events)
	r.toggle(t, alice)
	for e := next(t, after); e.Seq != events+2; e = next(t, after) {
	}
	stop()
	if r.Lost() != 3 {
		t.Errorf("%d lost", r.Lost())
	}
}

func TestRunEnds(t *testing.T) {
	r := newRig(t, store.Options{}, nil)
	stop := r.run(t)
	s := r.Subscribe(0, 1)
	stop()
	if rest := ended(t, s); len(rest) != 0 || s.Lost() {
		t.Fatalf("%+v, lost %v", rest, s.Lost())
	}
	s.Close()
	late := r.Subscribe(0, 1)
	ended(t, late)
	late.Close()
	r.Hint() // nobody listens, and nothing blocks
	r.Hint()
}

// flaky fails as often as it is told to.
type flaky struct {
	event.Source
	failures atomic.Int64
	asked    chan struct{}
}

func (f *flaky) Events(ctx context.Context, after int64, limit int) ([]compute.Event, error) {
	if f.failures.Add(-1) >= 0 {
		select {
		case f.asked <- struct{}{}:
		default:
		}
		return nil, errors.New("the disk hiccups")
	}
	return f.Source.Events(ctx, after, limit)
}

// A source that fails is asked again, by itself and at a hint, and nothing is skipped.
func TestSourceFails(t *testing.T) {
	f := &flaky{asked: make(chan struct{}, 1)}
	r := newRig(t, store.Options{}, func(s *store.Store) event.Source {
		f.Source = s
		return f
	})
	s := r.Subscribe(0, 10)
	f.failures.Store(1)
	r.user(t, "alice")
	r.run(t)
	if e := next(t, s); e.Seq != 1 { // asked again without a hint
		t.Fatalf("got %+v", e)
	}
	f.failures.Store(3)
	r.user(t, "bob")
	<-f.asked
	r.Hint()
	if e := next(t, s); e.Seq != 2 {
		t.Fatalf("got %+v", e)
	}
	if s.Lost() || r.Lost() != 0 {
		t.Fatal("a failure cost a subscription")
	}
}

func TestOpenFails(t *testing.T) {
	r := newRig(t, store.Options{}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := event.Open(ctx, r.store, nil); compute.CodeOf(err) != compute.CodeUnavailable {
		t.Fatalf("got %v", err)
	}
}

// Many write, many read, some come and go: whoever stays sees every number, in order.
func TestConcurrent(t *testing.T) {
	r := newRig(t, store.Options{}, nil)
	r.run(t)
	const writers, rounds, readers = 6, 15, 20
	var users []compute.UserID
	for i := range writers {
		users = append(users, r.user(t, fmt.Sprint("user", i)))
	}
	const last = writers + writers*rounds
	var g errgroup.Group
	for i := range readers {
		s := r.Subscribe(0, last)
		g.Go(func() error {
			defer s.Close()
			seen := int64(0)
			for {
				select {
				case e, ok := <-s.C:
					switch {
					case !ok:
						return fmt.Errorf("reader %d ended at %d", i, seen)
					case seen != 0 && e.Seq != seen+1:
						return fmt.Errorf("reader %d: after %d came %d", i, seen, e.Seq)
					case e.Seq == last:
						return nil
					}
					seen = e.Seq
				case <-time.After(patience):
					return fmt.Errorf("reader %d waits at %d", i, seen)
				}
			}
		})
	}
	for _, id := range users {
		g.Go(func() error {
			for n := range rounds {
				if _, err := r.store.SetUserDisabled(t.Context(), id, n%2 == 0); err != nil {
					return err
				}
				passing := r.Subscribe(id, 1)
				passing.Close()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkFanOut measures one event from its commit to its last reader, with 10,000 subscriptions of others beside it.
func BenchmarkFanOut(b *testing.B) {
	r := newRig(b, store.Options{}, nil)
	r.run(b)
	alice := r.user(b, "alice")
	for i := range 10_000 {
		r.Subscribe(compute.UserID(1000+i), 1)
	}
	s := r.Subscribe(alice, 10)
	n := 0
	for b.Loop() {
		n++
		if _, err := r.store.SetUserDisabled(b.Context(), alice, n%2 == 1); err != nil {
			b.Fatal(err)
		}
		for e := next(b, s); e.Seq != int64(n)+1; e = next(b, s) {
		}
	}
}
