package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// probe is one way in which a container could reach what it must not.
type probe struct {
	name    string
	reaches func(wait time.Duration) bool
	guarded bool // stopped without the table too: the forwarder itself looks at the source
}

// TestIsolation makes every probe with the table and once more without it: each must fail and then succeed, or it
// proves nothing.
func TestIsolation(t *testing.T) {
	w := newWorld(t)
	dir, otherDir := t.TempDir(), t.TempDir()
	n, other := open(t, Options{DataDir: dir}), open(t, Options{DataDir: otherDir})
	a, atA := attach(t, n, "0000000a")
	b, atB := attach(t, n, "0000000b")
	c, atC := attach(t, other, "0000000c")
	w.answerTo(n, other)

	listen(t, nil, "0.0.0.0:8080")
	for _, s := range []*space{a, b, c} {
		listen(t, s, "0.0.0.0:80")
	}
	lo, err := netlink.LinkByName("lo")
	check(t, err)
	check(t, addAddr(lo, "192.0.2.77/32")) // added after the table was made
	t.Cleanup(func() {
		check(t, netlink.AddrDel(lo, &netlink.Addr{IPNet: hostNet(netip.MustParseAddr("192.0.2.77"))}))
	})

	tcp := func(name string, s *space, addr string) probe {
		return probe{name: name + ", TCP to " + addr, reaches: func(wait time.Duration) bool {
			_, err := s.dial(addr, wait)
			return err == nil
		}}
	}
	probes := []probe{
		tcp("container to container", a, atB.Addr.String()+":80"),
		tcp("container to another instance's", a, atC.Addr.String()+":80"),
		tcp("another instance's to ours", c, atB.Addr.String()+":80"),
		tcp("container to its gateway", a, n.Gateway().String()+":8080"),
		tcp("container to another instance's gateway", a, other.Gateway().String()+":8080"),
		tcp("container to the machine's uplink address", a, hostPublic+":8080"),
		tcp("container to an address added later", a, "192.0.2.77:8080"),
		{name: "from outside to a container", reaches: func(wait time.Duration) bool {
			_, err := w.router.dial(atB.Addr.String()+":80", wait)
			return err == nil
		}},
		{name: "from the machine to a container", reaches: func(wait time.Duration) bool {
			conn, err := net.DialTimeout("tcp4", atB.Addr.String()+":80", wait)
			if err == nil {
				_ = conn.Close()
			}
			return err == nil
		}},
		udpProbe(t, "container to the machine", a, atA, nil, hostPublic),
		udpProbe(t, "container to container", a, atA, b, atB.Addr.String()),
		udpProbe(t, "container's broadcast", a, atA, nil, "255.255.255.255"),
		multicastProbe(t, a, n.names.link("0000000a")),
		ipv6Probe(t, a, n.names.link("0000000a")),
		pingProbe(a, n.Gateway()),
		pingProbe(a, atB.Addr),
		dnsProbe("another instance's DNS forwarder", a, other.Gateway()),
		dnsProbe("outside to the DNS forwarder", w.router, n.Gateway()),
	}
	for _, addr := range []string{
		"10.200.0.1", "100.64.9.9", "169.254.169.254", "172.16.5.5", "172.31.255.254", "192.168.77.1",
	} {
		w.have(addr)
		listen(t, w.router, addr+":80")
		probes = append(probes, tcp("container to a private range", a, addr+":80"))
	}
	for _, p := range probes {
		if p.reaches(refusedAfter) {
			t.Errorf("%s: reached", p.name)
		}
	}
	// What is just outside of the blocked ranges is reached.
	for _, addr := range []string{
		"11.0.0.1", "100.63.255.254", "100.128.0.1", "169.253.1.1", "172.15.0.1", "172.32.0.1", "192.167.1.1",
	} {
		w.have(addr)
		listen(t, w.router, addr+":80")
		a.mustDial(addr + ":80")
	}

	for _, n := range []*Network{n, other} {
		n.cancel(errClosed) // the watch would make the table anew
	}
	check(t, errors.Join(removeTable(n.names), removeTable(other.names)))
	for _, p := range probes {
		wait := patience
		if p.guarded {
			wait = refusedAfter
		}
		if p.reaches(wait) == p.guarded {
			t.Errorf("%s: without the table reached is %t, so the probe does not prove what it should", p.name, p.guarded)
		}
	}
}

