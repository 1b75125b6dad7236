package hostnet

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestConnectionLimit has one container open more connections than it may: the rest fails, other containers are
// unharmed, and what it had is free again when it goes.
func TestConnectionLimit(t *testing.T) {
	w := newWorld(t)
	listen(t, w.router, internet+":80")
	const limit = 50
	n := open(t, Options{MaxConns: limit})
	a, atA := attach(t, n, "0000000a")
	b, _ := attach(t, n, "0000000b")
	l := udpListener(t, w.router)
	check(t, l.SetReadBuffer(1<<20))
	dst := netip.AddrPortFrom(netip.MustParseAddr(internet), uint16(port(l)))
	var frames [][]byte
	for i := range 4 * limit {
		frames = append(frames, udpFrame(atA.ID, netip.AddrPortFrom(atA.Addr, uint16(10000+i)), dst, "probe"))
	}
	a.ethernet(unix.ETH_P_IP, frames...)
	for i := range limit {
		if _, ok := receives(l, patience); !ok {
			t.Fatalf("%d connections of %d came through, the limit is %d", i, len(frames), limit)
		}
	}
	if _, ok := receives(l, refusedAfter); ok {
		t.Errorf("more than %d connections came through", limit)
	}
	if got := tracked(t, atA.Addr); got != limit {
		t.Errorf("%d connections are tracked, the limit is %d", got, limit)
	}
	a.mustNotDial(internet + ":80")
	for range limit / 2 {
		b.mustDial(internet + ":80")
	}
	check(t, n.Detach(testContext(t), atA.ID))
	if got := tracked(t, atA.Addr); got != 0 {
		t.Errorf("%d connections are tracked after Detach", got)
	}
	again, err := n.Attach(testContext(t), atA.ID, atA.Addr, a.path)
	check(t, err)
	a.mustDial(internet + ":80")
	_ = again
}

func TestNewConnectionRate(t *testing.T) {
	w := newWorld(t)
	const rate = 20
	n := open(t, Options{NewConnsPerSecond: rate})
	a, atA := attach(t, n, "0000000a")
	l := udpListener(t, w.router)
	dst := netip.AddrPortFrom(netip.MustParseAddr(internet), uint16(port(l)))
	var frames [][]byte
	for i := range 500 {
		frames = append(frames, udpFrame(atA.ID, netip.AddrPortFrom(atA.Addr, uint16(10000+i)), dst, "probe"))
	}
	begin := time.Now()
	a.ethernet(unix.ETH_P_IP, frames...)
	most := 2*rate + int(time.Since(begin).Seconds()+1)*rate
	if got := tracked(t, atA.Addr); got < 2*rate || got > most {
		t.Errorf("%d connections are tracked, expected from %d to %d", got, 2*rate, most)
	}
}

// TestBlockedCostsNothing sends what is dropped: none of it may take a place in the connection tracking table.
func TestBlockedCostsNothing(t *testing.T) {
	newDNS(t, newWorld(t))
	n := open(t, Options{})
	a, atA := attach(t, n, "0000000a")
	var frames [][]byte
	for i := range 200 {
		src := netip.AddrPortFrom(atA.Addr, uint16(10000+i))
		frames = append(frames,
			udpFrame(atA.ID, src, netip.AddrPortFrom(netip.MustParseAddr(private), 9), "probe"),
			udpFrame(atA.ID, src, netip.AddrPortFrom(netip.MustParseAddr(hostPublic), 9), "probe"),
			udpFrame(atA.ID, src, netip.AddrPortFrom(n.Gateway(), 53), "not a query"))
	}
	a.ethernet(unix.ETH_P_IP, frames...)
	a.mustLookup(n.Gateway(), "udp", "a.example.")
	a.mustLookup(n.Gateway(), "tcp", "a.example.")
	if got := tracked(t, atA.Addr); got != 0 {
		t.Errorf("%d connections are tracked", got)
	}
}

// tracked counts the connections that the machine tracks for a container.
func tracked(t *testing.T, addr netip.Addr) int {
	t.Helper()
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
	check(t, err)
	count := 0
	for _, f := range flows {
		if f.Forward.SrcIP.Equal(addr.AsSlice()) || f.Forward.DstIP.Equal(addr.AsSlice()) {
			count++
		}
	}
	return count
}
