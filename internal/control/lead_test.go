package control_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/internal/compute"
	"berth/internal/control"
	"berth/internal/event"
	"berth/internal/pgtest"
	"berth/internal/store"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := pgtest.Main(); err != nil {
		slog.Error("stop PostgreSQL", "err", err)
		code = 1
	}
	os.Exit(code)
}

// plane is a control plane of several on one database and one engine.
type plane struct {
	t     *testing.T
	news  news
	store *store.Store
	svc   *control.Service
	leads atomic.Bool
	stop  func()
}

// gate is the engine as one of them reaches it: it can be cut off from its lease in the middle of a call.
type gate struct {
	*fakeEngine
	before func(call string)
	permit func(ctx context.Context) error
}

func (g *gate) pass(ctx context.Context, call string) error {
	g.before(call)
	return g.permit(context.WithoutCancel(ctx)) // what wakes may not have noticed that its context has ended
}

func (g *gate) Provision(ctx context.Context, s compute.Spec) error {
	if err := g.pass(ctx, "provision"); err != nil {
		return err
	}
	return g.fakeEngine.Provision(ctx, s)
}

func (g *gate) Apply(ctx context.Context, s compute.Spec) error {
	if err := g.pass(ctx, "apply"); err != nil {
		return err
	}
	return g.fakeEngine.Apply(ctx, s)
}

func (g *gate) Remove(ctx context.Context, r compute.Ref) error {
	if err := g.pass(ctx, "remove"); err != nil {
		return err
	}
	return g.fakeEngine.Remove(ctx, r)
}

// news wakes a test that waits for something to become true.
type news chan struct{}

func (n news) give() {
	select {
	case n <- struct{}{}:
	default:
	}
}

func (n news) until(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for !f() {
		select {
		case <-n:
		case <-deadline:
			t.Fatalf("it does not come true that %s", what)
		}
	}
}

const shortTTL = 900 * time.Millisecond

