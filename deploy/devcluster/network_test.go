package main

import (
	"net/netip"
	"strings"
	"testing"
)

func TestNetworksAreApart(t *testing.T) {
	var taken []netip.Prefix
	for i := range networks {
		p, err := freeNetwork("bdev0000000a", taken)
		if err != nil {
			t.Fatalf("after %d: %v", i, err)
		}
		if other, ok := overlap(p, taken); ok {
			t.Errorf("%s was given away and is in %s", p, other)
		}
		taken = append(taken, p)
	}
	if p, err := freeNetwork("bdev0000000a", taken); err == nil || !strings.Contains(err.Error(), "10.80.0.0/12") {
		t.Errorf("the 17th is %s, %v", p, err)
	}
	// A machine's own route into one of them is seen whatever its size.
	first, err := freeNetwork("bdev0000000a", nil)
	if err != nil {
		t.Fatal(err)
	}
	inside := netip.PrefixFrom(first.Addr().Next(), 32)
	if p, err := freeNetwork("bdev0000000a", []netip.Prefix{inside}); err != nil || p == first {
		t.Errorf("beside %s: %s, %v", inside, p, err)
	}
}

func TestAddressesOfACluster(t *testing.T) {
	l := layout{Net: netip.MustParsePrefix("10.83.0.0/16")}
	n := &node{layout: l}
	ranges := []netip.Prefix{l.pods(), l.services(), l.loadBalancers(), netip.PrefixFrom(l.machine(), 30).Masked()}
	for i, p := range ranges {
		if !l.Net.Overlaps(p) || p.Bits() <= l.Net.Bits() {
			t.Errorf("%s is not in %s", p, l.Net)
		}
		if other, ok := overlap(p, ranges[:i]); ok {
			t.Errorf("%s and %s overlap", p, other)
		}
	}
	if !ranges[3].Contains(l.node()) || !l.services().Contains(l.dns()) || !l.services().Contains(l.firstService()) || !l.pods().Contains(n.nodePods().Addr()) {
		t.Errorf("node %s, names %s, API %s, pods %s: outside of their ranges", l.node(), l.dns(), l.firstService(), n.nodePods())
	}
}

func TestNamesComeFromTheDirectory(t *testing.T) {
	one, err := layoutOf("/nowhere/one", "/programs")
	if err != nil {
		t.Fatal(err)
	}
	again, err := layoutOf("/nowhere/two/../one", "/programs")
	if err != nil {
		t.Fatal(err)
	}
	two, err := layoutOf("/nowhere/two", "/programs")
	if err != nil {
		t.Fatal(err)
	}
	if one != again || one.Name == two.Name || one.Link == two.Link || one.Run == two.Run {
		t.Errorf("%+v, %+v, %+v", one, again, two)
	}
	const interfaceName = 15 // IFNAMSIZ, less the zero byte
	if len(one.Link) > interfaceName {
		t.Errorf("%s is too long for a network interface", one.Link)
	}
}
