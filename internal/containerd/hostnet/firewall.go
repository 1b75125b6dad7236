package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names in the table.
const (
	setAssignedName = "assigned" // link . address that a packet may come from
	setSubnetName   = "subnet"   // read by other instances when they choose theirs
	setBlockedName  = "blocked"
)

// limits bounds what one container may cost the host.
type limits struct {
	conns    int // entries in the connection tracking table
	newConns int // new connections a second
	dns      int // packets to the forwarder a second: UDP queries, and TCP connections
	refusals int // blocked packets answered a second; the rest is dropped, since the kernel's own ICMP shares a budget
}

const (
	defaultMaxConns = 4096
	minMaxConns     = 256
	defaultNewConns = 1000
	dnsPerSecond    = 300
	refusePerSecond = 20
	meterIdle       = time.Minute // after which a container's meter is forgotten
)

// limitsOf fills in the defaults: one container gets at most 1/16 of the host's connection tracking table.
func limitsOf(o Options) limits {
	l := limits{conns: o.MaxConns, newConns: o.NewConnsPerSecond, dns: dnsPerSecond, refusals: refusePerSecond}
	if l.conns <= 0 {
		l.conns = defaultMaxConns
		if data, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max"); err == nil {
			if n, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && n > 0 {
				l.conns = max(minMaxConns, min(l.conns, n/16))
			}
		}
	}
	if l.newConns <= 0 {
		l.newConns = defaultNewConns
	}
	return l
}

// installTable replaces the instance's table in one transaction: packets meet the old rules or the new ones, and the
// connections under way go on, since their state is not the table's.
// It returns how many rules the table has.
func installTable(nm names, subnet netip.Prefix, gw netip.Addr, l limits, attached []Attachment) (int, error) {
	c, err := nftables.New()
	if err != nil {
		return 0, fmt.Errorf("nftables: %w", err)
	}
	t := &nftables.Table{Name: nm.table, Family: nftables.TableFamilyINet}
	c.AddTable(t) // so that the removal finds one
	c.DelTable(t)
	c.AddTable(t)
	b := builder{c: c, t: t, nm: nm, subnet: subnet, gw: gw, limits: l}
	if err := b.sets(attached); err != nil {
		return 0, fmt.Errorf("nftables sets: %w", err)
	}
	b.chains()
	if err := c.Flush(); err != nil {
		return 0, fmt.Errorf("install nftables table %s: %w", nm.table, nftCure(err))
	}
	return b.rules, nil
}

// nftCure adds what to do to the errors of a kernel that lacks something.
func nftCure(err error) error {
	switch {
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w; run as root", err)
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.EPROTONOSUPPORT):
		return fmt.Errorf("%w; the kernel needs nf_tables with nft_ct, nft_fib_inet, nft_connlimit, nft_limit, nft_masq "+
			"and nft_reject_inet: modprobe them, or install the distribution's full kernel", err)
	}
	return err
}

type builder struct {
	c      *nftables.Conn
	t      *nftables.Table
	nm     names
	subnet netip.Prefix
	gw     netip.Addr
	limits limits

	assigned, subnetSet, blocked          *nftables.Set
	dnsUDP, dnsTCP, refused, conns, fresh *nftables.Set
	lastID                                uint32
	rules                                 int
}

func (b *builder) sets(attached []Attachment) error {
	b.assigned = assignedSet(b.t)
	var elems []nftables.SetElement
	for _, at := range attached {
		if at.Addr.IsValid() {
			elems = append(elems, assignedElement(at))
		}
	}
	// Constant: nobody empties them while the rules stand.
	ranged := func(name string) *nftables.Set {
		return &nftables.Set{Table: b.t, Name: name, KeyType: nftables.TypeIPAddr, Interval: true, Constant: true}
	}
	b.subnetSet, b.blocked = ranged(setSubnetName), ranged(setBlockedName)
	var ranges []nftables.SetElement
	for _, p := range blocked {
		ranges = append(ranges, rangeElements(p)...)
	}
	if err := errors.Join(
		b.add(b.assigned, elems), b.add(b.subnetSet, rangeElements(b.subnet)), b.add(b.blocked, ranges),
	); err != nil {
		return err
	}
	for name, s := range map[string]**nftables.Set{
		"dns_udp": &b.dnsUDP, "dns_tcp": &b.dnsTCP, "refused": &b.refused, "fresh": &b.fresh,
	} {
		*s = &nftables.Set{
			Table: b.t, Name: name, KeyType: nftables.TypeIPAddr, Dynamic: true, Size: 65535,
			HasTimeout: true, Timeout: meterIdle,
		}
		if err := b.add(*s, nil); err != nil {
			return err
		}
	}
	// Without a timeout: the count goes with the connections.
	b.conns = &nftables.Set{Table: b.t, Name: "conns", KeyType: nftables.TypeIPAddr, Dynamic: true, Size: 65535}
	return b.add(b.conns, nil)
}

