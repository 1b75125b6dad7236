package hostnet

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/internal/compute"
)

const (
	tablePrefix = "berth_"
	subnetBits  = 22 // 1021 containers
	choiceFile  = "network.json"
)

// blocked is what containers never reach. Subnets are chosen inside it, so that no instance's containers reach
// another's.
var blocked = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"),
}

// pools are where a subnet is looked for, in this order: away from what Docker, Podman, libvirt, Kubernetes and the
// large clouds take by default. A VPN that routes all of 10/8 leaves the others.
var pools = []netip.Prefix{
	netip.MustParsePrefix("10.64.0.0/12"),
	netip.MustParsePrefix("172.28.0.0/14"),
	netip.MustParsePrefix("192.168.192.0/18"),
	netip.MustParsePrefix("100.112.0.0/12"),
}

// names are an instance's, from its data directory's hash.
type names struct {
	table string // of nftables
	links string // what the host's ends begin with; a container's id follows
	seed  uint64
}

func namesOf(dataDir string) (names, error) {
	dir, err := canonical(dataDir)
	if err != nil {
		return names{}, err
	}
	sum := sha256.Sum256([]byte("berth network\x00" + dir))
	h := hex.EncodeToString(sum[:3]) // with the id it fills a link's name, 15 bytes
	return names{table: tablePrefix + h, links: "b" + h, seed: binary.BigEndian.Uint64(sum[8:])}, nil
}

func (nm names) link(id string) string { return nm.links + id }

// id returns the container whose link it is.
func (nm names) id(link string) (string, bool) {
	id, ok := strings.CutPrefix(link, nm.links)
	return id, ok && checkID(id) == nil
}

type choice struct {
	Subnet netip.Prefix `json:"subnet"`
}

// chooseSubnet is findSubnet, kept in the data directory.
func chooseSubnet(nm names, dataDir string, want netip.Prefix) (netip.Prefix, error) {
	p, err := findSubnet(nm, dataDir, want)
	if err != nil {
		return netip.Prefix{}, err
	}
	return p, keepSubnet(dataDir, p)
}

// findSubnet returns the subnet asked for, the one of earlier runs, or a free one. The caller holds the host's lock.
// While containers are attached their subnet stays, whatever it now clashes with.
func findSubnet(nm names, dataDir string, want netip.Prefix) (netip.Prefix, error) {
	if want.IsValid() {
		if err := checkSubnet(want); err != nil {
			return netip.Prefix{}, err
		}
	}
	kept, err := keptSubnet(nm, dataDir)
	if err != nil {
		return netip.Prefix{}, err
	}
	attached, err := listAttached(nm)
	if err != nil {
		return netip.Prefix{}, err
	}
	if len(attached) > 0 && kept.IsValid() {
		if want.IsValid() && want != kept {
			return netip.Prefix{}, fmt.Errorf("containers are running in subnet %s; "+
				"stop them before changing it to %s", kept, want)
		}
		return kept, nil
	}
	used, err := usedRanges(nm)
	if err != nil {
		return netip.Prefix{}, err
	}
	if want.IsValid() {
		if u := used.clash(want); u != nil {
			return netip.Prefix{}, fmt.Errorf("subnet %s clashes with %s; choose another", want, u)
		}
		return want, nil
	}
	if kept.IsValid() && used.clash(kept) == nil {
		return kept, nil
	}
	for _, pool := range pools {
		count := uint64(1) << (subnetBits - pool.Bits())
		for i := range count {
			p := nthSubnet(pool, (nm.seed%count+i)%count)
			if used.clash(p) == nil {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, errors.New("no free subnet: this machine's routes cover every range that containers could " +
		"have; name one with --subnet, of 10/8, 172.16/12, 192.168/16 or 100.64/10, that it does not use")
}

func nthSubnet(pool netip.Prefix, i uint64) netip.Prefix {
	b := pool.Addr().As4()
	base := binary.BigEndian.Uint32(b[:]) + uint32(i)<<(32-subnetBits)
	binary.BigEndian.PutUint32(b[:], base)
	return netip.PrefixFrom(netip.AddrFrom4(b), subnetBits)
}

// checkSubnet refuses what could not isolate: containers of a subnet outside the blocked ranges could be reached by
// those of another instance.
func checkSubnet(p netip.Prefix) error {
	if !p.Addr().Is4() || p != p.Masked() || p.Bits() < 16 || p.Bits() > 29 {
		return fmt.Errorf("subnet %s: give an IPv4 network from /16 to /29, such as 10.64.8.0/22", p)
	}
	for _, private := range []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"} {
		r := netip.MustParsePrefix(private)
		if r.Contains(p.Addr()) && p.Bits() >= r.Bits() {
			return nil
		}
	}
	return fmt.Errorf("subnet %s is not of a private range: 10/8, 172.16/12, 192.168/16 or 100.64/10", p)
}

// keptSubnet returns the choice of an earlier run: the table's, when there is one, or the data directory's.
func keptSubnet(nm names, dataDir string) (netip.Prefix, error) {
	if p, err := tableSubnet(nm.table); err != nil || p.IsValid() {
		return p, err
	}
	data, err := os.ReadFile(filepath.Join(dataDir, choiceFile))
	if errors.Is(err, os.ErrNotExist) {
		return netip.Prefix{}, nil
	}
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("read the choice of subnet: %w", err)
	}
	var c choice
	if err := json.Unmarshal(data, &c); err != nil || checkSubnet(c.Subnet) != nil {
		return netip.Prefix{}, nil // damaged: choose again; nothing depends on it while no table stands
	}
	return c.Subnet, nil
}

func keepSubnet(dataDir string, p netip.Prefix) error {
	data, err := json.Marshal(choice{Subnet: p})
	if err != nil {
		return fmt.Errorf("keep the choice of subnet: %w", err)
	}
	path := filepath.Join(dataDir, choiceFile)
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data)+"\n" {
		return nil
	}
	if err := writeFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("keep the choice of subnet: %w", err)
	}
	return nil
}

