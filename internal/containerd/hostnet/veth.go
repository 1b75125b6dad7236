package hostnet

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	innerName  = "eth0"
	defaultMTU = 1500
	minMTU     = 576 // RFC 791: what every IPv4 host takes
	dumpTries  = 10

	runningTimeout = 5 * time.Second
)

// openNetns opens a network namespace, and refuses the host's own.
func openNetns(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	var there, here unix.Stat_t
	var sfs unix.Statfs_t
	err = errors.Join(unix.Fstat(fd, &there), unix.Stat("/proc/self/ns/net", &here), unix.Fstatfs(fd, &sfs))
	switch {
	case err != nil:
	case sfs.Type != unix.NSFS_MAGIC:
		err = errors.New("not a namespace")
	case there.Ino == here.Ino && there.Dev == here.Dev:
		err = errors.New("it is the host's own")
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return fd, nil
}

// inNetns runs f on a thread that is in the namespace.
func inNetns(ns int, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked unless it is back: a thread in the wrong namespace ends with its goroutine.
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			result <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		defer func() { _ = unix.Close(home) }()
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = f()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// macOf gives the two ends of a container's link fixed addresses. Set at creation, they are left alone by udev, and
// each end knows the other's without asking: ARP is off.
func macOf(id string, inner bool) net.HardwareAddr {
	mac := net.HardwareAddr{0x02, 0xbe} // locally administered
	if inner {
		mac[1] = 0xbc
	}
	b, _ := hex.DecodeString(id) // checked by checkID
	return append(mac, b...)
}

// connect makes the attachment's link, or completes it. What is there is kept when it leads into the right namespace.
func connect(at Attachment, ns int) error {
	mtu, err := uplinkMTU()
	if err != nil {
		return err
	}
	host, err := existingLink(at, ns)
	if err != nil {
		return err
	}
	if host == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = at.HostIf, mtu, macOf(at.ID, false)
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = innerName, macOf(at.ID, true), uint32(mtu)
		veth.PeerNamespace = netlink.NsFd(ns)
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("make link %s: %w", at.HostIf, err)
		}
		if host, err = netlink.LinkByName(at.HostIf); err != nil {
			return fmt.Errorf("find link %s: %w", at.HostIf, err)
		}
	}
	if err := configureHost(at, host); err != nil {
		return fmt.Errorf("link %s: %w", at.HostIf, err)
	}
	if err := inNetns(ns, func() error { return configureInner(at) }); err != nil {
		return fmt.Errorf("link %s, the container's end: %w", at.HostIf, err)
	}
	return awaitRunning(host.Attrs().Index)
}

// awaitRunning returns when the host's end transmits. The kernel activates it a moment after the container's end is up,
// and drops what is sent before: the answer to a container's first packet.
func awaitRunning(index int) error {
	changes, err := subscribe(linkChanges)
	if err != nil {
		return err
	}
	defer changes.close()
	deadline := time.Now().Add(runningTimeout)
	if err := changes.f.SetReadDeadline(deadline); err != nil {
		return fmt.Errorf("await link: %w", err)
	}
	buf := make([]byte, 64<<10)
	for {
		l, err := netlink.LinkByIndex(index)
		if err != nil {
			return fmt.Errorf("await link: %w", err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if _, err := changes.f.Read(buf); err != nil && time.Now().After(deadline) {
			return fmt.Errorf("the link's state is %q after %s", l.Attrs().OperState, runningTimeout)
		}
	}
}

// existingLink returns the attachment's link if it leads into ns, and removes one that leads elsewhere; nil when there
// is none.
func existingLink(at Attachment, ns int) (netlink.Link, error) {
	host, err := netlink.LinkByName(at.HostIf)
	if isAbsent(err) {
		return nil, nil //nolint:nilnil // absence is an answer here
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", at.HostIf, err)
	}
	same := false
	err = inNetns(ns, func() error {
		inner, err := netlink.LinkByName(innerName)
		if err != nil {
			if isAbsent(err) {
				return nil
			}
			return err
		}
		a, b := host.Attrs(), inner.Attrs()
		same = inner.Type() == "veth" && a.ParentIndex == b.Index && b.ParentIndex == a.Index &&
			b.HardwareAddr.String() == macOf(at.ID, true).String()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look into the container's network namespace: %w", err)
	}
	if same {
		return host, nil
	}
	return nil, deleteLink(at.HostIf)
}

// configureHost sets up the host's end. It carries the gateway's address, as every other link does, and the route to
// the container is its peer route; nothing is learned from what the container sends.
func configureHost(at Attachment, host netlink.Link) error {
	conf := "net/ipv4/conf/" + at.HostIf + "/"
	for _, s := range []struct{ key, value string }{
		{"net/ipv6/conf/" + at.HostIf + "/disable_ipv6", "1"},
		{conf + "forwarding", "1"},
		{conf + "rp_filter", "1"},
		{conf + "accept_redirects", "0"},
		{conf + "send_redirects", "0"},
		{conf + "accept_source_route", "0"},
		{conf + "proxy_arp", "0"},
		{conf + "arp_ignore", "8"}, // answer nothing, should ARP be turned on
	} {
		if err := writeSysctl(s.key, s.value); err != nil {
			return err
		}
	}
	peer := hostNet(at.Addr)
	if err := netlink.AddrReplace(host, &netlink.Addr{IPNet: hostNet(at.Gateway), Peer: peer}); err != nil {
		return fmt.Errorf("add address: %w", err)
	}
	if err := netlink.LinkSetARPOff(host); err != nil {
		return fmt.Errorf("turn off ARP: %w", err)
	}
	if err := netlink.LinkSetUp(host); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	if err := setNeighbour(host, at.Addr, macOf(at.ID, true)); err != nil {
		return err
	}
	// Adding the address made this route only if the link was up then.
	route := &netlink.Route{
		LinkIndex: host.Attrs().Index, Dst: peer, Src: at.Gateway.AsSlice(), Scope: netlink.SCOPE_LINK,
		Protocol: unix.RTPROT_KERNEL,
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("add route: %w", err)
	}
	return nil
}

// configureInner sets up the container's end, on a thread in its namespace. IPv6 is off there, and stays on for its
// loopback.
func configureInner(at Attachment) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set up lo: %w", err)
	}
	inner, err := netlink.LinkByName(innerName)
	if err != nil {
		return fmt.Errorf("find %s: %w", innerName, err)
	}
	if err := writeSysctl("net/ipv6/conf/"+innerName+"/disable_ipv6", "1"); err != nil {
		return err
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(inner, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); !ok || p.Addr() != at.Addr {
			if err := netlink.AddrDel(inner, &a); err != nil {
				return fmt.Errorf("remove address %s: %w", a.IPNet, err)
			}
		}
	}
	if err := netlink.AddrReplace(inner, &netlink.Addr{IPNet: hostNet(at.Addr)}); err != nil {
		return fmt.Errorf("add address: %w", err)
	}
	if err := netlink.LinkSetARPOff(inner); err != nil {
		return fmt.Errorf("turn off ARP: %w", err)
	}
	if err := netlink.LinkSetUp(inner); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	if err := setNeighbour(inner, at.Gateway, macOf(at.ID, false)); err != nil {
		return err
	}
	index := inner.Attrs().Index
	for _, r := range []*netlink.Route{
		{LinkIndex: index, Dst: hostNet(at.Gateway), Scope: netlink.SCOPE_LINK},
		{LinkIndex: index, Gw: at.Gateway.AsSlice()},
	} {
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("add route: %w", err)
		}
	}
	return nil
}

