package store

import (
	"reflect"
	"sync"
	"testing"

	"berth/internal/compute"
)

func TestProvision(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	admin, err := s.CreateUser(ctx, "ada", compute.RoleAdmin)
	if err != nil {
		t.Fatal(err)
	}
	const issuer = "https://id.example.com"
	_, err = s.UserByIdentity(ctx, issuer, "ada")
	wantCode(t, err, compute.CodeNotFound)
	before, err := s.LastEvent(ctx)
	if err != nil {
		t.Fatal(err)
	}

	// A name that is taken, by an admin even, leads to another account under another name.
	u, err := s.Provision(ctx, issuer, "ada", []string{"ada", "Not Valid", "deadbeef", "ada-1", "ada-2"})
	if err != nil || u.ID == admin.ID || u.Username != "ada-1" || u.Role != compute.RoleUser {
		t.Fatalf("%+v, %v", u, err)
	}
	events, err := s.Events(ctx, before, 10)
	if err != nil || len(events) != 1 || events[0].Kind != compute.EventUserChanged || events[0].Owner != u.ID {
		t.Errorf("events %+v, %v", events, err)
	}
	for range 2 {
		again, err := s.Provision(ctx, issuer, "ada", []string{"somebody"})
		if err != nil || again != u {
			t.Errorf("again: %+v, %v", again, err)
		}
	}
	found, err := s.UserByIdentity(ctx, issuer, "ada")
	if err != nil || found != u {
		t.Errorf("found %+v, %v", found, err)
	}
	// The same subject of another issuer is somebody else.
	other, err := s.Provision(ctx, "https://other.example.com", "ada", []string{"ada", "ada-2"})
	if err != nil || other.ID == u.ID || other.ID == admin.ID {
		t.Errorf("another issuer's ada is %+v, %v", other, err)
	}
	_, err = s.Provision(ctx, issuer, "new", []string{"ada", "ada-1"})
	wantCode(t, err, compute.CodeInternal)
	mustCount(t, s.db, 3, `SELECT count(*) FROM users`)
}

// Requests at once, of one person and of many who wish for one name.
func TestProvisionAtOnce(t *testing.T) {
	s := openNew(t, Options{})
	got := make([]compute.User, 40)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			subject := string(rune('a' + i%10))
			u, err := s.Provision(t.Context(), "issuer", subject, []string{"ada", "ada-" + subject})
			if err != nil {
				t.Error(err)
			}
			got[i] = u
		})
	}
	wg.Wait()
	for i, u := range got {
		if u != got[i%10] {
			t.Errorf("one person is %+v and %+v", u, got[i%10])
		}
	}
	mustCount(t, s.db, 10, `SELECT count(DISTINCT id) FROM users`)
	mustCount(t, s.db, 1, `SELECT count(*) FROM users WHERE username = 'ada'`)
}

func TestKeyAccounts(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")
	addKey(t, s, alice, "other")
	ka, kb := addKey(t, s, alice, "shared"), addKey(t, s, bob, "shared")
	read := func() (pairs [][2]int64) {
		list, err := s.KeyAccounts(ctx, "SHA256:shared")
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range list {
			if a.User.Username == "" || a.User.CreatedAt.IsZero() {
				t.Errorf("%+v", a)
			}
			pairs = append(pairs, [2]int64{int64(a.User.ID), a.Key})
		}
		return pairs
	}
	if got := read(); !reflect.DeepEqual(got, [][2]int64{{int64(alice), ka}, {int64(bob), kb}}) {
		t.Errorf("got %v", got)
	}
	if _, err := s.SetUserDisabled(ctx, alice, true); err != nil {
		t.Fatal(err)
	}
	if got := read(); !reflect.DeepEqual(got, [][2]int64{{int64(bob), kb}}) {
		t.Errorf("with alice disabled: %v", got)
	}
	if err := s.DeleteKey(ctx, bob, kb); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != nil {
		t.Errorf("without bob's key: %v", got)
	}
}
