package hostnet

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The words that rules are made of. Register 1 is the first of 16 bytes; 2, the next 16, continues a concatenation.

// Offsets of the addresses in an IPv4 header, and of the ports in a UDP or TCP header.
const (
	saddr   = 12
	daddr   = 16
	srcPort = 0
	dstPort = 2
)

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func (b *builder) base(
	name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority,
) *nftables.Chain {
	return b.c.AddChain(&nftables.Chain{Name: name, Table: b.t, Type: typ, Hooknum: hook, Priority: prio})
}

func (b *builder) chain(name string) *nftables.Chain {
	return b.c.AddChain(&nftables.Chain{Name: name, Table: b.t})
}

func (b *builder) rule(c *nftables.Chain, parts ...[]expr.Any) {
	b.rules++
	b.c.AddRule(&nftables.Rule{Table: b.t, Chain: c, Exprs: join(parts...)})
}

// iif matches packets that come from one of the instance's links, oif those that go to one.
func (b *builder) iif(op expr.CmpOp) []expr.Any { return b.link(expr.MetaKeyIIFNAME, op) }
func (b *builder) oif(op expr.CmpOp) []expr.Any { return b.link(expr.MetaKeyOIFNAME, op) }

func (b *builder) link(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: []byte(b.nm.links)}}
}

func iifNot(name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: ifname(name)},
	}
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// source matches packets whose link and source address are not an assigned pair.
func (b *builder) source() []expr.Any {
	return join(ipv4(), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Payload{DestRegister: 2, Base: expr.PayloadBaseNetworkHeader, Offset: saddr, Len: 4},
		&expr.Lookup{SourceRegister: 1, SetName: b.assigned.Name, SetID: b.assigned.ID, Invert: true},
	})
}

func ipv4() []expr.Any    { return nfproto(expr.CmpOpEq) }
func notIPv4() []expr.Any { return nfproto(expr.CmpOpNeq) }

func nfproto(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
	}
}

func l4proto(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}},
	}
}

// address loads an address of an IPv4 packet, and ends the rule for others.
func address(offset uint32) []expr.Any {
	return join(ipv4(), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
	})
}

func addrIs(offset uint32, a netip.Addr) []expr.Any {
	return join(address(offset), []expr.Any{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()}})
}

func addrIn(offset uint32, s *nftables.Set) []expr.Any {
	return join(address(offset), []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}})
}

func thPort(offset int, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: uint32(offset), Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

// tcpSyn matches what opens a connection: SYN without ACK.
func tcpSyn() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x12}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x02}},
	}
}

// daddrNotUnicast matches destinations that the kernel's local table knows: the host's addresses, broadcast and
// multicast.
func daddrNotUnicast() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)},
	}
}

func ctState(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: binaryutil.NativeEndian.PutUint32(0),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)},
	}
}

// meter applies a limit to each source address by itself.
func (b *builder) meter(s *nftables.Set, limit expr.Any) []expr.Any {
	op := uint32(unix.NFT_DYNSET_OP_UPDATE)
	if !s.HasTimeout {
		op = unix.NFT_DYNSET_OP_ADD
	}
	return join(address(saddr), []expr.Any{
		&expr.Dynset{
			SrcRegKey: 1, SetName: s.Name, SetID: s.ID, Operation: op, Timeout: s.Timeout, Exprs: []expr.Any{limit},
		},
	})
}

// within matches up to so many packets a second, over those beyond. A burst of two seconds' worth is let through.
func within(perSecond int) expr.Any { return rate(perSecond, false) }
func over(perSecond int) expr.Any   { return rate(perSecond, true) }

func rate(perSecond int, over bool) expr.Any {
	return &expr.Limit{
		Type: expr.LimitTypePkts, Rate: uint64(perSecond), Unit: expr.LimitTimeSecond,
		Burst: uint32(2 * perSecond), Over: over,
	}
}

// countOver matches a packet whose connection would be one more than so many.
func countOver(n int) expr.Any {
	return &expr.Connlimit{Count: uint32(n), Flags: expr.NFT_CONNLIMIT_F_INV}
}

func counter() []expr.Any { return []expr.Any{&expr.Counter{}} }
func notrack() []expr.Any { return []expr.Any{&expr.Notrack{}} }

func reject() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func jump(c *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: c.Name}}
}

func goTo(c *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: c.Name}}
}

// rangeElements are the two bounds of a range in an interval set.
func rangeElements(p netip.Prefix) []nftables.SetElement {
	return []nftables.SetElement{
		{Key: p.Addr().AsSlice()},
		{Key: lastAddr(p).Next().AsSlice(), IntervalEnd: true},
	}
}
