package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"berth/internal/compute"
)

func TestConnects(t *testing.T) {
	w := newWorld(t)
	listen(t, w.router, internet+":80")
	n := open(t, Options{})
	s, at := attach(t, n, "0000000a")
	if from := s.mustDial(internet + ":80"); !strings.HasPrefix(from, hostPublic+":") {
		t.Errorf("the Internet sees %s, not the machine's address", from)
	}
	if at.Gateway != n.Gateway() || !n.Subnet().Contains(at.Addr) || at.ID != "0000000a" {
		t.Errorf("attached as %+v in %s", at, n.Subnet())
	}
	got, err := n.Attached(testContext(t))
	check(t, err)
	if !slices.Equal(got, []Attachment{at}) {
		t.Errorf("Attached = %v, want %v", got, at)
	}
	s.do(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(eth, netlink.FAMILY_V6)
		if err != nil || len(addrs) > 0 {
			return fmt.Errorf("IPv6 addresses on eth0: %v, %w", addrs, err)
		}
		l, err := net.Listen("tcp6", "[::1]:0") // the loopback's stays
		if err != nil {
			return err
		}
		return l.Close()
	})
}

func TestAttachIsIdempotent(t *testing.T) {
	w := newWorld(t)
	listen(t, w.router, internet+":80")
	n := open(t, Options{})
	s, at := attach(t, n, "0000000a")
	conn := holdConn(t, w, s)

	again, err := n.Attach(testContext(t), at.ID, netip.Addr{}, s.path)
	check(t, err)
	if again != at {
		t.Errorf("attached as %v and then as %v", at, again)
	}
	conn.ping(t)

	// What somebody took away comes back.
	s.do(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetDown(eth), netlink.AddrDel(eth, &netlink.Addr{IPNet: hostNet(at.Addr)}),
			addAddr(eth, "192.0.2.200/24"))
	})
	_, err = n.Attach(testContext(t), at.ID, netip.Addr{}, s.path)
	check(t, err)
	s.mustDial(internet + ":80")

	// A container that starts anew has another namespace, and keeps its address.
	next := container(t)
	moved, err := n.Attach(testContext(t), at.ID, netip.Addr{}, next.path)
	check(t, err)
	if moved != at {
		t.Errorf("attached as %v and then, elsewhere, as %v", at, moved)
	}
	next.mustDial(internet + ":80")
	s.mustNotDial(internet + ":80")

	// With another address asked for.
	want := at.Addr.Next()
	other, err := n.Attach(testContext(t), at.ID, want, next.path)
	check(t, err)
	if other.Addr != want {
		t.Errorf("attached as %s, asked for %s", other.Addr, want)
	}
	next.mustDial(internet + ":80")

	for range 2 {
		check(t, n.Detach(testContext(t), at.ID))
	}
	next.mustNotDial(internet + ":80")
	if got, err := n.Attached(testContext(t)); err != nil || len(got) > 0 {
		t.Errorf("attached after Detach: %v, %v", got, err)
	}
	if assigned, err := assignedAddrs(n.names); err != nil || len(assigned) > 0 {
		t.Errorf("assigned after Detach: %v, %v", assigned, err)
	}
}

func TestAttachRefuses(t *testing.T) {
	n := open(t, Options{})
	s, at := attach(t, n, "0000000a")
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, nil, 0o600))
	for _, c := range []struct {
		name, id string
		addr     netip.Addr
		path     string
	}{
		{"id", "../../etc", netip.Addr{}, s.path},
		{"host's namespace", "0000000b", netip.Addr{}, "/proc/self/ns/net"},
		{"another kind of namespace", "0000000b", netip.Addr{}, "/proc/self/ns/mnt"},
		{"no namespace", "0000000b", netip.Addr{}, file},
		{"gone", "0000000b", netip.Addr{}, "/proc/0/ns/net"},
		{"gateway's address", "0000000b", n.Gateway(), s.path},
		{"broadcast address", "0000000b", lastAddr(n.Subnet()), s.path},
		{"foreign address", "0000000b", netip.MustParseAddr("192.0.2.1"), s.path},
		{"another's address", "0000000b", at.Addr, s.path},
	} {
		if _, err := n.Attach(testContext(t), c.id, c.addr, c.path); err == nil {
			t.Errorf("%s: attached", c.name)
		}
	}
	if got, err := n.Attached(testContext(t)); err != nil || !slices.Equal(got, []Attachment{at}) {
		t.Errorf("attached: %v, %v", got, err)
	}
}

