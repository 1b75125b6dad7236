package app

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/config"
	"berth/internal/sshproxy"
	"berth/internal/store"
)

// site is a data directory that a Berth has started in.
type site struct {
	t   *testing.T
	cfg config.Config
}

func newSite(t *testing.T) site {
	t.Helper()
	c := config.Default()
	c.DataDir = filepath.Join(t.TempDir(), "data")
	s := site{t, c}
	s.running(func(b *berth) { s.addUser(b, "alice") })
	if _, err := sshproxy.OpenHostKeys(c.DataDir); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s site) path(name string) string { return filepath.Join(s.cfg.DataDir, name) }

// running has the directory's state open, as a Berth that runs, while f runs.
func (s site) running(f func(*berth)) {
	s.t.Helper()
	b, err := openState(s.t.Context(), s.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		s.t.Fatal(err)
	}
	f(b)
	if err := b.close(); err != nil {
		s.t.Error(err)
	}
}

func (s site) addUser(b *berth, name string) {
	s.t.Helper()
	if _, err := b.operator.AddUser(s.t.Context(), name, false, nil); err != nil {
		s.t.Fatal(err)
	}
}

func (s site) users() (names []string) {
	s.t.Helper()
	s.running(func(b *berth) {
		list, err := b.operator.Users(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		for _, u := range list {
			names = append(names, u.Username)
		}
	})
	return names
}

func (s site) identity() store.Identity {
	s.t.Helper()
	id, err := store.Identify(s.t.Context(), s.path(databaseFile))
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

func (s site) backup() string {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "backup.tar")
	if err := Backup(s.t.Context(), s.cfg, file, io.Discard); err != nil {
		s.t.Fatal(err)
	}
	return file
}

func (s site) restore(file string) (said string) {
	s.t.Helper()
	var out bytes.Buffer
	if err := Restore(s.t.Context(), s.cfg, file, &out); err != nil {
		s.t.Fatal(err)
	}
	return out.String()
}

// refused restores a file that must not be, and holds that nothing changed.
func (s site) refused(file, want string) {
	s.t.Helper()
	before := s.listing()
	err := Restore(s.t.Context(), s.cfg, file, io.Discard)
	if err == nil || !strings.Contains(err.Error(), want) {
		s.t.Errorf("%v, want %q", err, want)
	}
	if after := s.listing(); after != before {
		s.t.Errorf("it changed\n%s\nto\n%s", before, after)
	}
}

// listing is every file of the directory with its content, but for the locks, and the log that readers leave.
func (s site) listing() string {
	s.t.Helper()
	var all strings.Builder
	entries, err := os.ReadDir(s.cfg.DataDir)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), "lock") || strings.HasSuffix(e.Name(), "-shm") || strings.HasSuffix(e.Name(), "-wal") {
			continue
		}
		d, err := describe(s.cfg.DataDir, e.Name())
		if err != nil {
			s.t.Fatal(err)
		}
		text, _ := json.Marshal(d)
		all.Write(append(text, '\n'))
	}
	return all.String()
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A backup of a Berth that runs comes back: what was then is there, what came since is aside, and no token is good any more.
func TestBackupAndRestore(t *testing.T) {
	s := newSite(t)
	var file, token string
	s.running(func(b *berth) {
		file = s.backup()
		var err error
		if token, err = b.operator.Token(t.Context(), TokenRequest{Username: "alice", Name: "ci", TTL: time.Hour}); err != nil {
			t.Fatal(err)
		}
		file = s.backup() // the token is in it
		s.refused(file, "berth runs in")
		s.addUser(b, "bob")
	})
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("beside the backup is %v, %v", left, err)
	}
	for _, secret := range []string{"PRIVATE KEY-----\nMC", token} { // a token's key is PKCS #8, host keys are OpenSSH's
		if strings.Contains(read(t, file), secret) {
			t.Errorf("%.20q is in the backup", secret)
		}
	}
	hostKey, tokenKey, before := read(t, s.path("ssh_host_ed25519_key")), read(t, s.path("token.key")), s.identity()
	began := time.Now().UnixMilli()
	said := s.restore(file)
	id := s.identity()
	if id.Installation != before.Installation || id.Epoch < began || id.Schema != before.Schema {
		t.Errorf("%+v became %+v", before, id)
	}
	if got := s.users(); strings.Join(got, " ") != "alice" {
		t.Errorf("users are %v", got)
	}
	if read(t, s.path("ssh_host_ed25519_key")) != hostKey {
		t.Error("the host key is another")
	}
	if read(t, s.path("token.key")) == tokenKey {
		t.Error("tokens of before are good still")
	}
	s.running(func(b *berth) {
		if _, err := b.authority.Verify(t.Context(), token); err == nil {
			t.Error("a token of before is good still")
		}
		if list, err := b.operator.Tokens(t.Context(), ""); err != nil || len(list) > 0 {
			t.Errorf("listed are %+v, %v", list, err)
		}
		if _, err := b.operator.SetUserDisabled(t.Context(), "alice", true); err != nil {
			t.Fatal(err)
		}
		if last, err := b.store.LastAudit(t.Context()); err != nil || last != before.LastAudit+1 {
			t.Errorf("the first record after %d has number %d, %v", before.LastAudit, last, err)
		}
	})
	aside := glob(t, s.path(replacedDirs+"*"), 1)[0]
	if !strings.Contains(said, aside) || !strings.Contains(said, "Restored") {
		t.Errorf("it said %s", said)
	}
	if st, err := os.Stat(aside); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st, err)
	}
	// Going back is a restore by hand, of the one file.
	if err := os.Rename(filepath.Join(aside, databaseFile), s.path(databaseFile)); err != nil {
		t.Fatal(err)
	}
	if got := s.users(); strings.Join(got, " ") != "alice bob" {
		t.Errorf("what was aside has %v", got)
	}
	// The same backup again begins another epoch.
	s.restore(file)
	if again := s.identity(); again.Epoch <= id.Epoch {
		t.Errorf("epoch %d after %d", again.Epoch, id.Epoch)
	}
	if err := removeData(s.cfg.DataDir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.cfg.DataDir); err == nil {
		t.Errorf("down --delete leaves %v", glob(t, s.path("*"), -1))
	}
}

