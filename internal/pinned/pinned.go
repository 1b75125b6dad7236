// Package pinned is TLS between two ends that know each other's public keys, from elsewhere, and trust no others. There are no
// names, no authorities and no dates: a certificate is only what TLS carries a key in (as RFC 7250 would without one).
//
// A key says who a peer is only as far as it is used with that peer alone. An end that talks to many needs a key pair for each:
// with one for all, a peer could name another's key as its own, pass on what it is sent, and so be served as that other.
package pinned

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"time"
)

// Port is where agents serve gateways on the containers' addresses. No system gives it to a connection that does not ask for it.
const Port = 61022

const protocol = "berth-agent/1" // ALPN: nothing else that speaks TLS is meant

// Key is a public key.
type Key [ed25519.PublicKeySize]byte

// ParseKey is the inverse of Key.String.
func ParseKey(s string) (k Key, err error) {
	if len(s) != hex.EncodedLen(len(k)) {
		return k, errors.New("a key is 64 hexadecimal digits")
	}
	_, err = hex.Decode(k[:], []byte(s))
	return k, err
}

func (k Key) String() string { return hex.EncodeToString(k[:]) }

// Identity is a key pair.
type Identity struct {
	public      Key
	certificate tls.Certificate
}

// NewIdentity makes a key pair.
func NewIdentity() (*Identity, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := certificateOf(Key(public))
	if err != nil {
		return nil, err
	}
	return &Identity{Key(public), tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}}, nil
}

// name is every server's: what tells them apart is their keys.
const name = "agent"

// certificateOf returns the only certificate that a key has here, a pure function of it: its signature is anybody's to make, and
// says nothing.
func certificateOf(k Key) ([]byte, error) {
	anybody := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280, section 4.1.2.5
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, ed25519.PublicKey(k[:]), anybody)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	return der, nil
}

// Public is what the other end is to know.
func (i *Identity) Public() Key { return i.public }

// Dial begins TLS on nc, which it owns from then on, as a client of who has the key peer. It returns once both ends have accepted
// each other.
func (i *Identity) Dial(ctx context.Context, nc net.Conn, peer Key) (net.Conn, error) {
	c, err := i.client(peer)
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	return greet(ctx, tls.Client(nc, c), func(t *tls.Conn) error {
		// A client's handshake is over before the server has looked at its key.
		_, err := io.ReadFull(t, make([]byte, 1))
		return err
	})
}

// Accept begins TLS on nc, which it owns from then on, as a server of those whose keys are known.
func (i *Identity) Accept(ctx context.Context, nc net.Conn, known func(Key) bool) (net.Conn, error) {
	c := i.config(known)
	c.ClientAuth = tls.RequireAnyClientCert
	return greet(ctx, tls.Server(nc, c), func(t *tls.Conn) error {
		_, err := t.Write([]byte{admitted})
		return err
	})
}

const admitted = 1

func greet(ctx context.Context, t *tls.Conn, settle func(*tls.Conn) error) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = t.NetConn().Close() })
	err := t.HandshakeContext(ctx)
	if err == nil {
		err = settle(t)
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = t.NetConn().Close()
		return nil, fmt.Errorf("agree with the peer: %w", err)
	}
	return t, nil
}

func (i *Identity) client(peer Key) (*tls.Config, error) {
	der, err := certificateOf(peer)
	if err != nil {
		return nil, err
	}
	theirs, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the peer's certificate: %w", err)
	}
	c := i.config(func(k Key) bool { return k == peer })
	c.ServerName, c.RootCAs = name, x509.NewCertPool()
	c.RootCAs.AddCert(theirs) // the one that it must show
	return c, nil
}

var errStranger = errors.New("the peer has another key than the one that is known")

func (i *Identity) config(known func(Key) bool) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{i.certificate}, MinVersion: tls.VersionTLS13, NextProtos: []string{protocol},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true, // nobody waits for the first bytes of a transfer
		// TLS has verified that the peer holds the private key of its first certificate.
		VerifyConnection: func(s tls.ConnectionState) error {
			if s.NegotiatedProtocol != protocol || len(s.PeerCertificates) == 0 {
				return errStranger
			}
			public, ok := s.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
			if !ok || !known(Key(public)) {
				return errStranger
			}
			return nil
		},
	}
}
