package compute_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"pgregory.net/rapid"

	"berth/internal/compute"
)

func TestBetweenSkipsNoStatus(t *testing.T) {
	const (
		p, i, r = compute.StatusPending, compute.StatusInitializing, compute.StatusRunning
		s, f    = compute.StatusStopped, compute.StatusFailed
	)
	for _, c := range []struct {
		from, to compute.Status
		want     []compute.Status
	}{
		{p, p, nil},
		{p, i, []compute.Status{i}},
		{p, r, []compute.Status{i, r}},
		{i, r, []compute.Status{r}},
		{s, r, []compute.Status{p, i, r}},
		{f, r, []compute.Status{p, i, r}},
		{r, i, []compute.Status{p, i}},
		{r, p, []compute.Status{p}},
		{r, s, []compute.Status{s}},
		{i, f, []compute.Status{f}},
		{f, p, []compute.Status{p}},
	} {
		if got := compute.Between(c.from, c.to); !slices.Equal(got, c.want) {
			t.Errorf("Between(%s, %s) = %v, want %v", c.from, c.to, got, c.want)
		}
	}
}

// An id of digits alone, one of 43, would be an address to a resolver.
func TestIDsAreNames(t *testing.T) {
	for range 2000 {
		id := compute.NewContainerID()
		if _, err := compute.ParseContainerID(string(id)); err != nil || strings.Trim(string(id), "0123456789") == "" {
			t.Fatalf("%s: no id that is a host's name (%v)", id, err)
		}
	}
}

func TestRefNames(t *testing.T) {
	r := compute.Ref{Owner: 42, ID: "a1b2c3d4"}
	if r.String() != "compute-42-a1b2c3d4" {
		t.Fatalf("String() = %s", r)
	}
	if got, err := compute.ParseRef(r.String()); err != nil || got != r {
		t.Fatalf("ParseRef = %v, %v", got, err)
	}
	for _, bad := range []string{"", "compute-", "compute-1-", "compute-1-A1B2C3D4", "compute-01-a1b2c3d4", "compute-1x-a1b2c3d4", "x-1-a1b2c3d4", "compute-1-a1b2c3d4-x"} {
		if got, err := compute.ParseRef(bad); err == nil {
			t.Errorf("ParseRef(%q) = %v, want an error", bad, got)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	f.Add("compute-1-a1b2c3d4")
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := compute.ParseRef(s); err == nil && r.String() != s {
			t.Errorf("ParseRef(%q) reads as %s", s, r)
		}
	})
}

func TestContainerRequest(t *testing.T) {
	n := func(i int) *int { return &i }
	good := compute.ContainerRequest{Name: " dev-box ", SSHKeyIDs: []int64{2, 1, 2}}
	c, err := good.Validate(compute.DefaultLimits(), compute.DefaultInstanceTypes())
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "dev-box" || c.InstanceType != "nano" || c.MemoryMB != 512 || c.StorageGB != 5 || c.SSHEnabled ||
		!slices.Equal(c.MountPaths, []string{"/root"}) || !slices.Equal(c.SSHKeyIDs, []int64{1, 2}) {
		t.Errorf("defaults are %+v", c)
	}
	for field, r := range map[string]compute.ContainerRequest{
		"name":          {SSHKeyIDs: []int64{1}},
		"name#spaces":   {Name: "  ", SSHKeyIDs: []int64{1}},
		"name#long":     {Name: strings.Repeat("ü", 65), SSHKeyIDs: []int64{1}},
		"name#control":  {Name: "a\x1b[31m", SSHKeyIDs: []int64{1}},
		"name#bidi":     {Name: "a\u202eb", SSHKeyIDs: []int64{1}},
		"name#utf8":     {Name: "a\xff", SSHKeyIDs: []int64{1}},
		"instance_type": {Name: "a", InstanceType: "huge", SSHKeyIDs: []int64{1}},
		"memory_mb":     {Name: "a", MemoryMB: n(63), SSHKeyIDs: []int64{1}},
		"memory_mb#max": {Name: "a", MemoryMB: n(1 << 40), SSHKeyIDs: []int64{1}},
		"storage_gb":    {Name: "a", StorageGB: n(0), SSHKeyIDs: []int64{1}},
		"storage_gb#-1": {Name: "a", StorageGB: n(-1), SSHKeyIDs: []int64{1}},
		"ssh_key_ids":   {Name: "a"},
		"mount_paths":   {Name: "a", SSHKeyIDs: []int64{1}, MountPaths: []string{"relative"}},
	} {
		_, err := r.Validate(compute.DefaultLimits(), compute.DefaultInstanceTypes())
		var e *compute.Error
		if want, _, _ := strings.Cut(field, "#"); !errors.As(err, &e) || e.Code != compute.CodeInvalid || e.Field != want {
			t.Errorf("%s: error is %#v", field, err)
		}
	}
}

