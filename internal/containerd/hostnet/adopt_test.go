package hostnet

import (
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// TestAdoptsAfterKill kills the process that made the network, as kill -9 does: its container goes on, and the next run
// takes it over without interrupting it.
func TestAdoptsAfterKill(t *testing.T) {
	w := newWorld(t)
	listen(t, w.router, internet+":80")
	newDNS(t, w)
	warm(t)
	before := machine(t)
	dir := t.TempDir()
	s := container(t)
	first := startInstance(t, dir, "0000000a", s.path)
	c := holdConn(t, w, s)
	nm, err := namesOf(dir)
	check(t, err)
	gw := gatewayOf(t, nm)
	s.mustLookup(gw, "udp", "a.example.")
	first.kill()

	c.ping(t)
	s.mustDial(internet + ":80")
	s.mustNotDial(hostPublic + ":53")
	if _, err := s.lookup(gw, "udp", "a.example.", refusedAfter); err == nil {
		t.Error("names resolve although nobody serves")
	}

	o := Options{DataDir: dir, Upstreams: []netip.AddrPort{netip.MustParseAddrPort(internet + ":53")}}
	n, err := Open(testContext(t), o)
	check(t, err)
	c.ping(t)
	for _, network := range []string{"udp", "tcp"} {
		s.mustLookup(gw, network, "a.example.")
	}
	attached, err := n.Attached(testContext(t))
	check(t, err)
	if len(attached) != 1 || attached[0].ID != "0000000a" || n.Gateway() != gw {
		t.Errorf("adopted %v at %s, the gateway was %s", attached, n.Gateway(), gw)
	}
	again, err := n.Attach(testContext(t), "0000000a", netip.Addr{}, s.path)
	check(t, err)
	if !slices.Equal(attached, []Attachment{again}) {
		t.Errorf("adopted %v and attached %v", attached, again)
	}
	c.ping(t)
	_, atB := attach(t, n, "0000000b")
	s.mustNotDial(atB.Addr.String() + ":80")
	if err := Check(testContext(t), o); err != nil {
		t.Errorf("Check beside an open network: %v", err)
	}
	if _, err := Open(testContext(t), o); err == nil || !strings.Contains(err.Error(), "another berth") {
		t.Errorf("opened twice: %v", err)
	}
	c.ping(t)
	check(t, n.Close())
	check(t, Destroy(testContext(t), dir))
	compare(t, before, machine(t))
}

// TestDestroysWhatAKilledRunLeft removes everything without opening it first, the firewall flushed meanwhile.
func TestDestroysWhatAKilledRunLeft(t *testing.T) {
	newWorld(t)
	warm(t)
	before := machine(t)
	for _, flushed := range []bool{false, true} {
		dir := t.TempDir()
		s := container(t)
		startInstance(t, dir, "0000000a", s.path).kill()
		if flushed {
			c, err := nftables.New()
			check(t, err)
			c.FlushRuleset()
			check(t, c.Flush())
		}
		check(t, Destroy(testContext(t), dir))
		compare(t, before, machine(t))
	}
}

// TestCompletesAHalfMadeLink begins where a killed run stopped: after each step of making a link.
func TestCompletesAHalfMadeLink(t *testing.T) {
	w := newWorld(t)
	listen(t, w.router, internet+":80")
	n := open(t, Options{})
	s := container(t)
	at := Attachment{ID: "0000000a", HostIf: n.names.link("0000000a")}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = at.HostIf, macOf(at.ID, false)
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerNamespace = innerName, macOf(at.ID, true), netlink.NsFd(s.fd)
	check(t, netlink.LinkAdd(veth))
	got, err := n.Attached(testContext(t))
	check(t, err)
	if len(got) != 1 || got[0].Addr.IsValid() {
		t.Errorf("attached: %v", got)
	}
	for range 2 {
		_, err = n.Attach(testContext(t), at.ID, netip.Addr{}, s.path)
		check(t, err)
		s.mustDial(internet + ":80")
		check(t, n.Detach(testContext(t), at.ID))
		// The second time around, one whose other end was lost.
		check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: at.HostIf}, PeerName: "lost0"}))
	}
	_, err = n.Attach(testContext(t), at.ID, netip.Addr{}, s.path)
	check(t, err)
	s.mustDial(internet + ":80")
}

func gatewayOf(t *testing.T, nm names) netip.Addr {
	t.Helper()
	attached, err := listAttached(nm)
	check(t, err)
	if len(attached) != 1 {
		t.Fatalf("attached: %v", attached)
	}
	return attached[0].Gateway
}

func TestCheck(t *testing.T) {
	w := newWorld(t)
	_ = w
	warm(t)
	before := machine(t)
	o := Options{DataDir: t.TempDir()}
	check(t, Check(testContext(t), o))
	// A DNS server of the operator's on every address.
	l, err := net.Listen("tcp4", "0.0.0.0:53")
	check(t, err)
	if err := Check(testContext(t), o); err == nil || !strings.Contains(err.Error(), "bind-interfaces") {
		t.Errorf("beside a DNS server on every address: %v", err)
	}
	if _, err := Open(testContext(t), o); err == nil || !strings.Contains(err.Error(), "bind-interfaces") {
		t.Errorf("opened beside a DNS server on every address: %v", err)
	}
	check(t, l.Close())

	if err := Check(testContext(t), Options{}); err == nil {
		t.Error("no data directory: no error")
	}
	compare(t, before, machine(t))
}

func TestWarnings(t *testing.T) {
	o := Options{DataDir: t.TempDir()}
	if w, err := Warnings(o); err != nil || len(w) > 0 {
		t.Errorf("warnings on a machine without a firewall: %v, %v", w, err)
	}
	c, err := nftables.New()
	check(t, err)
	table := c.AddTable(&nftables.Table{Name: "docker-like", Family: nftables.TableFamilyIPv4})
	drop, accept := nftables.ChainPolicyDrop, nftables.ChainPolicyAccept
	for name, hook := range map[string]*nftables.ChainHook{
		"FORWARD": nftables.ChainHookForward, "INPUT": nftables.ChainHookInput, "OUTPUT": nftables.ChainHookOutput,
	} {
		c.AddChain(&nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityFilter, Policy: &drop,
		})
	}
	c.AddChain(&nftables.Chain{
		Name: "harmless", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &accept,
	})
	check(t, c.Flush())
	t.Cleanup(func() {
		c.DelTable(table)
		check(t, c.Flush())
	})
	w, err := Warnings(o)
	check(t, err)
	if all := strings.Join(w, "\n"); len(w) != 2 || !strings.Contains(all, "ip docker-like FORWARD") ||
		!strings.Contains(all, "ip docker-like INPUT") {
		t.Errorf("warnings: %q", w)
	}
	// What a warning says to type ends it.
	for _, line := range w {
		_, cure, _ := strings.Cut(line, "as with: ")
		if out, err := exec.Command("/bin/sh", "-c", cure).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v, %s", cure, err, out)
		}
	}
	if w, err := Warnings(o); err != nil || len(w) > 0 {
		t.Errorf("warnings after the cure: %v, %v", w, err)
	}
}
