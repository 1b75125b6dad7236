package containerd

import (
	"context"
	"os"
	"slices"
	"testing"

	"berth/internal/compute"
)

// TestDiscardForeign has a volume under a name that it was not made for: what deletes a container leaves it alone, and what an
// administrator discards goes.
func TestDiscardForeign(t *testing.T) {
	r := newRig(t)
	e := r.open()
	made, named := newSpec(), newSpec()
	r.provision(made)
	if err := os.Rename(e.volume(made.Ref).file, e.volume(named.Ref).file); err != nil {
		t.Fatal(err)
	}
	list, err := e.Stored(r.ctx())
	if err != nil || len(list) != 1 || list[0].Ref != named.Ref || !list[0].Foreign || list[0].Running ||
		list[0].Bytes <= 0 || list[0].WrittenAt.IsZero() {
		t.Fatalf("stored is %+v, %v", list, err)
	}
	wantCode(t, "remove", e.Remove(r.ctx(), named.Ref), compute.CodeConflict)
	asked := 0
	unknown := func(context.Context) error { asked++; return nil }
	if err := e.Discard(r.ctx(), named.Ref, unknown); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "discard again", e.Discard(r.ctx(), named.Ref, unknown), compute.CodeNotFound)
	if list, err = e.Stored(r.ctx()); err != nil || len(list) != 0 || asked != 2 {
		t.Errorf("stored is %+v, %v; asked %d times", list, err, asked)
	}
	files, err := os.ReadDir(e.layout.dir("volumes"))
	if err != nil || slices.ContainsFunc(files, func(d os.DirEntry) bool { return d.Name() == named.String()+".img" }) {
		t.Errorf("volumes %v, %v", files, err)
	}
}