// answerTo gives the router routes to the containers, so that probes without masquerading see answers.
func (w *world) answerTo(nets ...*Network) {
	w.t.Helper()
	w.router.do(func() error {
		l, err := netlink.LinkByName("down0")
		for _, n := range nets {
			dst := &net.IPNet{IP: n.subnet.Addr().AsSlice(), Mask: net.CIDRMask(n.subnet.Bits(), 32)}
			r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Gw: net.ParseIP(hostPublic)}
			err = errors.Join(err, netlink.RouteAdd(r))
		}
		return err
	})
}

// have gives the router an address.
func (w *world) have(addr string) {
	w.t.Helper()
	w.router.do(func() error {
		lo, err := netlink.LinkByName("lo")
		err = errors.Join(err, addAddr(lo, addr+"/32"))
		if errors.Is(err, syscall.EEXIST) {
			return nil
		}
		return err
	})
}

// udpListener receives datagrams in s, or on the machine; each caller's have a mark of their own.
func udpListener(t *testing.T, s *space) *net.UDPConn {
	t.Helper()
	var c net.PacketConn
	f := func() (err error) {
		c, err = net.ListenPacket("udp4", "0.0.0.0:0")
		return err
	}
	if s == nil {
		check(t, f())
	} else {
		s.do(f)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.UDPConn)
}

func port(c *net.UDPConn) int { return c.LocalAddr().(*net.UDPAddr).Port }

// receives says whether a datagram arrives, and from where.
func receives(c *net.UDPConn, wait time.Duration) (netip.AddrPort, bool) {
	_ = c.SetReadDeadline(time.Now().Add(wait))
	_, from, err := c.ReadFromUDPAddrPort(make([]byte, 1500))
	return from, err == nil
}

// udpProbe sends a datagram from a container to an address of another (nil: of the machine).
func udpProbe(t *testing.T, name string, from *space, at Attachment, to *space, addr string) probe {
	l := udpListener(t, to)
	dst := netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port(l)))
	frame := udpFrame(at.ID, netip.AddrPortFrom(at.Addr, 4000), dst, "probe")
	return probe{name: name + ", UDP to " + addr, reaches: func(wait time.Duration) bool {
		from.ethernet(unix.ETH_P_IP, frame)
		_, ok := receives(l, wait)
		return ok
	}}
}

func multicastProbe(t *testing.T, s *space, hostIf string) probe {
	l := udpListener(t, nil)
	group := net.IPv4(224, 0, 0, 251)
	link, err := net.InterfaceByName(hostIf)
	check(t, err)
	raw, err := l.SyscallConn()
	check(t, err)
	var serr error
	check(t, raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
			&unix.IPMreqn{Multiaddr: [4]byte(group.To4()), Ifindex: int32(link.Index)})
	}))
	check(t, serr)
	return probe{name: "container's multicast", reaches: func(wait time.Duration) bool {
		s.do(func() error {
			c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: group, Port: port(l)})
			if err != nil {
				return err
			}
			_, err = c.Write([]byte("probe"))
			return errors.Join(err, c.Close())
		})
		_, ok := receives(l, wait)
		return ok
	}}
}

