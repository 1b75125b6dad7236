package store

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"berth/internal/compute"
	"berth/internal/pgtest"
)

// furnish puts something into every table, with numbers that were given and are gone.
func furnish(t *testing.T, s *Store) {
	t.Helper()
	ctx := t.Context()
	alice := addUser(t, s, "alice")
	key := addKey(t, s, alice, "one")
	gone := addKey(t, s, alice, "two")
	kept, purged, deleted := addContainer(t, s, alice, key), addContainer(t, s, alice, key), addContainer(t, s, alice, key)
	for i := range 3 {
		addRule(t, s, alice, kept.ID, 8000+i)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.DeleteKey(ctx, alice, gone))
	must(s.DeleteIngressRule(ctx, alice, kept.ID, 8002))
	must(s.RecordStorage(ctx, kept.ID))
	must(s.SetStatus(ctx, kept.ID, 1, running, ""))
	remove(t, s, purged)
	_, err := s.SetDesired(ctx, alice, deleted.ID, compute.DesiredDeleted)
	must(err)
	_, err = s.Provision(ctx, "https://issuer", "subject", []string{"bob"})
	must(err)
	_, err = s.AddGateway(ctx, "edge", "SHA256:edge")
	must(err)
	now := time.Now()
	must(s.AddToken(ctx, compute.Token{
		ID: "live", Owner: alice, IssuedBy: compute.IssuedByUser, Name: "laptop", CreatedAt: now, ExpiresAt: now.Add(time.Hour),
	}, 5))
	_, err = s.BeginOnce(ctx, alice, "key", [32]byte{1})
	must(err)
	must(s.FinishOnce(ctx, alice, "key", compute.SavedAnswer{Status: 201, Body: []byte("{}")}))
	must(s.AppendAudit(ctx, []compute.AuditRecord{{
		Action: compute.ActionLogin, Outcome: compute.OutcomeDenied, Target: "a\x00b\xffc",
	}}))
}

// All that a file holds is in PostgreSQL then, the same installation in a new epoch, and numbers go on from where they stood.
func TestCopyToPostgres(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "berth.db")
	clk := newClock()
	s := openAt(t, path, Options{Now: clk.now})
	furnish(t, s)
	url := pgtest.NewDatabase(t)
	told := 0
	id, copied, err := CopyToPostgres(ctx, path, url, 7, func(Copied) { told++ })
	if err != nil {
		t.Fatal(err)
	}
	if told != len(copiedTables) || len(copied) != told {
		t.Errorf("%d tables were told of, %+v", told, copied)
	}
	for _, c := range copied {
		if c.Rows == 0 || len(c.SHA256) != 64 {
			t.Errorf("%+v: every table had something", c)
		}
	}
	was, err := s.Identity(ctx)
	if err != nil || id.Installation != was.Installation || id.Epoch != 7 {
		t.Errorf("%+v, was %+v, %v", id, was, err)
	}

	p := openAt(t, url, Options{Now: clk.now, NewID: propose("40000000", "50000000")})
	same := func(what string, read func(r *Reader) (any, error)) {
		t.Helper()
		a, aerr := read(s.Reader)
		b, berr := read(p.Reader)
		if aerr != nil || berr != nil || !reflect.DeepEqual(a, b) {
			t.Errorf("%s:\n%+v, %v\n%+v, %v", what, a, aerr, b, berr)
		}
	}
	same("users", func(r *Reader) (any, error) { return r.Users(ctx) })
	same("keys", func(r *Reader) (any, error) { return r.Keys(ctx, 1) })
	same("containers", func(r *Reader) (any, error) { return r.Reconcilable(ctx) })
	same("gateways", func(r *Reader) (any, error) { return r.Gateways(ctx) })
	same("events", func(r *Reader) (any, error) { return r.Events(ctx, 0, 1000) })
	same("last event", func(r *Reader) (any, error) { return r.LastEvent(ctx) })
	same("last audit", func(r *Reader) (any, error) { return r.LastAudit(ctx) })
	same("tokens", func(r *Reader) (any, error) { return r.AllTokens(ctx, clk.now()) })

	if k := addKey(t, p, 1, "three"); k != 3 {
		t.Errorf("key %d: the number of a deleted key is not given again", k)
	}
	if u := addUser(t, p, "carol"); u != 3 {
		t.Errorf("user %d", u)
	}
	boxes, err := p.Containers(ctx, 1)
	if err != nil || len(boxes) != 1 {
		t.Fatalf("%+v, %v", boxes, err)
	}
	if r := addRule(t, p, 1, boxes[0].ID, 443); r.ID != 4 {
		t.Errorf("rule %d", r.ID)
	}
	addContainer(t, p, 1, 1)
	mustCount(t, p.db, 4, `SELECT max(number) FROM containers`)

	_, _, err = CopyToPostgres(ctx, path, url, 0, nil)
	wantCode(t, err, compute.CodeConflict)
	if !strings.Contains(err.Error(), "copied before") {
		t.Errorf("a second copy: %v", err)
	}
	other := filepath.Join(t.TempDir(), "berth.db")
	openAt(t, other, Options{})
	_, _, err = CopyToPostgres(ctx, other, url, 0, nil)
	wantCode(t, err, compute.CodeConflict)
	if !strings.Contains(err.Error(), "another installation") {
		t.Errorf("another's copy: %v", err)
	}
}

// A copy that fails, here since the file holds what its own constraints forbid, leaves the database empty and can be repeated.
func TestCopyFails(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "berth.db")
	s, err := Open(ctx, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	furnish(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	raw := func(statement string) {
		t.Helper()
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec(`PRAGMA ignore_check_constraints = 1; ` + statement); err != nil {
			t.Fatal(err)
		}
	}
	url := pgtest.NewDatabase(t)
	raw(`UPDATE ingress_rules SET target_port = 70000 WHERE id = 1`)
	if _, _, err = CopyToPostgres(ctx, path, url, 0, nil); err == nil || !strings.Contains(err.Error(), "ingress_rules") {
		t.Fatalf("%v", err)
	}
	p, err := Open(ctx, url, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if list, err := p.Users(ctx); err != nil || len(list) != 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	raw(`UPDATE ingress_rules SET target_port = 80 WHERE id = 1`)
	if _, _, err = CopyToPostgres(ctx, path, url, 0, nil); err != nil {
		t.Fatal(err)
	}
	_, _, err = CopyToPostgres(ctx, filepath.Join(t.TempDir(), "none.db"), pgtest.NewDatabase(t), 0, nil)
	wantCode(t, err, compute.CodeNotFound)
}

// Every table is copied: one that a migration adds is not forgotten.
func TestCopyKnowsEveryTable(t *testing.T) {
	s := openNew(t, Options{})
	known := map[string]bool{"installation": true, "event_counter": true, "audit_counter": true, versionTable: true}
	for _, c := range copiedTables {
		known[c.name] = true
	}
	names, err := collect(t.Context(), s.db, func(row scanner) (name string, err error) { return name, row.Scan(&name) },
		`SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'`)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !known[name] {
			t.Error(fmt.Sprint("nothing copies the table ", name))
		}
	}
}
