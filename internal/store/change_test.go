package store

import (
	"slices"
	"testing"

	"berth/internal/compute"
)

// Other sizes are a new generation, other names and keys are not; all are told of, and the status stays.
func TestChangeContainer(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")
	one, two := addKey(t, s, alice, "one"), addKey(t, s, alice, "two")
	c := addContainer(t, s, alice, one)
	if err := s.SetStatus(ctx, c.ID, c.Generation, running, ""); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		what             string
		edit             func(*compute.Container)
		generation, tell int64
	}{
		{"nothing", func(*compute.Container) {}, 0, 0},
		{"name", func(c *compute.Container) { c.Name = "other" }, 0, 1},
		{"memory", func(c *compute.Container) { c.MemoryMB++ }, 1, 1},
		{"storage", func(c *compute.Container) { c.StorageGB++ }, 1, 1},
		{"keys", func(c *compute.Container) { c.SSHKeyIDs = []int64{one, two} }, 0, 1},
		{"all", func(c *compute.Container) { c.Name, c.MemoryMB, c.SSHKeyIDs = "all", 99, []int64{two} }, 1, 1},
	} {
		was, err := s.Container(ctx, alice, c.ID)
		if err != nil {
			t.Fatal(err)
		}
		before, err := s.LastEvent(ctx)
		if err != nil {
			t.Fatal(err)
		}
		want := was
		step.edit(&want)
		want.Generation += step.generation
		got, changed, err := s.ChangeContainer(ctx, alice, c.ID, func(seen compute.Container) (compute.Container, error) {
			if seen.Version() != was.Version() {
				t.Errorf("%s: f sees %+v, want %+v", step.what, seen, was)
			}
			step.edit(&seen)
			return seen, nil
		})
		if err != nil || changed != (step.tell > 0) {
			t.Fatalf("%s: changed %v, %v", step.what, changed, err)
		}
		stored, err := s.Container(ctx, alice, c.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []compute.Container{got, stored} {
			if c.Version() != want.Version() || c.Generation != want.Generation || c.Status != running {
				t.Errorf("%s: %+v, want %+v", step.what, c, want)
			}
		}
		if last, err := s.LastEvent(ctx); err != nil || last != before+step.tell {
			t.Errorf("%s: %d events, %v", step.what, last-before, err)
		}
	}

	refuse := func(owner compute.UserID, f func(compute.Container) (compute.Container, error), code compute.Code) {
		t.Helper()
		was, err := s.Container(ctx, alice, c.ID)
		if err != nil {
			t.Fatal(err)
		}
		before, _ := s.LastEvent(ctx)
		if _, _, err := s.ChangeContainer(ctx, owner, c.ID, f); compute.CodeOf(err) != code {
			t.Errorf("%v, want %s", err, code)
		}
		now, err := s.Container(ctx, alice, c.ID)
		last, _ := s.LastEvent(ctx)
		if err != nil || now.Version() != was.Version() || !slices.Equal(now.SSHKeyIDs, was.SSHKeyIDs) || last != before {
			t.Errorf("what was refused changed %+v to %+v, %v", was, now, err)
		}
	}
	foreign := addKey(t, s, bob, "his")
	refuse(alice, func(c compute.Container) (compute.Container, error) {
		c.Name, c.SSHKeyIDs = "never", []int64{one, foreign}
		return c, nil
	}, compute.CodeInvalid)
	refuse(alice, func(c compute.Container) (compute.Container, error) {
		c.Name = "never"
		return c, compute.Errorf(compute.CodePrecondition, "no")
	}, compute.CodePrecondition)
	refuse(bob, func(c compute.Container) (compute.Container, error) { c.Name = "his"; return c, nil }, compute.CodeNotFound)
}
