package store

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/compute"
)

func tokenOf(owner compute.UserID, id string, at time.Time) compute.Token {
	return compute.Token{
		ID: id, Owner: owner, IssuedBy: compute.IssuedByUser, Name: "ci of " + id,
		Scopes: []string{"containers:read", "keys:read"}, CreatedAt: at, ExpiresAt: at.Add(time.Hour),
	}
}

func addToken(t testing.TB, s *Store, token compute.Token) {
	t.Helper()
	if err := s.AddToken(t.Context(), token, 3); err != nil {
		t.Fatalf("AddToken %s: %v", token.ID, err)
	}
}

func tokenIDs(t testing.TB, list []compute.Token, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, token := range list {
		ids = append(ids, token.ID)
	}
	return strings.Join(ids, " ")
}

func TestTokens(t *testing.T) {
	ctx := t.Context()
	clk := newClock()
	s := openNew(t, Options{Now: clk.now})
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")
	first := tokenOf(alice, "A1", clk.now())
	addToken(t, s, first)
	addToken(t, s, tokenOf(bob, "B1", clk.now()))

	got, u, err := s.Token(ctx, "A1")
	if err != nil || !reflect.DeepEqual(got, first) || u.ID != alice || u.Username != "alice" || u.Disabled {
		t.Fatalf("got %+v of %+v, %v; want %+v", got, u, err, first)
	}
	_, _, err = s.Token(ctx, "A2")
	wantCode(t, err, compute.CodeNotFound)
	wantCode(t, s.AddToken(ctx, first, 3), compute.CodeConflict) // an id is never used twice
	wantCode(t, s.AddToken(ctx, tokenOf(99, "X", clk.now()), 3), compute.CodeNotFound)

	clk.add(time.Minute)
	addToken(t, s, tokenOf(alice, "A0", clk.now()))
	list, err := s.Tokens(ctx, alice, clk.now())
	if ids := tokenIDs(t, list, err); ids != "A1 A0" {
		t.Errorf("listed %s", ids)
	}
	all, err := s.AllTokens(ctx, clk.now())
	if ids := tokenIDs(t, all, err); ids != "A1 A0 B1" {
		t.Errorf("all are %s", ids)
	}
	list, err = s.Tokens(ctx, alice, first.ExpiresAt)
	if ids := tokenIDs(t, list, err); ids != "A0" {
		t.Errorf("when the first has expired, %s are listed", ids)
	}

	used := clk.now()
	if err := s.UseTokens(ctx, map[string]time.Time{"A1": used, "A2": used}); err != nil {
		t.Fatal(err)
	}
	if err := s.UseTokens(ctx, map[string]time.Time{"A1": used.Add(-time.Hour)}); err != nil { // late news
		t.Fatal(err)
	}
	if got, _, err := s.Token(ctx, "A1"); err != nil || !got.LastUsedAt.Equal(used) {
		t.Errorf("used %v, %v; want %v", got.LastUsedAt, err, used)
	}

	if _, err := s.SetUserDisabled(ctx, alice, true); err != nil {
		t.Fatal(err)
	}
	if _, u, err := s.Token(ctx, "A1"); err != nil || !u.Disabled {
		t.Errorf("the owner is %+v, %v", u, err)
	}
	wantCode(t, s.AddToken(ctx, tokenOf(alice, "A3", clk.now()), 3), compute.CodeForbidden)
}

func TestRevokedToken(t *testing.T) {
	ctx := t.Context()
	clk := newClock()
	s := openNew(t, Options{Now: clk.now})
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")
	for _, id := range []string{"A1", "A2", "A3"} {
		addToken(t, s, tokenOf(alice, id, clk.now()))
	}
	before, err := s.LastEvent(ctx)
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.RevokeToken(ctx, bob, "A1"), compute.CodeNotFound) // another's looks absent
	wantCode(t, s.RevokeToken(ctx, alice, "none"), compute.CodeNotFound)
	if err := s.RevokeToken(ctx, alice, "A1"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.RevokeToken(ctx, alice, "A1"), compute.CodeNotFound)
	events, err := s.Events(ctx, before, 10)
	if err != nil || len(events) != 1 || events[0].Kind != compute.EventTokenRevoked || events[0].Owner != alice || events[0].Token != "A1" {
		t.Errorf("events %+v, %v", events, err)
	}
	got, _, err := s.Token(ctx, "A1")
	if err != nil || !got.RevokedAt.Equal(clk.now()) {
		t.Errorf("%+v, %v", got, err)
	}
	list, err := s.Tokens(ctx, alice, clk.now())
	if ids := tokenIDs(t, list, err); ids != "A2 A3" {
		t.Errorf("listed %s", ids)
	}
	addToken(t, s, tokenOf(alice, "A4", clk.now())) // in the place that is free
	wantCode(t, s.AddToken(ctx, tokenOf(alice, "A5", clk.now()), 3), compute.CodeLimit)

	// The schema holds it too, whatever the program does.
	err = s.write(ctx, "test", func(tx *tx) error {
		_, err := tx.exec(`UPDATE tokens SET revoked_at = NULL, ordinal = 2 WHERE id = 'A1'`)
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "stays revoked") {
		t.Errorf("a revoked token came back: %v", err)
	}
	clk.add(2 * time.Hour)
	wantCode(t, s.RevokeToken(ctx, alice, "A2"), compute.CodeNotFound) // it has expired
}

