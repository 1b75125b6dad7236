package control_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"berth/internal/compute"
	"berth/internal/control"
	"berth/internal/store"
)

const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJpZmZhYmlmZmFiaWZmYWJpZmZhYmlmZmFiaWZmYWJp"

// rig is a Service on a real database and a faked engine, in a bubble where time is faked.
type rig struct {
	t     *testing.T
	eng   *fakeEngine
	store *store.Store
	svc   *control.Service
	who   compute.Principal
	key   int64
	stop  func()

	observer control.Observer
}

// inRig runs f with the loop running.
func inRig(t *testing.T, f func(t *testing.T, r *rig)) {
	path := filepath.Join(t.TempDir(), "berth.db")
	synctest.Test(t, func(t *testing.T) {
		st, err := store.Open(t.Context(), path, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		r := &rig{t: t, eng: newFakeEngine(), store: st}
		limits := compute.DefaultLimits()
		u, err := control.Users{Store: st, Limits: limits}.Add(t.Context(), "alice", compute.RoleUser, []string{testKey})
		if err != nil {
			t.Fatal(err)
		}
		keys, err := st.Keys(t.Context(), u.ID)
		if err != nil {
			t.Fatal(err)
		}
		r.who, r.key = compute.Principal{User: u.ID, Username: "alice", Role: compute.RoleUser}, keys[0].ID
		r.start()
		defer func() { r.stop() }()
		f(t, r)
	})
}

// start begins a control plane's life; r.stop ends it, as a graceful stop would.
func (r *rig) start() {
	r.svc = control.New(control.Config{
		Store: r.store, Engine: r.eng, Limits: compute.DefaultLimits(), Types: compute.DefaultInstanceTypes(),
		Zone: "compute.localhost", Observer: r.observer,
	})
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan error)
	go func() { ended <- r.svc.Run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Error(err)
		}
		r.stop = func() {}
	}
	synctest.Wait()
}

func (r *rig) create() compute.Ref {
	r.t.Helper()
	v, err := r.svc.CreateContainer(r.t.Context(), r.who, compute.ContainerRequest{Name: "box", SSHKeyIDs: []int64{r.key}})
	if err != nil {
		r.t.Fatal(err)
	}
	if v.Status != compute.StatusPending {
		r.t.Fatalf("created as %s", v.Status)
	}
	return v.Ref()
}

// settle waits until nothing happens any more without time going on.
func (r *rig) settle() { synctest.Wait() }

// wait lets faked time go by.
func (r *rig) wait(d time.Duration) { <-time.After(d) }

func (r *rig) want(ref compute.Ref, s compute.Status, message string) {
	r.t.Helper()
	r.settle()
	c, err := r.store.Container(r.t.Context(), ref.Owner, ref.ID)
	if err != nil || c.Status != s || !strings.Contains(c.StatusMessage, message) {
		r.t.Fatalf("container is %s %q, %v; want %s %q", c.Status, c.StatusMessage, err, s, message)
	}
}

// statuses returns what a reader of the feed sees of the container.
func (r *rig) statuses(ref compute.Ref) []compute.Status {
	r.t.Helper()
	events, err := r.store.Events(r.t.Context(), 0, 1000)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []compute.Status
	for _, e := range events {
		if e.Container == ref.ID && e.Kind == compute.EventContainerStatus {
			out = append(out, e.Status)
		}
	}
	return out
}