func setNeighbour(l netlink.Link, addr netip.Addr, mac net.HardwareAddr) error {
	err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: l.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
		IP: addr.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("set neighbour %s: %w", addr, err)
	}
	return nil
}

// deleteLink removes a link and, with it, its peer, addresses, routes and neighbours.
func deleteLink(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil && !isAbsent(err) && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// listAttached reads the attachments from the kernel. Addr is zero for a link that was not completed.
func listAttached(nm names) ([]Attachment, error) {
	links, err := linkNames()
	if err != nil {
		return nil, err
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	peers := make(map[int]Attachment)
	for _, a := range addrs {
		peer, ok := prefixOf(a.Peer)
		gw, ok2 := prefixOf(a.IPNet)
		if ok && ok2 {
			peers[a.LinkIndex] = Attachment{Addr: peer.Addr(), Gateway: gw.Addr()}
		}
	}
	var attached []Attachment
	for index, name := range links {
		if id, ok := nm.id(name); ok {
			at := peers[index]
			at.ID, at.HostIf = id, name
			attached = append(attached, at)
		}
	}
	return attached, nil
}

// linkNames maps the index of each of the host's links to its name.
func linkNames() (map[int]string, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	m := make(map[int]string, len(links))
	for _, l := range links {
		m[l.Attrs().Index] = l.Attrs().Name
	}
	return m, nil
}

// uplinkMTU returns the smallest MTU among the links with a default route, at most 1500: what a container announces as
// its segment size then fits the host's uplink, also where the path swallows "fragmentation needed".
func uplinkMTU() (int, error) {
	routes, err := allRoutes()
	if err != nil {
		return 0, err
	}
	mtu := defaultMTU
	for _, r := range routes {
		if p, ok := prefixOf(r.Dst); r.Dst != nil && (!ok || p.Bits() != 0) {
			continue
		}
		if r.LinkIndex == 0 || r.Type != unix.RTN_UNICAST {
			continue
		}
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			mtu = min(mtu, max(l.Attrs().MTU, minMTU))
		}
	}
	return mtu, nil
}

// forgetConns removes the tracked connections that came from the range.
func forgetConns(p netip.Prefix) error {
	var f netlink.ConntrackFilter
	n := net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
	if err := f.AddIPNet(netlink.ConntrackOrigSrcIP, &n); err != nil {
		return fmt.Errorf("forget connections of %s: %w", p, err)
	}
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V4, &f)
	if err != nil {
		return fmt.Errorf("forget connections of %s: %w", p, err)
	}
	return nil
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// prefixOf converts an IPv4 network; false for none.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 || !a.Unmap().Is4() {
		return netip.Prefix{}, false
	}
	if bits == 128 {
		ones -= 96
	}
	return netip.PrefixFrom(a.Unmap(), ones), true
}

func writeSysctl(key, value string) error {
	err := os.WriteFile("/proc/sys/"+key, []byte(value), 0)
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(key) > 8 && key[:8] == "net/ipv6":
		return nil // a kernel without IPv6
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("set %s: /proc/sys is read-only here; run Berth on the machine itself, not in a container: %w",
			key, err)
	case err != nil:
		return fmt.Errorf("set %s: %w", key, err)
	}
	return nil
}

// dump repeats a listing that the kernel says was changed while it was read.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		got, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == dumpTries {
			return got, err
		}
	}
}

func isAbsent(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}
