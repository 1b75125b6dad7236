package store

import (
	"testing"
	"time"

	"berth/internal/compute"
)

func slotOf(t *testing.T, s *Store, c compute.Container) int {
	t.Helper()
	got, err := s.ReconcileState(t.Context(), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	return got.Slot
}

// A slot rests until the names that pointed at it are forgotten; a container that found none free gets the next one.
func TestSlotsRest(t *testing.T) {
	ctx := t.Context()
	clk := newClock()
	s := openNew(t, Options{Now: clk.now})
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")
	key := addKey(t, s, alice, "one")
	var c []compute.Container
	for i := range 3 {
		c = append(c, addContainer(t, s, alice, key))
		if c[i].Slot != i {
			t.Fatalf("container %d has slot %d", i, c[i].Slot)
		}
	}
	if other := addContainer(t, s, bob, addKey(t, s, bob, "one")); other.Slot != 0 {
		t.Fatalf("another owner's container has slot %d", other.Slot)
	}
	remove(t, s, c[0])
	c3 := addContainer(t, s, alice, key)
	if c3.Slot != 3 {
		t.Fatalf("slot %d, want the spare one", c3.Slot)
	}
	clk.add(20 * time.Second)
	remove(t, s, c[1])
	c4 := addContainer(t, s, alice, key) // slots 0 and 1 rest
	if c4.Slot != compute.NoSlot {
		t.Fatalf("slot %d was given while it rested", c4.Slot)
	}
	if got, err := s.Target(ctx, c4.ID); err != nil || got.Container.Slot != compute.NoSlot {
		t.Fatalf("Target: %+v %v", got, err)
	}

	next, err := s.AssignSlots(ctx)
	if want := clk.now().Add(40 * time.Second); err != nil || !next.Equal(want) {
		t.Fatalf("next slot at %v, want %v; %v", next, want, err)
	}
	clk.add(40*time.Second - time.Millisecond)
	if next, err = s.AssignSlots(ctx); err != nil || !next.Equal(clk.now().Add(time.Millisecond)) ||
		slotOf(t, s, c4) != compute.NoSlot {
		t.Fatalf("a millisecond early: next %v, slot %d, %v", next, slotOf(t, s, c4), err)
	}
	clk.add(time.Millisecond)
	before, err := s.LastEvent(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if next, err = s.AssignSlots(ctx); err != nil || !next.IsZero() || slotOf(t, s, c4) != 0 {
		t.Fatalf("at last: next %v, slot %d, %v", next, slotOf(t, s, c4), err)
	}
	events, err := s.Events(ctx, before, 10)
	if err != nil || len(events) != 1 || events[0].Kind != compute.EventContainerChanged || events[0].Container != c4.ID {
		t.Fatalf("events: %+v %v", events, err)
	}
	// The same slot, released once more, rests once more.
	remove(t, s, c4)
	clk.add(59 * time.Second)
	if c5 := addContainer(t, s, alice, key); c5.Slot != 1 { // of c[1], released 99 s ago
		t.Fatalf("slot %d, want 1", c5.Slot)
	}
}

// Any write of the owner gives a waiting container its slot, the oldest first.
func TestSlotsInTurn(t *testing.T) {
	ctx := t.Context()
	clk := newClock()
	s := openNew(t, Options{Now: clk.now})
	alice := addUser(t, s, "alice")
	key := addKey(t, s, alice, "one")
	for range 2 { // uses up all four slots, leaving them at rest
		for range 2 {
			remove(t, s, addContainer(t, s, alice, key))
		}
	}
	a, b := addContainer(t, s, alice, key), addContainer(t, s, alice, key)
	if a.Slot != compute.NoSlot || b.Slot != compute.NoSlot {
		t.Fatalf("slots %d and %d", a.Slot, b.Slot)
	}
	clk.add(time.Minute)
	if _, err := s.SetDesired(ctx, alice, b.ID, compute.DesiredStopped); err != nil {
		t.Fatal(err)
	}
	if slotOf(t, s, a) != 0 || slotOf(t, s, b) != 1 {
		t.Fatalf("slots %d and %d", slotOf(t, s, a), slotOf(t, s, b))
	}
}

// A clock that was set back must not make a slot rest for months.
func TestSlotsWithClockSetBack(t *testing.T) {
	clk := newClock()
	s := openNew(t, Options{Now: clk.now})
	alice := addUser(t, s, "alice")
	key := addKey(t, s, alice, "one")
	clk.add(1000 * time.Hour)
	for range 4 {
		remove(t, s, addContainer(t, s, alice, key))
	}
	clk.add(-1000 * time.Hour)
	c := addContainer(t, s, alice, key)
	if c.Slot != compute.NoSlot {
		t.Fatalf("slot %d", c.Slot)
	}
	clk.add(time.Minute)
	if _, err := s.AssignSlots(t.Context()); err != nil || slotOf(t, s, c) != 0 {
		t.Fatalf("slot %d, %v", slotOf(t, s, c), err)
	}
}
