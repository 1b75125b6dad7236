package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxTreeDepth bounds the descriptors and the stack that removing a tree takes: a tenant may have nested directories as
// deep as their disk has inodes. What lies deeper is moved up first.
const maxTreeDepth = 32

// treeRemover removes trees that a tenant wrote. It never follows a symlink and never names a path of more than one part.
type treeRemover struct {
	ctx  context.Context
	top  *os.File // the directory that deep trees are moved up to
	n    int
	deep []string // in top
}

// removeTree removes name, whatever it is, from dir, a directory that only the host writes.
func removeTree(ctx context.Context, dir, name string) error {
	top, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer top.Close()
	r := &treeRemover{ctx: ctx, top: top, deep: []string{name}}
	for len(r.deep) > 0 {
		last := r.deep[len(r.deep)-1]
		r.deep = r.deep[:len(r.deep)-1]
		if err := r.remove(top, last, 0); err != nil {
			return fmt.Errorf("remove %s/%s: %w", dir, last, err)
		}
	}
	return nil
}

// deepName begins the names of trees that were moved up; a kill may leave some, in the directory that holds the tree.
const deepName = "deep-"

func (r *treeRemover) remove(dir *os.File, name string, depth int) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	if depth == maxTreeDepth {
		return r.moveUp(dir, name)
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close()
	if err := r.empty(d, depth+1); err != nil {
		return err
	}
	return unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
}

// empty removes all that a directory holds. Names are read again from the start until there are none, since removing
// while reading may skip some.
func (r *treeRemover) empty(d *os.File, depth int) error {
	for {
		if _, err := d.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := d.Readdirnames(1024)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := r.remove(d, n, depth); err != nil {
				return err
			}
		}
	}
}

// moveUp puts a directory into top under a free name, for later.
func (r *treeRemover) moveUp(dir *os.File, name string) error {
	for {
		r.n++
		to := deepName + strconv.Itoa(r.n)
		err := unix.Renameat2(int(dir.Fd()), name, int(r.top.Fd()), to, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err == nil {
			r.deep = append(r.deep, to)
		}
		return err
	}
}