// ipv6Probe has IPv6 turned on at both ends, as a container with the rights to do so and a careless operator would.
func ipv6Probe(t *testing.T, s *space, hostIf string) probe {
	host, err := netlink.LinkByName(hostIf)
	check(t, err)
	check(t, writeSysctl("net/ipv6/conf/"+hostIf+"/disable_ipv6", "0"))
	check(t, writeSysctl("net/ipv6/conf/"+hostIf+"/accept_dad", "0"))
	check(t, addAddr(host, "fd00:77::1/128"))
	s.do(func() error {
		eth, err := netlink.LinkByName("eth0")
		return errors.Join(err, writeSysctl("net/ipv6/conf/eth0/accept_dad", "0"),
			writeSysctl("net/ipv6/conf/eth0/disable_ipv6", "0"), addAddr(eth, "fd00:77::2/64"),
			netlink.NeighSet(&netlink.Neigh{
				LinkIndex: eth.Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: net.ParseIP("fd00:77::1"), HardwareAddr: host.Attrs().HardwareAddr,
			}))
	})
	l, err := net.ListenPacket("udp6", "[::]:0")
	check(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return probe{name: "container to the machine over IPv6", reaches: func(wait time.Duration) bool {
		s.do(func() error {
			c, err := net.DialUDP("udp6", nil, &net.UDPAddr{IP: net.ParseIP("fd00:77::1"), Port: port(l.(*net.UDPConn))})
			if err != nil {
				return err
			}
			_, err = c.Write([]byte("probe"))
			return errors.Join(err, c.Close())
		})
		_, ok := receives(l.(*net.UDPConn), wait)
		return ok
	}}
}

// pingProbe sends an echo request and waits for its reply; a refusal does not count.
func pingProbe(s *space, addr netip.Addr) probe {
	return probe{name: "ping of " + addr.String(), reaches: func(wait time.Duration) bool {
		got := false
		s.do(func() error {
			c, err := net.ListenPacket("ip4:icmp", "0.0.0.0")
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			echo := []byte{8, 0, 0, 0, 0, 77, 0, 1}
			binary.BigEndian.PutUint16(echo[2:], checksum(echo))
			if _, err := c.WriteTo(echo, &net.IPAddr{IP: addr.AsSlice()}); err != nil {
				return err
			}
			_ = c.SetReadDeadline(time.Now().Add(wait))
			buf := make([]byte, 1500)
			for !got {
				n, _, err := c.ReadFrom(buf)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					return nil
				}
				if err != nil {
					return err
				}
				got = n > 0 && buf[0] == 0
			}
			return nil
		})
		return got
	}}
}

// checksum is the Internet's (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// ethernet sends frames from a container, whatever its kernel thinks of them.
func (s *space) ethernet(protocol uint16, frames ...[]byte) {
	s.t.Helper()
	s.do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		eth, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		to := &unix.SockaddrLinklayer{Protocol: protocol>>8 | protocol<<8, Ifindex: eth.Index}
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, to); err != nil {
				return err
			}
		}
		return nil
	})
}

// udpFrame is an Ethernet frame with a UDP datagram from src to dst.
func udpFrame(id string, src, dst netip.AddrPort, data string) []byte {
	f := slices.Concat(macOf(id, false), macOf(id, true), []byte{0x08, 0x00})
	ip := make([]byte, 20, 28+len(data))
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(data)))
	copy(ip[12:], src.Addr().AsSlice())
	copy(ip[16:], dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	udp := make([]byte, 8)
	binary.BigEndian.PutUint16(udp, src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(data)))
	return slices.Concat(f, ip, udp, []byte(data))
}

