package httpapi

import (
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// whenGone calls f once the client has closed its end of the connection, the sending half too, until stop is called. It reads
// nothing: what the client may have sent ahead is for the server. Nobody else may read the connection meanwhile.
func (c *conn) whenGone(f func()) (stop func()) {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return func() {}
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return func() {}
	}
	_ = c.SetReadDeadline(time.Time{}) // the server sets it anew for the next request
	var watching sync.WaitGroup
	watching.Go(func() {
		gone := false
		// The runtime wakes it at whatever comes, the end of the other side too (epoll_ctl(2), EPOLLRDHUP).
		_ = raw.Read(func(fd uintptr) bool {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
			n, err := unix.Poll(fds, 0)
			for err == unix.EINTR {
				n, err = unix.Poll(fds, 0)
			}
			gone = err == nil && n > 0
			return gone
		})
		if gone {
			f()
		}
	})
	return func() {
		_ = c.SetReadDeadline(time.Unix(1, 0))
		watching.Wait()
		_ = c.SetReadDeadline(time.Time{})
	}
}