func TestLifeOfAContainer(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		if got, want := r.statuses(ref), []compute.Status{compute.StatusInitializing, compute.StatusRunning}; !slices.Equal(got[len(got)-2:], want) {
			t.Errorf("statuses were %v", got)
		}
		v, err := r.svc.GetContainer(t.Context(), r.who, ref.ID)
		if err != nil || v.Usage.MemoryMB != 17 {
			t.Errorf("usage is %+v, %v", v.Usage, err)
		}
		if _, err := r.svc.StopContainer(t.Context(), r.who, ref.ID); err != nil {
			t.Fatal(err)
		}
		r.want(ref, compute.StatusStopped, "")
		if _, err := r.svc.StartContainer(t.Context(), r.who, ref.ID); err != nil {
			t.Fatal(err)
		}
		r.want(ref, compute.StatusRunning, "")
		if err := r.svc.DeleteContainer(t.Context(), r.who, ref.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := r.svc.GetContainer(t.Context(), r.who, ref.ID); compute.CodeOf(err) != compute.CodeNotFound {
			t.Errorf("a deleted container is %v", err)
		}
		r.settle()
		if r.eng.stored() != 0 {
			t.Errorf("storage is left: %v", r.eng.stored())
		}
		want := []string{"provision", "start", "stop", "stop", "start", "remove"} // stopped for sure before it starts again
		if got := r.eng.asked(); !slices.Equal(got, want) {
			t.Errorf("engine was asked to %v, want %v", got, want)
		}
	})
}

func TestLatestDesiredStateWins(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		r.eng.set(func() { r.eng.block["start"] = make(chan struct{}) })
		ref := r.create()
		r.want(ref, compute.StatusInitializing, "")
		if _, err := r.svc.StopContainer(t.Context(), r.who, ref.ID); err != nil {
			t.Fatal(err)
		}
		r.want(ref, compute.StatusStopped, "")
		if err := r.svc.DeleteContainer(t.Context(), r.who, ref.ID); err != nil {
			t.Fatal(err)
		}
		r.settle()
		if r.eng.stored() != 0 {
			t.Error("its storage is left")
		}
	})
}

// Asking for what is under way already changes nothing, however often.
func TestAskingAgainHoldsNothingUp(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		gate := make(chan struct{})
		r.eng.set(func() { r.eng.block["start"] = gate })
		ref := r.create()
		r.want(ref, compute.StatusInitializing, "")
		for range 100 {
			if _, err := r.svc.StartContainer(t.Context(), r.who, ref.ID); err != nil {
				t.Fatal(err)
			}
			r.settle()
		}
		close(gate)
		r.want(ref, compute.StatusRunning, "")
		if got := r.eng.asked(); !slices.Equal(got, []string{"provision", "start"}) {
			t.Errorf("the engine was asked to %v", got)
		}
	})
}

// However many slow passes one owner causes, another's containers go on.
func TestOneOwnerLeavesOthersTheirTurns(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		gate := make(chan struct{})
		r.eng.set(func() { r.eng.block["remove"] = gate })
		for range 20 {
			ref := r.create()
			if err := r.svc.DeleteContainer(t.Context(), r.who, ref.ID); err != nil {
				t.Fatal(err)
			}
			r.settle()
		}
		bob, err := control.Users{Store: r.store, Limits: compute.DefaultLimits()}.Add(t.Context(), "bob", compute.RoleUser, []string{testKey})
		if err != nil {
			t.Fatal(err)
		}
		keys, err := r.store.Keys(t.Context(), bob.ID)
		if err != nil {
			t.Fatal(err)
		}
		alice, hers := r.who, r.key
		r.who, r.key = compute.Principal{User: bob.ID, Username: bob.Username, Role: bob.Role}, keys[0].ID
		r.want(r.create(), compute.StatusRunning, "")
		close(gate)
		r.who, r.key = alice, hers
		r.want(r.create(), compute.StatusRunning, "")
	})
}

