package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	cfs "github.com/containerd/continuity/fs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"berth/internal/compute"
)

// What lies on a volume beside the trees that the container sees. Only the trees upper and mounts/* are the tenant's, and
// a container sees no directory above its own: it can neither read nor fake what is here.
const (
	upperDir  = "upper"  // what the container wrote over the image; dropped at its stop
	workDir   = "work"   // overlayfs's own
	mountsDir = "mounts" // a directory for each mount path; being there says that it was seeded
	seedDir   = "seed"   // one that is being seeded
)

// mountName is a mount path's directory: paths may be longer than names can.
func mountName(p string) string {
	sum := sha256.Sum256([]byte(p))
	return hex.EncodeToString(sum[:16])
}

// tree is a container's file system on the host while it runs.
type tree struct {
	place  place
	volume volume
	image  image
	ids    idRange
	link   string // the image's root by a short path without separators of overlayfs's
}

// identity is what a container knows of itself by files in /etc.
type identity struct {
	hostname   string // fully qualified
	nameserver netip.Addr
}

// shortHostname is the kernel's: the first label, which always fits in its 64 bytes.
func (i identity) shortHostname() string {
	short, _, _ := strings.Cut(i.hostname, ".")
	return short
}

func (i identity) files() map[string]string {
	return map[string]string{
		"hostname": i.shortHostname() + "\n",
		"hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"127.0.1.1\t" + i.hostname + " " + i.shortHostname() + "\n",
		"resolv.conf": "nameserver " + i.nameserver.String() + "\n",
	}
}

// assemble mounts everything for a fresh start: the volume, a root as the image has it, mount paths with what they held.
func (t tree) assemble(ctx context.Context, s compute.Spec, id identity, step func(string)) error {
	if err := t.makePlace(); err != nil {
		return err
	}
	if err := t.volume.grow(ctx, s.StorageGB); err != nil {
		return fmt.Errorf("enlarge the volume: %w", err)
	}
	if err := t.volume.mount(); err != nil {
		return err
	}
	step("volume mounted")
	if err := t.dropUpper(ctx); err != nil {
		return err
	}
	upper := t.volume.at + "/" + upperDir
	if err := t.likeImage("/", upper); err != nil {
		return err
	}
	if err := os.Mkdir(t.volume.at+"/"+workDir, 0o700); err != nil {
		return err
	}
	if err := t.writeIdentity(upper, id); err != nil {
		return err
	}
	if err := os.Mkdir(t.volume.at+"/"+identityDir, 0o700); err != nil {
		return err
	}
	if err := t.writeFiles(t.volume.at+"/"+identityDir, id); err != nil {
		return err
	}
	step("root prepared")
	for _, p := range s.MountPaths {
		if err := t.seed(ctx, p, id); err != nil {
			return err
		}
		step("seeded")
	}
	if err := t.mountSocketDir(); err != nil {
		return err
	}
	step("socket directory mounted")
	opts := "lowerdir=" + t.link + ",upperdir=" + upper + ",workdir=" + t.volume.at + "/" + workDir
	if err := unix.Mount("overlay", t.place.rootfs(), "overlay", unix.MS_NODEV, opts); err != nil {
		return fmt.Errorf("mount the container's root: %w", err)
	}
	step("root mounted")
	return nil
}

// makePlace makes the mount points. The way in is for the host's root and the container's own: with setuid programs of
// the container's root below, no other user of the host may pass.
func (t tree) makePlace() error {
	dir := string(t.place)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chown(dir, 0, t.ids.root()); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o710); err != nil {
		return err
	}
	for p, mode := range map[string]os.FileMode{t.place.volume(): 0o700, t.place.rootfs(): 0o755, t.place.socket(): 0o755} {
		if err := os.Mkdir(p, mode); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// mountSocketDir makes the directory of the agent's socket: in memory, so that a full volume does not keep a container
// from starting, and with room for little more than the socket.
func (t tree) mountSocketDir() error {
	mounted, err := mountinfo.Mounted(t.place.socket())
	if err != nil || mounted {
		return err
	}
	opts := fmt.Sprintf("mode=0700,uid=%d,gid=%d,size=64k,nr_inodes=16", t.ids.root(), t.ids.root())
	flags := uintptr(unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC)
	if err := unix.Mount("tmpfs", t.place.socket(), "tmpfs", flags, opts); err != nil {
		return fmt.Errorf("mount the socket's directory: %w", err)
	}
	return nil
}

// dismantle ends every mount of the container's and drops what it wrote over the image.
func (t tree) dismantle(ctx context.Context, step func(string)) error {
	if err := unmount(ctx, t.place.rootfs()); err != nil {
		return err
	}
	step("root unmounted")
	if err := unmount(ctx, t.place.socket()); err != nil {
		return err
	}
	step("socket directory unmounted")
	mounted, err := mountinfo.Mounted(t.place.volume())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if mounted {
		if err := t.dropUpper(ctx); err != nil {
			return err
		}
		step("root dropped")
		t.volume.trim()
		if err := t.volume.unmount(ctx); err != nil {
			return err
		}
		step("volume unmounted")
	}
	return t.place.remove()
}

// remove removes the empty mount points; never more, should something be mounted or written there.
func (p place) remove() error {
	for _, d := range []string{p.volume(), p.rootfs(), p.socket(), string(p)} {
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove %s: %w", d, err)
		}
	}
	return nil
}

