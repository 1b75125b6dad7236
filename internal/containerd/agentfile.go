package containerd

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
)

// agents keeps agent binaries, each in a directory named by its SHA-256 that containers mount read-only at /.berth. A
// running container keeps the one it was started with.
type agents struct{ dir string }

const unfinishedAgent = "new.tmp" // one that is being installed

var sha256Name = regexp.MustCompile(`^[0-9a-f]{64}$`)

// isAgent says whether an entry of the directory is one of ours.
func isAgent(name string) bool { return name == unfinishedAgent || sha256Name.MatchString(name) }

// install copies the binary at path into its directory unless it is there, and returns the directory's name.
func (a agents) install(path string) (string, error) {
	src, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("open the agent's binary: %w", err)
	}
	defer src.Close()
	tmp := filepath.Join(a.dir, unfinishedAgent)
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := os.MkdirAll(tmp+"/run", 0o755); err != nil { // the mount point of the socket's directory
		return "", err
	}
	dst, err := os.OpenFile(tmp+"/agent", os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return "", err
	}
	defer dst.Close()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(dst, sum), src); err != nil {
		return "", err
	}
	name := hex.EncodeToString(sum.Sum(nil))
	if _, err := os.Lstat(filepath.Join(a.dir, name, "agent")); err == nil {
		return name, os.RemoveAll(tmp)
	}
	for p, mode := range map[string]os.FileMode{tmp: 0o755, tmp + "/run": 0o755, tmp + "/agent": 0o755} {
		if err := os.Chmod(p, mode); err != nil { // whatever the umask
			return "", err
		}
	}
	if err := errors.Join(dst.Sync(), dst.Close(), syncDir(tmp)); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, filepath.Join(a.dir, name)); err != nil {
		return "", err
	}
	return name, syncDir(a.dir)
}

// prune removes every agent but those to keep.
func (a agents) prune(keep map[string]bool) error {
	list, err := os.ReadDir(a.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range list {
		if isAgent(d.Name()) && !keep[d.Name()] {
			errs = append(errs, os.RemoveAll(filepath.Join(a.dir, d.Name())))
		}
	}
	return errors.Join(errs...)
}
