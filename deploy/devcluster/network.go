package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A cluster has a /16, and the machine one route for it, by way of the node: a process on the machine reaches pods, Services
// and addresses of load balancers, and pods reach it, each by the other's own address.
//
//	10.N.0.0/17    pods: the node's are 10.N.0.0/22
//	10.N.128.0/18  Services; names are served at 10.N.128.10
//	10.N.192.0/20  free for load balancers
//	10.N.255.0/30  the link: the machine is .1, the node is .2
const (
	networks     = 16 // 10.80.0.0/12; Berth's engine on containerd takes 10.64.0.0/12 first
	firstNetwork = 80
)

func (l layout) at(third, fourth byte) netip.Addr {
	a := l.Net.Addr().As4()
	return netip.AddrFrom4([4]byte{a[0], a[1], third, fourth})
}

func (l layout) pods() netip.Prefix          { return netip.PrefixFrom(l.at(0, 0), 17) }
func (l layout) services() netip.Prefix      { return netip.PrefixFrom(l.at(128, 0), 18) }
func (l layout) loadBalancers() netip.Prefix { return netip.PrefixFrom(l.at(192, 0), 20) }
func (l layout) dns() netip.Addr             { return l.at(128, 10) }
func (l layout) firstService() netip.Addr    { return l.at(128, 1) }
func (l layout) machine() netip.Addr         { return l.at(255, 1) }
func (l layout) node() netip.Addr            { return l.at(255, 2) }

// chooseNetwork gives the cluster a network that no route of the machine touches, once: etcd holds addresses of it.
func (l *layout) chooseNetwork() error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list the machine's routes: %w", err)
	}
	var taken []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, _ := netip.AddrFromSlice(r.Dst.IP.To4())
		ones, _ := r.Dst.Mask.Size()
		if ones > 0 {
			taken = append(taken, netip.PrefixFrom(addr, ones))
		}
	}
	if l.Net.IsValid() {
		if t, ok := overlap(l.Net, taken); ok {
			return fmt.Errorf("this cluster's network %s is taken meanwhile: the machine has a route to %s. "+
				"Remove that, or begin anew: devcluster down --delete --dir %s", l.Net, t, l.Dir)
		}
		return nil
	}
	if l.Net, err = freeNetwork(l.Link, taken); err != nil {
		return err
	}
	text, err := json.Marshal(l.Net)
	if err != nil {
		return err
	}
	return os.WriteFile(l.marker(), append(text, '\n'), 0o644)
}

// freeNetwork begins to look at a place that depends on the name, so that a cluster begun anew has most often the same.
func freeNetwork(name string, taken []netip.Prefix) (netip.Prefix, error) {
	for i := range networks {
		n := firstNetwork + (int(name[len(name)-1])+i)%networks
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n)}), 16)
		if _, ok := overlap(p, taken); !ok {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("the machine has routes into each /16 of 10.%d.0.0/12: stop another cluster, or remove some", firstNetwork)
}

func overlap(p netip.Prefix, taken []netip.Prefix) (netip.Prefix, bool) {
	for _, t := range taken {
		if p.Overlaps(t) {
			return t, true
		}
	}
	return netip.Prefix{}, false
}

// connect makes the link between the machine and the node whose first process is pid, and does the machine's side of it.
func (l layout) connect(pid int) error {
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: nodeLink, PeerNamespace: netlink.NsPid(pid)}
	veth.Name = l.Link
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the network link %s: %w", l.Link, err)
	}
	if err := address(l.Link, l.machine()); err != nil {
		return err
	}
	return route(l.Link, ipNet(l.Net), l.node())
}

const nodeLink = "eth0"

// connectNode does the node's side.
func (l layout) connectNode() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	if err := address(nodeLink, l.node()); err != nil {
		return err
	}
	if err := route(nodeLink, nil, l.machine()); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

func address(link string, addr netip.Addr) error {
	at, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find %s: %w", link, err)
	}
	if err := netlink.AddrAdd(at, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, 30))}); err != nil {
		return fmt.Errorf("give %s the address %s: %w", link, addr, err)
	}
	return netlink.LinkSetUp(at)
}

func route(link string, to *net.IPNet, via netip.Addr) error {
	at, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: at.Attrs().Index, Dst: to, Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("route %v via %s: %w", to, via, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

// disconnect removes the link. The kernel does so by itself some time after the node's last process.
func (l layout) disconnect() error {
	at, err := netlink.LinkByName(l.Link)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return nil
	} else if err != nil {
		return err
	}
	if err := netlink.LinkDel(at); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the network link %s: %w", l.Link, err)
	}
	return nil
}
