package store

import (
	"database/sql"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"berth/internal/compute"
)

var update = flag.Bool("update", false, "write testdata/schema.sql anew")

// The schema that all migrations make together is in testdata, so that a review sees what a migration changes and that a
// released one is never edited.
func TestSchemaIsTheGoldenOne(t *testing.T) {
	s := openNew(t, Options{})
	golden := filepath.Join("testdata", "schema.sql")
	got := schemaOf(t, s.db)
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Fatalf("the migrations make another schema than %s; if they should, run this test with -update", golden)
	}
}

func schemaOf(t *testing.T, db *sql.DB) string {
	t.Helper()
	rows, err := db.Query(`SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY type, name`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var b strings.Builder
	for rows.Next() {
		var stmt string
		if err := rows.Scan(&stmt); err != nil {
			t.Fatal(err)
		}
		b.WriteString(stmt + ";\n\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A database that schema 1 left (testdata/v1.sql, a dump) opens with everything in it, and goes on from there.
func TestDatabaseOfSchema1(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "berth.db")
	dump, err := os.ReadFile(filepath.Join("testdata", "v1.sql"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(string(dump)); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	s := openAt(t, path, Options{NewID: propose("30000000", "40000000")})
	fresh := openNew(t, Options{})
	if got, want := schemaOf(t, s.db), schemaOf(t, fresh.db); got != want {
		t.Fatalf("the migrated schema is not the fresh one:\n%s\n%s", got, want)
	}
	if id, err := s.InstallationID(ctx); err != nil || id != "0123456789abcdef0123456789abcdef" {
		t.Fatalf("installation %q, %v", id, err)
	}
	users, err := s.Users(ctx)
	if err != nil || len(users) != 2 || users[0].Username != "alice" || users[0].Role != compute.RoleAdmin ||
		!users[1].Disabled {
		t.Fatalf("users %+v, %v", users, err)
	}
	list, err := s.Containers(ctx, users[0].ID)
	if err != nil || len(list) != 1 {
		t.Fatalf("containers %+v, %v", list, err)
	}
	want := compute.Container{
		ID: "10000000", Owner: 1, Name: "dev-box", InstanceType: "nano", MemoryMB: 512, StorageGB: 5,
		SSHKeyIDs: []int64{1, 2}, SSHEnabled: true, MountPaths: []string{"/root", "/var/data"}, CreatedAt: list[0].CreatedAt,
		Desired: compute.DesiredRunning, Generation: 3, StorageMade: true, Status: running,
	}
	if !reflect.DeepEqual(list[0], want) {
		t.Fatalf("got  %+v\nwant %+v", list[0], want)
	}
	all, err := s.Reconcilable(ctx)
	if err != nil || len(all) != 2 || all[1].ID != "20000000" || all[1].Desired != compute.DesiredDeleted {
		t.Fatalf("reconcilable %+v, %v", all, err)
	}
	last, err := s.LastEvent(ctx)
	if err != nil || int64(len(allEvents(t, s.Reader))) != last {
		t.Fatalf("last event %d, %v", last, err)
	}
	if err := s.Purge(ctx, "20000000"); err != nil {
		t.Fatal(err)
	}
	if rules, err := s.IngressRules(ctx, 1, "10000000"); err != nil || len(rules) != 0 {
		t.Fatalf("rules %+v, %v", rules, err)
	}
	if r := addRule(t, s, 1, "10000000", 443); r.ID != 1 {
		t.Fatalf("%+v", r)
	}
	if c, err := s.Container(ctx, 1, "10000000"); err != nil || !c.HTTPSEnabled {
		t.Fatalf("%+v, %v", c, err)
	}
	// 30000000 was taken and purged before the dump.
	if c := addContainer(t, s, 1, 1); c.ID != "40000000" || c.Slot != 2 {
		t.Fatalf("%+v", c)
	}
}