func glob(t *testing.T, pattern string, want int) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || want >= 0 && len(list) != want {
		t.Fatalf("%v, %v; want %d", list, err, want)
	}
	return list
}

// Another machine has nothing yet, or keys of its own that nobody knows.
func TestRestoreElsewhere(t *testing.T) {
	s := newSite(t)
	file := s.backup()
	for name, prepare := range map[string]func(dir string){
		"empty": func(string) {},
		"keys of its own": func(dir string) {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if _, err := sshproxy.OpenHostKeys(dir); err != nil {
				t.Fatal(err)
			}
		},
	} {
		there := site{t, s.cfg}
		there.cfg.DataDir = filepath.Join(t.TempDir(), "data")
		prepare(there.cfg.DataDir)
		own, _ := os.ReadFile(there.path("ssh_host_ecdsa_key"))
		there.restore(file)
		if got := there.users(); strings.Join(got, " ") != "alice" {
			t.Errorf("%s: users are %v", name, got)
		}
		if read(t, there.path("ssh_host_ecdsa_key")) != read(t, s.path("ssh_host_ecdsa_key")) {
			t.Errorf("%s: clients would be warned of another key", name)
		}
		if own != nil && read(t, filepath.Join(glob(t, there.path(replacedDirs+"*"), 1)[0], "ssh_host_ecdsa_key")) != string(own) {
			t.Errorf("%s: its own key is lost", name)
		}
	}
}