func TestMountPaths(t *testing.T) {
	l := compute.DefaultLimits()
	for _, bad := range [][]string{
		{"/"},
		{"//"},
		{"/proc"},
		{"/proc/1"},
		{"/sys/fs"},
		{"/dev/shm"},
		{"/.berth"},
		{"/.berth/run"},
		{"root"},
		{""},
		{"./x"},
		{"/a/../b"},
		{"/.."},
		{"/a", "/a"},
		{"/a", "/a/"},
		{"/a", "/a/b"},
		{"/a/b", "/a"},
		{"/a\x00"},
		{"/a\nb"},
		{"/a:b"},
		{"/a,b"},
		{"/" + strings.Repeat("a", 255)},
		slices.Repeat([]string{"/x"}, 17),
	} {
		if got, err := compute.ValidateMountPaths(bad, l); compute.CodeOf(err) != compute.CodeInvalid || err == nil {
			t.Errorf("ValidateMountPaths(%q) = %q, %v", bad, got, err)
		}
	}
	got, err := compute.ValidateMountPaths([]string{"/root/", "/var//data", "/opt/app", "/device", "/a", "/ab"}, l)
	if want := []string{"/root", "/var/data", "/opt/app", "/device", "/a", "/ab"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("ValidateMountPaths = %q, %v, want %q", got, err, want)
	}
}

// What is accepted is clean, allowed and disjoint, whatever was posted.
func TestMountPathsAcceptedAreSafe(t *testing.T) {
	part := rapid.SampledFrom([]string{"", ".", "..", "proc", "root", "a", "b", ".berth", "dev"})
	rapid.Check(t, func(t *rapid.T) {
		var paths []string
		for range rapid.IntRange(0, 4).Draw(t, "paths") {
			paths = append(paths, "/"+strings.Join(rapid.SliceOfN(part, 0, 4).Draw(t, "parts"), "/"))
		}
		got, err := compute.ValidateMountPaths(paths, compute.DefaultLimits())
		if err != nil {
			return
		}
		for i, p := range got {
			if path.Clean(p) != p || p == "/" || compute.Within(p, "/proc") || compute.Within(p, "/dev") || compute.Within(p, "/.berth") {
				t.Fatalf("%q was accepted as %q", paths, p)
			}
			for j, q := range got {
				if i != j && compute.Within(p, q) {
					t.Fatalf("%q were accepted: %q lies in %q", paths, p, q)
				}
			}
		}
	})
}

func authorizedKey(t testing.TB, public any) string {
	t.Helper()
	k, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
}

func rsaKey(t testing.TB, bits int) string {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return authorizedKey(t, &k.PublicKey)
}

