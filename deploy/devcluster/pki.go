package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"
	"time"
)

// authority signs the certificates of the cluster. Its key and the service accounts' stay with the cluster; what it signs is
// made anew at each start, so that nothing expires.
type authority struct {
	dir  string
	pem  []byte
	cert *x509.Certificate
	key  crypto.Signer
}

const (
	authorityValid   = 10 * 365 * 24 * time.Hour
	certificateValid = 365 * 24 * time.Hour
)

// openAuthority reads the authority from a directory, or makes it there.
func openAuthority(dir string) (*authority, error) {
	a := &authority{dir: dir}
	pair, err := tls.LoadX509KeyPair(a.path("ca.crt"), a.path("ca.key"))
	if err == nil {
		a.cert, a.key = pair.Leaf, pair.PrivateKey.(crypto.Signer)
		a.pem, err = os.ReadFile(a.path("ca.crt"))
		return a, err
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the cluster's authority: %w", err)
	}
	template := &x509.Certificate{
		Subject:  pkix.Name{CommonName: "berth devcluster"},
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IsCA:     true, BasicConstraintsValid: true,
	}
	if a.pem, err = a.write("ca", template, authorityValid); err != nil {
		return nil, err
	}
	return openAuthority(dir)
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// serviceAccountKey makes the key that tokens of service accounts are signed with, once.
func (a *authority) serviceAccountKey() error {
	if _, err := os.Stat(a.path("sa.key")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, err := newKey(a.path("sa.key"))
	return err
}

// issue writes NAME.crt and NAME.key: for a client, and for a server where there are addresses or names.
func (a *authority) issue(name string, subject pkix.Name, addresses []netip.Addr, names ...string) error {
	template := &x509.Certificate{
		Subject:     subject,
		DNSNames:    names,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, addr := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(addr.AsSlice()))
	}
	if len(addresses)+len(names) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	_, err := a.write(name, template, certificateValid)
	return err
}

func (a *authority) write(name string, template *x509.Certificate, valid time.Duration) ([]byte, error) {
	key, err := newKey(a.path(name + ".key"))
	if err != nil {
		return nil, err
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	now := time.Now()
	template.NotBefore, template.NotAfter = now.Add(-time.Minute), now.Add(valid) // clocks on one machine differ by no more
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", name, err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return text, os.WriteFile(a.path(name+".crt"), text, 0o644)
}

func newKey(path string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key) // the one form of which the API server also takes the public half
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	return key, os.WriteFile(path, text, 0o600)
}

// tlsClient proves who NAME is, and believes the authority alone.
func (a *authority) tlsClient(name string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(a.path(name+".crt"), a.path(name+".key"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, MinVersion: tls.VersionTLS12}, nil
}

var kubeconfig = template.Must(template.New("kubeconfig").Parse(`apiVersion: v1
kind: Config
clusters:
- name: {{.Cluster}}
  cluster: {server: "{{.Server}}", certificate-authority-data: {{.CA}}}
users:
- name: {{.User}}
  user: {client-certificate-data: {{.Cert}}, client-key-data: {{.Key}}}
contexts:
- name: {{.Cluster}}
  context: {cluster: {{.Cluster}}, user: {{.User}}}
current-context: {{.Cluster}}
`))

// kubeconfig returns how NAME reaches and proves itself to the API server; it refers to no file.
func (a *authority) kubeconfig(cluster, name, server string) ([]byte, error) {
	encoded := map[string]string{"Cluster": cluster, "User": name, "Server": server, "CA": base64.StdEncoding.EncodeToString(a.pem)}
	for field, file := range map[string]string{"Cert": name + ".crt", "Key": name + ".key"} {
		text, err := os.ReadFile(a.path(file))
		if err != nil {
			return nil, err
		}
		encoded[field] = base64.StdEncoding.EncodeToString(text)
	}
	var out bytes.Buffer
	err := kubeconfig.Execute(&out, encoded)
	return out.Bytes(), err
}
