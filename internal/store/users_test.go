package store

import (
	"testing"

	"berth/internal/compute"
)

func TestUsers(t *testing.T) {
	ctx := t.Context()
	clk := newClock()
	s := openNew(t, Options{Now: clk.now})
	alice, err := s.CreateUser(ctx, "alice", compute.RoleAdmin)
	if err != nil {
		t.Fatal(err)
	}
	want := compute.User{ID: 1, Username: "alice", Role: compute.RoleAdmin, CreatedAt: clk.now()}
	if alice != want {
		t.Fatalf("got %+v, want %+v", alice, want)
	}
	for _, bad := range []string{"", "Alice", "a b", "deadbeef", "-a"} {
		_, err := s.CreateUser(ctx, bad, compute.RoleUser)
		wantCode(t, err, compute.CodeInvalid)
	}
	_, err = s.CreateUser(ctx, "bob", "root")
	wantCode(t, err, compute.CodeInvalid)
	_, err = s.CreateUser(ctx, "alice", compute.RoleUser)
	wantCode(t, err, compute.CodeConflict)
	bob := addUser(t, s, "bob")
	if bob != 2 {
		t.Fatalf("bob has id %d: a refused account took a number", bob)
	}

	list, err := s.Users(ctx)
	if err != nil || len(list) != 2 || list[0] != alice || list[1].Username != "bob" {
		t.Fatalf("Users: %+v %v", list, err)
	}
	byName, err := s.UserByName(ctx, "alice")
	if err != nil || byName != alice {
		t.Fatalf("UserByName: %+v %v", byName, err)
	}
	byID, err := s.User(ctx, alice.ID)
	if err != nil || byID != alice {
		t.Fatalf("User: %+v %v", byID, err)
	}
	_, err = s.User(ctx, 99)
	wantCode(t, err, compute.CodeNotFound)
	_, err = s.UserByName(ctx, "carol")
	wantCode(t, err, compute.CodeNotFound)
	_, err = s.SetUserDisabled(ctx, 99, true)
	wantCode(t, err, compute.CodeNotFound)
}

func TestDisabledUser(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")
	key := addKey(t, s, alice, "shared")
	addKey(t, s, bob, "shared")
	c := addContainer(t, s, alice, key)

	accounts, err := s.Accounts(ctx, "SHA256:shared")
	if err != nil || len(accounts) != 2 || accounts[0].ID != alice || accounts[1].ID != bob {
		t.Fatalf("Accounts: %+v %v", accounts, err)
	}
	before := len(allEvents(t, s.Reader))
	for range 2 { // the second changes nothing
		u, err := s.SetUserDisabled(ctx, alice, true)
		if err != nil || !u.Disabled {
			t.Fatalf("SetUserDisabled: %+v %v", u, err)
		}
	}
	if n := len(allEvents(t, s.Reader)); n != before+1 {
		t.Fatalf("%d events for one change", n-before)
	}
	accounts, err = s.Accounts(ctx, "SHA256:shared")
	if err != nil || len(accounts) != 1 || accounts[0].ID != bob {
		t.Fatalf("Accounts with alice disabled: %+v %v", accounts, err)
	}
	_, err = s.Target(ctx, c.ID)
	wantCode(t, err, compute.CodeNotFound)
	_, err = s.AddKey(ctx, keyNamed(alice, "new"), 10)
	wantCode(t, err, compute.CodeForbidden)
	_, err = s.CreateContainer(ctx, boxOf(alice, key), 3)
	wantCode(t, err, compute.CodeForbidden)

	if _, err := s.SetUserDisabled(ctx, alice, false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Target(ctx, c.ID); err != nil {
		t.Fatalf("Target with alice enabled again: %v", err)
	}
}

// An account and its first keys are there together, or not at all.
func TestUserWithKeys(t *testing.T) {
	s := openNew(t, Options{})
	laptop, desk := keyNamed(0, "laptop"), keyNamed(0, "desk")
	u, err := s.CreateUser(t.Context(), "alice", compute.RoleUser, laptop, desk)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := s.Keys(t.Context(), u.ID)
	if err != nil || len(keys) != 2 || keys[0].Name != "laptop" || keys[1].Fingerprint != desk.Fingerprint {
		t.Errorf("keys are %+v, %v", keys, err)
	}
	_, err = s.CreateUser(t.Context(), "bob", compute.RoleUser, laptop, laptop)
	wantCode(t, err, compute.CodeConflict)
	if list, err := s.Users(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("users are %+v, %v", list, err)
	}
	if _, err := s.AddKey(t.Context(), keyNamed(u.ID, "phone"), 10); err != nil {
		t.Error(err)
	}
}
