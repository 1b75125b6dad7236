package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// downWithin is how long a node is given to end its components; after that it is killed.
const downWithin = 20 * time.Second

// down stops the cluster, if it runs, and removes what is left of it on the machine; with remove, what it stored too.
func down(ctx context.Context, l layout, remove bool) error {
	if _, err := os.Stat(l.Dir); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(os.Stderr, "cluster  none in", l.Dir)
		return nil
	}
	release, err := l.lock()
	if err != nil {
		return err
	}
	defer release()
	pid, err := l.running()
	if err != nil {
		return err
	}
	if pid != 0 {
		if err := end(ctx, pid); err != nil {
			return fmt.Errorf("stop the node: %w", err)
		}
	}
	if err := l.clean(ctx); err != nil {
		return err
	}
	switch {
	case pid != 0:
		fmt.Fprintln(os.Stderr, "cluster  stopped")
	default:
		fmt.Fprintln(os.Stderr, "cluster  it does not run")
	}
	if !remove {
		return nil
	}
	if !l.Net.IsValid() {
		return nil // a directory that never was a cluster's
	}
	for _, name := range stored {
		if err := os.RemoveAll(filepath.Join(l.Dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// end ends the node's first process, and with it all others: the kernel does not let it go before they are gone.
func end(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		for deadline := time.Now().Add(downWithin); ; {
			if err := ctx.Err(); err != nil {
				return err
			}
			const slice = 200 // ms, so that ctx is seen
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, slice)
			if n > 0 {
				return nil
			}
			if err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
			if time.Now().After(deadline) {
				break
			}
		}
	}
	return fmt.Errorf("process %d does not end", pid)
}

// clean removes from the machine what a node leaves when it is gone: its link, its control groups, its runtime directory.
func (l layout) clean(ctx context.Context) error {
	if err := os.Remove(l.ready()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := l.disconnect(); err != nil {
		return err
	}
	if err := l.removeGroups(ctx); err != nil {
		return err
	}
	return os.RemoveAll(l.Run)
}

// groups are the node's control groups, one in each hierarchy of version 1, or one.
func (l layout) groups() ([]string, error) {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{filepath.Join("/sys/fs/cgroup", l.Name)}, nil
	}
	roots, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		return nil, err
	}
	for i, root := range roots {
		roots[i] = filepath.Join(root, l.Name)
	}
	return roots, nil
}

// makeGroups makes what the kubelet expects to find. A cpuset begins without processors and memory.
func (l layout) makeGroups() error {
	groups, err := l.groups()
	if err != nil {
		return err
	}
	for _, group := range groups {
		if info, err := os.Lstat(filepath.Dir(group)); err != nil || !info.IsDir() {
			continue // cpu,cpuacct has two names
		}
		if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			text, err := os.ReadFile(filepath.Join(filepath.Dir(group), file))
			if err != nil || strings.TrimSpace(string(text)) == "" {
				continue // another controller's, or version 2, which inherits
			}
			if err := os.WriteFile(filepath.Join(group, file), text, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

const busyWithin = 10 * time.Second

// removeGroups removes them and those below. One is busy for a moment after its last process.
func (l layout) removeGroups(ctx context.Context) error {
	groups, err := l.groups()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, busyWithin)
	defer cancel()
	for _, group := range groups {
		var dirs []string
		if err := filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // what is gone is gone
		}); err != nil {
			return err
		}
		for _, dir := range slices.Backward(dirs) {
			if err := until(ctx, func(context.Context) error {
				if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
					return fmt.Errorf("remove the control group %s: %w", dir, err)
				}
				return nil
			}); err != nil {
				return err
			}
		}
	}
	return nil
}
