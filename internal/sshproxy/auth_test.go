package sshproxy

import (
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"berth/internal/store"
)

// refusal logs in and returns the error, which must be there.
func refusal(t *testing.T, g *gatewayUnderTest, user string, signers ...gossh.Signer) string {
	t.Helper()
	c, err := gossh.Dial("tcp", g.addr, g.clientConfig(user, signers...))
	if err == nil {
		c.Close()
		t.Fatalf("%q was let in", user)
	}
	return err.Error()
}

func TestStrangersAreRefusedAlike(t *testing.T) {
	p := newWorld(t)
	alice, mallory := newKey(t), newKey(t)
	a := p.user("alice")
	inside, outside := p.key(a, alice), newKey(t)
	p.key(a, outside) // the owner's, but not the container's
	p.container("a1b2c3d4", a, inside)
	p.key(p.user("mallory"), mallory)
	g := startGateway(t, Options{Directory: p})

	absent := refusal(t, g, "deadbeef", mallory)
	for _, tt := range []struct {
		what, user string
		key        gossh.Signer
	}{
		{"another account's container", "a1b2c3d4", mallory},
		{"a user of it", "bob+a1b2c3d4", mallory},
		{"the owner's key outside the container's list", "a1b2c3d4", outside},
		{"a user name that cannot exist", "a:b+a1b2c3d4", alice},
		{"nobody's key in the lobby", "alice", newKey(t)},
		{"nobody's key at a container", "a1b2c3d4", newKey(t)},
	} {
		if got := refusal(t, g, tt.user, tt.key); got != absent {
			t.Errorf("%s: %q, but an absent container gives %q", tt.what, got, absent)
		}
	}
	g.dial(t, "a1b2c3d4", alice)
	g.dial(t, "x+a1b2c3d4", mallory, outside, alice) // a person with several keys is not locked out
	g.dial(t, "mallory", mallory)

	if _, err := p.SetUserDisabled(t.Context(), a, true); err != nil {
		t.Fatal(err)
	}
	if got := refusal(t, g, "a1b2c3d4", alice); got != absent {
		t.Errorf("a disabled owner: %q", got)
	}
	if got := refusal(t, g, "alice", alice); got != absent {
		t.Errorf("a disabled user in the lobby: %q", got)
	}
}