// writeFile replaces a file so that a crash leaves the old or the new one whole.
func writeFile(path string, data []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// use is a range that is taken, and by what, in words.
type use struct {
	prefix netip.Prefix
	by     string
}

func (u *use) String() string { return u.by }

type uses []use

func (us uses) clash(p netip.Prefix) *use {
	for i := range us {
		if us[i].prefix.Overlaps(p) {
			return &us[i]
		}
	}
	return nil
}

// usedRanges lists every IPv4 range that this machine routes or has, default routes and our own links apart, and other
// instances' subnets.
func usedRanges(nm names) (uses, error) {
	var us uses
	links, err := linkNames()
	if err != nil {
		return nil, err
	}
	ours := func(index int) bool {
		_, ok := nm.id(links[index])
		return ok
	}
	routes, err := allRoutes()
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		p, ok := prefixOf(r.Dst)
		if !ok || p.Bits() == 0 || ours(r.LinkIndex) {
			continue
		}
		where := ""
		if l := links[r.LinkIndex]; l != "" {
			where = " on " + l
		}
		us = append(us, use{p, fmt.Sprintf("the route to %s%s", p, where)})
	}
	tables, err := berthTables()
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		if t == nm.table {
			continue
		}
		p, err := tableSubnet(t)
		if err != nil {
			return nil, err
		}
		if p.IsValid() {
			us = append(us, use{p, fmt.Sprintf("another Berth instance's %s (table %s)", p, t)})
		}
	}
	return us, nil
}

// allRoutes dumps the IPv4 routes of every table.
func allRoutes() ([]netlink.Route, error) {
	routes, err := dump(func() ([]netlink.Route, error) {
		all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
		return netlink.RouteListFiltered(netlink.FAMILY_V4, all, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

// freeAddr returns an address that no container has, first the one that the id's hash gives: a container mostly gets
// the same address again, and an address is mostly not another container's soon after.
func freeAddr(subnet netip.Prefix, id string, taken map[netip.Addr]string) (netip.Addr, error) {
	b := subnet.Addr().As4()
	base := binary.BigEndian.Uint32(b[:])
	count := uint32(1)<<(32-subnet.Bits()) - 3 // less network, gateway, broadcast
	sum := sha256.Sum256([]byte(id))
	first := binary.BigEndian.Uint32(sum[:])
	for i := range count {
		binary.BigEndian.PutUint32(b[:], base+2+uint32((uint64(first)+uint64(i))%uint64(count)))
		if a := netip.AddrFrom4(b); taken[a] == "" {
			return a, nil
		}
	}
	return netip.Addr{}, compute.Errorf(compute.CodeCapacity,
		"No network address is free for another container; stop one, or tell your operator to give a larger subnet.")
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|(1<<(32-p.Bits())-1))
	return netip.AddrFrom4(b)
}