// newPlane starts a control plane. Before is called before each call that changes something.
func newPlane(t *testing.T, n news, url, name string, eng *fakeEngine, before func(call string)) *plane {
	t.Helper()
	p := &plane{t: t, news: n}
	var bus atomic.Pointer[event.Bus]
	var err error
	p.store, err = store.Open(t.Context(), url, store.Options{OnCommit: func() {
		if b := bus.Load(); b != nil {
			b.Hint()
		}
		n.give()
	}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := event.Open(t.Context(), p.store, nil)
	if err != nil {
		t.Fatal(err)
	}
	bus.Store(b)
	p.svc = control.New(control.Config{
		Store: p.store, Engine: &gate{eng, before, p.store.CheckTerm}, Limits: compute.DefaultLimits(),
		Types: compute.DefaultInstanceTypes(), Zone: "compute.localhost",
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	run := func(f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	run(b.Run)
	candidate := control.Candidate{
		Lease: p.store, Holder: name, Place: "here", TTL: shortTTL, Log: slog.New(slog.DiscardHandler),
	}
	run(func(ctx context.Context) error {
		return candidate.Lead(ctx, func(ctx context.Context) error {
			p.lead(true)
			defer p.lead(false)
			return p.svc.Run(ctx)
		})
	})
	run(func(ctx context.Context) error {
		return p.svc.Follow(ctx, func() (<-chan compute.Event, func()) {
			s := b.Subscribe(0, 64)
			return s.C, s.Close
		})
	})
	p.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := p.store.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(p.stop)
	return p
}

func (p *plane) lead(leads bool) {
	p.leads.Store(leads)
	p.news.give()
}

// alice makes an account with one key.
func (p *plane) alice() compute.Principal {
	p.t.Helper()
	u, err := control.Users{Store: p.store, Limits: compute.DefaultLimits()}.
		Add(p.t.Context(), "alice", compute.RoleUser, []string{testKey})
	if err != nil {
		p.t.Fatal(err)
	}
	return compute.Principal{User: u.ID, Username: "alice", Role: compute.RoleUser}
}

func (p *plane) reaches(ref compute.Ref, want compute.Status) {
	p.t.Helper()
	p.news.until(p.t, fmt.Sprintf("%s is %s", ref.ID, want), func() bool {
		c, err := p.store.Container(p.t.Context(), ref.Owner, ref.ID)
		return err == nil && c.Status == want
	})
}

// Two control planes on one database: either takes what users ask for, one drives the engine, and when that one stops, the
// other goes on.
func TestTwoControlPlanes(t *testing.T) {
	n, url, eng := make(news, 1), pgtest.NewDatabase(t), newFakeEngine()
	none := func(string) {}
	a := newPlane(t, n, url, "a", eng, none)
	n.until(t, "a drives", a.leads.Load)
	b := newPlane(t, n, url, "b", eng, none)
	who := a.alice()
	create := func(p *plane) compute.Ref {
		t.Helper()
		v, err := p.svc.CreateContainer(t.Context(), who, compute.ContainerRequest{Name: "box", SSHKeyIDs: []int64{1}})
		if err != nil {
			t.Fatal(err)
		}
		return v.Ref()
	}
	one, two := create(a), create(b)
	a.reaches(one, compute.StatusRunning)
	b.reaches(two, compute.StatusRunning)
	if b.leads.Load() {
		t.Fatal("both drive")
	}
	if _, err := b.svc.StopContainer(t.Context(), who, one.ID); err != nil {
		t.Fatal(err)
	}
	b.reaches(one, compute.StatusStopped)
	a.stop()
	n.until(t, "b drives", b.leads.Load)
	if _, err := b.svc.StartContainer(t.Context(), who, one.ID); err != nil {
		t.Fatal(err)
	}
	b.reaches(one, compute.StatusRunning)
	if err := b.svc.DeleteContainer(t.Context(), who, two.ID); err != nil {
		t.Fatal(err)
	}
	n.until(t, "the deleted one is purged", func() bool {
		_, err := b.store.ReconcileState(t.Context(), two.ID)
		return compute.CodeOf(err) == compute.CodeNotFound && err != nil
	})
}

// One is stopped in the middle of a create, of a delete, of anything, for longer than its lease. The other does the work
// meanwhile; when the first goes on, it changes nothing: not in the engine, not in the database.
func TestPausedPastItsLease(t *testing.T) {
	for _, at := range []string{"provision", "apply", "remove"} {
		t.Run(at, func(t *testing.T) {
			n, url, eng := make(news, 1), pgtest.NewDatabase(t), newFakeEngine()
			paused, goesOn := make(chan struct{}), make(chan struct{})
			var once, woken sync.Once
			wake := func() { woken.Do(func() { close(goesOn) }) }
			defer wake()
			var frozen atomic.Bool
			a := newPlane(t, n, url, "a", eng, func(call string) {
				if call == at {
					once.Do(func() {
						frozen.Store(true)
						close(paused)
					})
				}
				if frozen.Load() {
					<-goesOn
				}
			})
			n.until(t, "a drives", a.leads.Load)
			who := a.alice()
			b := newPlane(t, n, url, "b", eng, func(string) {})
			v, err := b.svc.CreateContainer(t.Context(), who, compute.ContainerRequest{Name: "box", SSHKeyIDs: []int64{1}})
			if err != nil {
				t.Fatal(err)
			}
			if at == "remove" {
				b.reaches(v.Ref(), compute.StatusRunning)
				if err := b.svc.DeleteContainer(t.Context(), who, v.ID); err != nil {
					t.Fatal(err)
				}
			}
			<-paused
			// As if a's whole process stood still: its lease is not renewed.
			if err := a.store.ReleaseLease(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			n.until(t, "b drives", b.leads.Load)
			if at == "remove" {
				n.until(t, "b has removed it", func() bool {
					_, err := b.store.ReconcileState(t.Context(), v.ID)
					return err != nil && compute.CodeOf(err) == compute.CodeNotFound
				})
			} else {
				b.reaches(v.Ref(), compute.StatusRunning)
			}
			calls := len(eng.asked())
			last, err := b.store.LastEvent(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			wake()
			n.until(t, "a has noticed", func() bool { return !a.leads.Load() })
			a.stop()
			if got := eng.asked(); len(got) != calls {
				t.Errorf("the one that woke asked the engine for %v", got[calls:])
			}
			if now, err := b.store.LastEvent(t.Context()); err != nil || now != last {
				t.Errorf("the one that woke made events %d to %d; %v", last+1, now, err)
			}
		})
	}
}
