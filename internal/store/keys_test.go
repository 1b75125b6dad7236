package store

import (
	"fmt"
	"reflect"
	"testing"

	"berth/internal/compute"
)

func TestKeys(t *testing.T) {
	ctx := t.Context()
	clk := newClock()
	s := openNew(t, Options{Now: clk.now})
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")

	k, err := s.AddKey(ctx, keyNamed(alice, "laptop"), 2)
	if err != nil {
		t.Fatal(err)
	}
	want := keyNamed(alice, "laptop")
	want.ID, want.CreatedAt = 1, clk.now()
	if k != want {
		t.Fatalf("got %+v, want %+v", k, want)
	}
	_, err = s.AddKey(ctx, keyNamed(alice, "laptop"), 2)
	wantCode(t, err, compute.CodeConflict)
	addKey(t, s, bob, "laptop") // the same key under another account is nobody's business
	desk, err := s.AddKey(ctx, keyNamed(alice, "desk"), 2)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.AddKey(ctx, keyNamed(alice, "third"), 2)
	wantCode(t, err, compute.CodeLimit)
	_, err = s.AddKey(ctx, keyNamed(alice, "desk"), 2) // at the limit, that she has it is the better answer
	wantCode(t, err, compute.CodeConflict)
	_, err = s.AddKey(ctx, keyNamed(99, "x"), 2)
	wantCode(t, err, compute.CodeNotFound)

	list, err := s.Keys(ctx, alice)
	if err != nil || !reflect.DeepEqual(list, []compute.SSHKey{k, desk}) {
		t.Fatalf("Keys: %+v %v", list, err)
	}
	if list, err := s.Keys(ctx, 99); err != nil || len(list) != 0 {
		t.Fatalf("Keys of nobody: %+v %v", list, err)
	}

	wantCode(t, s.DeleteKey(ctx, bob, k.ID), compute.CodeNotFound) // another's key looks absent
	wantCode(t, s.DeleteKey(ctx, alice, 99), compute.CodeNotFound)
	if err := s.DeleteKey(ctx, alice, k.ID); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.DeleteKey(ctx, alice, k.ID), compute.CodeNotFound)
	again, err := s.AddKey(ctx, keyNamed(alice, "laptop"), 2)
	if err != nil || again.ID <= desk.ID {
		t.Fatalf("a key's id came back: %+v %v", again, err)
	}
}

func TestLoweredLimitCounts(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	alice := addUser(t, s, "alice")
	var ids []int64
	for i := range 5 {
		ids = append(ids, addKey(t, s, alice, fmt.Sprint("key", i)))
	}
	for _, id := range ids[:2] { // leaves those at the places 2, 3, 4
		if err := s.DeleteKey(ctx, alice, id); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.AddKey(ctx, keyNamed(alice, "new"), 3)
	wantCode(t, err, compute.CodeLimit)
	if err := s.DeleteKey(ctx, alice, ids[4]); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddKey(ctx, keyNamed(alice, "new"), 3); err != nil {
		t.Fatal(err)
	}
	_, err = s.AddKey(ctx, keyNamed(alice, "newer"), 3)
	wantCode(t, err, compute.CodeLimit)
}

func TestDeletedKeyLeavesContainers(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	alice := addUser(t, s, "alice")
	k1, k2 := addKey(t, s, alice, "one"), addKey(t, s, alice, "two")
	c := addContainer(t, s, alice, k1, k2)
	gone := addContainer(t, s, alice, k1)
	if _, err := s.SetDesired(ctx, alice, gone.ID, compute.DesiredDeleted); err != nil {
		t.Fatal(err)
	}
	before, err := s.LastEvent(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteKey(ctx, alice, k1); err != nil {
		t.Fatal(err)
	}
	target, err := s.Target(ctx, c.ID)
	if err != nil || len(target.Keys) != 1 || target.Keys[0].ID != k2 ||
		!reflect.DeepEqual(target.Container.SSHKeyIDs, []int64{k2}) {
		t.Fatalf("Target: %+v %v", target, err)
	}
	events, err := s.Events(ctx, before, 10)
	if err != nil || len(events) != 2 ||
		events[0].Kind != compute.EventKeyDeleted || events[0].KeyID != k1 ||
		events[1].Kind != compute.EventContainerChanged || events[1].Container != c.ID {
		t.Fatalf("events: %+v %v", events, err)
	}
}