// closedDatabase returns a directory that fails every question.
func closedDatabase(t *testing.T, w *world) Directory {
	t.Helper()
	r, err := store.OpenReadOnly(t.Context(), w.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Accounts(t.Context(), "x"); err == nil {
		t.Fatal("a closed database answers")
	}
	return r
}

func TestDirectoryFaultLetsNobodyIn(t *testing.T) {
	p := newWorld(t)
	key := newKey(t)
	alice := p.user("alice")
	p.container("a1b2c3d4", alice, p.key(alice, key))
	g := startGateway(t, Options{Directory: closedDatabase(t, p)})
	for _, user := range []string{"a1b2c3d4", "alice"} {
		said := banners(t, g, user, newKey(t), key)
		if !slices.Equal(said, []string{"Berth is stopping; try again in a moment.\r\n"}) {
			t.Errorf("%s is told %q", user, said)
		}
	}
}

// banners returns what a client is told that is not let in.
func banners(t *testing.T, g *gatewayUnderTest, user string, keys ...gossh.Signer) (said []string) {
	t.Helper()
	config := g.clientConfig(user, keys...)
	config.BannerCallback = func(message string) error {
		said = append(said, message)
		return nil
	}
	if c, err := gossh.Dial("tcp", g.addr, config); err == nil {
		c.Close()
		t.Fatalf("%q was let in", user)
	}
	return said
}

func TestNoCredential(t *testing.T) {
	p := newWorld(t)
	p.key(p.user("alice"), newKey(t))
	g := startGateway(t, Options{Directory: p})
	c := dialRaw(t, g.addr)
	for _, method := range []string{"none", "password", "keyboard-interactive", "hostbased", "gssapi-with-mic", ""} {
		request := authRequest("alice", method)
		if method == "password" {
			request = appendString(append(request, 0), []byte("hunter2"))
		}
		got, err := c.auth(request)
		if err != nil || got != authFailure {
			t.Fatalf("%q: %v, %v", method, got, err)
		}
		if !slices.Equal(c.methods, []string{"publickey"}) {
			t.Errorf("%q: the methods offered are %q", method, c.methods)
		}
	}
}

// TestUnauthenticatedChannel opens a session before it has logged in.
func TestUnauthenticatedChannel(t *testing.T) {
	p := newWorld(t)
	key := newKey(t)
	p.key(p.user("alice"), key)
	g := startGateway(t, Options{Directory: p})
	c := dialRaw(t, g.addr)
	if out, err := c.exec("whoami"); err == nil || out != "" {
		t.Errorf("got %q, %v", out, err)
	}
	c = dialRaw(t, g.addr)
	if got, err := c.offer("alice", key.PublicKey()); err != nil || got != authKeyOK {
		t.Fatal(got, err)
	}
	if out, err := c.exec("whoami"); err == nil || out != "" {
		t.Errorf("after an offer: got %q, %v", out, err)
	}
}

// TestIdentityIsOfTheSignature offers one key under one name and logs in with another under another, in both orders:
// who the client is must follow from the signature alone (CVE-2024-45337, and charmbracelet/ssh's frozen user name).
func TestIdentityIsOfTheSignature(t *testing.T) {
	p := newWorld(t)
	a, b := newKey(t), newKey(t)
	alice, bob := p.user("alice"), p.user("bob")
	p.container("aaaaaaaa", alice, p.key(alice, a))
	p.container("bbbbbbbb", bob, p.key(bob, b))
	p.ssh(alice, "aaaaaaaa", false) // so that a session says which container it reached
	p.ssh(bob, "bbbbbbbb", false)
	g := startGateway(t, Options{Directory: p})

	type attempt struct {
		user string
		key  gossh.Signer
		sign bool
		want authAnswer
	}
	ok, no := authKeyOK, authFailure
	for _, tt := range []struct {
		what     string
		attempts []attempt
		want     string
	}{
		{"alice, then bob", []attempt{{"alice", a, false, ok}, {"bob", b, true, authSuccess}}, "lobby bob"},
		{"bob, then alice", []attempt{{"bob", b, false, ok}, {"alice", a, true, authSuccess}}, "lobby alice"},
		{"alice, bob, alice", []attempt{{"alice", a, false, ok}, {"bob", b, false, ok}, {"alice", a, true, authSuccess}}, "lobby alice"},
		{
			"a refused name, then bob's container",
			[]attempt{{"aaaaaaaa", b, false, no}, {"bbbbbbbb", b, false, ok}, {"bbbbbbbb", b, true, authSuccess}},
			"container bbbbbbbb",
		},
		{"alice's container, then bob in the lobby", []attempt{{"aaaaaaaa", a, false, ok}, {"bob", b, true, authSuccess}}, "lobby bob"},
		{"bob in the lobby, then alice's container", []attempt{{"bob", b, false, ok}, {"aaaaaaaa", a, true, authSuccess}}, "container aaaaaaaa"},
		{
			"each one's key at the other's container",
			[]attempt{{"aaaaaaaa", a, false, ok}, {"bbbbbbbb", a, true, no}, {"aaaaaaaa", b, true, no}, {"bbbbbbbb", b, true, authSuccess}},
			"container bbbbbbbb",
		},
		{"an accepted offer under another name", []attempt{{"bbbbbbbb", b, false, ok}, {"aaaaaaaa", b, true, no}, {"bob", b, true, authSuccess}}, "lobby bob"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			c := dialRaw(t, g.addr)
			for _, at := range tt.attempts {
				var got authAnswer
				var err error
				if at.sign {
					got, err = c.sign(at.user, at.key.PublicKey(), at.key)
				} else {
					got, err = c.offer(at.user, at.key.PublicKey())
				}
				if err != nil || got != at.want {
					t.Fatalf("%+v: %v, %v", at, got, err)
				}
			}
			out, err := c.exec("whoami")
			if err != nil || !strings.Contains(strings.ToLower(out), tt.want) {
				t.Errorf("the session says %q (%v), want %q", out, err, tt.want)
			}
		})
	}
}

// TestForeignSignature names a good key and signs with another.
func TestForeignSignature(t *testing.T) {
	p := newWorld(t)
	a, b := newKey(t), newKey(t)
	p.key(p.user("alice"), a)
	p.key(p.user("bob"), b)
	g := startGateway(t, Options{Directory: p})
	c := dialRaw(t, g.addr)
	if got, err := c.offer("alice", a.PublicKey()); err != nil || got != authKeyOK {
		t.Fatal(got, err)
	}
	if got, err := c.sign("alice", a.PublicKey(), b); err == nil && got == authSuccess {
		t.Fatal("a foreign signature was taken")
	}
}

