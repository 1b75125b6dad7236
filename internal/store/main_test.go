package store

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"berth/internal/compute"
	"berth/internal/pgtest"
)

// childEnv names the part that a process started by a test plays instead of running tests.
const childEnv = "BERTH_STORE_TEST_CHILD"

var children = map[string]func() error{
	"crash":  crashChild,
	"full":   fullChild,
	"broken": brokenChild,
	"reader": readerChild,
}

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		if err := children[name](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "rapid.checks" })
	if !set { // each walk has its own file: 100 of them, rapid's default, take most of a minute
		if err := flag.Set("rapid.checks", "30"); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := pgtest.Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}

// clock is a time that tests set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 1, 15, 10, 30, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// openAt opens a store that is closed, and whose invariants are checked, when the test ends.
func openAt(t testing.TB, path string, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), path, o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		checkInvariants(t, s)
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func openNew(t testing.TB, o Options) *Store {
	t.Helper()
	return openAt(t, newSource(t), o)
}

// newSource is where no database is yet: below TestOnPostgres in PostgreSQL, and else in a file.
func newSource(t testing.TB) string {
	t.Helper()
	if strings.HasPrefix(t.Name(), "TestOnPostgres/") {
		return pgtest.NewDatabase(t)
	}
	return filepath.Join(t.TempDir(), "berth.db")
}

// hasten has SQLite wait for no disk, for speed alone: the tests' PostgreSQL never does.
func hasten(t testing.TB, s *Store) {
	t.Helper()
	if s.listener != nil {
		return
	}
	if _, err := s.writer.Exec(`PRAGMA synchronous = OFF`); err != nil {
		t.Fatal(err)
	}
}

func addUser(t testing.TB, s *Store, name string) compute.UserID {
	t.Helper()
	u, err := s.CreateUser(t.Context(), name, compute.RoleUser)
	if err != nil {
		t.Fatalf("CreateUser %s: %v", name, err)
	}
	return u.ID
}

func keyNamed(owner compute.UserID, name string) compute.SSHKey {
	return compute.SSHKey{
		Owner: owner, Name: name, PublicKey: "ssh-ed25519 AAAA" + name, Fingerprint: "SHA256:" + name,
	}
}

func addKey(t testing.TB, s *Store, owner compute.UserID, name string) int64 {
	t.Helper()
	k, err := s.AddKey(t.Context(), keyNamed(owner, name), 10)
	if err != nil {
		t.Fatalf("AddKey %s: %v", name, err)
	}
	return k.ID
}

func boxOf(owner compute.UserID, keys ...int64) compute.Container {
	return compute.Container{
		Owner: owner, Name: "dev-box", InstanceType: "nano", MemoryMB: 512, StorageGB: 5, SSHKeyIDs: keys,
		SSHEnabled: true, MountPaths: []string{"/root", "/var/data"},
	}
}

func addContainer(t testing.TB, s *Store, owner compute.UserID, keys ...int64) compute.Container {
	t.Helper()
	c, err := s.CreateContainer(t.Context(), boxOf(owner, keys...), 3)
	if err != nil {
		t.Fatalf("CreateContainer: %v", err)
	}
	return c
}

func remove(t testing.TB, s *Store, c compute.Container) {
	t.Helper()
	if _, err := s.SetDesired(t.Context(), c.Owner, c.ID, compute.DesiredDeleted); err != nil {
		t.Fatalf("delete %s: %v", c.ID, err)
	}
	if err := s.Purge(t.Context(), c.ID); err != nil {
		t.Fatalf("purge %s: %v", c.ID, err)
	}
}

func wantCode(t testing.TB, err error, want compute.Code) {
	t.Helper()
	e := compute.AsError(err)
	if e == nil || e.Code != want || e.Message == "" {
		t.Fatalf("got error %v, want code %s", err, want)
	}
}

// allEvents reads the stream from its oldest event on.
func allEvents(t testing.TB, r *Reader) []compute.Event {
	t.Helper()
	var all []compute.Event
	after := int64(0)
	for {
		list, err := r.Events(context.WithoutCancel(t.Context()), after, 1000)
		if err != nil {
			t.Fatalf("Events: %v", err)
		}
		if len(list) == 0 {
			return all
		}
		all = append(all, list...)
		after = list[len(list)-1].Seq
	}
}

// checkInvariants holds a database to what must be true of it at any time.
func checkInvariants(t testing.TB, s *Store) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	if s.listener == nil {
		var verdict string
		if err := s.db.QueryRowContext(ctx, `PRAGMA integrity_check`).Scan(&verdict); err != nil || verdict != "ok" {
			t.Fatalf("integrity_check: %q %v", verdict, err)
		}
		mustCount(t, s.db, 0, `SELECT count(*) FROM pragma_foreign_key_check`)
	}
	mustCount(t, s.db, 0, `SELECT count(*) FROM containers c LEFT JOIN container_ids i USING (id)
		WHERE i.id IS NULL OR i.purged_at IS NOT NULL OR (c.desired = 'deleted') <> (i.deleted_at IS NOT NULL)`)
	mustCount(t, s.db, 0, `SELECT count(*) FROM container_ids i LEFT JOIN containers c USING (id)
		WHERE i.purged_at IS NULL AND c.id IS NULL`)
	mustCount(t, s.db, 0, `SELECT count(*) FROM containers c WHERE c.https_enabled <>
		(SELECT count(*) FROM ingress_rules r WHERE r.container = c.id AND r.port = 443)`)
	mustCount(t, s.db, 0, `SELECT count(*) FROM ingress_rules r JOIN containers c ON c.id = r.container
		WHERE c.desired = 'deleted'`)

	events := allEvents(t, s.Reader)
	last, err := s.LastEvent(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(events) > 0 && events[len(events)-1].Seq != last {
		t.Fatalf("the newest event is %d and the counter says %d", events[len(events)-1].Seq, last)
	}
	at := make(map[compute.ContainerID]compute.Status)
	complete := len(events) == 0 || events[0].Seq == 1
	for i, e := range events {
		if i > 0 && e.Seq != events[i-1].Seq+1 {
			t.Fatalf("event %d follows %d", e.Seq, events[i-1].Seq)
		}
		if e.Kind != compute.EventContainerStatus {
			continue
		}
		before, known := at[e.Container]
		switch {
		case known && before != e.Status && !slices.Equal(compute.Between(before, e.Status), []compute.Status{e.Status}):
			t.Fatalf("event %d takes %s from %s to %s", e.Seq, e.Container, before, e.Status)
		case !known && complete && e.Status != compute.StatusPending:
			t.Fatalf("event %d begins %s at %s", e.Seq, e.Container, e.Status)
		}
		at[e.Container] = e.Status
	}
	list, err := s.Reconcilable(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if status, known := at[c.ID]; (complete || known) && status != c.Status {
			t.Fatalf("the events leave %s at %q and its row at %q", c.ID, status, c.Status)
		}
	}
}

func mustCount(t testing.TB, db *sql.DB, want int64, query string, args ...any) {
	t.Helper()
	var n int64
	if err := db.QueryRow(query, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	if n != want {
		t.Fatalf("got %d, want %d: %s", n, want, query)
	}
}
