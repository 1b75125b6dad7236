package sshproxy

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"

	gossh "golang.org/x/crypto/ssh"
)

func fingerprints(t *testing.T, dir string) string {
	t.Helper()
	keys, err := OpenHostKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, k := range keys {
		b.WriteString(k.PublicKey().Type() + " " + gossh.FingerprintSHA256(k.PublicKey()) + "\n")
	}
	return b.String()
}

func TestHostKeysAreStable(t *testing.T) {
	dir := t.TempDir()
	first := fingerprints(t, dir)
	if again := fingerprints(t, dir); again != first {
		t.Errorf("other keys the second time:\n%s\n%s", first, again)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(hostKeyFiles) {
		t.Errorf("%d files for %d keys: %v", len(entries), len(hostKeyFiles), entries)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
	}
}

// TestHostKeysMadeByTwo is two processes that start with the same empty directory.
func TestHostKeysMadeByTwo(t *testing.T) {
	dir := t.TempDir()
	var got [8]string
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i] = fingerprints(t, dir) })
	}
	wg.Wait()
	for _, g := range got {
		if g != got[0] {
			t.Fatalf("different keys:\n%s\n%s", got[0], g)
		}
	}
}

func TestHostKeysNeverReplaced(t *testing.T) {
	for what, spoil := range map[string]func(path string) error{
		"damaged":  func(path string) error { return os.WriteFile(path, []byte("-----BEGIN nothing"), 0o600) },
		"empty":    func(path string) error { return os.Truncate(path, 0) },
		"readable": func(path string) error { return os.Chmod(path, 0o644) },
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			fingerprints(t, dir)
			path := filepath.Join(dir, hostKeyFiles[0].file)
			if err := spoil(path); err != nil {
				t.Fatal(err)
			}
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := OpenHostKeys(dir); err == nil {
				t.Error("no error")
			}
			after, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(before, after) {
				t.Error("the file was changed")
			}
		})
	}
}
