package enginetest

import (
	"context"
	"errors"
	"slices"
	"testing"

	"berth/internal/compute"
)

// testDiscard holds that what an engine has is listed, goes when it is discarded, and stays when it is known after all.
func testDiscard(t *testing.T, s *Subject) {
	b := newBox(t, s)
	b.apply(true)
	stored := func() (compute.Stored, bool) {
		t.Helper()
		list, err := s.Engine.Stored(b.ctx())
		b.must("list what is stored of", err)
		i := slices.IndexFunc(list, func(v compute.Stored) bool { return v.Ref == b.spec.Ref })
		if i < 0 {
			return compute.Stored{}, false
		}
		return list[i], true
	}
	if v, ok := stored(); !ok || !v.Running || v.Foreign {
		t.Errorf("of a running container is stored %+v, %v", v, ok)
	}
	known := errors.New("it is known")
	if err := s.Engine.Discard(b.ctx(), b.spec.Ref, func(context.Context) error { return known }); !errors.Is(err, known) {
		t.Errorf("discard what is known: %v", err)
	}
	b.eq("echo up", "up")
	b.must("discard", s.Engine.Discard(b.ctx(), b.spec.Ref, func(context.Context) error { return nil }))
	if v, ok := stored(); ok {
		t.Errorf("after it was discarded there is %+v", v)
	}
	err := s.Engine.Discard(b.ctx(), b.spec.Ref, func(context.Context) error { return nil })
	if compute.CodeOf(err) != compute.CodeNotFound {
		t.Errorf("discard what is not there: %v", err)
	}
	// The name is free: a container that is made under it is a new one.
	b.must("provision", s.Engine.Provision(b.ctx(), b.spec))
	b.apply(true)
	b.eq("test -e /root/f || echo fresh", "fresh")
}
