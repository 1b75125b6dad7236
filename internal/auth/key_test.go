package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestOpenKeyIsStable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token.key")
	first, err := OpenKey(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %04o, want 0600", st.Mode().Perm())
	}
	second, err := OpenKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if !first.Equal(second) {
		t.Error("a second start has another key")
	}
	onlyFile(t, path)
}

// Several processes that start at once agree on one key.
func TestOpenKeyAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token.key")
	keys := make([][]byte, 16)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			key, err := OpenKey(path)
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	wg.Wait()
	for _, key := range keys {
		if !bytes.Equal(key, keys[0]) {
			t.Fatal("two opens have different keys")
		}
	}
	onlyFile(t, path)
}

func onlyFile(t *testing.T, path string) {
	t.Helper()
	list, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 {
		t.Errorf("the directory holds %v, want the key alone", list)
	}
}

// A key that cannot be used is never replaced: every token would end without anybody having asked for that.
func TestOpenKeyKeepsWhatIsThere(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(t.TempDir(), "token.key")
	if _, err := OpenKey(good); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		text []byte
		mode os.FileMode
		say  string
	}{
		"empty":          {nil, 0o600, "damaged"},
		"garbage":        {[]byte("garbage"), 0o600, "damaged"},
		"cut short":      {text[:60], 0o600, "damaged"},
		"two keys":       {append(bytes.Clone(text), text...), 0o600, "damaged"},
		"another kind":   {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600, "not Ed25519"},
		"open to others": {text, 0o644, "chmod 600"},
		"open to group":  {text, 0o640, "chmod 600"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "token.key")
			if err := os.WriteFile(path, tc.text, tc.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, tc.mode); err != nil { // whatever the umask
				t.Fatal(err)
			}
			_, err := OpenKey(path)
			if err == nil || !strings.Contains(err.Error(), tc.say) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v; want one that names the file and says %q", err, tc.say)
			}
			after, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(after, tc.text) {
				t.Errorf("the file changed (%v)", err)
			}
		})
	}
}

func TestOpenKeyWithoutDirectory(t *testing.T) {
	if _, err := OpenKey(filepath.Join(t.TempDir(), "absent", "token.key")); err == nil {
		t.Error("no error where the directory is absent")
	}
}
