package control_test

import (
	"slices"
	"testing"

	"berth/internal/compute"
)

// Sizes reach the engine without a restart; a name and keys do not trouble it.
func TestChangesReachTheEngine(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		change := func(c compute.ContainerChange) {
			t.Helper()
			v, err := r.svc.ChangeContainer(t.Context(), r.who, ref.ID, c, nil)
			if err != nil || v.Status != compute.StatusRunning {
				t.Fatalf("%+v, %v", v, err)
			}
			r.want(ref, compute.StatusRunning, "")
		}
		before, asked := r.statuses(ref), len(r.eng.asked())
		change(compute.ContainerChange{Name: new("other"), SSHKeyIDs: []int64{r.key}})
		if got := r.eng.asked()[asked:]; len(got) != 0 {
			t.Errorf("a name asks the engine for %v", got)
		}
		change(compute.ContainerChange{MemoryMB: new(1024), StorageGB: new(6)})
		s, lives := r.eng.run(ref)
		if s.MemoryMB != 1024 || s.StorageGB != 6 || lives != 1 {
			t.Errorf("it runs with %d MB and %d GB, after %d starts", s.MemoryMB, s.StorageGB, lives)
		}
		if got := r.statuses(ref); !slices.Equal(got, before) {
			t.Errorf("its owner saw %v", got[len(before):])
		}
	})
}

func TestChangesThatAreRefused(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		ref := r.create()
		r.want(ref, compute.StatusRunning, "")
		was, err := r.svc.GetContainer(t.Context(), r.who, ref.ID)
		if err != nil {
			t.Fatal(err)
		}
		refuse := func(c compute.ContainerChange, m compute.Match, code compute.Code) {
			t.Helper()
			if _, err := r.svc.ChangeContainer(t.Context(), r.who, ref.ID, c, m); compute.CodeOf(err) != code {
				t.Errorf("%v, want %s", err, code)
			}
		}
		refuse(compute.ContainerChange{StorageGB: new(1)}, nil, compute.CodeInvalid)
		refuse(compute.ContainerChange{Name: new("x")}, compute.Match{"old"}, compute.CodePrecondition)
		r.eng.changeErr = compute.Errorf(compute.CodeCapacity, "There is no room.")
		refuse(compute.ContainerChange{MemoryMB: new(2048)}, compute.Match{was.Version()}, compute.CodeCapacity)
		now, err := r.svc.GetContainer(t.Context(), r.who, ref.ID)
		if err != nil || now.Version() != was.Version() || now.Generation != was.Generation {
			t.Errorf("%+v, %v", now, err)
		}
	})
}
