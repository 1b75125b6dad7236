package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"berth/internal/compute"
)

func most(n int) *compute.NewLimit { return &compute.NewLimit{Most: &n} }

func ptr[T any](v T) *T { return &v }

func addAdmin(t *testing.T, s *Store, name string) compute.UserID {
	t.Helper()
	u, err := s.CreateUser(t.Context(), name, compute.RoleAdmin)
	if err != nil {
		t.Fatal(err)
	}
	return u.ID
}

func TestChangeUser(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	ada, bob := addAdmin(t, s, "ada"), addUser(t, s, "bob")
	before := len(allEvents(t, s.Reader))
	u, err := s.ChangeUser(ctx, bob, compute.UserChange{
		Role: ptr(compute.RoleAdmin), Disabled: ptr(true), Containers: most(7), Keys: most(0),
	})
	if err != nil || u.Role != compute.RoleAdmin || !u.Disabled || *u.Limits.Containers != 7 || *u.Limits.Keys != 0 {
		t.Fatalf("%+v, %v", u, err)
	}
	for name, change := range map[string]compute.UserChange{
		"nothing": {}, "the same": {Role: ptr(compute.RoleAdmin), Disabled: ptr(true), Containers: most(7), Keys: most(0)},
	} {
		again, err := s.ChangeUser(ctx, bob, change)
		if err != nil || !sameUser(again, u) {
			t.Errorf("%s: %+v, %v", name, again, err)
		}
	}
	if n := len(allEvents(t, s.Reader)) - before; n != 1 {
		t.Errorf("%d events of one change", n)
	}
	u, err = s.ChangeUser(ctx, bob, compute.UserChange{Keys: &compute.NewLimit{}})
	if read, rerr := s.LimitedUser(ctx, bob); err != nil || rerr != nil || u.Limits.Keys != nil || *u.Limits.Containers != 7 || !sameUser(read, u) {
		t.Errorf("%+v, %v; read %+v, %v", u, err, read, rerr)
	}
	for _, bad := range []compute.UserChange{
		{Role: ptr(compute.Role("root"))}, {Role: ptr(compute.Role(""))}, {Containers: most(-1)}, {Keys: most(1001)},
	} {
		_, err := s.ChangeUser(ctx, ada, bad)
		wantCode(t, err, compute.CodeInvalid)
	}
	_, err = s.ChangeUser(ctx, 99, compute.UserChange{Disabled: ptr(true)})
	wantCode(t, err, compute.CodeNotFound)
	_, err = s.LimitedUser(ctx, 99)
	wantCode(t, err, compute.CodeNotFound)
}

// However it is tried, an administrator who is enabled is left.
func TestLastAdmin(t *testing.T) {
	ctx := t.Context()
	path := newSource(t)
	stores := []*Store{openAt(t, path, Options{}), openAt(t, path, Options{})}
	s := stores[0]
	ada := addAdmin(t, s, "ada")
	addUser(t, s, "bob")
	eve := addAdmin(t, s, "eve")
	if _, err := s.SetUserDisabled(ctx, eve, true); err != nil {
		t.Fatal(err)
	}
	before := len(allEvents(t, s.Reader))
	_, err := s.SetUserDisabled(ctx, ada, true)
	wantCode(t, err, compute.CodeConflict)
	_, err = s.ChangeUser(ctx, ada, compute.UserChange{Role: ptr(compute.RoleUser)})
	wantCode(t, err, compute.CodeConflict)
	_, err = s.ChangeUser(ctx, ada, compute.UserChange{Role: ptr(compute.RoleUser), Disabled: ptr(true), Keys: most(3)})
	wantCode(t, err, compute.CodeConflict)
	if u, err := s.LimitedUser(ctx, ada); err != nil || u.Role != compute.RoleAdmin || u.Disabled || u.Limits.Keys != nil {
		t.Errorf("what was refused left %+v, %v", u, err)
	}
	if n := len(allEvents(t, s.Reader)); n != before {
		t.Errorf("what was refused is %d events", n-before)
	}
	// One who does not act may be changed as one likes.
	if _, err := s.ChangeUser(ctx, eve, compute.UserChange{Role: ptr(compute.RoleUser)}); err != nil {
		t.Error(err)
	}

	// All of them at once.
	ids := []compute.UserID{ada}
	for i := range 7 {
		ids = append(ids, addAdmin(t, s, fmt.Sprintf("admin%d", i)))
	}
	got := atOnce(len(ids), func(i int) error {
		change := compute.UserChange{Disabled: ptr(true)}
		if i%2 == 0 {
			change = compute.UserChange{Role: ptr(compute.RoleUser)}
		}
		_, err := stores[i%2].ChangeUser(ctx, ids[i], change)
		return err
	})
	if got[""] != 7 || got[compute.CodeConflict] != 1 {
		t.Errorf("all at once: %v", got)
	}
	mustCount(t, s.db, 1, `SELECT count(*) FROM users WHERE role = 'admin' AND disabled = 0`)
}

