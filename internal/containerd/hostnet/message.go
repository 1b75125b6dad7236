package hostnet

import (
	"encoding/binary"
	"errors"
	"io"
	"strings"

	"github.com/miekg/dns"
)

// query is what a container asked, and how it wants the answer.
type query struct {
	id       uint16
	question dns.Question
	opcode   int
	rd, cd   bool
	ad       bool
	edns     bool
	do       bool
	udpSize  uint16
}

const headerBytes = 12

// parseQuery reads a query. Without one it returns the reply that the packet deserves, nil for none: never to a reply,
// or two servers could be set to talk for ever.
func parseQuery(b []byte) (*query, *dns.Msg) {
	if len(b) < headerBytes || b[2]&0x80 != 0 {
		return nil, nil
	}
	var m dns.Msg
	if err := m.Unpack(b); err != nil {
		reply := &dns.Msg{}
		reply.Id, reply.Response, reply.Rcode = binary.BigEndian.Uint16(b), true, dns.RcodeFormatError
		return nil, reply
	}
	q := &query{id: m.Id, opcode: m.Opcode, rd: m.RecursionDesired, cd: m.CheckingDisabled, ad: m.AuthenticatedData}
	if len(m.Question) == 1 {
		q.question = m.Question[0]
	}
	if opt := m.IsEdns0(); opt != nil {
		q.edns, q.do, q.udpSize = true, opt.Do(), max(opt.UDPSize(), dns.MinMsgSize)
		if opt.Version() != 0 {
			return nil, failure(q, dns.RcodeBadVers)
		}
	}
	switch {
	case m.Opcode != dns.OpcodeQuery:
		return nil, failure(q, dns.RcodeNotImplemented)
	case len(m.Question) != 1:
		return nil, failure(q, dns.RcodeFormatError)
	case q.question.Qclass != dns.ClassINET, q.question.Qtype == dns.TypeAXFR, q.question.Qtype == dns.TypeIXFR,
		q.question.Qtype == dns.TypeOPT, q.question.Qtype == dns.TypeTSIG:
		return nil, failure(q, dns.RcodeRefused)
	}
	return q, nil
}

// upstream is the query as it is sent on: the question and the flags that say how to answer it, nothing else of the
// client's.
func (q *query) upstream() *dns.Msg {
	m := &dns.Msg{Question: []dns.Question{q.question}}
	m.Id = dns.Id()
	m.RecursionDesired, m.CheckingDisabled, m.AuthenticatedData = q.rd, q.cd, q.ad
	if q.edns {
		m.SetEdns0(min(q.udpSize, maxUDPAnswer), q.do)
	}
	return m
}

// answers says whether a response is one to the message (RFC 5452, section 9.1). The id was compared already.
func answers(m, resp *dns.Msg) bool {
	if resp == nil || !resp.Response || resp.Id != m.Id || len(resp.Question) != 1 {
		return false
	}
	a, b := m.Question[0], resp.Question[0]
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}

// fitAnswer makes a server's response the reply to the client.
func fitAnswer(q *query, resp *dns.Msg, tcp bool) *dns.Msg {
	resp.Id, resp.Question, resp.Compress = q.id, []dns.Question{q.question}, true
	resp.Extra = withoutOPT(resp)
	if !q.edns && resp.Rcode > 0xf {
		resp.Rcode = dns.RcodeServerFailure // a code that only EDNS can say
	}
	size := dns.MaxMsgSize
	if !tcp {
		size = dns.MinMsgSize
		if q.edns {
			size = int(min(q.udpSize, maxUDPAnswer))
		}
	}
	if q.edns {
		setOPT(resp, q.do)
	}
	if resp.Len() > size {
		resp.Truncate(size)
	}
	return resp
}

// withoutOPT drops the options: they are between two neighbours alone (RFC 6891, section 6.1.1). What they add to the
// code was moved there by Unpack.
func withoutOPT(resp *dns.Msg) []dns.RR {
	var extra []dns.RR
	for _, rr := range resp.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			extra = append(extra, rr)
		}
	}
	return extra
}

func setOPT(m *dns.Msg, do bool) {
	opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	opt.SetUDPSize(maxUDPAnswer)
	if do {
		opt.SetDo()
	}
	m.Extra = append(m.Extra, opt)
}

// failure is a reply that says only how the query failed.
func failure(q *query, rcode int) *dns.Msg {
	m := &dns.Msg{}
	m.Id, m.Response, m.Opcode, m.RecursionDesired, m.RecursionAvailable = q.id, true, q.opcode, q.rd, true
	m.CheckingDisabled, m.Rcode = q.cd, rcode
	if q.question.Name != "" {
		m.Question = []dns.Question{q.question}
	}
	if q.edns {
		setOPT(m, q.do)
	}
	return m
}

// pack returns the wire form; nil for no message, or for one that has none.
func pack(m *dns.Msg) []byte {
	if m == nil {
		return nil
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

var errQuerySize = errors.New("a query of no plausible size")

// readTCPQuery reads a query with its length before it (RFC 1035, section 4.2.2).
func readTCPQuery(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n < headerBytes || n > maxQueryBytes {
		return nil, errQuerySize
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}
