package hostnet

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// server is the Internet's DNS server: a.example., big.example. (3 kB of TXT) and slow.example., which is never
// answered.
type server struct {
	asked atomic.Int64
	stop  chan struct{}
}

func newDNS(t *testing.T, w *world) *server {
	t.Helper()
	s := &server{stop: make(chan struct{})}
	var udp net.PacketConn
	var tcp net.Listener
	w.router.do(func() (err error) {
		if udp, err = net.ListenPacket("udp4", internet+":53"); err == nil {
			tcp, err = net.Listen("tcp4", internet+":53")
		}
		return err
	})
	servers := []*dns.Server{{PacketConn: udp, Handler: s}, {Listener: tcp, Handler: s}}
	done := make(chan error, len(servers))
	for _, srv := range servers {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() { done <- srv.ActivateAndServe() }()
		<-started
	}
	t.Cleanup(func() {
		close(s.stop)
		for _, srv := range servers {
			check(t, srv.Shutdown())
			check(t, <-done)
		}
	})
	return s
}

func (s *server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	s.asked.Add(1)
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	name := q.Question[0].Name
	switch strings.ToLower(name) {
	case "a.example.":
		m.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(internet),
		}}
	case "big.example.":
		for i := range 30 {
			m.Answer = append(m.Answer, &dns.TXT{
				Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60},
				Txt: []string{fmt.Sprintf("%02d", i) + strings.Repeat("x", 98)},
			})
		}
	case "slow.example.":
		<-s.stop
		return
	case "other.example.": // an answer to another question
		m.Question[0].Name = "a.example."
	default:
		m.Rcode = dns.RcodeNameError
	}
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(4096, opt.Do())
	}
	if _, tcp := w.RemoteAddr().(*net.TCPAddr); !tcp {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		m.Truncate(size)
	}
	_ = w.WriteMsg(m)
}

// ask sends a query from inside s.
func (s *space) ask(gw netip.Addr, network string, m *dns.Msg, timeout time.Duration) (resp *dns.Msg, err error) {
	c := dns.Client{Net: network, Timeout: timeout}
	if opt := m.IsEdns0(); opt != nil {
		c.UDPSize = opt.UDPSize()
	}
	err = inNetns(s.fd, func() (err error) {
		resp, _, err = c.Exchange(m, netip.AddrPortFrom(gw, 53).String())
		return err
	})
	return resp, err
}

func question(name string, typ uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, typ) }

func (s *space) lookup(gw netip.Addr, network, name string, timeout time.Duration) (string, error) {
	resp, err := s.ask(gw, network, question(name, dns.TypeA), timeout)
	if err != nil {
		return "", err
	}
	if len(resp.Answer) != 1 {
		return "", fmt.Errorf("rcode %s with %d answers", dns.RcodeToString[resp.Rcode], len(resp.Answer))
	}
	return resp.Answer[0].(*dns.A).A.String(), nil
}

func (s *space) mustLookup(gw netip.Addr, network, name string) string {
	s.t.Helper()
	got, err := s.lookup(gw, network, name, patience)
	check(s.t, err)
	return got
}

func dnsProbe(name string, s *space, gw netip.Addr) probe {
	return probe{name: name, guarded: true, reaches: func(wait time.Duration) bool {
		_, err := s.ask(gw, "udp", question("absent.example.", dns.TypeA), wait)
		return err == nil
	}}
}

func TestResolves(t *testing.T) {
	newDNS(t, newWorld(t))
	n := open(t, Options{})
	s, _ := attach(t, n, "0000000a")
	for _, network := range []string{"udp", "tcp"} {
		for _, name := range []string{"a.example.", "A.eXample."} {
			if got := s.mustLookup(n.Gateway(), network, name); got != internet {
				t.Errorf("%s over %s is %s", name, network, got)
			}
		}
		for _, c := range []struct {
			name  string
			rcode int
		}{
			{"absent.example.", dns.RcodeNameError},
			{"other.example.", dns.RcodeServerFailure},
		} {
			resp, err := s.ask(n.Gateway(), network, question(c.name, dns.TypeA), patience)
			check(t, err)
			if resp.Rcode != c.rcode || !strings.EqualFold(resp.Question[0].Name, c.name) {
				t.Errorf("%s over %s: %v", c.name, network, resp)
			}
		}
	}
}

