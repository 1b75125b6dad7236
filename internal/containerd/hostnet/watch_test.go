package hostnet

import (
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestWatchRepairsTheTable(t *testing.T) {
	w := newWorld(t)
	listen(t, w.router, internet+":80")
	n := open(t, Options{})
	s, at := attach(t, n, "0000000a")
	changes, err := subscribe(netlinkGroup{protocol: unix.NETLINK_NETFILTER, group: unix.NFNLGRP_NFTABLES})
	check(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		changes.read(netlinkGroup{})
	}()
	defer func() {
		changes.close()
		<-done
	}()
	table := &nftables.Table{Name: n.names.table, Family: nftables.TableFamilyINet}
	for name, harm := range map[string]func(*nftables.Conn){
		"flush ruleset": func(c *nftables.Conn) { c.FlushRuleset() },
		"flush table":   func(c *nftables.Conn) { c.FlushTable(table) },
		"flush chain":   func(c *nftables.Conn) { c.FlushChain(&nftables.Chain{Name: "egress", Table: table}) },
	} {
		whole, err := fingerprint(n.names)
		check(t, err)
		c, err := nftables.New()
		check(t, err)
		harm(c)
		check(t, c.Flush())
		for deadline := time.After(patience); ; {
			now, err := fingerprint(n.names)
			if err == nil && len(now) == len(whole) {
				break
			}
			select {
			case <-changes.C:
			case <-deadline:
				t.Fatalf("%s: the table has %d rules of %d", name, len(now), len(whole))
			}
		}
		if assigned, err := assignedAddrs(n.names); err != nil || assigned[at.HostIf] != at.Addr {
			t.Errorf("%s: assigned %v, %v", name, assigned, err)
		}
		s.mustDial(internet + ":80")
	}
}

func TestWatchFollowsRoutes(t *testing.T) {
	w := newWorld(t)
	n := open(t, Options{})
	_, _ = attach(t, n, "0000000a")
	changes, err := subscribe(netlinkGroup{protocol: unix.NETLINK_ROUTE, group: unix.RTNLGRP_IPV4_NETCONF})
	check(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		changes.read(netlinkGroup{})
	}()
	defer func() {
		changes.close()
		<-done
	}()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink1"
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "down1", netlink.NsFd(w.router.fd)
	check(t, netlink.LinkAdd(veth))
	t.Cleanup(func() { check(t, deleteLink("uplink1")) })
	l, err := netlink.LinkByName("uplink1")
	check(t, err)
	check(t, addAddr(l, "192.168.77.2/24")) // private alone: nothing for containers
	check(t, netlink.LinkSetUp(l))
	check(t, addAddr(l, "192.0.2.2/24"))
	for deadline := time.After(patience); !forwardingOf(t, "uplink1"); {
		select {
		case <-changes.C:
		case <-deadline:
			t.Fatal("a new uplink does not forward")
		}
	}
	for _, name := range []string{"all", "lo"} {
		if forwardingOf(t, name) {
			t.Errorf("forwarding of %s is on", name)
		}
	}
}

func TestUplinks(t *testing.T) {
	w := newWorld(t)
	_ = w
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lan0"
	veth := netlink.NewVeth(attrs)
	veth.PeerName = "lan1"
	check(t, netlink.LinkAdd(veth))
	t.Cleanup(func() { check(t, deleteLink("lan0")) })
	l, err := netlink.LinkByName("lan0")
	check(t, err)
	peer, err := netlink.LinkByName("lan1")
	check(t, err)
	check(t, addAddr(l, "192.168.77.2/24"))
	check(t, errors.Join(netlink.LinkSetUp(l), netlink.LinkSetUp(peer)))
	nm, err := namesOf(t.TempDir())
	check(t, err)
	if up, err := uplinks(nm); err != nil || !slices.Equal(up, []string{"uplink0"}) {
		t.Errorf("uplinks = %v, %v", up, err)
	}
	// A VPN's routes are in a table of their own.
	_, half, err := net.ParseCIDR("128.0.0.0/1")
	check(t, err)
	check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: half, Table: 51820}))
	if up, err := uplinks(nm); err != nil || !slices.Equal(up, []string{"lan0", "uplink0"}) {
		t.Errorf("uplinks = %v, %v", up, err)
	}
}