// An account's own limits hold as the installation's do: by the constraints, whatever runs at the same time.
func TestOwnLimits(t *testing.T) {
	ctx := t.Context()
	path := newSource(t)
	stores := []*Store{openAt(t, path, Options{}), openAt(t, path, Options{})}
	s := stores[0]
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")
	key, bobs := addKey(t, s, alice, "first"), addKey(t, s, bob, "first")
	if _, err := s.ChangeUser(ctx, alice, compute.UserChange{Containers: most(5), Keys: most(12)}); err != nil {
		t.Fatal(err)
	}
	for owner, want := range map[compute.UserID]struct {
		key  int64
		most int
	}{alice: {key, 5}, bob: {bobs, 3}} {
		got := atOnce(20, func(i int) error {
			_, err := stores[i%2].CreateContainer(ctx, boxOf(owner, want.key), 3)
			return err
		})
		if got[""] != want.most || got[compute.CodeLimit] != 20-want.most {
			t.Errorf("20 creates at once within %d: %v", want.most, got)
		}
	}
	mustCount(t, s.db, 5, `SELECT count(*) FROM containers WHERE owner = ? AND quota = 5`, alice)
	for i := range 11 {
		addKey(t, s, alice, fmt.Sprintf("more%d", i))
	}
	_, err := s.AddKey(ctx, keyNamed(alice, "thirteenth"), 10)
	wantCode(t, err, compute.CodeLimit)

	// A lower one takes nothing away, and refuses the next, also after some went.
	if _, err := s.ChangeUser(ctx, alice, compute.UserChange{Containers: most(4), Keys: most(0)}); err != nil {
		t.Fatal(err)
	}
	list, err := s.Containers(ctx, alice)
	if err != nil || len(list) != 5 {
		t.Fatalf("%d containers, %v", len(list), err)
	}
	remove(t, s, list[0])
	_, err = s.CreateContainer(ctx, boxOf(alice, key), 3)
	wantCode(t, err, compute.CodeLimit)
	remove(t, s, list[1])
	addContainer(t, s, alice, key)
	_, err = s.AddKey(ctx, keyNamed(alice, "none"), 10)
	wantCode(t, err, compute.CodeLimit)

	// Null is the installation's again.
	if _, err := s.ChangeUser(ctx, alice, compute.UserChange{Containers: &compute.NewLimit{}, Keys: &compute.NewLimit{}}); err != nil {
		t.Fatal(err)
	}
	_, err = s.CreateContainer(ctx, boxOf(alice, key), 3)
	wantCode(t, err, compute.CodeLimit)
	if _, err := s.CreateContainer(ctx, boxOf(alice, key), 5); err != nil {
		t.Error(err)
	}
}

// Pages hold every row once, in order, also while others are added and removed.
func TestAdminPages(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	var users []compute.UserID
	var boxes []compute.ContainerID
	for i := range 5 {
		u := addUser(t, s, fmt.Sprintf("user%d", i))
		key := addKey(t, s, u, "k")
		users = append(users, u)
		for range 3 {
			boxes = append(boxes, addContainer(t, s, u, key).ID)
		}
	}
	var seen []compute.UserID
	for after := compute.UserID(0); ; after = seen[len(seen)-1] {
		list, err := s.LimitedUsersAfter(ctx, after, 2)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			break
		}
		for _, u := range list {
			seen = append(seen, u.ID)
		}
	}
	if !slices.Equal(seen, users) {
		t.Errorf("users %v, want %v", seen, users)
	}
	walk := func(f compute.ContainerFilter, between func(page int)) (ids []compute.ContainerID) {
		t.Helper()
		for after, page := int64(0), 0; ; page++ {
			list, err := s.AllContainers(ctx, f, after, 4)
			if err != nil {
				t.Fatal(err)
			}
			if len(list) == 0 {
				return ids
			}
			for _, c := range list {
				if c.Number <= after || c.Username != fmt.Sprintf("user%d", c.Owner-users[0]) {
					t.Errorf("after %d comes %+v", after, c)
				}
				after = c.Number
				ids = append(ids, c.ID)
			}
			between(page)
		}
	}
	first, err := s.ReconcileState(ctx, boxes[0])
	if err != nil {
		t.Fatal(err)
	}
	all := walk(compute.ContainerFilter{}, func(page int) {
		if page == 0 { // one that was seen goes: the others are still seen once
			remove(t, s, first)
		}
	})
	if !slices.Equal(all, boxes) {
		t.Errorf("containers %v, want %v", all, boxes)
	}
	stay := func(int) {}
	c, err := s.ReconcileState(ctx, boxes[4])
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetStatus(ctx, c.ID, c.Generation, compute.StatusFailed, "no room"); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		f    compute.ContainerFilter
		want []compute.ContainerID
	}{
		"all":                 {compute.ContainerFilter{}, boxes[1:]},
		"an account's":        {compute.ContainerFilter{Owner: users[1]}, boxes[3:6]},
		"failed":              {compute.ContainerFilter{Status: compute.StatusFailed}, boxes[4:5]},
		"an account's failed": {compute.ContainerFilter{Owner: users[1], Status: compute.StatusFailed}, boxes[4:5]},
		"another's failed":    {compute.ContainerFilter{Owner: users[0], Status: compute.StatusFailed}, nil},
		"nobody's":            {compute.ContainerFilter{Owner: 99}, nil},
	} {
		if got := walk(tc.f, stay); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %s, want %s", name, join(got), join(tc.want))
		}
	}
}

func join(ids []compute.ContainerID) string {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = string(id)
	}
	return strings.Join(words, " ")
}
