package sshproxy

import (
	"net"
	"net/netip"
	"sync"
)

// startups counts connections that have not authenticated yet, as sshd's MaxStartups and PerSourceMaxStartups do: they
// cost memory and key exchanges, and anybody can make them.
type startups struct {
	max, perSource int

	mu       sync.Mutex
	total    int
	bySource map[netip.Prefix]int
}

func newStartups(limit, perSource int) *startups {
	return &startups{max: limit, perSource: perSource, bySource: make(map[netip.Prefix]int)}
}

// admit takes a place for a connection from that source and returns a function that gives it back, or false when there
// is none. The function may be called more than once.
func (s *startups) admit(source netip.Prefix) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= s.max || s.bySource[source] >= s.perSource {
		return nil, false
	}
	s.total++
	s.bySource[source]++
	var once sync.Once
	return func() {
		once.Do(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.total--
			if s.bySource[source]--; s.bySource[source] == 0 {
				delete(s.bySource, source)
			}
		})
	}, true
}

// sourceOf is what counts as one source: an IPv4 address, or an IPv6 network of 64 bits, which one person may well have
// whole. Addresses that are neither share the zero prefix.
func sourceOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip, ok := netip.AddrFromSlice(tcp.IP)
	if !ok {
		return netip.Prefix{}
	}
	ip = ip.Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
