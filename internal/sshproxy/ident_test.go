package sshproxy

import (
	"encoding/binary"
	"net"
	"strings"
	"testing"
)

func TestKnowsGCM(t *testing.T) {
	for line, want := range map[string]bool{
		"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u10": true,
		"SSH-2.0-OpenSSH_10.0":                    true,
		"SSH-2.0-OpenSSH_6.2p2":                   true,
		"SSH-2.0-OpenSSH_6.10":                    true,
		"SSH-1.99-OpenSSH_7.4":                    true,
		"SSH-2.0-OpenSSH_for_Windows_9.5":         true,
		"SSH-2.0-OpenSSH_6.1p1":                   false,
		"SSH-2.0-OpenSSH_5.9p1 Debian":            false,
		"SSH-2.0-OpenSSH_":                        false,
		"SSH-2.0-OpenSSH_9":                       false,
		"SSH-2.0-OpenSSH_x.y":                     false,
		"SSH-2.0-OpenSSH_9999999999999.1":         false,
		"SSH-2.0-PuTTY_Release_0.78":              false,
		"SSH-2.0-dropbear_2022.83":                false,
		"SSH-2.0-paramiko_OpenSSH_9.2":            false,
		"SSH-2.0-Go":                              false,
		"":                                        false,
	} {
		if got := knowsGCM(line); got != want {
			t.Errorf("knowsGCM(%q) = %v", line, got)
		}
	}
}

// kexInit is a client's first packet with these ciphers.
func kexInit(toServer, fromServer string) []byte {
	payload := append([]byte{20}, make([]byte, 16)...)
	for _, list := range []string{"curve25519-sha256", "ssh-ed25519", toServer, fromServer, "", "", "none", "none", "", ""} {
		payload = appendString(payload, []byte(list))
	}
	payload = append(payload, 0, 0, 0, 0, 0)
	packet := binary.BigEndian.AppendUint32(nil, uint32(1+len(payload)+4))
	packet = append(packet, 4)
	packet = append(packet, payload...)
	return append(packet, 0, 0, 0, 0)
}

func TestOffersGCM(t *testing.T) {
	const stock = "chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,aes128-gcm@openssh.com,aes256-gcm@openssh.com"
	whole := kexInit(stock, stock)
	for _, tt := range []struct {
		what          string
		b             []byte
		offers, known bool
	}{
		{"a stock client", whole, true, true},
		{"one with more behind it", append(kexInit(stock, stock), 1, 2, 3), true, true},
		{"AES-256 alone", kexInit("aes256-gcm@openssh.com", "aes256-gcm@openssh.com"), true, true},
		{"one way only", kexInit(stock, "aes128-ctr"), false, true},
		{"no GCM", kexInit("aes128-ctr", "aes128-ctr"), false, true},
		{"a name that contains one", kexInit("xaes128-gcm@openssh.com", "aes128-gcm@openssh.comx"), false, true},
		{"not all of it", whole[:len(whole)-1], false, false},
		{"nothing", nil, false, false},
		{"another message", append([]byte{0, 0, 0, 12, 4, 21}, make([]byte, 32)...), false, false},
		{"a length that lies", append([]byte{0xff, 0xff, 0xff, 0xff, 4, 20}, make([]byte, 64)...), false, false},
		{"padding that lies", append([]byte{0, 0, 0, 64, 255, 20}, make([]byte, 64)...), false, false},
	} {
		if offers, known := offersGCM(tt.b); offers != tt.offers || known != tt.known {
			t.Errorf("%s: %v, %v", tt.what, offers, known)
		}
	}
}

func FuzzIdentification(f *testing.F) {
	for _, s := range []string{"SSH-2.0-OpenSSH_9.2p1\r\n", "SSH-1.99-x\n", "GET / HTTP/1.1\r\n", "SSH-2.0-", "\n", strings.Repeat("x", 300)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		line, complete, bad := identification(b)
		if !complete && line != "" || bad && line != "" {
			t.Fatalf("%q: %q, %v, %v", b, line, complete, bad)
		}
		if complete && !bad && (!strings.HasPrefix(string(b), line) || len(line) >= maxIdentification || strings.Contains(line, "\n")) {
			t.Fatalf("%q: %q", b, line)
		}
		knowsGCM(line)
		// What is bad stays bad, and what is complete stays as it is, whatever comes after it.
		line2, complete2, bad2 := identification(append(b[:len(b):len(b)], 'x'))
		if bad && !bad2 || complete && (!complete2 || line2 != line) {
			t.Fatalf("%q: changes with more input", b)
		}
	})
}

func FuzzKexInit(f *testing.F) {
	f.Add(kexInit("aes128-gcm@openssh.com", "aes128-gcm@openssh.com"))
	f.Add([]byte{0, 0, 0, 12, 4, 20})
	f.Fuzz(func(t *testing.T, b []byte) {
		if offers, known := offersGCM(b); offers && !known {
			t.Fatalf("%q: offers what is not known", b)
		}
	})
}

func TestSourceOf(t *testing.T) {
	addr := func(s string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(s), Port: 1} }
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "::ffff:192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"2001:db8::1", "2001:db8::ffff", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
	} {
		if same := sourceOf(addr(tt.a)) == sourceOf(addr(tt.b)); same != tt.same {
			t.Errorf("%s and %s: %v", tt.a, tt.b, same)
		}
	}
}

func TestStartups(t *testing.T) {
	s := newStartups(3, 2)
	one, two := sourceOf(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}), sourceOf(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 2)})
	first, ok := s.admit(one)
	if !ok {
		t.Fatal("refused")
	}
	if _, ok := s.admit(one); !ok {
		t.Fatal("refused")
	}
	if _, ok := s.admit(one); ok {
		t.Error("a third of one source")
	}
	if _, ok := s.admit(two); !ok {
		t.Fatal("refused")
	}
	if _, ok := s.admit(two); ok {
		t.Error("a fourth of all")
	}
	first()
	first() // gives back one place all the same
	if _, ok := s.admit(two); !ok {
		t.Error("no place came free")
	}
	if _, ok := s.admit(one); ok {
		t.Error("two places came free")
	}
}
