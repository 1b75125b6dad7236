package hostnet

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	resolvConf   = "/etc/resolv.conf"
	maxUpstreams = 3 // MAXNS of resolv.conf(5)
	maxResolv    = 64 << 10
)

// upstreamsOf returns a function that gives the servers to ask, in order.
func upstreamsOf(o Options) func() []netip.AddrPort {
	if len(o.Upstreams) > 0 {
		return func() []netip.AddrPort { return o.Upstreams }
	}
	return (&resolvFile{path: resolvConf}).servers
}

// resolvFile is a resolv.conf that is read again when it changes. That is looked up as queries come, not watched: it is
// often a link into a directory that comes and goes.
type resolvFile struct {
	path string

	mu      sync.Mutex // guards what follows; a stat and a small read happen under it
	checked time.Time
	modTime time.Time
	size    int64
	list    []netip.AddrPort
}

const resolvRecheck = time.Second

func (f *resolvFile) servers() []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.list != nil && time.Since(f.checked) < resolvRecheck {
		return f.list
	}
	f.checked = time.Now()
	fi, err := os.Stat(f.path)
	if err == nil && f.list != nil && fi.ModTime().Equal(f.modTime) && fi.Size() == f.size {
		return f.list
	}
	var data []byte
	if err == nil && fi.Size() <= maxResolv {
		f.modTime, f.size = fi.ModTime(), fi.Size()
		data, err = os.ReadFile(f.path)
	}
	if err == nil || f.list == nil {
		f.list = parseResolvConf(data)
	}
	return f.list
}

// parseResolvConf returns the servers that a resolv.conf names; without any, the local one, as resolv.conf(5) says.
func parseResolvConf(data []byte) []netip.AddrPort {
	var servers []netip.AddrPort
	s := bufio.NewScanner(bytes.NewReader(data))
	for s.Scan() && len(servers) < maxUpstreams {
		f := strings.Fields(s.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(a, 53))
		}
	}
	if len(servers) == 0 {
		servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}
	}
	return servers
}