// A control plane that starts beside many containers looks at a few at a time, with no goroutine for each, and neither those
// that are slow nor one owner's many hold up the rest.
func TestManyAreTakenUpAFewAtATime(t *testing.T) {
	const owners, hers = 90, 70
	inRig(t, func(t *testing.T, r *rig) {
		gate := make(chan struct{})
		r.eng.set(func() { r.eng.block["remove"] = gate })
		for range hers {
			if err := r.svc.DeleteContainer(t.Context(), r.who, r.create().ID); err != nil {
				t.Fatal(err)
			}
		}
		for i := range owners {
			u, err := control.Users{Store: r.store, Limits: compute.DefaultLimits()}.Add(
				t.Context(), fmt.Sprint("user", i), compute.RoleUser, []string{testKey})
			if err != nil {
				t.Fatal(err)
			}
			keys, err := r.store.Keys(t.Context(), u.ID)
			if err != nil {
				t.Fatal(err)
			}
			r.who, r.key = compute.Principal{User: u.ID, Username: u.Username, Role: u.Role}, keys[0].ID
			r.want(r.create(), compute.StatusRunning, "")
		}
		last := r.create()
		r.want(last, compute.StatusRunning, "")
		r.stop()
		r.eng.set(func() { delete(r.eng.running, last) })

		r.start()
		r.want(last, compute.StatusRunning, "") // though many that came before wait for the gate
		if b := r.svc.Backlog(); b.Containers != hers {
			t.Errorf("%d containers are to be looked at, want %d", b.Containers, hers)
		}
		r.stop()

		started := make(chan struct{})
		r.eng.set(func() { r.eng.block["start"] = started })
		before := runtime.NumGoroutine()
		r.start()
		if b := r.svc.Backlog(); b.Containers != owners+1+hers {
			t.Errorf("%d containers are to be looked at, want %d", b.Containers, owners+1+hers)
		}
		if n := runtime.NumGoroutine() - before; n > hers+80 {
			t.Errorf("%d goroutines", n)
		}
		close(started)
		close(gate)
		r.settle()
		if b := r.svc.Backlog(); b.Containers != 0 {
			t.Errorf("%d containers are left", b.Containers)
		}
	})
}

func TestPassingFaultsAreRetried(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		r.eng.set(func() { r.eng.fail["start"] = errors.New("shim went away at /secret") })
		ref := r.create()
		r.want(ref, compute.StatusInitializing, "")
		r.wait(10 * time.Second)
		r.want(ref, compute.StatusFailed, "our side")
		r.eng.set(func() { delete(r.eng.fail, "start") })
		r.wait(2 * time.Minute)
		r.want(ref, compute.StatusRunning, "")
		got := r.statuses(ref)
		if tail := got[len(got)-3:]; !slices.Equal(tail, []compute.Status{compute.StatusPending, compute.StatusInitializing, compute.StatusRunning}) {
			t.Errorf("statuses were %v", got)
		}
	})
}

func TestLastingFaultsAreToldAtOnce(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		if _, err := r.svc.StopContainer(t.Context(), r.who, ref.ID); err != nil {
			t.Fatal(err)
		}
		r.settle()
		r.eng.set(func() { delete(r.eng.storage, ref) })
		if _, err := r.svc.StartContainer(t.Context(), r.who, ref.ID); err != nil {
			t.Fatal(err)
		}
		r.want(ref, compute.StatusFailed, "storage is missing")
		r.wait(time.Hour)
		for _, call := range r.eng.asked()[1:] {
			if call == "provision" {
				t.Error("missing storage was made anew")
			}
		}
	})
}

func TestADeadContainerIsStartedAgain(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		r.eng.die(ref)
		r.want(ref, compute.StatusPending, "started again")
		r.wait(time.Second)
		r.want(ref, compute.StatusRunning, "")
		// One that dies at every start is tried ever more seldom.
		for range 20 {
			for {
				r.settle()
				if c, _ := r.store.Container(t.Context(), ref.Owner, ref.ID); c.Status == compute.StatusRunning {
					break
				}
				r.wait(time.Second)
			}
			r.eng.die(ref)
		}
		_, before := r.eng.run(ref)
		r.wait(20 * time.Second)
		r.settle()
		if _, lives := r.eng.run(ref); lives-before > 1 {
			t.Errorf("%d starts in 20 s", lives-before)
		}
	})
}

