package main

import (
	"crypto/tls"
	"crypto/x509/pkix"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sync/errgroup"
)

// TestCertificates has a server and a client of one authority speak, across a restart of the cluster, and not those of two.
func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	ca, err := openAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.issue("server", pkix.Name{CommonName: "server"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")}); err != nil {
		t.Fatal(err)
	}
	server, err := ca.tlsClient("server")
	if err != nil {
		t.Fatal(err)
	}
	server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, server.RootCAs

	again, err := openAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := openAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ca   *authority
		want bool
	}{{again, true}, {stranger, false}} {
		if err := c.ca.issue("client", pkix.Name{CommonName: "client"}, nil); err != nil {
			t.Fatal(err)
		}
		client, err := c.ca.tlsClient("client")
		if err != nil {
			t.Fatal(err)
		}
		client.ServerName = "127.0.0.1"
		a, b := net.Pipe()
		var both errgroup.Group
		both.Go(func() error {
			defer a.Close()
			return tls.Server(a, server).HandshakeContext(t.Context())
		})
		both.Go(func() error {
			defer b.Close()
			return tls.Client(b, client).HandshakeContext(t.Context())
		})
		if err := both.Wait(); (err == nil) != c.want {
			t.Errorf("handshake: %v, want success: %v", err, c.want)
		}
	}
}