func TestCertificateIsNoKey(t *testing.T) {
	p := newWorld(t)
	key := newKey(t)
	p.key(p.user("alice"), key)
	g := startGateway(t, Options{Directory: p})
	cert := &gossh.Certificate{
		Key: key.PublicKey(), CertType: gossh.UserCert, ValidPrincipals: []string{"alice"}, ValidBefore: gossh.CertTimeInfinity,
	}
	if err := cert.SignCert(zeroes{}, newKey(t)); err != nil {
		t.Fatal(err)
	}
	signer, err := gossh.NewCertSigner(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	refusal(t, g, "alice", signer)
}

// zeroes is randomness that a certificate's nonce needs not.
type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestLoginAttempts(t *testing.T) {
	p := newWorld(t)
	key := newKey(t)
	p.key(p.user("alice"), key)
	g := startGateway(t, Options{Directory: p})
	wrong := newKey(t).PublicKey()

	c := dialRaw(t, g.addr)
	if _, err := c.auth(authRequest("alice", "none")); err != nil { // free, as every client begins with it
		t.Fatal(err)
	}
	for i := range 19 {
		if got, err := c.offer("alice", wrong); err != nil || got != authFailure {
			t.Fatalf("attempt %d: %v, %v", i+1, got, err)
		}
	}
	if got, err := c.sign("alice", key.PublicKey(), key); err != nil || got != authSuccess {
		t.Errorf("the 20th key: %v, %v", got, err)
	}

	c = dialRaw(t, g.addr)
	for i := range 19 {
		if _, err := c.offer("alice", wrong); err != nil {
			t.Fatalf("attempt %d: %v", i+1, err)
		}
	}
	if got, err := c.offer("alice", wrong); err == nil {
		t.Errorf("the 20th failure: %v, not the end", got)
	}
}

// awaitClosed waits for the gateway to close nc, and returns what it sent before.
func awaitClosed(t *testing.T, nc net.Conn) string {
	t.Helper()
	_ = nc.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(nc)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Fatalf("not closed: %v", err)
	}
	return string(b)
}

func TestHandshakeDeadline(t *testing.T) {
	g := startGateway(t, Options{
		Directory: newWorld(t), Limits: Limits{KexTimeout: 300 * time.Millisecond, LoginTimeout: 600 * time.Millisecond},
	})
	for what, send := range map[string]string{
		"nothing": "", "half an identification": "SSH-2.0-x", "no key exchange": "SSH-2.0-x\r\n",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			nc, err := net.Dial("tcp", g.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if _, err := io.WriteString(nc, send); err != nil {
				t.Fatal(err)
			}
			if got := awaitClosed(t, nc); !strings.HasPrefix(got, "SSH-2.0-"+version+"\r\n") {
				t.Errorf("the gateway sent %q", got)
			}
			if d := time.Since(began); d < 300*time.Millisecond || d > 5*time.Second {
				t.Errorf("closed after %v", d)
			}
		})
	}
	t.Run("no login", func(t *testing.T) {
		t.Parallel()
		began := time.Now()
		c := dialRaw(t, g.addr)
		if p, err := c.read(); err == nil {
			t.Errorf("message %d", p[0])
		}
		if d := time.Since(began); d < 600*time.Millisecond || d > 5*time.Second {
			t.Errorf("closed after %v", d)
		}
	})
}

// TestLoggedInHasNoDeadline keeps a connection without channels past both deadlines.
func TestLoggedInHasNoDeadline(t *testing.T) {
	p := newWorld(t)
	key := newKey(t)
	p.key(p.user("alice"), key)
	limits := Limits{KexTimeout: 2 * time.Second, LoginTimeout: time.Second, StartupsPerSource: 1}
	g := startGateway(t, Options{Directory: p, Limits: limits})
	c := g.dial(t, "alice", key)
	closed := make(chan error, 1)
	go func() { closed <- c.Wait() }()
	select {
	case err := <-closed:
		t.Fatalf("closed: %v", err)
	case <-time.After(limits.KexTimeout + 500*time.Millisecond):
	}
	g.dial(t, "alice", key) // its place among those that log in is free
	c.Close()
	<-closed
}

func TestNotSSH(t *testing.T) {
	g := startGateway(t, Options{Directory: newWorld(t)})
	for _, hello := range []string{
		"GET / HTTP/1.1\r\n\r\n", "SSH-1.5-old\r\n", "\x16\x03\x01", strings.Repeat("x", 300), "SSH-2.0-" + strings.Repeat("x", 300), "\r\n",
	} {
		nc, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(nc, hello); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		awaitClosed(t, nc)
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("%.20q: closed after %v", hello, d)
		}
		nc.Close()
	}
}

func TestTooManyStartups(t *testing.T) {
	p := newWorld(t)
	key := newKey(t)
	p.key(p.user("alice"), key)
	g := startGateway(t, Options{Directory: p, Limits: Limits{StartupsPerSource: 3}})
	var waiting []net.Conn
	for range 3 {
		nc, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		// The gateway's first line tells that the connection has its place.
		if _, err := io.ReadFull(nc, make([]byte, len("SSH-2.0-"+version+"\r\n"))); err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, nc)
	}
	nc, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if got := awaitClosed(t, nc); !strings.Contains(got, "Too many connections") {
		t.Errorf("the gateway said %q", got)
	}
	waiting[0].Close()
	within(t, 10*time.Second, "a place comes free", func() {
		for {
			c, err := gossh.Dial("tcp", g.addr, g.clientConfig("alice", key))
			if err == nil {
				c.Close()
				return
			}
		}
	})
}