// A control plane that ended at any call of the engine finishes the work in its next life.
func TestKilledAtEveryStep(t *testing.T) {
	for _, call := range []string{"provision", "start", "stop", "remove"} {
		t.Run(call, func(t *testing.T) {
			inRig(t, func(t *testing.T, r *rig) {
				restart := func() {
					r.stop()
					r.eng.set(func() { delete(r.eng.block, call) })
					r.start()
				}
				r.eng.set(func() { r.eng.block[call] = make(chan struct{}) })
				ref := r.create()
				r.settle()
				if call == "provision" || call == "start" {
					restart()
				}
				r.want(ref, compute.StatusRunning, "")
				if _, err := r.svc.StopContainer(t.Context(), r.who, ref.ID); err != nil {
					t.Fatal(err)
				}
				r.settle()
				if call == "stop" {
					restart()
				}
				r.want(ref, compute.StatusStopped, "")
				if err := r.svc.DeleteContainer(t.Context(), r.who, ref.ID); err != nil {
					t.Fatal(err)
				}
				r.settle()
				if call == "remove" {
					restart()
				}
				r.settle()
				if left, err := r.store.Reconcilable(t.Context()); err != nil || len(left) != 0 || r.eng.stored() != 0 {
					t.Errorf("left are %v, %v, %v", left, r.eng.stored(), err)
				}
			})
		})
	}
}

// What died while no control plane ran is seen as such, and what the engine has beyond the database is left alone.
func TestTakingOver(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		r.stop()
		stranger := compute.Ref{Owner: 99, ID: "ffffffff"}
		r.eng.set(func() {
			delete(r.eng.running, ref)
			r.eng.storage[stranger], r.eng.running[stranger] = true, compute.Spec{Ref: stranger, Running: true}
		})
		r.start()
		r.want(ref, compute.StatusRunning, "")
		got := r.statuses(ref)
		if tail := got[len(got)-3:]; !slices.Equal(tail, []compute.Status{compute.StatusPending, compute.StatusInitializing, compute.StatusRunning}) {
			t.Errorf("statuses were %v", got)
		}
		r.eng.set(func() {
			if !r.eng.storage[stranger] || !r.eng.running[stranger].Running {
				t.Error("an unknown container was touched")
			}
		})
	})
}

func TestRefusedBeforeItIsStored(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		r.eng.admitErr = compute.Errorf(compute.CodeCapacity, "There is no room.")
		_, err := r.svc.CreateContainer(t.Context(), r.who, compute.ContainerRequest{Name: "box", SSHKeyIDs: []int64{r.key}})
		if compute.CodeOf(err) != compute.CodeCapacity {
			t.Errorf("error is %v", err)
		}
		if list, err := r.svc.ListContainers(t.Context(), r.who); err != nil || len(list) != 0 {
			t.Errorf("stored are %v, %v", list, err)
		}
	})
}

// What an engine cannot reach is not taken for ended: it is neither stopped nor started anew, and goes on when it is reached.
func TestOutOfReachIsNotEnded(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		lost := compute.Errorf(compute.CodeUnavailable, "Its node does not answer.")
		r.eng.set(func() { r.eng.fail["start"] = lost })
		r.eng.observe(compute.Observation{Ref: ref, Phase: compute.PhaseFailed, Message: lost.Message})
		r.wait(time.Minute)
		r.want(ref, compute.StatusFailed, lost.Message)
		r.eng.set(func() { delete(r.eng.fail, "start") })
		r.eng.observe(compute.Observation{Ref: ref, Phase: compute.PhaseRunning})
		r.want(ref, compute.StatusRunning, "")
		if _, lives := r.eng.run(ref); lives != 1 || slices.Contains(r.eng.asked(), "stop") {
			t.Errorf("%d lives; the engine was asked to %v", lives, r.eng.asked())
		}
	})
}
