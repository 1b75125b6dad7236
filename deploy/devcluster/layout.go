package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// layout is where one cluster has its things. All names come from the directory's hash, so that several are apart.
type layout struct {
	Dir      string       // what outlives a stop
	Run      string       // what does not, on the machine: the lock, and the sockets of containerd and of control
	Programs string       // this program, kube and pause
	Name     string       // the node's, and its control group's
	Link     string       // the machine's end of the network link to the node
	Net      netip.Prefix // a /16: see network.go
}

// What the layout's directories are called inside the node.
const (
	nodeDir      = "/cluster"
	nodeRun      = "/run/cluster"
	nodePrograms = "/programs"
)

func layoutOf(dir, programs string) (layout, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return layout{}, err
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	sum := sha256.Sum256([]byte("berth devcluster\x00" + dir))
	h := hex.EncodeToString(sum[:4])
	l := layout{Dir: dir, Run: "/run/berth-dev-" + h, Programs: programs, Name: "berth-dev-" + h, Link: "bdev" + h}
	text, err := os.ReadFile(l.marker())
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	} else if err != nil {
		return l, err
	}
	if err := json.Unmarshal(text, &l.Net); err != nil {
		return l, fmt.Errorf("%s: %w", l.marker(), err)
	}
	return l, nil
}

// marker is the file that says that a directory is a cluster's, and which network it was given.
func (l layout) marker() string     { return filepath.Join(l.Dir, "network.json") }
func (l layout) ready() string      { return filepath.Join(l.Dir, "ready.json") }
func (l layout) kubeconfig() string { return filepath.Join(l.Dir, "kubeconfig") }
func (l layout) logs() string       { return filepath.Join(l.Dir, "log") }
func (l layout) containerd() string { return filepath.Join(l.Run, "containerd.sock") }

// stored are the directories and files that a cluster makes in its own, and all that down --delete removes.
var stored = []string{
	"config", "containerd", "etcd", "kubelet", "log", "pki", "registry", "var", "tmp", "opt", "volumes", "kubeconfig", "ready.json", "network.json",
}

// prepare makes the directories, or refuses one that holds something else.
func (l layout) prepare() error {
	entries, err := os.ReadDir(l.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if !slices.Contains(stored, e.Name()) && e.Name() != "lock" {
			return fmt.Errorf("%s holds what is no cluster's: %s. Give a directory of its own, --dir DIR", l.Dir, e.Name())
		}
	}
	for _, name := range []string{"config", "containerd", "etcd", "kubelet", "log", "pki", "var", "tmp", "opt"} {
		if err := os.MkdirAll(filepath.Join(l.Dir, name), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(l.Dir, "tmp"), 0o777|fs.ModeSticky); err != nil {
		return err
	}
	return os.MkdirAll(l.Run, 0o700)
}

// lock keeps another up or down of this cluster waiting until it is released.
func (l layout) lock() (release func(), err error) {
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(l.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		fmt.Fprintln(os.Stderr, "cluster  waiting for another devcluster command on", l.Dir)
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			return nil, err
		}
	}
	return func() { f.Close() }, nil
}

// alive is the lock that the node's first process has while it lives, whatever killed it. It is a record lock, which tells
// who has it.
func (l layout) alive() string { return filepath.Join(l.Run, "alive") }

// running returns the process id of the node's first process, or 0.
func (l layout) running() (int, error) {
	f, err := os.OpenFile(l.alive(), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil {
		return 0, err
	}
	if lock.Type == unix.F_UNLCK {
		return 0, nil
	}
	return int(lock.Pid), nil
}