func TestAddressesRunOut(t *testing.T) {
	n := open(t, Options{Subnet: netip.MustParsePrefix("10.99.0.0/29")})
	s := container(t)
	spaces := []*space{s}
	seen := make(map[netip.Addr]bool)
	for i := range 5 {
		if i > 0 {
			spaces = append(spaces, container(t))
		}
		at, err := n.Attach(testContext(t), fmt.Sprintf("%08x", i), netip.Addr{}, spaces[i].path)
		check(t, err)
		seen[at.Addr] = true
	}
	if len(seen) != 5 {
		t.Errorf("5 containers have %d addresses", len(seen))
	}
	_, err := n.Attach(testContext(t), "0000000a", netip.Addr{}, container(t).path)
	if compute.CodeOf(err) != compute.CodeCapacity {
		t.Errorf("a sixth container of a /29: %v", err)
	}
	check(t, n.Detach(testContext(t), "00000002"))
	_, err = n.Attach(testContext(t), "0000000a", netip.Addr{}, spaces[2].path)
	check(t, err)
}

func TestAttachTogether(t *testing.T) {
	w := newWorld(t)
	listen(t, w.router, internet+":80")
	n := open(t, Options{})
	const count = 8
	spaces := make([]*space, count)
	for i := range spaces {
		spaces[i] = container(t)
	}
	var wg sync.WaitGroup
	for i, s := range spaces {
		wg.Go(func() {
			if _, err := n.Attach(testContext(t), fmt.Sprintf("%08x", i), netip.Addr{}, s.path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range spaces {
		s.mustDial(internet + ":80")
	}
	for i := range spaces {
		wg.Go(func() {
			if err := n.Detach(testContext(t), fmt.Sprintf("%08x", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestSubnetIsKeptAndGivesWay(t *testing.T) {
	dir := t.TempDir()
	n := open(t, Options{DataDir: dir})
	first := n.Subnet()
	check(t, n.Close())
	check(t, Destroy(testContext(t), dir))
	n = open(t, Options{DataDir: dir})
	if n.Subnet() != first {
		t.Errorf("the subnet was %s and is %s", first, n.Subnet())
	}
	// A route that comes now: nothing changes for running containers, and the next run without any takes another
	// subnet.
	_, at := attach(t, n, "0000000a")
	blackhole(t, first.String())
	check(t, n.Close())
	n = open(t, Options{DataDir: dir})
	if n.Subnet() != first {
		t.Errorf("the subnet changed under a running container, from %s to %s", first, n.Subnet())
	}
	if _, err := Open(testContext(t), Options{DataDir: dir, Subnet: netip.MustParsePrefix("10.99.0.0/24")}); err == nil ||
		!strings.Contains(err.Error(), "stop them") {
		t.Errorf("another subnet under a running container: %v", err)
	}
	check(t, n.Detach(testContext(t), at.ID))
	check(t, n.Close())
	n = open(t, Options{DataDir: dir})
	if n.Subnet().Overlaps(first) {
		t.Errorf("the subnet is %s, which is routed elsewhere", n.Subnet())
	}
}

func blackhole(t *testing.T, cidr string) {
	t.Helper()
	_, dst, err := net.ParseCIDR(cidr)
	check(t, err)
	r := &netlink.Route{Dst: dst, Type: unix.RTN_BLACKHOLE}
	check(t, netlink.RouteAdd(r))
	t.Cleanup(func() { check(t, netlink.RouteDel(r)) })
}

func TestNoFreeSubnet(t *testing.T) {
	blackhole(t, "10.0.0.0/8")
	blackhole(t, "172.16.0.0/12")
	blackhole(t, "192.168.0.0/16")
	o := Options{DataDir: t.TempDir()}
	n := open(t, o)
	if !netip.MustParsePrefix("100.64.0.0/10").Overlaps(n.Subnet()) {
		t.Errorf("with one range left the subnet is %s", n.Subnet())
	}
	check(t, n.Close())
	check(t, Destroy(testContext(t), o.DataDir))

	blackhole(t, "100.64.0.0/10")
	before := machine(t)
	o.Subnet = netip.MustParsePrefix("10.99.0.0/24")
	for _, c := range []struct {
		subnet, want string
	}{
		{"", "no free subnet"},
		{"10.99.0.0/24", "clashes with the route to 10.0.0.0/8"},
		{"203.0.113.0/24", "not of a private range"},
		{"10.99.0.1/24", "from /16 to /29"},
		{"10.0.0.0/8", "from /16 to /29"},
		{"fd00::/64", "from /16 to /29"},
	} {
		o.Subnet = netip.Prefix{}
		if c.subnet != "" {
			o.Subnet = netip.MustParsePrefix(c.subnet)
		}
		_, err := Open(testContext(t), o)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Open with subnet %q: %v", c.subnet, err)
		}
		if err := Check(testContext(t), o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Check with subnet %q: %v", c.subnet, err)
		}
	}
	compare(t, before, machine(t))
}

func TestTwoInstances(t *testing.T) {
	w := newWorld(t)
	listen(t, w.router, internet+":80")
	before := forwardingOf(t, "uplink0")
	dirs := []string{t.TempDir(), t.TempDir()}
	var nets []*Network
	var spaces []*space
	for _, dir := range dirs {
		n := open(t, Options{DataDir: dir})
		s, _ := attach(t, n, "0000000a") // the same id
		nets, spaces = append(nets, n), append(spaces, s)
	}
	if nets[0].Subnet().Overlaps(nets[1].Subnet()) {
		t.Fatalf("both instances have %s", nets[0].Subnet())
	}
	for _, s := range spaces {
		s.mustDial(internet + ":80")
	}
	// Neither order of leaving cuts off the other.
	check(t, nets[0].Close())
	check(t, Destroy(testContext(t), dirs[0]))
	spaces[0].mustNotDial(internet + ":80")
	spaces[1].mustDial(internet + ":80")
	check(t, nets[1].Close())
	check(t, Destroy(testContext(t), dirs[1]))
	if after := forwardingOf(t, "uplink0"); after != before {
		t.Errorf("forwarding of the uplink was %t and is %t", before, after)
	}
}

func TestInstancesTakeSubnetsApart(t *testing.T) {
	// All of them begin at the same place, because the tables' names alone differ.
	var wg sync.WaitGroup
	nets := make([]*Network, 6)
	for i := range nets {
		dir := t.TempDir()
		wg.Go(func() {
			n, err := Open(testContext(t), Options{DataDir: dir})
			if err != nil {
				t.Error(err)
				return
			}
			nets[i] = n
			t.Cleanup(func() {
				check(t, n.Close())
				check(t, Destroy(context.Background(), dir))
			})
		})
	}
	wg.Wait()
	for i, a := range nets {
		for _, b := range nets[:i] {
			if a != nil && b != nil && a.Subnet().Overlaps(b.Subnet()) {
				t.Errorf("two instances have %s", a.Subnet())
			}
		}
	}
	// Another's subnet is refused although nothing routes it.
	o := Options{DataDir: t.TempDir(), Subnet: nets[0].Subnet()}
	if _, err := Open(testContext(t), o); err == nil || !strings.Contains(err.Error(), "another Berth instance") {
		t.Errorf("opened with another instance's subnet: %v", err)
	}
}

func TestLeavesNoTrace(t *testing.T) {
	w := newWorld(t)
	listen(t, w.router, internet+":80")
	warm(t)
	before := machine(t)
	routes := goleak.IgnoreCurrent()
	dir := t.TempDir()
	up := []netip.AddrPort{netip.MustParseAddrPort(internet + ":53")}
	n, err := Open(testContext(t), Options{DataDir: dir, Upstreams: up})
	check(t, err)
	a, _ := attach(t, n, "0000000a")
	_, _ = attach(t, n, "0000000b")
	a.mustDial(internet + ":80")
	if len(machine(t)) <= len(before) {
		t.Error("the comparison sees no difference where there is one")
	}
	check(t, n.Detach(testContext(t), "0000000a"))
	check(t, n.Close())
	check(t, Destroy(testContext(t), dir))
	compare(t, before, machine(t))
	check(t, Destroy(testContext(t), dir))
	check(t, Destroy(testContext(t), t.TempDir()))
	compare(t, before, machine(t))
	goleak.VerifyNone(t, routes)
}

// warm makes the kernel's modules register what they keep for ever: conntrack's settings, say.
func warm(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	n, err := Open(testContext(t), Options{DataDir: dir})
	check(t, err)
	check(t, n.Close())
	check(t, Destroy(testContext(t), dir))
}

func TestMTUIsTheUplinks(t *testing.T) {
	newWorld(t)
	l, err := netlink.LinkByName("uplink0")
	check(t, err)
	check(t, netlink.LinkSetMTU(l, 1400))
	n := open(t, Options{})
	s, at := attach(t, n, "0000000a")
	host, err := netlink.LinkByName(at.HostIf)
	check(t, err)
	s.do(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err == nil && (eth.Attrs().MTU != 1400 || host.Attrs().MTU != 1400) {
			err = fmt.Errorf("MTU %d inside and %d outside", eth.Attrs().MTU, host.Attrs().MTU)
		}
		return err
	})
}
