package control_test

import (
	"context"
	"slices"
	"sync"

	"berth/internal/compute"
)

// fakeEngine is an engine in memory that records what is asked of it and fails on request.
type fakeEngine struct {
	mu        sync.Mutex
	storage   map[compute.Ref]bool
	running   map[compute.Ref]compute.Spec
	lives     map[compute.Ref]int // how often it was started
	calls     []string
	fail      map[string]error          // by call name: the next calls fail with it until removed
	block     map[string]chan struct{}  // by call name: calls wait for the channel to close, or their context
	observe   func(compute.Observation) // of the watch under way
	admitErr  error
	changeErr error
}

func newFakeEngine() *fakeEngine {
	return &fakeEngine{
		storage: map[compute.Ref]bool{}, running: map[compute.Ref]compute.Spec{}, lives: map[compute.Ref]int{},
		fail: map[string]error{}, block: map[string]chan struct{}{},
	}
}

func (e *fakeEngine) begin(ctx context.Context, call string) error {
	e.mu.Lock()
	e.calls = append(e.calls, call)
	err, block := e.fail[call], e.block[call]
	e.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return err
}

func (e *fakeEngine) Admit(context.Context, compute.Spec) error { return e.admitErr }

func (e *fakeEngine) AdmitChange(_ context.Context, _, _ compute.Spec) error { return e.changeErr }

func (e *fakeEngine) Provision(ctx context.Context, s compute.Spec) error {
	if err := e.begin(ctx, "provision"); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.storage[s.Ref] = true
	return nil
}

func (e *fakeEngine) Apply(ctx context.Context, s compute.Spec) error {
	call := "stop"
	if s.Running {
		call = "start"
	}
	if err := e.begin(ctx, call); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.storage[s.Ref] {
		return compute.Errorf(compute.CodeStorageMissing, "Its storage is missing.")
	}
	old, runs := e.running[s.Ref]
	if !s.Running {
		delete(e.running, s.Ref)
		return nil
	}
	e.running[s.Ref] = s
	if !runs || !slices.Equal(old.MountPaths, s.MountPaths) {
		e.lives[s.Ref]++ // else it is the same life, as with real engines
	}
	return nil
}

func (e *fakeEngine) Remove(ctx context.Context, r compute.Ref) error {
	if err := e.begin(ctx, "remove"); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.running, r)
	delete(e.storage, r)
	return nil
}

func (e *fakeEngine) Watch(ctx context.Context, f func(compute.Observation), synced func()) error {
	e.mu.Lock()
	e.observe = f
	list := map[compute.Ref]compute.Phase{}
	for r := range e.storage {
		list[r] = compute.PhaseStopped
	}
	for r := range e.running {
		list[r] = compute.PhaseRunning
	}
	e.mu.Unlock()
	for r, p := range list {
		f(compute.Observation{Ref: r, Phase: p})
	}
	synced()
	<-ctx.Done()
	return ctx.Err()
}

func (e *fakeEngine) Stored(context.Context) ([]compute.Stored, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []compute.Stored
	for r := range e.storage {
		_, runs := e.running[r]
		list = append(list, compute.Stored{Ref: r, Running: runs})
	}
	return list, nil
}

func (e *fakeEngine) Discard(ctx context.Context, r compute.Ref, unknown func(context.Context) error) error {
	if err := unknown(ctx); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.storage[r] {
		return compute.NotFound("storage")
	}
	delete(e.storage, r)
	delete(e.running, r)
	return nil
}

func (e *fakeEngine) Usage(_ context.Context, r compute.Ref) (compute.Usage, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.running[r]; !ok {
		return compute.Usage{}, compute.Errorf(compute.CodeNotRunning, "It does not run.")
	}
	return compute.Usage{MemoryMB: 17, StorageGB: 0.5}, nil
}

// die ends a running container by itself.
func (e *fakeEngine) die(r compute.Ref) {
	e.mu.Lock()
	delete(e.running, r)
	observe := e.observe
	e.mu.Unlock()
	observe(compute.Observation{Ref: r, Phase: compute.PhaseStopped, Message: "Its first process ended."})
}

func (e *fakeEngine) set(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

// asked returns the calls so far.
func (e *fakeEngine) asked() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.calls)
}

// run returns what the container runs as, and how often it was started; zero while it does not run.
func (e *fakeEngine) run(r compute.Ref) (s compute.Spec, lives int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.running[r], e.lives[r]
}

// stored counts the containers that have storage.
func (e *fakeEngine) stored() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.storage)
}
