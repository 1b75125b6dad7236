package control_test

import (
	"slices"
	"strings"
	"testing"

	"berth/internal/compute"
)

// mount asks for mount paths, and returns whether that restarts the container.
func (r *rig) mount(ref compute.Ref, paths ...string) bool {
	r.t.Helper()
	stored, restarted, err := r.svc.SetMountPaths(r.t.Context(), r.who, ref.ID, paths)
	if err != nil {
		r.t.Fatal(err)
	}
	got, err := r.svc.MountPaths(r.t.Context(), r.who, ref.ID)
	if err != nil || !slices.Equal(got, stored) {
		r.t.Errorf("the answer says %q, and then %q, %v", stored, got, err)
	}
	return restarted
}

func TestMountPathsRestartWhatRuns(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		before := r.statuses(ref)
		if !r.mount(ref, "/root", "/data") {
			t.Error("it says that nothing was restarted")
		}
		r.want(ref, compute.StatusRunning, "")
		s, lives := r.eng.run(ref)
		if !slices.Equal(s.MountPaths, []string{"/root", "/data"}) || lives != 2 {
			t.Errorf("it runs with %q, after %d starts", s.MountPaths, lives)
		}
		want := []compute.Status{compute.StatusPending, compute.StatusInitializing, compute.StatusRunning}
		if got := r.statuses(ref)[len(before):]; !slices.Equal(got, want) {
			t.Errorf("statuses were %v", got)
		}

		// What stands already changes nothing, in another order and spelling too.
		seen := r.events()
		for _, same := range [][]string{{"/root", "/data"}, {"/data/", "//root"}} {
			if r.mount(ref, same...) {
				t.Errorf("%q restarted it", same)
			}
		}
		r.settle()
		if s, now := r.eng.run(ref); now != lives || s.Generation != 2 || r.events() != seen {
			t.Errorf("unchanged paths led to %d starts, generation %d, %d events", now-lives, s.Generation, r.events()-seen)
		}

		if !r.mount(ref) {
			t.Error("without any paths it says that nothing was restarted")
		}
		r.want(ref, compute.StatusRunning, "")
		if s, _ := r.eng.run(ref); s.MountPaths == nil || len(s.MountPaths) != 0 {
			t.Errorf("it runs with %q", s.MountPaths)
		}
	})
}

// Another list and then the first one again is a restart as well: the answers said so.
func TestMountPathsThereAndBack(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		gate := make(chan struct{})
		r.eng.set(func() { r.eng.block["stop"] = gate })
		for _, paths := range [][]string{{"/root", "/data"}, {"/root"}} {
			if !r.mount(ref, paths...) {
				t.Errorf("%q restarts nothing", paths)
			}
			r.want(ref, compute.StatusPending, "")
		}
		close(gate)
		r.want(ref, compute.StatusRunning, "")
		if s, lives := r.eng.run(ref); lives != 2 || !slices.Equal(s.MountPaths, []string{"/root"}) {
			t.Errorf("%d starts, the last with %q", lives, s.MountPaths)
		}
	})
}

// One that is being started begins anew with the new paths.
func TestMountPathsOfOneThatIsStarting(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		gate := make(chan struct{})
		r.eng.set(func() { r.eng.block["start"] = gate })
		ref := r.create()
		r.want(ref, compute.StatusInitializing, "")
		if !r.mount(ref, "/data") {
			t.Error("it says that nothing was restarted")
		}
		close(gate)
		r.want(ref, compute.StatusRunning, "")
		if s, lives := r.eng.run(ref); lives != 1 || !slices.Equal(s.MountPaths, []string{"/data"}) {
			t.Errorf("%d starts, the last with %q", lives, s.MountPaths)
		}
	})
}

// A stopped one stays stopped, one that is stopping goes on with that, and one that failed is tried again.
func TestMountPathsOfOneThatDoesNotRun(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		gate := make(chan struct{})
		r.eng.set(func() { r.eng.block["stop"] = gate })
		r.ask(ref, halt)
		r.settle()
		if r.mount(ref, "/data") {
			t.Error("one that is stopping is restarted")
		}
		close(gate)
		r.want(ref, compute.StatusStopped, "")
		if r.mount(ref, "/srv") {
			t.Error("a stopped one is restarted")
		}
		r.want(ref, compute.StatusStopped, "")
		if _, lives := r.eng.run(ref); lives != 1 {
			t.Errorf("%d starts", lives)
		}
		r.eng.set(func() { r.eng.fail["start"] = compute.Errorf(compute.CodeCapacity, "No room for /srv.") })
		r.ask(ref, run)
		r.want(ref, compute.StatusFailed, "No room")
		r.eng.set(func() { delete(r.eng.fail, "start") })
		if !r.mount(ref, "/data") {
			t.Error("one that failed is not tried again")
		}
		r.want(ref, compute.StatusRunning, "")
		if s, _ := r.eng.run(ref); !slices.Equal(s.MountPaths, []string{"/data"}) {
			t.Errorf("it runs with %q", s.MountPaths)
		}
	})
}

// What is refused changes nothing: by the rules, by the image's symlinks, of somebody else's, of one that is deleted.
func TestMountPathsRefused(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		seen := r.events()
		refused := func(who compute.Principal, code compute.Code, paths ...string) {
			t.Helper()
			_, _, err := r.svc.SetMountPaths(t.Context(), who, ref.ID, paths)
			if err == nil || compute.CodeOf(err) != code {
				t.Errorf("%q: error %v, want %s", paths, err, code)
			}
		}
		refused(r.who, compute.CodeInvalid, "/root", "/proc")
		refused(r.who, compute.CodeInvalid, "/a", "/a/b")
		refused(r.who, compute.CodeInvalid, strings.Split("/a,/b,/c,/d,/e,/f,/g,/h,/i,/j,/k,/l,/m,/n,/o,/p,/q", ",")...)
		stranger := compute.Principal{User: 99}
		refused(stranger, compute.CodeNotFound, "/data")
		r.eng.admitErr = compute.Errorf(compute.CodeCapacity, "There is no room.") // is nothing to one that exists
		r.eng.changeErr = compute.Invalid("mount_paths", "It is /proc in the image.")
		refused(r.who, compute.CodeInvalid, "/data")
		refused(stranger, compute.CodeNotFound, "/data")
		r.settle()
		if s, lives := r.eng.run(ref); lives != 1 || s.Generation != 1 || r.events() != seen {
			t.Errorf("%d starts, generation %d, %d events", lives, s.Generation, r.events()-seen)
		}
		r.eng.changeErr = nil
		if !r.mount(ref, "/data") {
			t.Error("a good request after all that restarts nothing")
		}
		r.settle()
		if err := r.svc.DeleteContainer(t.Context(), r.who, ref.ID); err != nil {
			t.Fatal(err)
		}
		refused(r.who, compute.CodeNotFound, "/srv")
		if _, err := r.svc.MountPaths(t.Context(), r.who, ref.ID); compute.CodeOf(err) != compute.CodeNotFound {
			t.Errorf("paths of a deleted one: %v", err)
		}
	})
}
