package route

import (
	"strings"
	"testing"

	"berth/internal/compute"
)

func TestParseLogin(t *testing.T) {
	for _, tt := range []struct {
		name string
		want Login
		code compute.Code
	}{
		{name: "a1b2c3d4", want: Login{Container: "a1b2c3d4", User: "root"}},
		{name: "alice+a1b2c3d4", want: Login{Container: "a1b2c3d4", User: "alice"}},
		{name: "alice+x+a1b2c3d4", want: Login{Container: "a1b2c3d4", User: "alice+x"}},
		{name: "a1b2c3d4+deadbeef", want: Login{Container: "deadbeef", User: "a1b2c3d4"}},
		{name: "jürgen+a1b2c3d4", want: Login{Container: "a1b2c3d4", User: "jürgen"}},
		{name: "", want: Login{}},
		{name: "alice", want: Login{User: "alice"}},
		{name: "alice+bob", want: Login{User: "alice+bob"}},
		{name: "A1B2C3D4", want: Login{User: "A1B2C3D4"}},
		{name: "a1b2c3d4+", want: Login{User: "a1b2c3d4+"}},
		{name: "a1b2c3d4 ", want: Login{User: "a1b2c3d4 "}},
		{name: "+a1b2c3d4", code: compute.CodeNotFound},
		{name: "-oProxyCommand=x+a1b2c3d4", code: compute.CodeNotFound},
		{name: "a/b+a1b2c3d4", code: compute.CodeNotFound},
		{name: "a:b+a1b2c3d4", code: compute.CodeNotFound},
		{name: "a\x00b+a1b2c3d4", code: compute.CodeNotFound},
		{name: "a\x1b[2J+a1b2c3d4", code: compute.CodeNotFound},
		{name: "a b+a1b2c3d4", code: compute.CodeNotFound},
		{name: "\xff+a1b2c3d4", code: compute.CodeNotFound},
		{name: strings.Repeat("a", maxUser+1) + "+a1b2c3d4", code: compute.CodeNotFound},
	} {
		got, err := ParseLogin(tt.name)
		if tt.code != "" {
			if compute.CodeOf(err) != tt.code || err == nil {
				t.Errorf("ParseLogin(%q) = %v, %v; want %s", tt.name, got, err, tt.code)
			}
			continue
		}
		if err != nil || got != tt.want {
			t.Errorf("ParseLogin(%q) = %v, %v; want %v", tt.name, got, err, tt.want)
		}
	}
}

func TestJump(t *testing.T) {
	z, err := ParseZone("Compute.Example.COM.")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		host string
		port uint32
		want compute.ContainerID
	}{
		{"a1b2c3d4.compute.example.com", 22, "a1b2c3d4"},
		{"A1B2C3D4.Compute.Example.Com", 22, "a1b2c3d4"},
		{"a1b2c3d4.compute.example.com.", 22, "a1b2c3d4"},
		{"a1b2c3d4.compute.example.com..", 22, ""},
		{"a1b2c3d4.compute.example.com", 80, ""},
		{"a1b2c3d4.compute.example.com", 22 + 1<<16, ""},
		{"a1b2c3d4", 22, ""},
		{"compute.example.com", 22, ""},
		{"x.a1b2c3d4.compute.example.com", 22, ""},
		{"a1b2c3d4compute.example.com", 22, ""},
		{"a1b2c3d4.compute.example.com.evil.org", 22, ""},
		{".compute.example.com", 22, ""},
		{"localhost", 22, ""},
		{"127.0.0.1", 22, ""},
		{"169.254.169.254", 80, ""},
		{"", 22, ""},
		// The Kelvin sign folds to k in Unicode, never in DNS.
		{"a1b2c3d4.compute.example.co\u212a", 22, ""},
	} {
		got, err := z.Jump(tt.host, tt.port)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("Jump(%q, %d) = %q, %v; want %q", tt.host, tt.port, got, err, tt.want)
		}
		if err != nil && compute.CodeOf(err) != compute.CodeForbidden {
			t.Errorf("Jump(%q, %d): code %s", tt.host, tt.port, compute.CodeOf(err))
		}
	}
}

func TestParseZone(t *testing.T) {
	for s, want := range map[string]Zone{
		"compute.localhost": "compute.localhost", "Compute.Example.com.": "compute.example.com", "x": "x",
		"": "", ".": "", "a..b": "", "-a.b": "", "a-.b": "", "a_b.c": "", "a b": "", "ü.de": "",
		strings.Repeat("a", 64) + ".b": "", strings.Repeat("abc.", 64) + "d": "",
	} {
		got, err := ParseZone(s)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("ParseZone(%q) = %q, %v; want %q", s, got, err, want)
		}
	}
}

// FuzzParseLogin checks that a name is read in one way only, and that what it yields can be written back.
func FuzzParseLogin(f *testing.F) {
	for _, s := range []string{"", "a1b2c3d4", "alice+a1b2c3d4", "+a1b2c3d4", "a+b+a1b2c3d4", "alice", "\x00+deadbeef"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLogin(s)
		switch {
		case err != nil:
			if l != (Login{}) || compute.CodeOf(err) != compute.CodeNotFound {
				t.Fatalf("ParseLogin(%q) = %v, %v", s, l, err)
			}
		case l.Lobby():
			if l.User != s {
				t.Fatalf("ParseLogin(%q) = %v", s, l)
			}
		default:
			if !ValidUser(l.User) {
				t.Fatalf("ParseLogin(%q) yields the user %q", s, l.User)
			}
			if s != l.User+"+"+string(l.Container) && s != string(l.Container) {
				t.Fatalf("ParseLogin(%q) = %v", s, l)
			}
		}
	})
}

// FuzzJump checks that only a name of the zone with one id before it is ever a jump.
func FuzzJump(f *testing.F) {
	const z = Zone("compute.example.com")
	for _, s := range []string{"a1b2c3d4.compute.example.com", "A1B2C3D4.COMPUTE.example.com.", "compute.example.com", "::1", ""} {
		f.Add(s, uint32(22))
	}
	f.Fuzz(func(t *testing.T, host string, port uint32) {
		id, err := z.Jump(host, port)
		if err != nil {
			if id != "" {
				t.Fatalf("Jump(%q, %d) = %q, %v", host, port, id, err)
			}
			return
		}
		if port != SSHPort || !strings.EqualFold(strings.TrimSuffix(host, "."), z.Hostname(id)) {
			t.Fatalf("Jump(%q, %d) = %q", host, port, id)
		}
	})
}
