package pinned

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"time"
)

func identity(t *testing.T) *Identity {
	t.Helper()
	i, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// pair connects two ends, and returns what either made of the other.
func pair(t *testing.T, dial, accept func(context.Context, net.Conn) (net.Conn, error)) (dialErr, acceptErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	accepted := make(chan error, 1)
	go func() {
		nc, err := l.Accept()
		if err == nil {
			nc, err = accept(ctx, nc)
		}
		if err == nil {
			_, err = io.Copy(nc, nc)
			_ = nc.Close()
		}
		accepted <- err
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nc, dialErr = dial(ctx, nc)
	if dialErr == nil {
		if _, dialErr = nc.Write([]byte("hello")); dialErr == nil {
			_, dialErr = io.ReadFull(nc, make([]byte, 5))
		}
		_ = nc.Close()
	}
	return dialErr, <-accepted
}

func only(k Key) func(Key) bool { return func(other Key) bool { return other == k } }

func TestPinned(t *testing.T) {
	a, b, other := identity(t), identity(t), identity(t)
	dial := func(i *Identity, peer Key) func(context.Context, net.Conn) (net.Conn, error) {
		return func(ctx context.Context, nc net.Conn) (net.Conn, error) { return i.Dial(ctx, nc, peer) }
	}
	accept := func(i *Identity, known Key) func(context.Context, net.Conn) (net.Conn, error) {
		return func(ctx context.Context, nc net.Conn) (net.Conn, error) { return i.Accept(ctx, nc, only(known)) }
	}
	if d, s := pair(t, dial(a, b.Public()), accept(b, a.Public())); d != nil || s != nil {
		t.Errorf("the right keys: %v, %v", d, s)
	}
	// by is a client that does as Dial does, but for what change does.
	by := func(change func(*tls.Config)) func(context.Context, net.Conn) (net.Conn, error) {
		return func(ctx context.Context, nc net.Conn) (net.Conn, error) {
			c, err := a.client(b.Public())
			if err != nil {
				return nil, err
			}
			change(c)
			return greet(ctx, tls.Client(nc, c), func(t *tls.Conn) error {
				_, err := t.Read(make([]byte, 1))
				return err
			})
		}
	}
	ec := ofAnotherKind(t)
	for what, tc := range map[string]struct {
		dial, accept func(context.Context, net.Conn) (net.Conn, error)
	}{
		"another client": {dial(other, b.Public()), accept(b, a.Public())},
		"another server": {dial(a, b.Public()), accept(other, a.Public())},
		"a client without a key": {
			by(func(c *tls.Config) { c.Certificates = nil }), accept(b, a.Public()),
		},
		"a certificate without its key": {
			by(func(c *tls.Config) {
				c.Certificates = []tls.Certificate{{Certificate: a.certificate.Certificate, PrivateKey: other.certificate.PrivateKey}}
			}), accept(b, a.Public()),
		},
		"an older TLS": {
			by(func(c *tls.Config) { c.MinVersion, c.MaxVersion = 0, tls.VersionTLS12 }), accept(b, a.Public()),
		},
		"another protocol": {
			by(func(c *tls.Config) { c.NextProtos = []string{"h2"} }), accept(b, a.Public()),
		},
		"no protocol": {
			by(func(c *tls.Config) { c.NextProtos = nil }), accept(b, a.Public()),
		},
		"a key of another kind": {
			by(func(c *tls.Config) { c.Certificates = ec }), accept(b, a.Public()),
		},
		"a server's key of another kind": {dial(a, b.Public()), func(ctx context.Context, nc net.Conn) (net.Conn, error) {
			c := b.config(only(a.Public()))
			c.Certificates = ec
			return greet(ctx, tls.Server(nc, c), func(t *tls.Conn) error {
				_, err := t.Read(make([]byte, 1))
				return err
			})
		}},
		// b names a's key as its own, and passes on to a what it is sent: why a pair is for one peer alone.
		"passed on": {dial(other, a.Public()), accept(a, b.Public())},
	} {
		if d, s := pair(t, tc.dial, tc.accept); d == nil || s == nil {
			t.Errorf("%s: %v, %v", what, d, s)
		}
	}
}

// A peer that says nothing is waited for as long as the context says, and not longer.
func TestSilence(t *testing.T) {
	a := identity(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for what, begin := range map[string]func(context.Context, net.Conn) (net.Conn, error){
		"dial":   func(ctx context.Context, nc net.Conn) (net.Conn, error) { return a.Dial(ctx, nc, Key{}) },
		"accept": func(ctx context.Context, nc net.Conn) (net.Conn, error) { return a.Accept(ctx, nc, only(Key{})) },
	} {
		nc, err := net.Dial("tcp", l.Addr().String()) // the backlog takes it, and nobody answers
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if c, err := begin(ctx, nc); c != nil || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", what, err)
		}
		cancel()
	}
}

func ofAnotherKind(t *testing.T) []tls.Certificate {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	return []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}
}

func FuzzParseKey(f *testing.F) {
	f.Add("")
	f.Add(Key{1, 2, 3}.String())
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseKey(s)
		if err == nil && len(s) != 64 {
			t.Errorf("%q is %v", s, k)
		}
		if again, err2 := ParseKey(k.String()); err == nil && (err2 != nil || again != k) {
			t.Errorf("%q, %v", again, err2)
		}
	})
}

// The other end may have been built years before, by another Go: a key's certificate must stay as it is to the byte.
func TestCertificateStays(t *testing.T) {
	der, err := certificateOf(Key{31: 1})
	if err != nil {
		t.Fatal(err)
	}
	const was = "faaad699cc7234905aa25a7fd77a2a6969199782684b8d717383ce015ac7299c"
	if sum := sha256.Sum256(der); hex.EncodeToString(sum[:]) != was {
		t.Errorf("%x: agents that run already are not reached at their addresses any more:\n%x", sum, der)
	}
}
