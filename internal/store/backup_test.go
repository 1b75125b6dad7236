package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"berth/internal/compute"
)

func identify(t *testing.T, path string) Identity {
	t.Helper()
	id, err := Identify(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// A copy made while others write holds one moment: as many events as it says, and what they tell of.
func TestBackupWhileOthersWrite(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	s := openAt(t, filepath.Join(dir, "berth.db"), Options{})
	var wg sync.WaitGroup
	writing, stop := context.WithCancel(ctx)
	some := make(chan struct{})
	wg.Go(func() {
		for i := 0; writing.Err() == nil; i++ {
			if _, err := s.CreateUser(ctx, fmt.Sprintf("user-%d", i), compute.RoleUser); err != nil {
				t.Error(err)
				return
			}
			if i == 20 {
				close(some)
			}
		}
	})
	<-some
	var last int
	for i := range 5 {
		copied := filepath.Join(dir, fmt.Sprintf("copy-%d.db", i))
		id, err := Backup(ctx, filepath.Join(dir, "berth.db"), copied)
		if err != nil {
			t.Fatal(err)
		}
		if want := identify(t, filepath.Join(dir, "berth.db")); id != want {
			t.Errorf("the copy is of %+v, the database of %+v", id, want)
		}
		if st, err := os.Stat(copied); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st, err)
		}
		r, err := OpenReadOnly(ctx, copied)
		if err != nil {
			t.Fatal(err)
		}
		users, err := r.Users(ctx)
		if err != nil {
			t.Fatal(err)
		}
		seq, err := r.LastEvent(ctx)
		if err != nil || int(seq) != len(allEvents(t, r)) || int(seq) != len(users) || len(users) < last || len(users) < 20 {
			t.Errorf("%d events, %d users after %d, %v", seq, len(users), last, err)
		}
		last = len(users)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	stop()
	wg.Wait()
}

func TestRenewBeginsAnEpoch(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	path, copied := filepath.Join(dir, "berth.db"), filepath.Join(dir, "copy.db")
	s := openAt(t, path, Options{})
	u := addUser(t, s, "alice")
	for name, fingerprint := range map[string]string{"edge": "one", "old": "two"} {
		if _, err := s.AddGateway(ctx, name, fingerprint); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.RevokeGateway(ctx, "old"); err != nil {
		t.Fatal(err)
	}
	before, err := Backup(ctx, path, copied)
	if err != nil || before.Epoch != 1 || len(before.Installation) != 32 {
		t.Fatalf("%+v, %v", before, err)
	}
	for _, c := range []struct{ least, want int64 }{{0, 2}, {2, 3}, {1_000_000, 1_000_000}, {5, 1_000_001}} {
		id, err := Renew(ctx, copied, c.least, Identity{LastAudit: 7})
		if err != nil || id.Epoch != c.want || id.Installation != before.Installation || id.Schema != before.Schema {
			t.Fatalf("%+v, %v; want epoch %d", id, err, c.want)
		}
	}
	if got := identify(t, path); got != before {
		t.Errorf("the database is of %+v now", got)
	}
	if left, err := filepath.Glob(copied + "-*"); err != nil || len(left) != 0 {
		t.Errorf("beside the copy is %v, %v", left, err)
	}
	r := openAt(t, copied, Options{})
	if last, err := r.LastAudit(ctx); err != nil || last != 7 || before.LastAudit != 0 {
		t.Errorf("audit records of the copy go on after %d, %v", last, err)
	}
	if got, err := r.User(ctx, u); err != nil || got.Username != "alice" {
		t.Errorf("%+v, %v", got, err)
	}
	addUser(t, r, "bob") // it takes writes
	// A gateway that was never here may know of what came after the copy; one that was revoked is nobody.
	for fingerprint, seen := range map[string]bool{"one": true, "two": false} {
		if g, err := r.Gateway(ctx, fingerprint); err != nil || g.SeenAt.IsZero() == seen {
			t.Errorf("%+v, %v", g, err)
		}
	}
}

func TestBackupRefusals(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	path := filepath.Join(dir, "berth.db")
	openAt(t, path, Options{})
	taken := filepath.Join(dir, "taken")
	if err := os.WriteFile(taken, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Backup(ctx, path, taken); err == nil {
		t.Error("it wrote over a file")
	}
	if text, err := os.ReadFile(taken); err != nil || string(text) != "mine" {
		t.Errorf("%q, %v", text, err)
	}
	noise, empty := filepath.Join(dir, "noise"), filepath.Join(dir, "empty")
	for name, text := range map[string]string{noise: strings.Repeat("no database ", 1000), empty: ""} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{noise, empty, filepath.Join(dir, "absent")} {
		if _, err := Identify(ctx, name); err == nil || compute.AsError(err) == nil {
			t.Errorf("%s is %v", name, err)
		}
		if _, err := Renew(ctx, name, 1, Identity{}); err == nil || compute.AsError(err) == nil {
			t.Errorf("%s is renewed: %v", name, err)
		}
	}
	if st, err := os.Stat(empty); err != nil || st.Size() != 0 {
		t.Errorf("%v, %v", st, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "absent")); err == nil {
		t.Error("an absent database was made")
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := Backup(cancelled, path, filepath.Join(dir, "late")); err == nil {
		t.Error("it was told to stop")
	}
}

// What a process that was killed left in the log is in the copy, and in the one file once that is settled.
func TestSettle(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	path := filepath.Join(dir, "berth.db")
	s := openAt(t, path, Options{})
	addUser(t, s, "alice")
	killed := filepath.Join(dir, "killed.db")
	for _, suffix := range []string{"", "-wal"} { // as they stand on the disk now
		text, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(killed+suffix, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Settle(ctx, killed); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(killed + "-*"); err != nil || len(left) != 0 {
		t.Fatalf("beside it is %v, %v", left, err)
	}
	r, err := OpenReadOnly(ctx, killed)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if users, err := r.Users(ctx); err != nil || len(users) != 1 {
		t.Errorf("%+v, %v", users, err)
	}
}
