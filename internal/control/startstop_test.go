package control_test

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"berth/internal/compute"
	"berth/internal/control"
)

// ask starts or stops the container, and returns how the answer shows it.
func (r *rig) ask(ref compute.Ref, d compute.Desired) control.ContainerView {
	r.t.Helper()
	f := r.svc.StartContainer
	if d == compute.DesiredStopped {
		f = r.svc.StopContainer
	}
	v, err := f(r.t.Context(), r.who, ref.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

// events counts what readers of the stream were told so far.
func (r *rig) events() int64 {
	r.t.Helper()
	last, err := r.store.LastEvent(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return last
}

const (
	run  = compute.DesiredRunning
	halt = compute.DesiredStopped
)

// A start of what runs and a stop of what is stopped answer with the container as it is, and nobody is told of anything.
func TestStartAndStopRepeated(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		for _, step := range []struct {
			ask   compute.Desired
			first compute.Status // in the answer that changes something
			then  compute.Status
		}{
			{halt, compute.StatusRunning, compute.StatusStopped},
			{run, compute.StatusPending, compute.StatusRunning},
		} {
			if v := r.ask(ref, step.ask); v.Status != step.first {
				t.Errorf("asked for %s, the answer shows %s", step.ask, v.Status)
			}
			r.want(ref, step.then, "")
			seen := r.events()
			_, lives := r.eng.run(ref)
			for range 3 {
				if v := r.ask(ref, step.ask); v.Status != step.then {
					t.Errorf("asked for %s again, the answer shows %s", step.ask, v.Status)
				}
				r.settle()
			}
			if _, now := r.eng.run(ref); now != lives || r.events() != seen {
				t.Errorf("asking for %s again led to %d starts and %d events", step.ask, now-lives, r.events()-seen)
			}
		}
	})
}

// Outside of its mount paths a container is fresh after a stop, also when the start comes before the stop is done.
func TestAStartAfterAStopIsFresh(t *testing.T) {
	for _, killed := range []bool{false, true} {
		inRig(t, func(t *testing.T, r *rig) {
			ref := r.create()
			r.want(ref, compute.StatusRunning, "")
			gate := make(chan struct{})
			r.eng.set(func() { r.eng.block["stop"] = gate })
			r.ask(ref, halt)
			r.settle()
			if v := r.ask(ref, run); v.Status != compute.StatusPending {
				t.Errorf("the start's answer shows %s", v.Status)
			}
			r.want(ref, compute.StatusPending, "") // until its last run is over
			if killed {
				r.stop()
				r.start()
				r.want(ref, compute.StatusPending, "")
			}
			close(gate)
			r.want(ref, compute.StatusRunning, "")
			if _, lives := r.eng.run(ref); lives != 2 {
				t.Errorf("it was started %d times, want a second time after the stop", lives)
			}
			want := []compute.Status{
				compute.StatusPending, compute.StatusInitializing, compute.StatusRunning,
				compute.StatusPending, compute.StatusInitializing, compute.StatusRunning,
			}
			if got := r.statuses(ref); !slices.Equal(got, want) {
				t.Errorf("statuses were %v", got)
			}
		})
	}
}

// While it is pending or initializing, what was asked for last is what it becomes, however often that changes.
func TestTheLastWordWins(t *testing.T) {
	for _, call := range []string{"provision", "start"} {
		for _, words := range [][]compute.Desired{
			{halt},
			{halt, run},
			{halt, run, halt},
			{halt, halt, run, run, halt, run},
		} {
			inRig(t, func(t *testing.T, r *rig) {
				gate := make(chan struct{})
				r.eng.set(func() { r.eng.block[call] = gate })
				ref := r.create()
				r.want(ref, compute.StatusInitializing, "")
				for _, d := range words {
					r.ask(ref, d)
					r.settle()
				}
				close(gate)
				last := words[len(words)-1]
				r.want(ref, map[compute.Desired]compute.Status{run: compute.StatusRunning, halt: compute.StatusStopped}[last], "")
				if s, _ := r.eng.run(ref); s.Running != (last == run) {
					t.Errorf("after %v in %s the engine has it running: %v", words, call, s.Running)
				}
			})
		}
	}
}

// A failed one is tried again by a start, at once, and is stopped by a stop.
func TestStartAndStopOfAFailedOne(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		r.eng.set(func() { r.eng.fail["start"] = compute.Errorf(compute.CodeCapacity, "No room.") })
		ref := r.create()
		r.want(ref, compute.StatusFailed, "No room")
		if v := r.ask(ref, run); v.Status != compute.StatusPending || v.StatusMessage != "" {
			t.Errorf("the start's answer shows %s %q", v.Status, v.StatusMessage)
		}
		r.want(ref, compute.StatusFailed, "No room")
		if v := r.ask(ref, halt); v.Status != compute.StatusFailed {
			t.Errorf("the stop's answer shows %s", v.Status)
		}
		r.want(ref, compute.StatusStopped, "")
		r.wait(time.Hour)
		r.want(ref, compute.StatusStopped, "")
		r.eng.set(func() { delete(r.eng.fail, "start") })
		r.ask(ref, run)
		r.want(ref, compute.StatusRunning, "")
	})
}

// Starts and stops that race leave one of the two, the same in the database and on the engine, and readers of the stream
// see no status skipped. The store's tests hold the order of the events.
func TestStartAndStopAtOnce(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		for range 10 {
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() {
					if i%2 == 0 {
						_, err := r.svc.StartContainer(t.Context(), r.who, ref.ID)
						if err != nil {
							t.Error(err)
						}
						return
					}
					if _, err := r.svc.StopContainer(t.Context(), r.who, ref.ID); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			synctest.Wait()
			c, err := r.store.Container(t.Context(), ref.Owner, ref.ID)
			if err != nil {
				t.Fatal(err)
			}
			want := map[compute.Desired]compute.Status{run: compute.StatusRunning, halt: compute.StatusStopped}[c.Desired]
			if s, _ := r.eng.run(ref); c.Status != want || s.Running != (c.Desired == run) {
				t.Fatalf("it is to be %s, shows %s, and runs: %v", c.Desired, c.Status, s.Running)
			}
		}
		statuses := r.statuses(ref)
		for i, s := range statuses[1:] {
			if !slices.Equal(compute.Between(statuses[i], s), []compute.Status{s}) {
				t.Errorf("from %s it went to %s", statuses[i], s)
			}
		}
	})
}

// Once it is deleted, a start or a stop finds nothing, whatever is still under way.
func TestStartAndStopOfADeletedOne(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		gate := make(chan struct{})
		r.eng.set(func() { r.eng.block["remove"] = gate })
		if err := r.svc.DeleteContainer(t.Context(), r.who, ref.ID); err != nil {
			t.Fatal(err)
		}
		r.settle()
		if _, err := r.svc.StartContainer(t.Context(), r.who, ref.ID); compute.CodeOf(err) != compute.CodeNotFound {
			t.Errorf("a start after the delete: %v", err)
		}
		if _, err := r.svc.StopContainer(t.Context(), r.who, ref.ID); compute.CodeOf(err) != compute.CodeNotFound {
			t.Errorf("a stop after the delete: %v", err)
		}
		if err := r.svc.DeleteContainer(t.Context(), r.who, ref.ID); compute.CodeOf(err) != compute.CodeNotFound {
			t.Errorf("a second delete: %v", err)
		}
		close(gate)
		r.settle()
		if r.eng.stored() != 0 {
			t.Error("its storage is left")
		}
	})
}