func TestPublicKeys(t *testing.T) {
	l := compute.DefaultLimits()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := authorizedKey(t, &ec.PublicKey)
	canonical, fingerprint, comment, err := compute.ParsePublicKey("  "+good+" me@laptop\n", l)
	if err != nil || canonical != good || comment != "me@laptop" || !strings.HasPrefix(fingerprint, "SHA256:") {
		t.Errorf("ParsePublicKey = %q, %q, %q, %v", canonical, fingerprint, comment, err)
	}
	if _, _, _, err := compute.ParsePublicKey(rsaKey(t, 2048), l); err != nil {
		t.Errorf("a 2048 bit RSA key: %v", err)
	}
	for name, bad := range map[string]string{
		"empty":       "",
		"garbage":     "hello",
		"truncated":   good[:40],
		"private key": "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----",
		"two lines":   good + "\n" + good,
		"options":     `command="id" ` + good,
		"short RSA":   rsaKey(t, 1024),
		"ssh-dss":     "ssh-dss AAAAB3NzaC1kc3MAAACBAP==",
		"sk key":      "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIP1x1FfSJmyjPLAhkVfhIx1x1FfSJmyjPLAhkVfhIx1xAAAABHNzaDo=",
		"long":        good + " " + strings.Repeat("x", 9000),
		"nul":         good + " a\x00b",
	} {
		if _, _, _, err := compute.ParsePublicKey(bad, l); err == nil || compute.AsError(err) == nil || compute.AsError(err).Field != "public_key" {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	if _, _, _, err := compute.ParsePublicKey("-----BEGIN OPENSSH PRIVATE KEY-----", l); !strings.Contains(fmt.Sprint(err), "private key") {
		t.Errorf("a private key is called %v", err)
	}
}

func FuzzParsePublicKey(f *testing.F) {
	f.Add("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJpZmZh comment")
	f.Add("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAAA==")
	f.Fuzz(func(t *testing.T, line string) {
		canonical, fingerprint, _, err := compute.ParsePublicKey(line, compute.DefaultLimits())
		if err != nil {
			if compute.AsError(err) == nil {
				t.Fatalf("%v is not for users", err)
			}
			return
		}
		again, fp, _, err := compute.ParsePublicKey(canonical, compute.DefaultLimits())
		if err != nil || again != canonical || fp != fingerprint {
			t.Fatalf("%q is not canonical: %q, %v", canonical, again, err)
		}
	})
}

func FuzzValidateName(f *testing.F) {
	f.Add("dev-box")
	f.Fuzz(func(t *testing.T, s string) {
		name, err := compute.ValidateName(s, 64)
		if err == nil && (name == "" || strings.ContainsAny(name, "\x00\n\r\x1b\x7f")) {
			t.Fatalf("%q was accepted as %q", s, name)
		}
	})
}

func TestUsernames(t *testing.T) {
	for _, good := range []string{"a", "alice", "a-b", "x1", strings.Repeat("a", 32), "deadbeef0"} {
		if err := compute.ValidateUsername(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "-a", "a-", "A", "a.b", "a+b", "a@b", strings.Repeat("a", 33), "deadbeef", "ä"} {
		if err := compute.ValidateUsername(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestErrorsHideTheirCause(t *testing.T) {
	err := fmt.Errorf("list: %w", compute.Internal("read row", errors.New("disk I/O error at /secret")))
	if m := compute.UserMessage(err); strings.Contains(m, "secret") {
		t.Errorf("the user reads %q", m)
	}
	if compute.CodeOf(err) != compute.CodeInternal || compute.CodeOf(errors.New("x")) != compute.CodeInternal {
		t.Error("an unknown error is not internal")
	}
}

// A name for somebody new is what they wish for as far as it goes, and always valid.
func TestUsernameCandidates(t *testing.T) {
	for wish, first := range map[string]string{
		"ada": "ada", "Ada Lovelace": "ada-lovelace", `CORP\Ada.B`: "corp-ada-b", "ada@example.com": "ada-example-com",
		"deadbeef": "user-", "": "user-", "___": "user-", "\x00": "user-", "日本": "user-", "-a-": "a", "ÅDA": "da",
		strings.Repeat("x", 500): strings.Repeat("x", 32),
	} {
		list := compute.UsernameCandidates(wish, "issuer subject")
		if len(list) < 3 || !strings.HasPrefix(list[0], first) {
			t.Errorf("%q: %q, want one that begins with %q", wish, list, first)
		}
		seen := map[string]bool{}
		for _, name := range list {
			if err := compute.ValidateUsername(name); err != nil || seen[name] {
				t.Errorf("%q: %q: %v", wish, name, err)
			}
			seen[name] = true
		}
	}
	a, b := compute.UsernameCandidates("ada", "x"), compute.UsernameCandidates("ada", "y")
	if a[0] != b[0] || a[1] == b[1] {
		t.Errorf("%q and %q", a, b)
	}
}

func FuzzUsernameCandidates(f *testing.F) {
	f.Add("ada", "x")
	f.Add("Ada Lovelace", "y")
	f.Add("deadbeef", "")
	f.Fuzz(func(t *testing.T, wish, seed string) {
		for _, name := range compute.UsernameCandidates(wish, seed) {
			if err := compute.ValidateUsername(name); err != nil {
				t.Errorf("%q: %q: %v", wish, name, err)
			}
		}
	})
}
