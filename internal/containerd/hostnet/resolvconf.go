package hostnet

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	resolvConf    = "/etc/resolv.conf"
	resolvRecheck = time.Second
	maxUpstreams  = 3 // MAXNS of resolv.conf(5)
	maxResolv     = 64 << 10
)

// upstreamsOf returns a function that gives the servers to ask, in order.
func upstreamsOf(o Options) func() []netip.AddrPort {
	if len(o.Upstreams) > 0 {
		return func() []netip.AddrPort { return o.Upstreams }
	}
	return newResolvFile(resolvConf).servers
}

// resolvFile is a resolv.conf that is read again when it changes. That is looked up as queries come, not watched: it is
// often a link into a directory that comes and goes.
type resolvFile struct {
	path    string
	list    atomic.Pointer[[]netip.AddrPort]
	reading sync.Mutex // held by the one who reads; the others take the list as it is

	// Of who reads alone.
	checked time.Time
	modTime time.Time
	size    int64
}

func newResolvFile(path string) *resolvFile {
	f := &resolvFile{path: path}
	list := parseResolvConf(nil)
	f.list.Store(&list)
	f.refresh()
	return f
}

func (f *resolvFile) servers() []netip.AddrPort {
	if f.reading.TryLock() {
		if time.Since(f.checked) >= resolvRecheck {
			f.refresh()
		}
		f.reading.Unlock()
	}
	return *f.list.Load()
}

// refresh keeps the old list while the file is away.
func (f *resolvFile) refresh() {
	f.checked = time.Now()
	fi, err := os.Stat(f.path)
	if err != nil || fi.Size() > maxResolv || fi.ModTime().Equal(f.modTime) && fi.Size() == f.size {
		return
	}
	data, err := os.ReadFile(f.path)
	if err != nil {
		return
	}
	f.modTime, f.size = fi.ModTime(), fi.Size()
	list := parseResolvConf(data)
	f.list.Store(&list)
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