// dropUpper removes what the container wrote outside of its mount paths, and what a killed run left unfinished.
func (t tree) dropUpper(ctx context.Context) error {
	list, err := os.ReadDir(t.volume.at)
	if err != nil {
		return err
	}
	for _, d := range list {
		if n := d.Name(); n == upperDir || n == workDir || n == seedDir || n == identityDir || strings.HasPrefix(n, deepName) {
			if err := removeTree(ctx, t.volume.at, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// likeImage makes a directory with the mode and owner that p, a directory, has in the image.
func (t tree) likeImage(p, dir string) error {
	fi, err := os.Lstat(filepath.Join(t.image.rootfs(), p))
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s is not a directory in the image", p)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	if err := os.Chown(dir, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return os.Chmod(dir, fi.Mode())
}

// writeIdentity puts the files of /etc over the image's before anybody else sees the tree. They are plain files of the
// container's, so programs in it may replace them, as they cannot with mounts.
func (t tree) writeIdentity(upper string, id identity) error {
	etc := upper + "/etc"
	err := t.likeImage("/etc", etc)
	if errors.Is(err, os.ErrNotExist) {
		err = errors.Join(os.Mkdir(etc, 0o755), os.Chown(etc, t.ids.root(), t.ids.root()), os.Chmod(etc, 0o755))
	}
	if err != nil {
		return err
	}
	return t.writeFiles(etc, id)
}

// writeFiles writes the files of /etc into a directory that no container sees yet. What the image has by those names is
// removed first, for it may be a symlink.
func (t tree) writeFiles(dir string, id identity) error {
	for name, content := range id.files() {
		p := filepath.Join(dir, name)
		if err := os.RemoveAll(p); err != nil {
			return err
		}
		f, err := os.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o644)
		if err != nil {
			return err
		}
		_, err = f.WriteString(content)
		err = errors.Join(err, f.Chmod(0o644), f.Chown(t.ids.root(), t.ids.root()), f.Close())
		if err != nil {
			return err
		}
	}
	return nil
}

// seed makes the directory of a mount path, once, from what the image has there: never from or through a tree that a
// tenant wrote. It is complete on disk before the rename that makes it count.
func (t tree) seed(ctx context.Context, p string, id identity) error {
	mounts := t.volume.at + "/" + mountsDir
	dst := mounts + "/" + mountName(p)
	if _, err := os.Lstat(dst); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := os.Mkdir(mounts, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	tmp := t.volume.at + "/" + seedDir
	if err := removeTree(ctx, t.volume.at, seedDir); err != nil {
		return err
	}
	resolved, err := t.image.resolve(p)
	if err != nil {
		return err
	}
	src := filepath.Join(t.image.rootfs(), resolved)
	switch fi, err := os.Lstat(src); {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		err := errors.Join(os.Mkdir(tmp, 0o755), os.Chown(tmp, t.ids.root(), t.ids.root()), os.Chmod(tmp, 0o755))
		if err != nil {
			return err
		}
	case err != nil:
		return err
	case !fi.IsDir():
		return compute.Invalid("mount_paths", "Mount path %s is a file in the image.", p)
	default:
		err := cfs.CopyDir(tmp, src)
		if errors.Is(err, unix.ENOSPC) {
			return &compute.Error{
				Code: compute.CodeCapacity, Cause: err,
				Message: fmt.Sprintf("The storage has no room for what the image holds in %s; choose a larger storage_gb.", p),
			}
		}
		if err != nil {
			return fmt.Errorf("seed %s: %w", p, err)
		}
	}
	if resolved == "/etc" {
		if err := t.writeFiles(tmp, id); err != nil {
			return err
		}
	}
	if err := syncFS(t.volume.at); err != nil {
		return err
	}
	if err := os.Rename(tmp, dst); err != nil {
		return err
	}
	return syncDir(mounts)
}
