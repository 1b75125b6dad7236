package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"modernc.org/sqlite"

	"berth/internal/compute"
)

func newContext() context.Context { return context.Background() }

func TestBusy(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "berth.db")
	s := openAt(t, path, Options{})
	if _, err := s.writer.Exec(`PRAGMA busy_timeout = 50`); err != nil {
		t.Fatal(err)
	}
	other, err := sql.Open("sqlite", writerDSN(path))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	hold, err := other.Begin()
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.CreateUser(ctx, "alice", compute.RoleUser)
	wantCode(t, err, compute.CodeUnavailable)
	if !strings.Contains(compute.UserMessage(err), "busy") {
		t.Fatalf("got %v", err)
	}
	if list, err := s.Users(ctx); err != nil || len(list) != 0 { // readers go on
		t.Fatalf("%+v %v", list, err)
	}
	if err := hold.Rollback(); err != nil {
		t.Fatal(err)
	}
	addUser(t, s, "alice")
}

func TestCancelled(t *testing.T) {
	s := openNew(t, Options{})
	why := errors.New("the client went away")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	check := func(err error) {
		t.Helper()
		wantCode(t, err, compute.CodeUnavailable)
		if !errors.Is(err, context.Canceled) || !errors.Is(err, why) {
			t.Fatalf("the cause is lost: %v", err)
		}
	}
	_, err := s.CreateUser(ctx, "alice", compute.RoleUser)
	check(err)
	_, err = s.Users(ctx)
	check(err)
	_, err = s.Target(ctx, "00000000")
	check(err)

	// One that waits for its turn to write gives up at its deadline, and leaves the line in order.
	hold, err := s.writer.Begin()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	_, err = s.CreateUser(ctx, "alice", compute.RoleUser)
	wantCode(t, err, compute.CodeUnavailable)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if err := hold.Rollback(); err != nil {
		t.Fatal(err)
	}

	// One that is cut off inside its transaction changes nothing.
	ctx, cancel = context.WithCancelCause(t.Context())
	err = s.write(ctx, "test", func(tx *tx) error {
		if _, err := tx.exec(`INSERT INTO users (username, role, created_at) VALUES ('eve', 'user', 0)`); err != nil {
			return err
		}
		cancel(why)
		return nil
	})
	check(err)
	addUser(t, s, "alice")
	mustCount(t, s.db, 1, `SELECT count(*) FROM users`)
}

// A file that breaks while it is open is one clear error, and never a wrong answer.
func TestDamagedWhileOpen(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "berth.db")
	s, err := Open(ctx, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	addUser(t, s, "alice")
	if _, err := s.writer.Exec(`PRAGMA wal_checkpoint(TRUNCATE)`); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(4096); at < info.Size(); at += 4096 {
		if _, err := f.WriteAt([]byte(strings.Repeat("Z", 4096)), at); err != nil {
			t.Fatal(err)
		}
	}
	r, err := openReader(path) // with an empty cache
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, err = r.Users(ctx)
	wantCode(t, err, compute.CodeInternal)
	if !strings.Contains(compute.UserMessage(err), "damaged") {
		t.Fatalf("got %v", err)
	}
}

func TestMapError(t *testing.T) {
	ctx := t.Context()
	if mapError(ctx, "op", nil) != nil {
		t.Error("an error was made of nothing")
	}
	own := compute.NotFound("thing")
	if !errors.Is(mapError(ctx, "op", own), own) {
		t.Error("an error of our own was changed")
	}
	err := mapError(ctx, "read thing", errors.New("whatever"))
	wantCode(t, err, compute.CodeInternal)
	if !strings.Contains(err.Error(), "read thing: whatever") || strings.Contains(compute.UserMessage(err), "whatever") {
		t.Errorf("got %v, which users read as %q", err, compute.UserMessage(err))
	}
	s := openNew(t, Options{})
	addUser(t, s, "alice")
	for _, c := range []struct {
		query string
		code  compute.Code
	}{
		{`INSERT INTO users (username, role, created_at) VALUES ('alice', 'user', 0)`, compute.CodeConflict},
		{`INSERT INTO users (id, username, role, created_at) VALUES (1, 'bob', 'user', 0)`, compute.CodeConflict},
		{`INSERT INTO identities VALUES ('i', 's', 99, 0)`, compute.CodeNotFound},
		{`INSERT INTO users (username, role, created_at) VALUES ('bob', 'king', 0)`, compute.CodeInvalid},
		{`INSERT INTO users (username, role) VALUES ('bob', 'user')`, compute.CodeInvalid},
		{`INSERT INTO users (username, role, created_at) VALUES ('bob', 'user', 'now')`, compute.CodeInvalid},
		{`DELETE FROM container_ids WHERE id IN (SELECT 1) OR 1`, ""}, // no row: the trigger has nothing to refuse
		{`SELECT * FROM nowhere`, compute.CodeInternal},
	} {
		err := s.write(ctx, "test", func(tx *tx) error {
			_, err := tx.exec(c.query)
			return err
		})
		if c.code == "" {
			if err != nil {
				t.Errorf("%s: %v", c.query, err)
			}
			continue
		}
		wantCode(t, err, c.code)
		var cause *sqlite.Error
		if !errors.As(err, &cause) {
			t.Errorf("%s: the cause is lost: %v", c.query, err)
		}
	}
	err = s.read(ctx, "test", func(q querier) error {
		_, err := s.db.ExecContext(ctx, `DELETE FROM users`)
		return err
	})
	wantCode(t, err, compute.CodeUnavailable)
}

