package store

import (
	"bytes"
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/compute"
)

func TestFilesAreTheOwnersAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "berth.db")
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil { // as a careless restore leaves it
		t.Fatal(err)
	}
	s := openAt(t, path, Options{})
	addUser(t, s, "alice")
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != 4 { // with -wal, -shm and .lock
		t.Fatalf("files %v, %v", files, err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v %v", f, info.Mode(), err)
		}
	}
}

func TestPragmas(t *testing.T) {
	s := openNew(t, Options{})
	if _, err := s.Users(t.Context()); err != nil { // until its first read, a connection tells the mode it was opened with
		t.Fatal(err)
	}
	for _, p := range []struct {
		name           string
		writer, reader string
	}{
		{"journal_mode", "wal", "wal"},
		{"synchronous", "2", "2"},
		{"foreign_keys", "1", "1"},
		{"busy_timeout", "5000", "5000"},
		{"query_only", "0", "1"},
		{"trusted_schema", "0", "0"},
	} {
		for db, want := range map[*sql.DB]string{s.writer: p.writer, s.db: p.reader} {
			var got string
			if err := db.QueryRow("PRAGMA " + p.name).Scan(&got); err != nil || got != want {
				t.Errorf("%s is %q, want %q; %v", p.name, got, want, err)
			}
		}
	}
	if _, err := s.db.Exec(`UPDATE event_counter SET seq = 7`); err == nil {
		t.Error("the readers can write")
	}
}

