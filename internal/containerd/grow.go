package containerd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	volumeBlock      = 4096               // bytes
	superblockBlocks = superblockAt + 0x4 // s_blocks_count_lo, little endian

	resizeFS = 0x40086610 // EXT4_IOC_RESIZE_FS of linux/ext4.h, which x/sys lacks: _IOW('f', 16, __u64)
)

// grow makes the volume, which is not mounted, as large as gb unless it is. A call that was cut off is made good by the next.
func (v volume) grow(ctx context.Context, gb int) error {
	f, blocks, err := v.enlarge(gb)
	if err != nil || blocks == 0 {
		return err
	}
	defer f.Close()
	for _, command := range [][]string{{"e2fsck", "-f", "-p"}, {"resize2fs"}} { // the second asks for the first
		name, err := sbin(command[0])
		if err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, name, append(command[1:], v.file)...).CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) && command[0] == "e2fsck" && exit.ExitCode() == 1 {
			continue // it found something, and mended it
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %s", command[0], err, bytes.TrimSpace(out))
		}
	}
	return f.Sync()
}

// growMounted is grow while the volume is in use. The kernel permits it to whoever has CAP_SYS_RESOURCE: EPERM otherwise.
func (v volume) growMounted(gb int) error {
	f, blocks, err := v.enlarge(gb)
	if err != nil || blocks == 0 {
		return err
	}
	defer f.Close()
	dev, err := attachLoop(f) // the one that is mounted
	if err != nil {
		return err
	}
	defer dev.Close()
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("tell %s of its file's size: %w", dev.Name(), err)
	}
	d, err := os.Open(v.at)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), resizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return fmt.Errorf("enlarge the file system: %w", errno)
	}
	return nil
}

// enlarge makes the file as large as gb unless it is, and opens it. blocks is how many its file system is to have, or 0, and
// no file, when it has them.
func (v volume) enlarge(gb int) (f *os.File, blocks uint64, err error) {
	f, err = os.OpenFile(v.file, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, errNoVolume
	}
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil || blocks == 0 {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	var has [4]byte
	if _, err := f.ReadAt(has[:], superblockBlocks); err != nil {
		return nil, 0, err
	}
	size := max(info.Size(), int64(gb)<<30)
	if int64(binary.LittleEndian.Uint32(has[:]))*volumeBlock >= size {
		return nil, 0, nil
	}
	if err := errors.Join(f.Truncate(size), f.Sync()); err != nil {
		return nil, 0, err
	}
	return f, uint64(size / volumeBlock), nil
}
