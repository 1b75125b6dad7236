package k8s

import (
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
)

// Whatever the configuration, no egress to a private range is open, and every exception lies in its block, as the API demands.
func TestEgressLeavesOutWhatIsPrivate(t *testing.T) {
	m := maker{opt: Options{Blocked: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("10.0.0.0/8")}}}
	near := []string{"203.0.113.7", "2606:4700::7"} // the cluster's own
	public := m.egress([]netip.Addr{netip.MustParseAddr(near[0]), netip.MustParseAddr(near[1])})[0].To
	for _, addr := range append(near,
		"10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200", "127.0.0.1", "224.0.0.1", "255.255.255.255",
		"198.51.100.9", "fd00:ec2::254", "fe80::1", "64:ff9b::a9fe:a9fe", "::1", "ff02::1",
	) {
		if reaches(t, public, addr) {
			t.Errorf("%s can be reached", addr)
		}
	}
	for _, addr := range []string{"1.1.1.1", "203.0.113.8", "198.51.101.1", "2606:4700::1111"} {
		if !reaches(t, public, addr) {
			t.Errorf("%s cannot be reached", addr)
		}
	}
}

// reaches says whether peers let an address through.
func reaches(t *testing.T, peers []networkingv1.NetworkPolicyPeer, address string) bool {
	t.Helper()
	addr, open := netip.MustParseAddr(address), false
	for _, peer := range peers {
		block := netip.MustParsePrefix(peer.IPBlock.CIDR)
		allowed := block.Contains(addr)
		for _, e := range peer.IPBlock.Except {
			p := netip.MustParsePrefix(e)
			if !block.Overlaps(p) || p.Bits() <= block.Bits() {
				t.Errorf("%s does not lie within %s", p, block)
			}
			allowed = allowed && !p.Contains(addr)
		}
		open = open || allowed
	}
	return open
}