// A full disk is one clear error; what was acknowledged stays, and writing goes on when there is room again. The disk is a
// small file system of a mount namespace that ends with the child, so nothing can be left behind.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	cmd := child(t, "full", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func fullChild() error {
	ctx := newContext()
	dir := os.Args[1]
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=2m"); err != nil {
		return err
	}
	path := filepath.Join(dir, "berth.db")
	s, err := Open(ctx, path, Options{})
	if err != nil {
		return err
	}
	if _, err := s.CreateUser(ctx, "alice", compute.RoleUser); err != nil {
		return err
	}
	ballast := filepath.Join(dir, "ballast")
	for round := range 3 {
		if err := fill(ballast); err != nil {
			return err
		}
		// A little fits into pages that are there already; then no more.
		stored := 0
		var err error
		for ; err == nil && stored < 10_000; stored++ {
			k := keyNamed(1, fmt.Sprint(round, "-", stored, strings.Repeat("x", 4000)))
			_, err = s.AddKey(ctx, k, 1_000_000)
		}
		stored--
		if compute.CodeOf(err) != compute.CodeCapacity || !strings.Contains(compute.UserMessage(err), "full") {
			return fmt.Errorf("on a full disk: %w", err)
		}
		if list, err := s.Users(ctx); err != nil || len(list) != 1 {
			return fmt.Errorf("readers on a full disk: %v %w", list, err)
		}
		if _, err := Open(ctx, filepath.Join(dir, "new.db"), Options{}); compute.CodeOf(err) != compute.CodeCapacity {
			return fmt.Errorf("a new database on a full disk: %w", err)
		}
		for _, f := range []string{ballast, filepath.Join(dir, "new.db")} {
			if err := os.Remove(f); err != nil {
				return err
			}
		}
		keys, err := s.Keys(ctx, 1)
		if err != nil {
			return err
		}
		for _, k := range keys { // all that was acknowledged, and nothing else
			if !strings.HasPrefix(k.Name, fmt.Sprint(round, "-")) {
				return fmt.Errorf("unexpected key %s", k.Name[:10])
			}
			if err := s.DeleteKey(ctx, 1, k.ID); err != nil {
				return fmt.Errorf("with room again: %w", err)
			}
		}
		if len(keys) != stored {
			return fmt.Errorf("%d keys are there and %d were acknowledged", len(keys), stored)
		}
	}
	var verdict string
	if err := s.db.QueryRow(`PRAGMA integrity_check`).Scan(&verdict); err != nil || verdict != "ok" {
		return fmt.Errorf("integrity: %s %w", verdict, err)
	}
	return s.Close()
}

// fill writes a file until there is no room for another byte.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for size := 1 << 16; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			return err
		}
	}
	return nil
}

// A disk that fails to write, or lets nobody write, says so.
func TestDiskBroken(t *testing.T) {
	cmd := child(t, "broken", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func brokenChild() error {
	ctx := newContext()
	dir := os.Args[1]
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=8m"); err != nil {
		return err
	}
	path := filepath.Join(dir, "berth.db")
	s, err := Open(ctx, path, Options{})
	if err != nil {
		return err
	}
	// Writes beyond this size fail with EFBIG, which is as good as EIO to SQLite.
	signal.Ignore(syscall.SIGXFSZ)
	info, err := os.Stat(path + "-wal")
	if err != nil {
		return err
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	small := syscall.Rlimit{Cur: uint64(info.Size()) + 2048, Max: limit.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small); err != nil {
		return err
	}
	_, err = s.CreateUser(ctx, "alice", compute.RoleUser)
	if compute.CodeOf(err) != compute.CodeUnavailable || !strings.Contains(compute.UserMessage(err), "reports errors") {
		return fmt.Errorf("on a failing disk: %w", err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	if _, err := s.CreateUser(ctx, "alice", compute.RoleUser); err != nil {
		return fmt.Errorf("on a disk that works again: %w", err)
	}
	if err := s.Close(); err != nil {
		return err
	}
	if err := syscall.Mount("none", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, "size=8m"); err != nil {
		return err
	}
	_, err = Open(ctx, path, Options{})
	if compute.CodeOf(err) != compute.CodeUnavailable || !strings.Contains(compute.UserMessage(err), "cannot be opened") {
		return fmt.Errorf("on a read-only disk: %w", err)
	}
	return nil
}
