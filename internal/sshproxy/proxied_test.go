package sshproxy

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	gossh "golang.org/x/crypto/ssh"
)

// handedOn is a connection as a load balancer makes it.
func handedOn(t *testing.T, g *gatewayUnderTest, header []byte) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if _, err := nc.Write(header); err != nil {
		t.Fatal(err)
	}
	return nc
}

// A listed load balancer's clients are known by their own addresses, to the audit log and to what runs for them.
func TestProxyProtocol(t *testing.T) {
	l := newLedger()
	h := newHarbour(t, Options{Record: l.record, Balancers: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	client := &net.TCPAddr{IP: net.IPv4(203, 0, 113, 9), Port: 4711}
	client6 := &net.TCPAddr{IP: net.ParseIP("2001:db8::9"), Port: 4711}
	for name, tc := range map[string]struct {
		version      byte
		source, dest *net.TCPAddr
	}{
		"version 1":           {1, client, &net.TCPAddr{IP: net.IPv4(198, 51, 100, 1), Port: 22}},
		"version 2":           {2, client, &net.TCPAddr{IP: net.IPv4(198, 51, 100, 1), Port: 22}},
		"version 2 over IPv6": {2, client6, &net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 22}},
	} {
		header, err := proxyproto.HeaderProxyFromAddrs(tc.version, tc.source, tc.dest).Format()
		if err != nil {
			t.Fatal(err)
		}
		nc := handedOn(t, h.gatewayUnderTest, header)
		sc, channels, requests, err := gossh.NewClientConn(nc, h.addr, h.clientConfig("aaaaaaaa", h.key))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		c := gossh.NewClient(sc, channels, requests)
		before := len(l.all())
		out, err := tryRun(c, "echo $SSH_CONNECTION")
		port := func(a *net.TCPAddr) string { return fmt.Sprintf("%s %d", a.IP, a.Port) }
		if want := port(tc.source) + " " + port(tc.dest) + "\n"; err != nil || out != want {
			t.Errorf("%s: SSH_CONNECTION is %q (%v), want %q", name, out, err, want)
		}
		c.Close()
		for _, r := range l.await(t, before+1) {
			if host, _, err := net.SplitHostPort(r.Source); err != nil || host != client.IP.String() && host != client6.IP.String() {
				t.Errorf("%s: recorded from %s", name, r.Source)
			}
		}
	}

	t.Run("the client's bytes come with the header", func(t *testing.T) {
		header, err := proxyproto.HeaderProxyFromAddrs(1, client, client).Format()
		if err != nil {
			t.Fatal(err)
		}
		nc := handedOn(t, h.gatewayUnderTest, append(header, "not SSH at all\r\n"...))
		within(t, 30*time.Second, "the end", func() {
			var said bytes.Buffer
			if _, err := said.ReadFrom(nc); err != nil || !strings.HasPrefix(said.String(), "SSH-2.0-") {
				t.Errorf("%q, %v", &said, err)
			}
		})
	})
	t.Run("stock OpenSSH", func(t *testing.T) {
		host, port, _ := net.SplitHostPort(h.addr)
		proxy := fmt.Sprintf(`exec 3<>/dev/tcp/%s/%s; printf "PROXY TCP4 203.0.113.9 198.51.100.1 4711 22\r\n" >&3; cat <&0 >&3 & exec cat <&3`, host, port)
		out, said, code := h.stock.run("", "-o", "ProxyCommand=bash -c '"+proxy+"'", "aaaaaaaa@"+zone, "echo $SSH_CLIENT")
		if out != "203.0.113.9 4711 22\n" {
			t.Errorf("%q, code %d: %s", out, code, said)
		}
	})
	// A balancer's own look whether somebody answers is nobody's but its own.
	t.Run("its own", func(t *testing.T) {
		header, err := (&proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}).Format()
		if err != nil {
			t.Fatal(err)
		}
		nc := handedOn(t, h.gatewayUnderTest, header)
		sc, channels, requests, err := gossh.NewClientConn(nc, h.addr, h.clientConfig("aaaaaaaa", h.key))
		if err != nil {
			t.Fatal(err)
		}
		defer sc.Close()
		if out, err := tryRun(gossh.NewClient(sc, channels, requests), "echo $SSH_CLIENT"); err != nil || !strings.HasPrefix(out, "127.0.0.1 ") {
			t.Errorf("%q, %v", out, err)
		}
	})
	for name, header := range map[string]string{
		"no header":      "SSH-2.0-client\r\n",
		"one cut off":    "PROXY TCP4 203.0.113.9",
		"one of UDP":     "\r\n\r\n\x00\r\nQUIT\n\x21\x12\x00\x0c\xcb\x00\x71\x09\xc6\x33\x64\x01\x00\x01\x00\x16",
		"one of no form": "PROXY TCP4 a b c d\r\n",
	} {
		nc := handedOn(t, h.gatewayUnderTest, []byte(header))
		within(t, 30*time.Second, name, func() {
			if n, _ := nc.Read(make([]byte, 1)); n != 0 {
				t.Errorf("%s: it is answered", name)
			}
		})
	}
}

// Nobody else is believed.
func TestForgedProxyProtocol(t *testing.T) {
	l := newLedger()
	h := newHarbour(t, Options{Record: l.record, Balancers: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	header, err := proxyproto.HeaderProxyFromAddrs(1, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 22}).Format()
	if err != nil {
		t.Fatal(err)
	}
	nc := handedOn(t, h.gatewayUnderTest, header)
	if _, _, _, err := gossh.NewClientConn(nc, h.addr, h.clientConfig("aaaaaaaa", h.key)); err == nil {
		t.Error("it is let in")
	}
	h.login(t)
	for _, r := range l.await(t, 1) {
		if !strings.HasPrefix(r.Source, "127.0.0.1:") {
			t.Errorf("recorded from %s", r.Source)
		}
	}
}
