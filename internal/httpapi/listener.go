package httpapi

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// lingerTime and lingerBytes bound how long a connection is read, unanswered, after an error: closing it with bytes
	// unread would reset it, and the client might never see why (RFC 9112, section 9.6).
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 4 << 20
	// maxRefusals bounds the connections beyond the cap that are told so; those beyond that are only closed.
	maxRefusals = 64
	// acceptRetry bounds the wait after an accept that failed for want of something.
	acceptRetry = time.Second
)

// connSet knows every open connection of a server: it holds their number to a limit and can end them all.
type connSet struct {
	limit int
	log   *slog.Logger

	mu       sync.Mutex
	open     map[*conn]struct{} // those being served
	taken    map[*conn]struct{} // those that are no longer HTTP's: see take
	refused  map[*conn]struct{} // those being told that there are too many
	stopping chan struct{}      // closed by stop
	listener map[*listener]struct{}
	running  sync.WaitGroup // goroutines that refuse; Add under mu, before stopping is closed
}

func newConnSet(limit int, log *slog.Logger) *connSet {
	return &connSet{
		limit: limit, log: log, stopping: make(chan struct{}),
		open: make(map[*conn]struct{}), taken: make(map[*conn]struct{}), refused: make(map[*conn]struct{}),
		listener: make(map[*listener]struct{}),
	}
}

// listen wraps ln; false once stopped.
func (s *connSet) listen(ln net.Listener) (*listener, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped() {
		return nil, false
	}
	l := &listener{Listener: ln, set: s}
	s.listener[l] = struct{}{}
	return l, true
}

func (s *connSet) stopped() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

// stop closes the listeners, and the connections on which nothing was ever read: fasthttp would wait for their first
// request.
func (s *connSet) stop() {
	s.mu.Lock()
	if !s.stopped() {
		close(s.stopping)
	}
	for l := range s.listener {
		_ = l.Listener.Close()
	}
	for c := range s.open {
		if !c.spoke.Load() {
			_ = c.Conn.Close()
		}
	}
	s.mu.Unlock()
}

// abort closes every connection, those too that linger.
func (s *connSet) abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, set := range []map[*conn]struct{}{s.open, s.taken, s.refused} {
		for c := range set {
			_ = c.Conn.Close()
		}
	}
}

// wait returns when no goroutine of the set runs. It follows stop.
func (s *connSet) wait() { s.running.Wait() }

// admit takes nc in, or begins to refuse it. The second result is false when the caller has nothing to serve.
func (s *connSet) admit(nc net.Conn) (*conn, bool) {
	c := &conn{Conn: nc, set: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped():
		_ = nc.Close()
		return nil, false
	case len(s.open) < s.limit:
		s.open[c] = struct{}{}
		return c, true
	case len(s.refused) < maxRefusals:
		s.refused[c] = struct{}{}
		s.running.Go(c.refuse)
		return nil, false
	default:
		_ = nc.Close()
		return nil, false
	}
}

// take takes c out of what the limit counts: it becomes a WebSocket, which has a limit of its own. closed is called once it
// is closed, whether or not its handshake was ever answered.
func (s *connSet) take(c *conn, closed func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
	s.taken[c] = struct{}{}
	c.closed = closed
}

func (s *connSet) forget(c *conn) {
	s.mu.Lock()
	delete(s.open, c)
	delete(s.taken, c)
	delete(s.refused, c)
	closed := c.closed
	s.mu.Unlock()
	if closed != nil {
		closed()
	}
}

// listener hands out admitted connections, and outlives a shortage of descriptors: fasthttp takes any error for the
// end.
type listener struct {
	net.Listener
	set *connSet
}

// Accept returns the next connection to serve, and net.ErrClosed once the set is stopped.
func (l *listener) Accept() (net.Conn, error) {
	var wait time.Duration
	for {
		nc, err := l.Listener.Accept()
		if err == nil {
			wait = 0
			if c, ok := l.set.admit(nc); ok {
				return c, nil
			}
			continue
		}
		if l.set.stopped() {
			return nil, net.ErrClosed
		}
		if !passing(err) {
			return nil, err
		}
		wait = min(max(2*wait, 5*time.Millisecond), acceptRetry)
		l.set.log.Warn("accept a connection; trying again", "err", err, "after", wait)
		select {
		case <-time.After(wait):
		case <-l.set.stopping:
			return nil, net.ErrClosed
		}
	}
}

// Close closes the listener. Closing it again is no error: fasthttp closes it once more in its own shutdown.
func (l *listener) Close() error {
	if err := l.Listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// passing says whether accept may succeed later (accept(2), "Errors").
func passing(err error) bool {
	for _, e := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPROTO, syscall.EINTR,
		syscall.ENETDOWN, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENONET, syscall.ENOPROTOOPT,
		syscall.EOPNOTSUPP, syscall.EPERM,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// conn is an open connection of a set.
type conn struct {
	net.Conn
	set    *connSet
	spoke  atomic.Bool // something was read
	linger atomic.Bool // close gently: the client may still be sending
	once   sync.Once
	err    error  // of the close; written in once
	closed func() // see take; guarded by set.mu
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.spoke.Store(true)
	}
	return n, err
}

// The deadlines never fail: fasthttp panics when they do, as they would on a connection that stop or abort closed under
// it. Its next read or write tells it.

func (c *conn) SetDeadline(t time.Time) error {
	_ = c.Conn.SetDeadline(t)
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	_ = c.Conn.SetReadDeadline(t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	_ = c.Conn.SetWriteDeadline(t)
	return nil
}

// Close closes the connection; one that lingers only after its client has, or had time to.
func (c *conn) Close() error {
	c.once.Do(func() {
		if c.linger.Load() {
			c.drain()
		}
		c.err = c.Conn.Close()
		c.set.forget(c)
	})
	return c.err
}

func (c *conn) drain() {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() != nil {
		return
	}
	if c.Conn.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(c.Conn, lingerBytes))
}

// refuse tells the client that there are too many connections, and closes.
func (c *conn) refuse() {
	body := encode(newProblem(errCrowded))
	_ = c.SetWriteDeadline(time.Now().Add(lingerTime))
	_, _ = fmt.Fprintf(c.Conn, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: %s\r\nContent-Length: %d\r\n"+
		"Retry-After: %s\r\nConnection: close\r\nDate: %s\r\n\r\n%s",
		problemType, len(body), retryAfter, time.Now().UTC().Format(http.TimeFormat), body)
	c.linger.Store(true)
	_ = c.Close()
}
