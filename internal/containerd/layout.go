package containerd

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"berth/internal/compute"
)

// layout is where an instance keeps things. What must survive a reboot is below the data directory. What ends with the
// machine, and every path that a kernel interface takes as text, is below a short host-owned directory in /run: a unix
// socket's path has at most 107 bytes, and overlayfs reads colons and commas as separators.
type layout struct {
	data string // absolute, symlinks resolved
	name string // "berth-" and 8 hex digits of data's hash; containerd's namespace too
	run  string // /run/<name>

	given string // socket of a containerd that is not ours; empty: our own
}

func layoutOf(dataDir string) (layout, error) {
	abs, err := filepath.Abs(dataDir)
	if err != nil {
		return layout{}, err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	} else if !os.IsNotExist(err) {
		return layout{}, err
	}
	sum := sha256.Sum256([]byte(abs))
	name := "berth-" + hex.EncodeToString(sum[:4])
	return layout{data: abs, name: name, run: "/run/" + name}, nil
}

// dir returns a path below the data directory.
func (l layout) dir(elem ...string) string {
	return filepath.Join(append([]string{l.data}, elem...)...)
}

// link returns a path below the data directory by way of the short link to it.
func (l layout) link(elem ...string) string {
	return filepath.Join(append([]string{l.run, "data"}, elem...)...)
}

// address is of containerd's socket.
func (l layout) address() string {
	if l.given != "" {
		return l.given
	}
	return l.ownAddress()
}

func (l layout) ownAddress() string { return l.run + "/containerd.sock" }
func (l layout) configPath() string { return l.run + "/containerd.toml" }
func (l layout) statePath() string  { return l.run + "/state" }
func (l layout) runcPath() string   { return l.run + "/runc" }
func (l layout) cgroup() string     { return "/" + l.name }

// lock is held by the one process that uses the directory. It is there from the first start on.
func (l layout) lock() string { return l.dir("containerd", "lock") }

// place is where one container's mounts are while it runs.
func (l layout) place(r compute.Ref) place { return place(filepath.Join(l.run, "c", r.String())) }

// place is a directory that only the host and, for the way to its root, the container's own group may pass.
type place string

func (p place) volume() string { return string(p) + "/volume" } // the ext4 volume
func (p place) rootfs() string { return string(p) + "/rootfs" } // the overlay that is the container's root
func (p place) socket() string { return string(p) + "/run" }    // a small tmpfs, in the container at /.berth/run

// make creates the directories of the instance.
func (l layout) make() error {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		{l.data, 0o755},
		{l.dir("containerd"), 0o711},
		{l.dir("containerd", "root"), 0o711},
		{l.dir("containerd", "images"), 0o700},
		{l.dir("volumes"), 0o700},
		{l.dir("agent"), 0o755},
		{l.run, 0o711},
		{l.run + "/c", 0o711},
	} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return err
		}
	}
	// runc may have made it, for root alone, to clear away for a containerd that was given what a `berth down` without that left.
	if err := os.Chmod(l.run, 0o711); err != nil {
		return err
	}
	link := l.run + "/data"
	if to, err := os.Readlink(link); err == nil && to == l.data {
		return nil
	}
	if err := os.Remove(link); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.Symlink(l.data, link); err != nil {
		return fmt.Errorf("link the data directory: %w", err)
	}
	return nil
}
