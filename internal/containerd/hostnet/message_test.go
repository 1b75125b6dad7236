package hostnet

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func FuzzParseQuery(f *testing.F) {
	q := question("a.example.", dns.TypeA)
	for _, edns := range []bool{false, true} {
		if edns {
			q.SetEdns0(1232, true)
		}
		b, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-3])
	}
	f.Add([]byte{})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, reply := parseQuery(b)
		if q != nil && reply != nil {
			t.Fatal("both a query and a reply")
		}
		if reply != nil {
			wire := pack(reply)
			if wire == nil {
				t.Fatalf("a reply without a wire form: %v", reply)
			}
			if wire[2]&0x80 == 0 || !bytes.Equal(wire[:2], b[:2]) {
				t.Fatalf("not a reply to the query: %v", reply)
			}
			if again, second := parseQuery(wire); again != nil || second != nil {
				t.Fatal("a reply is answered")
			}
		}
		if q == nil {
			return
		}
		up := q.upstream()
		wire := pack(up)
		if wire == nil || len(wire) > dns.MinMsgSize {
			t.Fatalf("a query sent on has %d bytes: %v", len(wire), up)
		}
		var back dns.Msg
		if err := back.Unpack(wire); err != nil || len(back.Question) != 1 {
			t.Fatalf("a query sent on is unreadable: %v, %v", err, up)
		}
		if pack(failure(q, dns.RcodeServerFailure)) == nil {
			t.Fatal("no failure for the query")
		}
		resp := new(dns.Msg).SetReply(up)
		if !answers(up, resp) || pack(fitAnswer(q, resp, false)) == nil {
			t.Fatalf("an empty answer does not fit: %v", resp)
		}
	})
}

// FuzzFitAnswer takes whatever a server says.
func FuzzFitAnswer(f *testing.F) {
	m := question("a.example.", dns.TypeTXT)
	m.Response = true
	for range 20 {
		m.Answer = append(m.Answer, &dns.TXT{
			Hdr: dns.RR_Header{Name: "a.example.", Rrtype: dns.TypeTXT, Class: dns.ClassINET},
			Txt: []string{string(make([]byte, 200))},
		})
	}
	b, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, uint16(512), true, false)
	f.Add(b, uint16(4096), false, true)
	f.Fuzz(func(t *testing.T, b []byte, size uint16, edns, tcp bool) {
		var resp dns.Msg
		if resp.Unpack(b) != nil || len(resp.Question) != 1 {
			return
		}
		q := &query{id: 7, question: resp.Question[0], rd: true, edns: edns, udpSize: max(size, dns.MinMsgSize)}
		out := fitAnswer(q, &resp, tcp)
		wire := pack(out)
		if wire == nil {
			return // the caller answers with a failure
		}
		limit := dns.MaxMsgSize
		if !tcp {
			limit = dns.MinMsgSize
			if edns {
				limit = int(min(q.udpSize, maxUDPAnswer))
			}
		}
		if len(wire) > limit && len(resp.Question) == 1 && len(out.Answer) > 0 {
			t.Fatalf("%d bytes where %d fit", len(wire), limit)
		}
	})
}

func FuzzReadTCPQuery(f *testing.F) {
	f.Add([]byte{0, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})
	f.Add([]byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := readTCPQuery(bytes.NewReader(b))
		if err == nil && (len(q) < headerBytes || len(q) > maxQueryBytes || !bytes.Equal(q, b[2:2+len(q)])) {
			t.Fatalf("read %d bytes of %d", len(q), len(b))
		}
	})
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"))
	f.Add([]byte("nameserver fe80::1%eth0\nnameserver ::1\n# nameserver 1.2.3.4\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := parseResolvConf(b)
		if len(s) == 0 || len(s) > maxUpstreams {
			t.Fatalf("%d servers", len(s))
		}
		for _, a := range s {
			if !a.IsValid() || a.Port() != 53 {
				t.Fatalf("server %s", a)
			}
		}
	})
}

func FuzzNetlinkMessages(f *testing.F) {
	f.Add([]byte{16, 0, 0, 0, 1, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, b []byte) { anyMessage(b, tableChanges.matters) })
}

func TestParseResolvConf(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string
	}{
		{"nameserver 127.0.0.53\n", []string{"127.0.0.53:53"}},
		{
			"# x\n; y\nsearch example\nnameserver\t192.0.2.1  \nnameserver 2001:db8::1\n",
			[]string{"192.0.2.1:53", "[2001:db8::1]:53"},
		},
		{"nameserver fe80::1%eth0", []string{"[fe80::1%eth0]:53"}},
		{strings.Repeat("nameserver 1.1.1.1\n", 4), []string{"1.1.1.1:53", "1.1.1.1:53", "1.1.1.1:53"}},
		{"nameserver resolver.example\n", []string{"127.0.0.1:53"}},
		{"", []string{"127.0.0.1:53"}},
	} {
		var got []string
		for _, a := range parseResolvConf([]byte(c.text)) {
			got = append(got, a.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%q gives %v, want %v", c.text, got, c.want)
		}
	}
}

func TestNamesAreOfTheDirectory(t *testing.T) {
	base := t.TempDir()
	check(t, os.Mkdir(filepath.Join(base, "real"), 0o700))
	check(t, os.Symlink("real", filepath.Join(base, "link")))
	want, err := namesOf(filepath.Join(base, "real", "a", "data"))
	check(t, err)
	for _, dir := range []string{"link/a/data", "link/a/data/", "real/./a/../a/data"} {
		if got, err := namesOf(filepath.Join(base, dir)); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", dir, got, err, want)
		}
	}
	check(t, os.MkdirAll(filepath.Join(base, "real", "a", "data"), 0o700))
	if got, err := namesOf(filepath.Join(base, "link", "a", "data")); err != nil || got != want {
		t.Errorf("once it is there: %v, %v, want %v", got, err, want)
	}
	if got, err := namesOf(filepath.Join(base, "real", "b")); err != nil || got == want {
		t.Errorf("two directories have the names %v", got)
	}
	if name := want.link("0123abcd"); len(name) > 15 {
		t.Errorf("link name %s is too long", name)
	}
}

func TestResolvConfIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) { check(t, os.WriteFile(path, []byte(text), 0o600)) }
	f := newResolvFile(path)
	first := func() netip.Addr {
		f.checked = time.Time{} // a second has passed
		return f.servers()[0].Addr()
	}
	if got := first(); got.String() != "127.0.0.1" {
		t.Errorf("without a file: %s", got)
	}
	write("nameserver 192.0.2.1\n")
	if got := first(); got.String() != "192.0.2.1" {
		t.Errorf("with a file: %s", got)
	}
	write("nameserver 192.0.2.111\n")
	if got := first(); got.String() != "192.0.2.111" {
		t.Errorf("with a changed file: %s", got)
	}
	check(t, os.Remove(path)) // as while it is being replaced
	if got := first(); got.String() != "192.0.2.111" {
		t.Errorf("with the file gone: %s", got)
	}
}
