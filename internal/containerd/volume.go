package containerd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"berth/internal/compute"
)

// volume is a container's disk: an ext4 file system in a sparse file. Everything that the container writes is on it. Its
// UUID is made from the installation and the container, so a file that was copied in or left by another database is known
// for what it is.
type volume struct {
	file string
	at   string // where it is mounted while the container runs
	uuid [16]byte
}

func volumeOf(l layout, installation string, r compute.Ref) volume {
	sum := sha256.Sum256([]byte("berth volume " + installation + " " + r.String()))
	v := volume{file: l.dir("volumes", r.String()+".img"), at: l.place(r).volume()}
	copy(v.uuid[:], sum[:])
	v.uuid[6] = v.uuid[6]&0x0f | 0x80 // RFC 9562, section 5.8: version 8
	v.uuid[8] = v.uuid[8]&0x3f | 0x80
	return v
}

// unfinished ends the name of a volume that is being made: no container has seen it.
const unfinished = ".img.tmp"

var (
	errNoVolume      = errors.New("the volume's file is missing")
	errForeignVolume = errors.New("the volume is another installation's")
)

// ext4 superblock (kernel, Documentation/filesystems/ext4/super.rst).
const (
	superblockAt   = 1024
	superblockUUID = superblockAt + 0x68
	superblockSign = superblockAt + 0x38 // s_magic, little endian
)