func TestRestoreRefusals(t *testing.T) {
	s := newSite(t)
	other := newSite(t)
	file := s.backup()
	s.refused(other.backup(), "another installation")
	s.refused(filepath.Join(t.TempDir(), "absent"), "no such file")
	whole := read(t, file)
	changed := filepath.Join(t.TempDir(), "changed.tar")
	for name, tc := range map[string]struct{ text, want string }{
		"empty":      {"", "does not begin"},
		"noise":      {strings.Repeat("no backup", 1000), "does not begin"},
		"cut":        {whole[:len(whole)/2], "cut short"},
		"no file":    {whole[:strings.Index(whole, "berth.db\x00")], "cut short"},
		"damaged":    {strings.Replace(whole, "alice", "malic", 1), "damaged"},
		"newer":      {strings.Replace(whole, `"format": 1`, `"format": 9`, 1), "newer Berth"},
		"other file": {strings.Replace(whole, `"name": "berth.db"`, `"name": "../be.db"`, 1), "it lists"},
	} {
		if err := os.WriteFile(changed, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) { site{t, s.cfg}.refused(changed, tc.want) })
	}
}

// A database that cannot be read is what restores are for; it is kept all the same.
func TestRestoreOverDamage(t *testing.T) {
	s := newSite(t)
	file := s.backup()
	broken := strings.Repeat("broken", 5000)
	for _, name := range []string{databaseFile, databaseFile + "-wal"} {
		if err := os.WriteFile(s.path(name), []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if said := s.restore(file); !strings.Contains(said, "cannot be read") {
		t.Errorf("it said %s", said)
	}
	if got := s.users(); strings.Join(got, " ") != "alice" {
		t.Errorf("users are %v", got)
	}
	aside := glob(t, s.path(replacedDirs+"*"), 1)[0]
	for _, name := range []string{databaseFile, databaseFile + "-wal"} {
		if read(t, filepath.Join(aside, name)) != broken {
			t.Errorf("%s is not kept as it was", name)
		}
	}
}

func TestBackupRefusals(t *testing.T) {
	s := newSite(t)
	file := s.backup()
	before := read(t, file)
	if err := Backup(t.Context(), s.cfg, file, io.Discard); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("%v", err)
	}
	if read(t, file) != before {
		t.Error("it wrote over a file")
	}
	none := s.cfg
	none.DataDir = t.TempDir()
	if err := Backup(t.Context(), none, file+"2", io.Discard); err == nil || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("%v", err)
	}
	if err := Backup(t.Context(), s.cfg, filepath.Join(t.TempDir(), "no", "where"), io.Discard); err == nil {
		t.Error("into no directory")
	}
}

// A sparse entry can claim any size: the manifest that does so too is refused before anything is unpacked.
func TestArchiveOfHugeFiles(t *testing.T) {
	m := manifest{Format: archiveFormat, Files: []archivedFile{{Name: databaseFile, Size: 1 << 50}}}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: manifestFile, Size: int64(len(text)), Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	into := t.TempDir()
	if _, err := readArchive(&b, int64(b.Len()), into); err == nil || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("%v", err)
	}
	glob(t, filepath.Join(into, "*"), 0)
}

// Whatever a file holds, unpacking it writes nothing but what a backup has.
func FuzzReadArchive(f *testing.F) {
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, databaseFile), []byte("data"), 0o600); err != nil {
		f.Fatal(err)
	}
	m, err := newManifest(dir, []string{databaseFile})
	if err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	if err := writeArchive(&b, m, dir); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:b.Len()/2])
	f.Add([]byte("no backup"))
	f.Fuzz(func(t *testing.T, text []byte) {
		into := t.TempDir()
		m, err := readArchive(bytes.NewReader(text), int64(len(text)), into)
		entries, derr := os.ReadDir(into)
		if derr != nil {
			t.Fatal(derr)
		}
		known := map[string]bool{databaseFile: true}
		for _, name := range archivedKeys {
			known[name] = true
		}
		for _, e := range entries {
			if st, err := e.Info(); !known[e.Name()] || err != nil || st.Size() > int64(len(text)) {
				t.Errorf("it wrote %s, %v", e.Name(), err)
			}
		}
		if err == nil && len(entries) != len(m.Files) {
			t.Errorf("%d files of %d", len(entries), len(m.Files))
		}
	})
}