func TestReopen(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	path := filepath.Join(dir, "odd name?#%41;.db") // nothing in a path is syntax
	s, err := Open(ctx, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	addUser(t, s, "alice")
	id, err := s.InstallationID(ctx)
	if err != nil || len(id) != 32 {
		t.Fatalf("installation %q, %v", id, err)
	}
	if epoch, err := s.Epoch(ctx); err != nil || epoch != 1 {
		t.Fatalf("epoch %d, %v", epoch, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 || files[0].Name() != filepath.Base(path) {
		t.Fatalf("a closed store leaves %v, %v", files, err)
	}
	_, err = s.CreateUser(ctx, "bob", compute.RoleUser)
	wantCode(t, err, compute.CodeUnavailable)
	_, err = s.Users(ctx)
	wantCode(t, err, compute.CodeUnavailable)

	s = openAt(t, path, Options{})
	again, err := s.InstallationID(ctx)
	if err != nil || again != id {
		t.Fatalf("installation %q, was %q; %v", again, id, err)
	}
	if u, err := s.UserByName(ctx, "alice"); err != nil || u.ID != 1 {
		t.Fatalf("%+v %v", u, err)
	}
	other := openNew(t, Options{})
	if o, err := other.InstallationID(ctx); err != nil || o == id {
		t.Fatalf("two installations are both %q; %v", o, err)
	}
}

// An old copy put back is a healthy database that does not know what came after it, and gives out no id twice that it knows.
func TestOldCopyRestored(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "berth.db")
	s, err := Open(ctx, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	alice := addUser(t, s, "alice")
	key := addKey(t, s, alice, "one")
	kept, gone := addContainer(t, s, alice, key), addContainer(t, s, alice, key)
	if err := s.RecordStorage(ctx, kept.ID); err != nil {
		t.Fatal(err)
	}
	remove(t, s, gone)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	backup, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = Open(ctx, path, Options{}); err != nil {
		t.Fatal(err)
	}
	id, err := s.InstallationID(ctx)
	if err != nil {
		t.Fatal(err)
	}
	later := addContainer(t, s, alice, key)
	if _, err := s.SetDesired(ctx, alice, kept.ID, compute.DesiredDeleted); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(path, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, path, Options{NewID: propose(gone.ID, kept.ID, "0badcafe")})
	if again, err := s.InstallationID(ctx); err != nil || again != id {
		t.Fatalf("installation %q, was %q; %v", again, id, err)
	}
	list, err := s.Reconcilable(ctx)
	if err != nil || len(list) != 1 || list[0].ID != kept.ID || list[0].Desired != compute.DesiredRunning ||
		!list[0].StorageMade {
		t.Fatalf("after the restore: %+v %v", list, err)
	}
	_, err = s.ReconcileState(ctx, later.ID) // unknown, not deleted: no tombstone permits to touch it
	wantCode(t, err, compute.CodeNotFound)
	wantCode(t, s.Purge(ctx, later.ID), compute.CodeNotFound)
	mustCount(t, s.db, 1, `SELECT count(*) FROM container_ids WHERE deleted_at IS NOT NULL`)
	if c := addContainer(t, s, alice, key); c.ID != "0badcafe" {
		t.Fatalf("id %s was given again", c.ID)
	}
}

func propose(ids ...compute.ContainerID) func() compute.ContainerID {
	return func() compute.ContainerID {
		id := ids[0]
		ids = ids[1:]
		return id
	}
}

func TestRefusedFiles(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	healthy := func(name string) string {
		path := filepath.Join(dir, name)
		s, err := Open(ctx, path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []string{"alice", "bob", "carol"} {
			u := addUser(t, s, n)
			for _, k := range []string{"one", "two", "three"} {
				addKey(t, s, u, k)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return path
	}
	raw := func(path, query string) {
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec(query); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, words string
		code        compute.Code
		make        func(name string) string
	}{
		{"not a database", "is not a database", compute.CodeInternal, func(name string) string {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, bytes.Repeat([]byte("no database\n"), 1000), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}},
		{"another program's", "another program's database", compute.CodeConflict, func(name string) string {
			path := filepath.Join(dir, name)
			raw(path, `CREATE TABLE bookmarks (url TEXT)`)
			return path
		}},
		{"another program's mark", "another program's database", compute.CodeConflict, func(name string) string {
			path := filepath.Join(dir, name)
			raw(path, `PRAGMA application_id = 7`)
			return path
		}},
		{"damaged inside", "is damaged", compute.CodeInternal, func(name string) string {
			path := healthy(name)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for i := 4096; i < len(b); i += 4096 { // the header of every page but the first
				copy(b[i:], bytes.Repeat([]byte{0x5a}, 64))
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}},
		{"cut short", "is damaged", compute.CodeInternal, func(name string) string {
			path := healthy(name)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, info.Size()/2/4096*4096); err != nil {
				t.Fatal(err)
			}
			return path
		}},
		{"newer schema", "newer Berth", compute.CodeConflict, func(name string) string {
			path := healthy(name)
			raw(path, `INSERT INTO schema_migrations (version_id, is_applied) VALUES (9999, 1)`)
			return path
		}},
		{"no directory", "There is no database", compute.CodeNotFound, func(name string) string {
			return filepath.Join(dir, "missing", name)
		}},
		{"a directory", "cannot be opened", compute.CodeUnavailable, func(name string) string {
			path := filepath.Join(dir, name)
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			return path
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.make(strings.ReplaceAll(c.name, " ", "-"))
			before, _ := os.ReadFile(path)
			_, err := Open(ctx, path, Options{})
			wantCode(t, err, c.code)
			if m := compute.UserMessage(err); !strings.Contains(m, c.words) || !strings.Contains(m, path) {
				t.Errorf("Open says %q", m)
			}
			_, err = OpenReadOnly(ctx, path)
			wantCode(t, err, c.code)
			if m := compute.UserMessage(err); !strings.Contains(m, c.words) {
				t.Errorf("OpenReadOnly says %q", m)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("the refused file was changed")
			}
		})
	}
}

func TestOpenReadOnly(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "berth.db")
	_, err := OpenReadOnly(ctx, path)
	wantCode(t, err, compute.CodeNotFound)
	if _, err := os.Stat(path); err == nil {
		t.Fatal("a read made the file")
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = OpenReadOnly(ctx, path)
	wantCode(t, err, compute.CodeConflict)
	if !strings.Contains(compute.UserMessage(err), "start Berth on it once") {
		t.Fatalf("an empty file: %v", err)
	}

	s := openAt(t, path, Options{})
	addUser(t, s, "alice")
	r, err := OpenReadOnly(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	addUser(t, s, "bob") // seen by who opened before
	if list, err := r.Users(ctx); err != nil || len(list) != 2 {
		t.Fatalf("%+v %v", list, err)
	}
	// Another process reads beside us.
	out := runChild(t, "reader", path)
	if out != "alice\nbob\n" {
		t.Fatalf("another process reads %q", out)
	}
}

func readerChild() error {
	ctx := newContext()
	r, err := OpenReadOnly(ctx, os.Args[1])
	if err != nil {
		return err
	}
	defer r.Close()
	list, err := r.Users(ctx)
	for _, u := range list {
		os.Stdout.WriteString(u.Username + "\n")
	}
	return err
}

// child prepares this test binary to run again as the named part.
func child(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, args...)
	cmd.Env = append(os.Environ(), childEnv+"="+name)
	return cmd
}

func runChild(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := child(t, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("child %s: %v\n%s", name, err, stderr.String())
	}
	return string(out)
}
