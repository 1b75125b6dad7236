package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"golang.org/x/sys/unix"

	"berth/internal/compute"
)

var noAddr netip.Addr // hostnet chooses

// DialAgent connects to the container's agent. The tenant is root where the socket lies and may have put anything there,
// so what is opened must be a socket, not a symlink, in a directory that the host holds by descriptor; and what is dialled
// is what was opened, not its name.
func (e *Engine) DialAgent(ctx context.Context, r compute.Ref) (net.Conn, error) {
	nc, err := dialSocket(ctx, e.layout.place(r).socket())
	if err == nil {
		return nc, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, &compute.Error{Code: compute.CodeNotRunning, Message: notRunning().Message, Cause: err}
}

func dialSocket(ctx context.Context, dir string) (net.Conn, error) {
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(d)
	fd, err := unix.Openat(d, socketName, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s/%s: %w", dir, socketName, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fmt.Errorf("%s/%s is not a socket", dir, socketName)
	}
	return new(net.Dialer).DialContext(ctx, "unix", "/proc/self/fd/"+strconv.Itoa(fd))
}

// awaitAgent returns when the agent accepts connections, or says why it does not.
func (e *Engine) awaitAgent(ctx context.Context, r compute.Ref) error {
	ctx, stop := context.WithTimeoutCause(ctx, agentTimeout, errors.New("its agent does not accept connections"))
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		got, err := e.client.tasks.Wait(ctx, &tasks.WaitRequest{ContainerID: r.String()})
		if err == nil {
			err = fmt.Errorf("its agent ended at once, with status %d", got.ExitStatus)
		}
		cancel(err)
	}()
	err := awaitSocket(ctx, e.layout.place(r).socket())
	cancel(nil)
	<-waited
	return err
}

// awaitSocket returns when something accepts connections at the socket in dir. It watches the directory; only between a
// socket's bind and its listen, which leave no trace there, it asks again.
func awaitSocket(ctx context.Context, dir string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR|unix.IN_DONT_FOLLOW); err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	defer context.AfterFunc(ctx, func() { events.SetReadDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, 4096)
	for {
		nc, err := dialSocket(ctx, dir)
		if err == nil {
			return nc.Close()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, unix.ECONNREFUSED) {
			if err := briefly(ctx); err != nil {
				return err
			}
			continue
		}
		if _, err := events.Read(buf); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
}
