package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Where directories of mount paths lie on a volume. A container sees only what is in its own, so the tenant can neither
// read nor fake a mark.
const (
	seedMounts = "mounts"
	seedMarks  = "seeded" // an empty file for each that was seeded
	seedDir    = "seed"   // one that is being seeded
)

// Seed makes the directories of mount paths on a volume, each once, from what the image has there. It runs in a container of
// the same image that no tenant has entered, so that the root it reads is the image's own. Each mount is NAME:PATH, NAME
// being the directory on the volume. An empty one without a mark is a kubelet's, made for a container that let nobody in.
func Seed(volume string, mounts []string) error {
	var root, at unix.Stat_t
	if err := unix.Stat("/", &root); err != nil {
		return err
	}
	dir, marks := filepath.Join(volume, seedMounts), filepath.Join(volume, seedMarks)
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.MkdirAll(marks, 0o700)); err != nil {
		return err
	}
	for _, m := range mounts {
		name, path, ok := strings.Cut(m, ":")
		if !ok || !filepath.IsLocal(name) || filepath.Base(name) != name || !filepath.IsAbs(path) {
			return fmt.Errorf("%q is not NAME:PATH", m)
		}
		dst, mark := filepath.Join(dir, name), filepath.Join(marks, name)
		if done, err := seeded(dst, mark); err != nil {
			return err
		} else if done {
			continue
		}
		tmp := filepath.Join(volume, seedDir)
		if err := os.RemoveAll(tmp); err != nil {
			return err
		}
		from, err := filepath.EvalSymlinks(path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
			err = errors.Join(os.Mkdir(tmp, 0o755), os.Chmod(tmp, 0o755))
		case err != nil:
		default:
			if err = unix.Stat(from, &at); err == nil && at.Dev != root.Dev {
				err = fmt.Errorf("it is %s in the image, which belongs to the system", from)
			}
			if err == nil {
				err = (&seeder{dev: at.Dev, links: make(map[[2]uint64]string)}).directory(from, tmp)
			}
		}
		if errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("the storage has no room for what the image holds in %s; choose a larger storage_gb", path)
		}
		if err != nil {
			return fmt.Errorf("seed mount path %s: %w", path, err)
		}
		if err := settleSeed(volume, tmp, dst, mark); err != nil {
			return fmt.Errorf("seed mount path %s: %w", path, err)
		}
	}
	return nil
}

// seeded says whether a mount path's directory is the tenant's already. One with something in it is never touched, marked or not.
func seeded(dst, mark string) (bool, error) {
	if _, err := os.Lstat(mark); !errors.Is(err, fs.ErrNotExist) {
		return err == nil, err
	}
	list, err := os.ReadDir(dst)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil || len(list) == 0:
		return false, err
	}
	return true, os.WriteFile(mark, nil, 0o600)
}

// settleSeed gives a directory its name once it is on disk, and then the mark. A journal keeps these two in order; what has no
// mark and is empty is seeded again.
func settleSeed(volume, tmp, dst, mark string) error {
	d, err := os.Open(volume)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return err
	}
	if err := unix.Rename(tmp, dst); err != nil { // also over a directory that is empty
		return err
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return err
	}
	return unix.Syncfs(int(d.Fd()))
}

// seeder copies a tree as it is, within one file system: owners, modes, times, links, extended attributes.
type seeder struct {
	dev   uint64               // of its directories
	links map[[2]uint64]string // where files of several names, by device and inode, were copied to
}

func (c *seeder) directory(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return errors.New("it is a file in the image")
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	if st.Dev == c.dev { // else something is mounted there: a place for it is all that the image has
		list, err := os.ReadDir(from)
		if err != nil {
			return err
		}
		for _, d := range list {
			if err := c.entry(filepath.Join(from, d.Name()), filepath.Join(to, d.Name())); err != nil {
				return err
			}
		}
	}
	return likeness(from, to, &st)
}

func (c *seeder) entry(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	kind, file := st.Mode&unix.S_IFMT, [2]uint64{st.Dev, st.Ino}
	if kind == unix.S_IFDIR {
		return c.directory(from, to)
	}
	if first, ok := c.links[file]; ok && st.Nlink > 1 {
		return os.Link(first, to)
	}
	switch kind {
	case unix.S_IFREG:
		if err := copyFile(from, to); err != nil {
			return err
		}
	case unix.S_IFLNK:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, to); err != nil {
			return err
		}
	case unix.S_IFIFO:
		if err := unix.Mkfifo(to, 0o600); err != nil {
			return err
		}
	default:
		return nil // devices and sockets are nothing that an image can give
	}
	if st.Nlink > 1 {
		c.links[file] = to
	}
	return likeness(from, to, &st)
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// likeness gives a copy what its original has beside content. The owner comes first: a change of it drops set-id bits and
// capabilities.
func likeness(from, to string, st *unix.Stat_t) error {
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
			return fmt.Errorf("chmod %s: %w", to, err)
		}
	}
	if err := copyAttributes(from, to); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times of %s: %w", to, err)
	}
	return nil
}

// copyAttributes copies the extended attributes that the volume's file system takes.
func copyAttributes(from, to string) error {
	names := make([]byte, 64<<10) // the kernel's limits
	n, err := unix.Llistxattr(from, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list attributes of %s: %w", from, err)
	}
	for _, name := range strings.FieldsFunc(string(names[:n]), func(r rune) bool { return r == 0 }) {
		if !strings.HasPrefix(name, "user.") && name != "security.capability" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(from, name, value)
		if err != nil {
			return fmt.Errorf("attribute %s of %s: %w", name, from, err)
		}
		err = unix.Lsetxattr(to, name, value[:n], 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("attribute %s of %s: %w", name, to, err)
		}
	}
	return nil
}
