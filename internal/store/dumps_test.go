package store

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"berth/internal/compute"
)

// dumped are the schemas that testdata has a dump of a database of (vN.sql), each made by the version of Berth that had it:
// a release adds one.
var dumped = []int64{1, 2, 3, 4, 5, 6, 7}

// loadDump makes a database of the dump of a schema.
func loadDump(t *testing.T, version int64) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "berth.db")
	dump, err := os.ReadFile(filepath.Join("testdata", fmt.Sprintf("v%d.sql", version)))
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
	return path
}

// Every dump goes forward to the schema of today with what is in it, as a file and as a backup, and takes writes then.
func TestDatabasesOfEverySchema(t *testing.T) {
	ctx := t.Context()
	fresh := openNew(t, Options{})
	want := schemaOf(t, fresh.db)
	then := func() time.Time { return fromMillis(1768473020000) } // when the dumps were made
	for _, version := range dumped {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			path := loadDump(t, version)
			copied := filepath.Join(t.TempDir(), "copy.db")
			if id, err := Backup(ctx, path, copied); err != nil || id.Schema != version || id.Epoch != 1 {
				t.Fatalf("%+v, %v", id, err)
			}
			if id, err := Renew(ctx, copied, 7, Identity{}); err != nil || id.Schema <= dumped[len(dumped)-1]-1 || id.Epoch != 7 {
				t.Fatalf("%+v, %v", id, err)
			}
			for _, p := range []string{path, copied} {
				s := openAt(t, p, Options{Now: then, NewID: propose("40000000")})
				if got := schemaOf(t, s.db); got != want {
					t.Fatalf("the migrated schema is not the fresh one:\n%s\n%s", got, want)
				}
				checkDumped(t, s, version, p == path)
			}
		})
	}
}

// checkDumped looks for all that a dump of a schema has. Its tokens have ended where it was renewed.
func checkDumped(t *testing.T, s *Store, version int64, live bool) {
	t.Helper()
	ctx := t.Context()
	if id, err := s.InstallationID(ctx); err != nil || id != "0123456789abcdef0123456789abcdef" {
		t.Errorf("installation %q, %v", id, err)
	}
	c, err := s.Container(ctx, 1, "10000000")
	if err != nil || c.HTTPSEnabled != (version >= 2) || !slices.Equal(c.SSHKeyIDs, []int64{1, 2}) || !c.StorageMade {
		t.Errorf("%+v, %v", c, err)
	}
	rules, err := s.IngressRules(ctx, 1, "10000000")
	if err != nil || (len(rules) == 2) != (version >= 2) {
		t.Errorf("rules %+v, %v", rules, err)
	}
	if version >= 2 && (rules[0].Port != 443 && rules[1].Port != 443 || addRule(t, s, 1, "10000000", 80).ID != 5) {
		t.Errorf("rules %+v", rules)
	}
	tokens, err := s.Tokens(ctx, 1, fromMillis(1768473004000))
	if err != nil || (len(tokens) == 2) != (version >= 3 && live) {
		t.Errorf("tokens %+v, %v", tokens, err)
	}
	if gone, _, err := s.Token(ctx, "gone"); version >= 3 && (err != nil || gone.RevokedAt.IsZero()) {
		t.Errorf("%+v, %v: revoked, and live again", gone, err)
	}
	first, err := s.Gateway(ctx, "SHA256:first")
	if version >= 4 && (err != nil || first.RevokedAt.IsZero()) {
		t.Errorf("%+v, %v: revoked, and in force again", first, err)
	}
	if gateways, err := s.Gateways(ctx); err != nil || (len(gateways) == 2) != (version >= 4) {
		t.Errorf("gateways %+v, %v", gateways, err)
	}
	records, _, err := s.Audit(ctx, compute.AuditQuery{Limit: 10, OldestFirst: true})
	if version >= 5 && (err != nil || len(records) < 2 || records[0].Action != "startContainer" || records[1].Count != 3) {
		t.Errorf("audit %+v, %v", records, err)
	}
	if version >= 6 {
		saved, err := s.BeginOnce(ctx, 1, "again", [32]byte{})
		if err != nil || saved == nil || saved.Status != 201 {
			t.Errorf("%+v, %v: carried out once more", saved, err)
		}
	}
	u, err := s.LimitedUser(ctx, 1)
	if err != nil || (u.Limits.Containers != nil && *u.Limits.Containers == 5) != (version >= 7) {
		t.Errorf("limits %+v, %v", u, err)
	}
	if made := addContainer(t, s, 1, 1); made.ID != "40000000" {
		t.Errorf("%+v", made)
	}
}

// No schema before a dumped one lacks its dump.
func TestDumpsAreThere(t *testing.T) {
	s := openNew(t, Options{})
	p, err := migrator(s.writer)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range p.ListSources() {
		if m.Version <= slices.Max(dumped) && !slices.Contains(dumped, m.Version) {
			t.Errorf("there is no dump of schema %d", m.Version)
		}
	}
	files, err := filepath.Glob(filepath.Join("testdata", "v*.sql"))
	if err != nil || len(files) != len(dumped) {
		t.Errorf("%v, %v: of these, %v are looked at", files, err, dumped)
	}
}
