package control_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"berth/internal/compute"
	"berth/internal/control"
)

// observed remembers what the loop tells of itself.
type observed struct {
	mu      sync.Mutex
	ok, bad int
	settled []time.Duration
}

func (o *observed) observer() control.Observer {
	return control.Observer{
		Passed: func(took time.Duration, err error) {
			o.mu.Lock()
			defer o.mu.Unlock()
			if err != nil {
				o.bad++
			} else {
				o.ok++
			}
		},
		Settled: func(took time.Duration) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.settled = append(o.settled, took)
		},
	}
}

func TestBacklogAndObserver(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		var seen observed
		r.observer = seen.observer()
		r.stop()
		if r.svc.Ready() == nil {
			t.Error("a loop that has ended is ready")
		}
		r.start()
		if err := r.svc.Ready(); err != nil {
			t.Error(err)
		}
		if b := r.svc.Backlog(); b != (control.Backlog{}) {
			t.Errorf("nothing to do is %+v", b)
		}
		r.eng.set(func() { r.eng.fail["start"] = errors.New("not now") })
		r.create()
		r.settle()
		r.wait(200 * time.Millisecond)
		if b := r.svc.Backlog(); b.Containers != 1 || b.Failing != 1 || b.Passes != 0 || b.Oldest != 200*time.Millisecond {
			t.Errorf("%+v", b)
		}
		r.eng.set(func() { delete(r.eng.fail, "start") })
		r.wait(time.Minute)
		r.settle()
		if b := r.svc.Backlog(); b != (control.Backlog{}) {
			t.Errorf("all is done, and that is %+v", b)
		}
		seen.mu.Lock()
		defer seen.mu.Unlock()
		if seen.bad == 0 || seen.ok == 0 || len(seen.settled) == 0 || seen.settled[0] < 200*time.Millisecond {
			t.Errorf("%d passes failed, %d did not, settled after %v", seen.bad, seen.ok, seen.settled)
		}
	})
}

// An engine that stops telling makes the control plane not ready until it does again.
func TestReadyFollowsTheEngine(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		r.stop()
		eng := &deafEngine{fakeEngine: r.eng, heard: make(chan struct{})}
		svc := control.New(control.Config{
			Store: r.store, Engine: eng, Limits: compute.DefaultLimits(), Types: compute.DefaultInstanceTypes(), Zone: "compute.localhost",
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- svc.Run(ctx) }()
		defer func() {
			cancel()
			<-ended
		}()
		r.settle()
		if svc.Ready() == nil {
			t.Error("it is ready, and the engine has told nothing")
		}
		close(eng.heard)
		r.wait(2 * time.Minute)
		r.settle()
		if err := svc.Ready(); err != nil {
			t.Error(err)
		}
	})
}

// deafEngine cannot be watched until heard is closed.
type deafEngine struct {
	*fakeEngine
	heard chan struct{}
}

func (e *deafEngine) Watch(ctx context.Context, f func(compute.Observation), synced func()) error {
	select {
	case <-e.heard:
		return e.fakeEngine.Watch(ctx, f, synced)
	default:
		return errors.New("no connection")
	}
}
