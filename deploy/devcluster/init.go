package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// The verbs by which this program starts itself: the node's first process, the one that runs the components, and the one of
// them that is no program of its own.
const (
	initVerb     = "node-init"
	nodeVerb     = "node"
	registryVerb = "registry"
)

// What is passed on to both: the layout as JSON, which arrives when the node's link is there, and where to say how far it is.
const (
	layoutFD   = 3
	progressFD = 4
	saidFD     = 3 // the latter, as the second process has it
)

// initProcess is the first process in the node's namespaces: it makes the node's root, starts the process that runs the
// components, and reaps what they leave. When it ends, the kernel ends every other process of the node, its mounts and its
// network; so nothing more is needed to stop a node, however badly it went.
func initProcess() error {
	syscall.CloseOnExec(layoutFD)
	syscall.CloseOnExec(progressFD)
	in, progress := os.NewFile(layoutFD, "layout"), os.NewFile(progressFD, "progress")
	var l layout
	if err := json.NewDecoder(in).Decode(&l); err != nil {
		return fmt.Errorf("read the layout: %w", err)
	}
	in.Close()
	alive, err := os.OpenFile(l.alive(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.FcntlFlock(alive.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		return fmt.Errorf("lock %s, which tells that the node runs: %w", l.alive(), err)
	}
	if err := enterRoot(l); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(l.Name)); err != nil {
		return err
	}

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	node, err := os.StartProcess(nodePrograms+"/devcluster", []string{"devcluster", nodeVerb, string(text)}, &os.ProcAttr{
		Dir: nodeDir,
		Env: []string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
			"KUBECONFIG=" + nodeDir + "/config/admin.kubeconfig",
		},
		Files: []*os.File{null, os.Stdout, os.Stderr, progress},
	})
	if err != nil {
		return err
	}
	progress.Close() // the node's alone now
	go func() {
		for s := range signals {
			_ = node.Signal(s) // fails only when it has ended, which the loop below sees
		}
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		} else if err != nil {
			return err
		}
		if pid == node.Pid {
			os.Exit(status.ExitStatus())
		}
	}
}

// enterRoot gives the node a root of its own: the machine's programs, which it cannot change, and what it writes in the
// cluster's directory. No mount of the machine stays visible, so none is kept busy.
func enterRoot(l layout) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts apart: %w", err)
	}
	root := filepath.Join(l.Run, "root")
	if err := mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, top := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc"} {
		if err := show(root, top); err != nil {
			return err
		}
	}
	const bind, deep = unix.MS_BIND, unix.MS_BIND | unix.MS_REC
	for _, m := range []struct {
		from, to, kind string
		flags          uintptr
	}{
		{"proc", "proc", "proc", 0},
		{"sysfs", "sys", "sysfs", 0},
		{"/sys/fs/cgroup", "sys/fs/cgroup", "", deep},
		{"/dev", "dev", "", deep},
		{"tmpfs", "run", "tmpfs", 0},
		{l.Run, nodeRun, "", bind},
		{l.Dir, nodeDir, "", bind},
		{l.Programs, nodePrograms, "", bind},
		{filepath.Join(l.Dir, "var"), "var", "", bind},
		{filepath.Join(l.Dir, "tmp"), "tmp", "", bind}, // volumes: the controller-manager makes them in /tmp/hostpath_pv
		{filepath.Join(l.Dir, "opt"), "opt", "", bind},
	} {
		if err := mount(m.from, filepath.Join(root, m.to), m.kind, m.flags, ""); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(root, "root"), 0o700); err != nil {
		return err
	}
	if err := os.Symlink("/run", filepath.Join(root, "var/run")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	// The old root is stacked on the new one, and detached from there: pivot_root(2).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change to the node's root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the machine's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// As on any node: what a pod's volumes are mounted from has to reach the pod.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts with pods: %w", err)
	}
	return keepKernelSettings()
}

// show binds one of the machine's top directories into the root, for reading; or makes the symbolic link that it is.
func show(root, top string) error {
	from, to := "/"+top, filepath.Join(root, top)
	info, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	}
	if err := mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func mount(from, to, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(from, to, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s at %s: %w", from, to, err)
	}
	return nil
}

// keepKernelSettings has the kubelet write to files instead of the settings that it changes and that are the whole
// machine's, such as what a panic does.
func keepKernelSettings() error {
	dir := "/run/kernel-settings"
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{
		"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
		"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
	} {
		setting := filepath.Join("/proc/sys", name)
		value, err := os.ReadFile(setting)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		file := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(file, value, 0o600); err != nil {
			return err
		}
		if err := unix.Mount(file, setting, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("keep the machine's %s: %w", setting, err)
		}
	}
	return nil
}