// Whoever makes and revokes tokens in a loop leaves a bounded number of rows.
func TestRevokedTokensAreBounded(t *testing.T) {
	ctx := t.Context()
	clk := newClock()
	s := openNew(t, Options{Now: clk.now})
	alice := addUser(t, s, "alice")
	for i := range keepRevoked + 20 {
		id := fmt.Sprint("A", i)
		addToken(t, s, tokenOf(alice, id, clk.now()))
		clk.add(time.Millisecond)
		if err := s.RevokeToken(ctx, alice, id); err != nil {
			t.Fatal(err)
		}
	}
	mustCount(t, s.db, keepRevoked, `SELECT count(*) FROM tokens`)
	_, _, err := s.Token(ctx, "A0")
	wantCode(t, err, compute.CodeNotFound)
	if _, _, err := s.Token(ctx, fmt.Sprint("A", keepRevoked+19)); err != nil {
		t.Error(err)
	}
}

// The limit counts live tokens of one issuer, and holds under concurrency, in several processes' stores.
func TestTokenLimit(t *testing.T) {
	ctx := t.Context()
	clk := newClock()
	path := newSource(t)
	s := openAt(t, path, Options{Now: clk.now})
	stores := []*Store{s, openAt(t, path, Options{Now: clk.now}), openAt(t, path, Options{Now: clk.now})}
	alice := addUser(t, s, "alice")
	var wg sync.WaitGroup
	errs := make([]error, 30)
	for i := range errs {
		wg.Go(func() { errs[i] = stores[i%3].AddToken(ctx, tokenOf(alice, fmt.Sprint("A", i), clk.now()), 5) })
	}
	wg.Wait()
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
		} else {
			wantCode(t, err, compute.CodeLimit)
		}
	}
	if made != 5 {
		t.Errorf("%d were made", made)
	}
	operators := tokenOf(alice, "O", clk.now())
	operators.IssuedBy = compute.IssuedByOperator
	addToken(t, s, operators)
	wantCode(t, s.AddToken(ctx, tokenOf(alice, "low", clk.now()), 2), compute.CodeLimit) // a lowered limit

	clk.add(time.Hour) // all expire
	addToken(t, s, tokenOf(alice, "fresh", clk.now()))
	mustCount(t, s.db, 1, `SELECT count(*) FROM tokens`)
}

func TestPruneTokens(t *testing.T) {
	ctx := t.Context()
	clk := newClock()
	s := openNew(t, Options{Now: clk.now})
	for i := range 2 {
		owner := addUser(t, s, fmt.Sprint("user", i))
		for j := range pruneBatch/2 + 10 {
			token := tokenOf(owner, fmt.Sprint(i, "-", j), clk.now())
			if err := s.AddToken(ctx, token, 1000); err != nil {
				t.Fatal(err)
			}
		}
		keep := tokenOf(owner, fmt.Sprint("keep", i), clk.now())
		keep.ExpiresAt = keep.ExpiresAt.Add(time.Second)
		if err := s.AddToken(ctx, keep, 1000); err != nil {
			t.Fatal(err)
		}
	}
	if more, err := s.PruneTokens(ctx); err != nil || more {
		t.Fatalf("%v %v", more, err)
	}
	mustCount(t, s.db, pruneBatch+22, `SELECT count(*) FROM tokens`)
	clk.add(time.Hour)
	if more, err := s.PruneTokens(ctx); err != nil || !more {
		t.Fatalf("%v %v", more, err)
	}
	if more, err := s.PruneTokens(ctx); err != nil || more {
		t.Fatalf("%v %v", more, err)
	}
	mustCount(t, s.db, 2, `SELECT count(*) FROM tokens`)
}