func TestSourceSpoofing(t *testing.T) {
	w := newWorld(t)
	n := open(t, Options{})
	a, atA := attach(t, n, "0000000a")
	_, atB := attach(t, n, "0000000b")
	out, here := udpListener(t, w.router), udpListener(t, nil)
	outside := netip.MustParseAddrPort(fmt.Sprintf("%s:%d", internet, port(out)))
	machine := netip.MustParseAddrPort(fmt.Sprintf("%s:%d", hostPublic, port(here)))
	send := func(src netip.Addr, dst netip.AddrPort) {
		a.ethernet(unix.ETH_P_IP, udpFrame(atA.ID, netip.AddrPortFrom(src, 4000), dst, "probe"))
	}
	send(atA.Addr, outside)
	if from, ok := receives(out, patience); !ok || from.Addr().String() != hostPublic {
		t.Fatalf("a frame with the container's own address arrives from %s, %t", from, ok)
	}
	spoofed := []netip.Addr{
		atB.Addr, n.Gateway(), netip.MustParseAddr(hostPublic), netip.MustParseAddr("127.0.0.1"), atA.Addr.Next(),
		netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr(internet), netip.MustParseAddr("0.0.0.0"),
	}
	none := func(how string, c *net.UDPConn, dst netip.AddrPort) {
		t.Helper()
		for _, src := range spoofed {
			send(src, dst)
		}
		if from, ok := receives(c, refusedAfter); ok {
			t.Errorf("%s: a spoofed frame arrived, from %s", how, from)
		}
	}
	none("table and rp_filter", out, outside)

	// Each layer by itself.
	rpFilter := "net/ipv4/conf/" + atA.HostIf + "/rp_filter"
	check(t, writeSysctl(rpFilter, "0"))
	none("table alone", out, outside)
	if from, ok := receives(here, refusedAfter); ok {
		t.Errorf("the machine received a frame from %s", from)
	}
	n.cancel(errClosed)
	check(t, removeTable(n.names))
	send(atB.Addr, machine)
	if _, ok := receives(here, patience); !ok {
		t.Error("without both layers nothing arrives either, so the test proves nothing")
	}
	check(t, writeSysctl(rpFilter, "1"))
	none("rp_filter alone", here, machine)
}

func TestARPSpoofing(t *testing.T) {
	newDNS(t, newWorld(t))
	n := open(t, Options{})
	a, atA := attach(t, n, "0000000a")
	b, atB := attach(t, n, "0000000b")
	neighbours := func() map[string]string {
		list, err := netlink.NeighList(0, netlink.FAMILY_V4)
		check(t, err)
		m := make(map[string]string)
		for _, e := range list {
			m[fmt.Sprintf("%s on link %d", e.IP, e.LinkIndex)] = fmt.Sprint(e.HardwareAddr, e.State)
		}
		return m
	}
	before := neighbours()
	answers := a.listenARP()
	arp := func(op uint16, sender, target netip.Addr) []byte {
		mac := macOf(atA.ID, true)
		header := []byte{0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, byte(op)}
		f := slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, header,
			mac, sender.AsSlice(), make([]byte, 6), target.AsSlice())
		return f
	}
	a.ethernet(unix.ETH_P_ARP,
		arp(1, atB.Addr, atB.Addr), arp(2, atB.Addr, atB.Addr), arp(1, atB.Addr, n.Gateway()), arp(2, atB.Addr, n.Gateway()),
		arp(2, n.Gateway(), n.Gateway()), arp(1, atA.Addr, n.Gateway()), arp(1, atA.Addr, netip.MustParseAddr(hostPublic)))
	if answers() {
		t.Error("the machine answers ARP from a container")
	}
	compare(t, before, neighbours())
	if got := b.mustLookup(n.Gateway(), "udp", "a.example."); got != internet {
		t.Errorf("beside ARP spoofing the lookup gives %s", got)
	}
}

// listenARP returns a function that says whether an ARP frame from the machine arrives.
func (s *space) listenARP() func() bool {
	s.t.Helper()
	fd := -1
	s.do(func() (err error) {
		proto := uint16(unix.ETH_P_ARP>>8 | unix.ETH_P_ARP<<8&0xff00)
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(proto)); err != nil {
			return err
		}
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: refusedAfter.Microseconds()})
	})
	s.t.Cleanup(func() { _ = unix.Close(fd) })
	return func() bool {
		buf := make([]byte, 1500)
		for {
			_, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return false
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype != unix.PACKET_OUTGOING {
				return true
			}
		}
	}
}