func TestTruncates(t *testing.T) {
	newDNS(t, newWorld(t))
	n := open(t, Options{})
	s, _ := attach(t, n, "0000000a")
	for _, size := range []uint16{0, 100, 512, 1232, 65535} {
		q := question("big.example.", dns.TypeTXT)
		most := dns.MinMsgSize
		if size > 0 {
			q.SetEdns0(size, true)
			most = min(max(int(size), dns.MinMsgSize), maxUDPAnswer)
		}
		resp, err := s.ask(n.Gateway(), "udp", q, patience)
		check(t, err)
		resp.Compress = true
		if !resp.Truncated || resp.Len() > most {
			t.Errorf("with a size of %d: truncated %t, %d bytes", size, resp.Truncated, resp.Len())
		}
		if opt := resp.IsEdns0(); (opt != nil) != (size > 0) || opt != nil && !opt.Do() {
			t.Errorf("with a size of %d: options %v", size, opt)
		}
		resp, err = s.ask(n.Gateway(), "tcp", q, patience)
		check(t, err)
		if resp.Truncated || len(resp.Answer) != 30 {
			t.Errorf("over TCP: truncated %t, %d answers", resp.Truncated, len(resp.Answer))
		}
	}
}

func TestRefusesOddQueries(t *testing.T) {
	up := newDNS(t, newWorld(t))
	n := open(t, Options{})
	s, _ := attach(t, n, "0000000a")
	chaos := question("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	two := question("a.example.", dns.TypeA)
	two.Question = append(two.Question, two.Question[0])
	notify := question("a.example.", dns.TypeSOA)
	notify.Opcode = dns.OpcodeNotify
	update := new(dns.Msg).SetUpdate("a.example.")
	future := question("a.example.", dns.TypeA)
	future.SetEdns0(1232, false)
	future.IsEdns0().SetVersion(1)
	for _, c := range []struct {
		name  string
		q     *dns.Msg
		rcode int
	}{
		{"zone transfer", question("a.example.", dns.TypeAXFR), dns.RcodeRefused},
		{"incremental zone transfer", question("a.example.", dns.TypeIXFR), dns.RcodeRefused},
		{"another class", chaos, dns.RcodeRefused},
		{"two questions", two, dns.RcodeFormatError},
		{"no question", &dns.Msg{MsgHdr: dns.MsgHdr{Id: 7}}, dns.RcodeFormatError},
		{"notify", notify, dns.RcodeNotImplemented},
		{"update", update, dns.RcodeNotImplemented},
		{"later EDNS", future, dns.RcodeBadVers},
	} {
		for _, network := range []string{"udp", "tcp"} {
			resp, err := s.ask(n.Gateway(), network, c.q, 5*time.Second)
			if err != nil || resp.Rcode != c.rcode {
				t.Errorf("%s over %s: %v, %v", c.name, network, resp, err)
			}
		}
	}
	if got := up.asked.Load(); got != 0 {
		t.Errorf("%d queries reached the server", got)
	}
	// A reply gets none, or two servers talk for ever.
	reply := question("a.example.", dns.TypeA)
	reply.Response = true
	if resp, err := s.ask(n.Gateway(), "udp", reply, refusedAfter); err == nil {
		t.Errorf("a reply is answered with %v", resp)
	}
}

func TestServersFail(t *testing.T) {
	newDNS(t, newWorld(t))
	n := open(t, Options{Upstreams: []netip.AddrPort{
		netip.MustParseAddrPort(internet + ":5"), // nobody there
		netip.MustParseAddrPort(internet + ":53"),
	}})
	s, _ := attach(t, n, "0000000a")
	for _, network := range []string{"udp", "tcp"} {
		s.mustLookup(n.Gateway(), network, "a.example.")
		resp, err := s.ask(n.Gateway(), network, question("slow.example.", dns.TypeA), 5*time.Second)
		if err != nil || resp.Rcode != dns.RcodeServerFailure {
			t.Errorf("no server answers, over %s: %v, %v", network, resp, err)
		}
	}
}

// stubTimeout is when glibc's resolver asks again.
const stubTimeout = 5 * time.Second

// TestFloodBeside has one container flood the forwarder in every way that it can while another looks up names.
func TestFloodBeside(t *testing.T) {
	up := newDNS(t, newWorld(t))
	n := open(t, Options{})
	a, atA := attach(t, n, "0000000a")
	b, _ := attach(t, n, "0000000b")

	slow, err := question("slow.example.", dns.TypeA).Pack()
	check(t, err)
	stop := make(chan struct{})
	flooded := make(chan int, 2)
	flood := func(f func() int) {
		go func() {
			sent := 0
			for {
				select {
				case <-stop:
					flooded <- sent
					return
				default:
				}
				sent += f()
			}
		}()
	}
	frame := udpFrame(atA.ID, netip.AddrPortFrom(atA.Addr, 4000), netip.AddrPortFrom(n.Gateway(), 53), string(slow))
	burst := make([][]byte, 500)
	for i := range burst {
		burst[i] = frame
	}
	flood(func() int {
		a.ethernet(0x0800, burst...)
		return len(burst)
	})
	flood(func() int { // connections that say nothing; what is refused is as it should be
		_ = inNetns(a.fd, func() error {
			c, err := net.DialTimeout("tcp4", netip.AddrPortFrom(n.Gateway(), 53).String(), 100*time.Millisecond)
			if err == nil {
				t.Cleanup(func() { _ = c.Close() })
			}
			return err
		})
		return 1
	})
	begin := time.Now()
	var slowest time.Duration
	lookups := 0
	pace := time.NewTicker(20 * time.Millisecond) // under the limit that holds for this container too
	defer pace.Stop()
	for time.Since(begin) < 3*time.Second {
		<-pace.C
		lookups++
		for _, network := range []string{"udp", "tcp"} {
			at := time.Now()
			if _, err := b.lookup(n.Gateway(), network, "a.example.", stubTimeout); err != nil {
				t.Errorf("lookup %d over %s beside the flood: %v", lookups, network, err)
			}
			slowest = max(slowest, time.Since(at))
		}
	}
	close(stop)
	sent := <-flooded + <-flooded
	took := time.Since(begin)
	t.Logf("%d lookups beside %d of a flood in %v, the slowest %v; the server was asked %d times",
		2*lookups, sent, took, slowest, up.asked.Load())
	if most := int64(2*lookups + 2*dnsPerSecond*int(took.Seconds()+2)); up.asked.Load() > most {
		t.Errorf("the server was asked %d times, at most %d expected", up.asked.Load(), most)
	}
	if held := n.resolver.conns.heldBy(atA.Addr); held > maxClientConns {
		t.Errorf("the container holds %d connections", held)
	}
}

func (a *admission) heldBy(c netip.Addr) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.held[c]
}

func TestAdmission(t *testing.T) {
	a := admission{total: 3, each: 4, always: 2}
	x, y, z := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	enter := func(c netip.Addr, want ...bool) {
		t.Helper()
		for i, w := range want {
			if got := a.enter(c); got != w {
				t.Errorf("place %d of %s: %t", i, c, got)
			}
		}
	}
	enter(x, true, true, true, true, false)
	enter(y, true, true, true, false) // the last extra one is gone
	enter(z, true, true, false)       // and yet each has two
	a.leave(x)
	enter(z, true)
	for range 3 {
		a.leave(x)
		a.leave(y)
		a.leave(z)
	}
	if len(a.held) != 0 || a.extra != 0 {
		t.Errorf("all have left, and %v and %d are held", a.held, a.extra)
	}
}
