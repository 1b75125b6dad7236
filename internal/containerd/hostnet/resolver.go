package hostnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Bounds of the forwarder. The table limits the rate of packets of each container before they arrive.
const (
	maxQueryBytes     = 4096 // a query is a name of 255 bytes and a few options
	maxUDPAnswer      = 1232 // fits in one packet everywhere (DNS flag day 2020)
	maxInFlight       = 512  // of all containers, beyond what each may always have
	maxClientInFlight = 64
	minClientInFlight = 4 // what a container may always have, however busy the others are
	maxConns          = 256
	maxClientConns    = 16
	minClientConns    = 2
	maxConnQueries    = 200
	connIdle          = 10 * time.Second
	upstreamTimeout   = 2 * time.Second
	queryTimeout      = 4500 * time.Millisecond // under the 5 s after which a stub resolver asks again
	udpBuffer         = 4 << 20
	writeTimeout      = 5 * time.Second
	acceptPause       = 50 * time.Millisecond
)

// resolver forwards the containers' DNS queries to the host's resolvers. It trusts neither side: a query is rebuilt
// from its question, and an answer is passed on only when it answers that question.
type resolver struct {
	udp       *net.UDPConn
	tcp       net.Listener
	subnet    netip.Prefix
	upstreams func() []netip.AddrPort
	log       *slog.Logger

	queries  admission
	conns    admission
	handlers sync.WaitGroup
}

// listenResolver listens at the gateway's address, which need not be there yet: it comes with the first container's
// link.
func listenResolver(
	ctx context.Context, subnet netip.Prefix, gw netip.Addr, upstreams func() []netip.AddrPort, log *slog.Logger,
) (*resolver, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(err, serr)
	}}
	at := netip.AddrPortFrom(gw, 53).String()
	fail := func(err error) error {
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("DNS forwarder: port 53 of %s is taken: another berth serves this data directory, or a DNS "+
				"server of this machine listens on every address; end the one, or give the other its own addresses "+
				"(dnsmasq: bind-interfaces): %w", gw, err)
		}
		return fmt.Errorf("DNS forwarder: %w", err)
	}
	pc, err := lc.ListenPacket(ctx, "udp4", at)
	if err != nil {
		return nil, fail(err)
	}
	l, err := lc.Listen(ctx, "tcp4", at)
	if err != nil {
		_ = pc.Close()
		return nil, fail(err)
	}
	// Room for the bursts that the table lets pass, of several containers at once.
	if raw, err := pc.(*net.UDPConn).SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpBuffer)
		})
	}
	return &resolver{
		udp: pc.(*net.UDPConn), tcp: l, subnet: subnet, upstreams: upstreams, log: log,
		queries: admission{total: maxInFlight, each: maxClientInFlight, always: minClientInFlight},
		conns:   admission{total: maxConns, each: maxClientConns, always: minClientConns},
	}, nil
}

func (r *resolver) close() {
	_ = r.udp.Close()
	_ = r.tcp.Close()
}

// serve answers until the sockets are closed, and waits for what it started; ctx ends that too.
func (r *resolver) serve(ctx context.Context) {
	r.handlers.Go(func() { r.serveTCP(ctx) })
	r.serveUDP(ctx)
	r.handlers.Wait()
}

func (r *resolver) serveUDP(ctx context.Context) {
	buf := make([]byte, maxQueryBytes+1)
	for {
		n, from, err := r.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			pause(ctx)
			continue
		}
		if n > maxQueryBytes || !r.subnet.Contains(from.Addr()) {
			continue
		}
		// Over its share a query is lost, as on a busy link: the client asks again.
		if !r.queries.enter(from.Addr()) {
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		r.handlers.Go(func() {
			defer r.queries.leave(from.Addr())
			if answer := r.answer(ctx, query, false); answer != nil {
				_, _ = r.udp.WriteToUDPAddrPort(answer, from)
			}
		})
	}
}

// pause keeps a failing socket from taking a processor.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(acceptPause):
	}
}

func (r *resolver) serveTCP(ctx context.Context) {
	for {
		c, err := r.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			pause(ctx) // out of descriptors, most likely
			continue
		}
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if !r.subnet.Contains(from) || !r.conns.enter(from) {
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
			continue
		}
		r.handlers.Go(func() {
			defer r.conns.leave(from)
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			defer func() { _ = c.Close() }()
			r.serveConn(ctx, c, from)
		})
	}
}

// serveConn answers one query after the other (RFC 7766 permits it), so that a connection holds one at most in flight.
func (r *resolver) serveConn(ctx context.Context, c net.Conn, from netip.Addr) {
	dc := &dns.Conn{Conn: c}
	for range maxConnQueries {
		if err := c.SetDeadline(time.Now().Add(connIdle)); err != nil {
			return
		}
		query, err := readTCPQuery(c)
		if err != nil || !r.queries.enter(from) {
			return
		}
		answer := r.answer(ctx, query, true)
		r.queries.leave(from)
		if answer == nil || c.SetDeadline(time.Now().Add(writeTimeout)) != nil {
			return
		}
		if _, err := dc.Write(answer); err != nil { // with the length before it
			return
		}
	}
}

// answer returns the reply to a query; nil when it deserves none.
func (r *resolver) answer(ctx context.Context, query []byte, tcp bool) []byte {
	q, reply := parseQuery(query)
	if q == nil {
		return pack(reply)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, queryTimeout, errors.New("no DNS server answered in time"))
	defer cancel()
	for _, up := range r.upstreams() {
		if ctx.Err() != nil {
			break
		}
		resp, err := exchange(ctx, q, up, tcp)
		if err != nil && tcp {
			resp, err = exchange(ctx, q, up, false) // a server without TCP, as in small routers
		}
		if err != nil {
			r.log.Debug("DNS server failed", "server", up, "err", err)
			continue
		}
		return pack(fitAnswer(q, resp, tcp))
	}
	return pack(failure(q, dns.RcodeServerFailure))
}

// exchange asks one server. Each query has a socket of its own: an unpredictable port beside an unpredictable id.
func exchange(ctx context.Context, q *query, server netip.AddrPort, tcp bool) (*dns.Msg, error) {
	c := dns.Client{Net: "udp", UDPSize: maxUDPAnswer, Timeout: upstreamTimeout}
	if tcp {
		c.Net = "tcp"
	}
	m := q.upstream()
	resp, _, err := c.ExchangeContext(ctx, m, server.String())
	if err != nil {
		return nil, err
	}
	if !answers(m, resp) {
		return nil, errors.New("the answer is not to the question")
	}
	return resp, nil
}

// admission shares places among clients: each has a few for itself and may take more while all have not taken too many.
type admission struct {
	total, each, always int

	mu    sync.Mutex // guards what follows
	extra int        // places taken beyond always
	held  map[netip.Addr]int
}

func (a *admission) enter(c netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.held[c]
	if n >= a.each || n >= a.always && a.extra >= a.total {
		return false
	}
	if n >= a.always {
		a.extra++
	}
	if a.held == nil {
		a.held = make(map[netip.Addr]int)
	}
	a.held[c] = n + 1
	return true
}

func (a *admission) leave(c netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.held[c]
	if n > a.always {
		a.extra--
	}
	if n <= 1 {
		delete(a.held, c)
		return
	}
	a.held[c] = n - 1
}
