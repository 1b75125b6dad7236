package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The locks of a data directory: that of the process with the database, and that of a gateway beside it.
const (
	dataLockFile    = "lock"
	gatewayLockFile = "gateway.lock"
)

// dataLock is the right to be the one process that serves a data directory. The kernel gives it up when the process ends.
type dataLock struct{ f *os.File }

// busyError says that another process serves the data directory.
type busyError struct {
	dir string
	pid int // 0 where unknown
}

func (e busyError) Error() string {
	return fmt.Sprintf("one runs already in %s (pid %d); stop it with `berth down`, or give another --data-dir", e.dir, e.pid)
}

// lockData makes the data directory if need be and takes its lock, or returns a busyError.
func lockData(dir string) (*dataLock, error) { return takeLock(dir, dataLockFile) }

func takeLock(dir, name string) (*dataLock, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	// Who can read the file can hold the lock, and have `berth down` end whatever has the number in it.
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%s belongs to root; run this with sudo", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		text, _ := os.ReadFile(f.Name()) // only to say who holds it
		_ = f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock the data directory: %w", err)
		}
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return nil, busyError{dir: dir, pid: pid}
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the data directory: %w", err), f.Close())
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the data directory: %w", err), f.Close())
	}
	return &dataLock{f}, nil
}

// served says whether a process serves the data directory, and makes nothing there.
func served(dir string) bool {
	for _, name := range []string{dataLockFile, gatewayLockFile} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		_ = f.Close() // and with it the lock
		if errors.Is(err, unix.EWOULDBLOCK) {
			return true
		}
	}
	return false
}

func (l *dataLock) release() error { return l.f.Close() }

// stopRunning ends the process that has a lock of the data directory, if there is one, and takes the lock. Progress goes to
// say.
func stopRunning(ctx context.Context, dir, name string, say func(string)) (*dataLock, error) {
	lock, err := takeLock(dir, name)
	var busy busyError
	if !errors.As(err, &busy) {
		return lock, err
	}
	if busy.pid <= 1 {
		return nil, fmt.Errorf("something holds %s and does not say what; end it and try again", filepath.Join(dir, name))
	}
	say(fmt.Sprintf("Stopping berth (pid %d)", busy.pid))
	pidfd, err := unix.PidfdOpen(busy.pid, 0)
	if err == nil {
		defer unix.Close(pidfd)
		err = unix.PidfdSendSignal(pidfd, syscall.SIGTERM, nil, 0)
	}
	if err != nil && !errors.Is(err, syscall.ESRCH) {
		return nil, fmt.Errorf("stop berth (pid %d): %w", busy.pid, err)
	}
	if err == nil {
		if err := waitEnd(ctx, pidfd); err != nil {
			return nil, fmt.Errorf("berth (pid %d) does not end: %w", busy.pid, err)
		}
	}
	return takeLock(dir, name)
}

// waitEnd waits for the process behind a pidfd to end.
func waitEnd(ctx context.Context, pidfd int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int((200 * time.Millisecond).Milliseconds()))
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}
