package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse is in the chain of Open's error while another process has the directory.
var ErrInUse = errors.New("another berth runs with this data directory; stop it first, or choose another --data-dir")

// sign has the lock's file say who holds it.
func sign(lock *os.File) error {
	if err := lock.Truncate(0); err != nil {
		return err
	}
	_, err := lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// EndHolder kills the process that opened the engine of a directory, and returns once it is gone. It is for whoever has the
// right to that engine instead, while the other was stopped and may go on any time. What holds the directory for another
// purpose is left alone: the error is ErrInUse.
func EndHolder(ctx context.Context, dataDir string) error {
	l, err := layoutOf(dataDir)
	if err != nil {
		return err
	}
	pid, err := holder(l)
	if err != nil || pid == 0 {
		return err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end the process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	if again, err := holder(l); err != nil || again != pid { // the number may have been another process's when it was opened
		return err
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end the process %d: %w", pid, err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int((100 * time.Millisecond).Milliseconds()))
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for the end of process %d: %w", pid, err)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
	}
}

// holder returns the process that has the engine of a directory open; 0 where none has.
func holder(l layout) (pid int, err error) {
	f, err := os.Open(l.lock())
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		return 0, err
	}
	text, err := os.ReadFile(l.lock())
	if err != nil {
		return 0, err
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil || pid <= 1 || pid == os.Getpid() {
		return 0, ErrInUse
	}
	return pid, nil
}