func (b *builder) add(s *nftables.Set, elems []nftables.SetElement) error {
	b.lastID++ // our own: the library counts in a variable that connections share without a lock
	s.ID = b.lastID
	return b.c.AddSet(s, elems)
}

// chains writes the rules. What a container sends is judged before connection tracking and before anybody's destination
// NAT, so that a forbidden packet costs no state and a redirected one is judged by what it asked for; and again in
// forward, by where it now goes.
func (b *builder) chains() {
	raw, filter := nftables.ChainPriorityRaw, nftables.ChainPriorityFilter
	prerouting := b.base("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, raw)
	input := b.base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, filter)
	forward := b.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, filter)
	output := b.base("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, raw)
	source := nftables.ChainPriorityNATSource
	postrouting := b.base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, source)
	from := b.chain("from_container")
	dnsUDP, dnsTCP := b.chain("to_resolver_udp"), b.chain("to_resolver_tcp")
	egress := b.chain("egress")
	refuse := b.chain("refuse")
	leave, arrive := b.chain("leave"), b.chain("arrive")

	ours, theirs, out, notOut := b.iif(expr.CmpOpEq), b.iif(expr.CmpOpNeq), b.oif(expr.CmpOpEq), b.oif(expr.CmpOpNeq)
	drop := join(counter(), verdict(expr.VerdictDrop))
	accept := verdict(expr.VerdictAccept)
	resolver := func(proto byte, port int) []expr.Any {
		return join(addrIs(daddr, b.gw), l4proto(proto), thPort(port, 53))
	}

	b.rule(prerouting, ours, jump(from))
	// From outside nobody speaks to the subnet: answers come to the masqueraded address.
	b.rule(prerouting, theirs, iifNot("lo"), addrIn(daddr, b.subnetSet), drop)

	b.rule(from, notIPv4(), drop)
	b.rule(from, b.source(), drop)
	b.rule(from, resolver(unix.IPPROTO_UDP, dstPort), goTo(dnsUDP))
	b.rule(from, resolver(unix.IPPROTO_TCP, dstPort), goTo(dnsTCP))
	b.rule(from, jump(egress))
	b.rule(from, accept)

	// The forwarder's packets are not tracked: a flood of queries takes no entries.
	b.rule(dnsUDP, b.meter(b.dnsUDP, over(b.limits.dns)), drop)
	b.rule(dnsTCP, tcpSyn(), b.meter(b.dnsTCP, over(b.limits.dns)), drop)
	for _, c := range []*nftables.Chain{dnsUDP, dnsTCP} {
		b.rule(c, notrack())
		b.rule(c, accept)
	}
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		b.rule(output, out, addrIs(saddr, b.gw), l4proto(proto), thPort(srcPort, 53), notrack())
		b.rule(input, ours, resolver(proto, dstPort), accept)
	}
	b.rule(input, ours, drop)

	// Every address of the host, also one added later, and broadcast and multicast.
	b.rule(egress, daddrNotUnicast(), goTo(refuse))
	b.rule(egress, addrIn(daddr, b.blocked), goTo(refuse))
	b.rule(refuse, b.meter(b.refused, within(b.limits.refusals)), reject())
	b.rule(refuse, drop)

	b.rule(forward, ours, goTo(leave))
	b.rule(forward, out, goTo(arrive))
	b.rule(leave, out, drop)
	b.rule(leave, notIPv4(), drop)
	b.rule(leave, ctState(expr.CtStateBitESTABLISHED), accept)
	b.rule(leave, ctState(expr.CtStateBitINVALID), drop)
	b.rule(leave, jump(egress))
	b.rule(leave, ctState(expr.CtStateBitNEW), b.meter(b.fresh, over(b.limits.newConns)), drop)
	b.rule(leave, ctState(expr.CtStateBitNEW), b.meter(b.conns, countOver(b.limits.conns)), drop)
	b.rule(arrive, ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept)
	b.rule(arrive, drop)

	b.rule(postrouting, addrIn(saddr, b.subnetSet), notOut, []expr.Any{&expr.Masq{FullyRandom: true}})
}

func assignedSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{
		Table: t, Name: setAssignedName, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr),
	}
}

func assignedElement(at Attachment) nftables.SetElement {
	return nftables.SetElement{Key: append(ifname(at.HostIf), at.Addr.AsSlice()...)}
}

// setAssigned adds a container's address to the table, or removes it. Both succeed when it is so already.
func setAssigned(nm names, at Attachment, present bool) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	s := assignedSet(&nftables.Table{Name: nm.table, Family: nftables.TableFamilyINet})
	change, what := c.SetAddElements, "assign"
	if !present {
		change, what = c.SetDeleteElements, "withdraw"
	}
	if err := change(s, []nftables.SetElement{assignedElement(at)}); err != nil {
		return fmt.Errorf("%s %s: %w", what, at.Addr, err)
	}
	err = c.Flush()
	if !present && errors.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s %s in nftables table %s: %w", what, at.Addr, nm.table, err)
	}
	return nil
}

// fingerprint names every rule of the instance's table; empty when there is none.
func fingerprint(nm names) (map[string]bool, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	seen := make(map[string]bool)
	for _, ch := range chains {
		if ch.Table.Name != nm.table {
			continue
		}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return nil, fmt.Errorf("list rules of nftables table %s: %w", nm.table, err)
		}
		for _, r := range rules {
			seen[fmt.Sprintf("%s/%d", ch.Name, r.Handle)] = true
		}
	}
	return seen, nil
}

// assignedAddrs returns the addresses in the table by link.
func assignedAddrs(nm names) (map[string]netip.Addr, error) {
	elems, err := setElements(nm.table, setAssignedName)
	if err != nil {
		return nil, err
	}
	m := make(map[string]netip.Addr, len(elems))
	for _, e := range elems {
		if len(e.Key) == unix.IFNAMSIZ+4 {
			m[unix.ByteSliceToString(e.Key[:unix.IFNAMSIZ])] = netip.AddrFrom4([4]byte(e.Key[unix.IFNAMSIZ:]))
		}
	}
	return m, nil
}

// tableSubnet returns the subnet of an instance's table; zero when there is no such table.
func tableSubnet(table string) (netip.Prefix, error) {
	elems, err := setElements(table, setSubnetName)
	if err != nil {
		return netip.Prefix{}, err
	}
	var first, end uint32
	for _, e := range elems {
		if len(e.Key) != 4 {
			continue
		}
		if v := binaryutil.BigEndian.Uint32(e.Key); e.IntervalEnd {
			end = v
		} else if v != 0 {
			first = v
		}
	}
	for bits := 16; bits <= 32; bits++ {
		if end > first && first != 0 && end-first == 1<<(32-bits) {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte(binaryutil.BigEndian.PutUint32(first))), bits), nil
		}
	}
	return netip.Prefix{}, nil
}

func setElements(table, set string) ([]nftables.SetElement, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	t := &nftables.Table{Name: table, Family: nftables.TableFamilyINet}
	elems, err := c.GetSetElements(&nftables.Set{Table: t, Name: set})
	if err == nil {
		return elems, nil
	}
	// The library keeps the listing's error to itself; asking for the set tells whether it is there.
	if _, absent := c.GetSetByName(t, set); errors.Is(absent, syscall.ENOENT) {
		return nil, nil
	}
	return nil, fmt.Errorf("read set %s of nftables table %s: %w", set, table, nftCure(err))
}

// berthTables lists the tables of all instances.
func berthTables() ([]string, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", nftCure(err))
	}
	var ours []string
	for _, t := range tables {
		if strings.HasPrefix(t.Name, tablePrefix) {
			ours = append(ours, t.Name)
		}
	}
	return ours, nil
}

func removeTable(nm names) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := &nftables.Table{Name: nm.table, Family: nftables.TableFamilyINet}
	c.AddTable(t)
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", nm.table, err)
	}
	return nil
}
