package app

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"berth/internal/compute"
	"berth/internal/version"
)

// A backup is a tar archive: the manifest first, then the files that it lists, in its order.

const (
	databaseFile   = "berth.db"
	manifestFile   = "berth-backup.json"
	archiveFormat  = 1
	maxManifest    = 64 << 10
	maxArchivedKey = 64 << 10
)

// archivedKeys are the files beside the database that a backup holds: what clients know this installation by. The key of its
// tokens is not among them: whoever finds a backup can make none, and a restore ends those that there are.
var archivedKeys = []string{"ssh_host_ed25519_key", "ssh_host_ecdsa_key"}

// manifest says what a backup holds.
type manifest struct {
	Format       int            `json:"format"`
	Version      string         `json:"version"` // of the Berth that made it
	Installation string         `json:"installation"`
	Epoch        int64          `json:"epoch"`
	Schema       int64          `json:"schema"`
	CreatedAt    time.Time      `json:"created_at"`
	Files        []archivedFile `json:"files"`
}

type archivedFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// writeArchive writes m and the files that it lists, which are in dir.
func writeArchive(w io.Writer, m manifest, dir string) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	head := func(name string, size int64) *tar.Header {
		return &tar.Header{Name: name, Size: size, Mode: 0o600, ModTime: m.CreatedAt, Format: tar.FormatPAX}
	}
	if err := t.WriteHeader(head(manifestFile, int64(len(text)))); err != nil {
		return err
	}
	if _, err := t.Write(text); err != nil {
		return err
	}
	for _, file := range m.Files {
		if err := t.WriteHeader(head(file.Name, file.Size)); err != nil {
			return err
		}
		if err := copyFile(t, filepath.Join(dir, file.Name)); err != nil {
			return err
		}
	}
	return t.Close()
}

func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return errors.Join(err, f.Close())
}

// describe returns what a manifest says of a file in dir.
func describe(dir, name string) (archivedFile, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return archivedFile{}, err
	}
	sum := sha256.New()
	size, err := io.Copy(sum, f)
	return archivedFile{name, size, hex.EncodeToString(sum.Sum(nil))}, errors.Join(err, f.Close())
}

// newManifest describes files in dir.
func newManifest(dir string, names []string) (m manifest, err error) {
	m = manifest{Format: archiveFormat, Version: version.String(), CreatedAt: time.Now().UTC().Truncate(time.Second)}
	for _, name := range names {
		file, err := describe(dir, name)
		if err != nil {
			return m, err
		}
		m.Files = append(m.Files, file)
	}
	return m, nil
}

// notBackup says why r is none.
func notBackup(format string, args ...any) error {
	return compute.Errorf(compute.CodeInvalid, "That is not a whole backup of Berth: %s.", fmt.Sprintf(format, args...))
}

// readArchive unpacks a backup of size bytes into dir, which is empty. It writes no file but those that a backup may hold,
// none larger than the backup is, and checks each against the manifest. They may not be on the disk yet when it returns.
func readArchive(r io.Reader, size int64, dir string) (manifest, error) {
	t := tar.NewReader(r)
	m, err := readManifest(t, size)
	if err != nil {
		return m, err
	}
	for _, file := range m.Files {
		h, err := t.Next()
		switch {
		case err != nil:
			return m, notBackup("%s is missing (%v)", file.Name, err)
		case h.Name != file.Name || h.Typeflag != tar.TypeReg || h.Size != file.Size:
			return m, notBackup("%.64q is not the %s that it lists", h.Name, file.Name)
		}
		if err := unpack(t, file, dir); err != nil {
			return m, err
		}
	}
	if _, err := t.Next(); !errors.Is(err, io.EOF) {
		return m, notBackup("there is more in it than it lists")
	}
	return m, nil
}

func readManifest(t *tar.Reader, size int64) (m manifest, err error) {
	h, err := t.Next()
	if err != nil || h.Name != manifestFile || h.Typeflag != tar.TypeReg || h.Size > maxManifest {
		return m, notBackup("it does not begin with %s", manifestFile)
	}
	text, err := io.ReadAll(t)
	if err != nil {
		return m, notBackup("it is cut short")
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, notBackup("%s cannot be read", manifestFile)
	}
	if m.Format > archiveFormat {
		const newer = "The backup was made by a newer Berth (%.64q); use that version."
		return m, compute.Errorf(compute.CodeConflict, newer, m.Version)
	}
	seen := map[string]bool{}
	for _, file := range m.Files {
		key := slices.Contains(archivedKeys, file.Name)
		if file.Size > size { // or else a sparse entry says so, and would fill the disk
			return m, notBackup("it is cut short")
		}
		if file.Name != databaseFile && !key || seen[file.Name] || file.Size < 0 || key && file.Size > maxArchivedKey {
			return m, notBackup("it lists %.64q", file.Name)
		}
		seen[file.Name] = true
	}
	if m.Format != archiveFormat || !seen[databaseFile] {
		return m, notBackup("it lists no database")
	}
	return m, nil
}

func unpack(r io.Reader, file archivedFile, dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, file.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, sum), r)
	errWrite := f.Close()
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return notBackup("it is cut short")
	case err != nil || errWrite != nil:
		return fmt.Errorf("unpack the backup: %w", errors.Join(err, errWrite))
	case !strings.EqualFold(hex.EncodeToString(sum.Sum(nil)), file.SHA256):
		return notBackup("%s is damaged", file.Name)
	}
	return nil
}