// check says whether the volume is there: errNoVolume, errForeignVolume or nil.
func (v volume) check() error {
	f, err := os.Open(v.file)
	if errors.Is(err, os.ErrNotExist) {
		return errNoVolume
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var b [superblockUUID + 16]byte
	if _, err := f.ReadAt(b[:], 0); err != nil && err != io.EOF {
		return err
	}
	if b[superblockSign] != 0x53 || b[superblockSign+1] != 0xef {
		return fmt.Errorf("%s is not an ext4 file system", v.file)
	}
	if !bytes.Equal(b[superblockUUID:], v.uuid[:]) {
		return errForeignVolume
	}
	return nil
}

// create makes the volume unless it is there: a temporary file, then a rename, so that a volume is whole or absent.
func (v volume) create(ctx context.Context, gb int, step func(string)) error {
	if err := v.check(); !errors.Is(err, errNoVolume) {
		return err
	}
	tmp := strings.TrimSuffix(v.file, ".img") + unfinished
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_RDWR|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(f.Truncate(int64(gb)<<30), v.format(ctx, tmp), f.Sync()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	step("volume written")
	if err := os.Rename(tmp, v.file); err != nil {
		return err
	}
	step("volume in place")
	return syncDir(filepath.Dir(v.file))
}

// format makes the file system. The file is all holes, so inode tables need no zeroing, now or later. A thousandth stays
// for the host's root: its few directories can be made on a full volume.
func (v volume) format(ctx context.Context, file string) error {
	u := hex.EncodeToString(v.uuid[:])
	uuid := strings.Join([]string{u[:8], u[8:12], u[12:16], u[16:20], u[20:]}, "-")
	mkfs, err := sbin("mkfs.ext4")
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, mkfs, "-q", "-F", "-b", strconv.Itoa(volumeBlock), "-m", "0.1", "-L", "berth", "-U", uuid,
		"-E", "nodiscard,assume_storage_prezeroed=1", file).CombinedOutput()
	if err != nil { // e2fsprogs before 1.47 lacks the option; lazy initialization comes close
		out, err = exec.CommandContext(ctx, mkfs, "-q", "-F", "-b", strconv.Itoa(volumeBlock), "-m", "0.1", "-L", "berth", "-U", uuid,
			"-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", file).CombinedOutput()
	}
	if err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// sbin finds a program also where only root's PATH leads.
func sbin(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, d := range []string{"/usr/sbin/", "/sbin/"} {
		if p, err := exec.LookPath(d + name); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is missing", name)
}

// mount mounts the volume unless it is mounted. The loop device goes with the last mount (autoclear), whoever ends first.
func (v volume) mount() error {
	mounted, err := mountinfo.Mounted(v.at)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if mounted {
		return nil
	}
	if err := os.MkdirAll(v.at, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(v.file, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return errNoVolume
	}
	if err != nil {
		return err
	}
	defer f.Close()
	dev, err := attachLoop(f)
	if err != nil {
		return fmt.Errorf("attach a loop device: %w", err)
	}
	defer dev.Close()
	// What grow adds would have its inode tables written with zeros, and so the file with them.
	const options = "discard,noinit_itable"
	if err := unix.Mount(dev.Name(), v.at, "ext4", unix.MS_NODEV|unix.MS_NOATIME, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", v.file, v.at, err)
	}
	return nil
}

// trim gives what the mounted volume does not use back to the disk. The mount option does so at its leisure, and forgets at
// the unmount what it had not come to. A disk that cannot take it back, or a fault, costs nobody anything but that.
func (v volume) trim() {
	d, err := os.Open(v.at)
	if err != nil {
		return
	}
	defer d.Close()
	_ = unix.Syncfs(int(d.Fd())) // what a deletion freed is free once the journal says so
	all := struct{ start, length, minimum uint64 }{length: math.MaxUint64}
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, d.Fd(), fitrim, uintptr(unsafe.Pointer(&all)))
}

// fitrim is FITRIM of linux/fs.h, which x/sys lacks: _IOWR('X', 121, struct fstrim_range).
const fitrim = 0xc0185879

func (v volume) unmount(ctx context.Context) error { return unmount(ctx, v.at) }

// used returns how many bytes the file system holds, its own tables left out.
func (v volume) used() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(v.at, &st); err != nil {
		return 0, err
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize, nil
}

// remove deletes the volume, which must not be mounted. It refuses another installation's.
func (v volume) remove(ctx context.Context) error {
	switch err := v.check(); {
	case errors.Is(err, errForeignVolume):
		return err
	case errors.Is(err, errNoVolume):
	case err != nil && !strings.Contains(err.Error(), "not an ext4"): // a damaged one is still this container's, by name
		return err
	default:
		if err := waitDetached(ctx, v.file); err != nil {
			return err
		}
		if err := os.Remove(v.file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(strings.TrimSuffix(v.file, ".img") + unfinished); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(v.file))
}

// busyWait bounds the wait for somebody who only looks: a backup or a search that walks through all of the host's files.
const busyWait = 10 * time.Second

// unmount ends a mount if there is one. Never lazily: an overlay that lives on unseen would keep the volume busy.
func unmount(ctx context.Context, at string) error {
	deadline := time.Now().Add(busyWait)
	for {
		err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil: // there may be another below it
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // not a mount
			return nil
		case errors.Is(err, unix.EBUSY) && time.Now().Before(deadline):
			if err := briefly(ctx); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unmount %s: %w", at, err)
		}
	}
}

// attachLoop returns a loop device over f, open so that it stays. One that is attached already is taken, since a second
// over the same file would be a second file system driver on one disk.
func attachLoop(f *os.File) (*os.File, error) {
	if dev, err := loopOf(f); dev != nil || err != nil {
		return dev, err
	}
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	for range 1000 { // others take free devices at the same time
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		dev, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		c := unix.LoopConfig{Fd: uint32(f.Fd())}
		c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
		copy(c.Info.File_name[:len(c.Info.File_name)-1], f.Name())
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &c)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, err
		}
	}
	return nil, errors.New("no free loop device")
}

// loopOf finds the loop device over f; nil when there is none.
func loopOf(f *os.File) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	names, err := loopsOver(f.Name())
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		dev, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
		if err != nil {
			continue // gone meanwhile
		}
		info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
		if err == nil && info.Inode == st.Ino && info.Device == st.Dev {
			return dev, nil // and from here on ours, being open
		}
		dev.Close()
	}
	return nil, nil
}

// loopsOver lists the loop devices whose backing file is path.
func loopsOver(path string) ([]string, error) {
	list, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range list {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // detached meanwhile
		}
		if strings.TrimSuffix(strings.TrimSpace(string(b)), " (deleted)") == path {
			names = append(names, strings.Split(p, "/")[3])
		}
	}
	return names, nil
}

// waitDetached returns when no loop device holds the file. The kernel drops the mounts of a namespace whose last process
// ended from a work queue, some milliseconds later, and tells nobody, so this asks again for a while.
func waitDetached(ctx context.Context, path string) error {
	deadline := time.Now().Add(10 * time.Second)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		names, err := loopsOver(path)
		if err != nil || len(names) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is still in use by %s", path, strings.Join(names, ", "))
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}
