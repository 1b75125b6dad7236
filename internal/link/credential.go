package link

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// serverName is what the control plane's certificate is for, wherever it listens. Only the authority makes one with it, and
// never for a gateway.
const serverName = "control-plane.berth.internal"

// maxCredential bounds what is read of a file of keys.
const maxCredential = 64 << 10

// certificate and private key in PEM.
const (
	blockCertificate = "CERTIFICATE"
	blockKey         = "PRIVATE KEY"
)

// noExpiry is what stands for no end (RFC 5280, section 4.1.2.5): credentials end when they are revoked, and a link that
// fails on some day years from now would help nobody.
func noExpiry() time.Time { return time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }

// Authority makes the certificates of both sides. Whoever has its file can pose as the control plane to every gateway.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// OpenAuthority returns the authority in the file at path. One that is absent is made, whole or not at all, also when
// several processes try at once; one that is there is never replaced.
func OpenAuthority(path string) (*Authority, error) {
	a, err := readAuthority(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	if err := makeAuthority(path); err != nil {
		return nil, fmt.Errorf("make the gateways' authority %s: %w", path, err)
	}
	return readAuthority(path)
}

func readAuthority(path string) (*Authority, error) {
	text, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("%s is damaged (%v): restore it, or remove it and add every gateway again", path, err)
	}
	return &Authority{cert: pair.Leaf, key: pair.PrivateKey.(crypto.Signer)}, nil
}

// readSecret reads a file that nobody else may read.
func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// As ssh does, only the owner is told of its file's mode: those that a cluster mounts are root's, for a group.
	own := info.Sys().(*syscall.Stat_t).Uid == uint32(os.Geteuid())
	if !info.Mode().IsRegular() || own && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s holds a key and is open to others (%v): if nobody used that, chmod 600 it",
			path, info.Mode())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxCredential))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return text, nil
}

func makeAuthority(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := certificate("Berth gateways")
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	text, err := encode(key, der)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(text)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	// A link fails where a rename would replace: who was first has made it.
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// certificate returns what all certificates have. They begin a day early, for clocks that go wrong.
func certificate(name string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err) // see crypto/rand: it does not fail
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: noExpiry(),
	}
}

// encode writes a key and certificates in PEM.
func encode(key crypto.PrivateKey, certs ...[]byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: der})
	for _, c := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: blockCertificate, Bytes: c})...)
	}
	return text, nil
}

// issue signs a certificate for a new key.
func (a *Authority) issue(template *x509.Certificate) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	return key, der, err
}

// Issue makes a credential for a gateway: one file with its key, its certificate and the authority's. It is good once its
// fingerprint is where Source.Gateway finds it.
func (a *Authority) Issue(name string) (text []byte, fingerprint string, err error) {
	template := certificate(name)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	key, der, err := a.issue(template)
	if err != nil {
		return nil, "", fmt.Errorf("issue a gateway's credential: %w", err)
	}
	text, err = encode(key, der, a.cert.Raw)
	return text, fingerprintOf(der), err
}

// Issued says whether a credential is one of this authority's.
func (a *Authority) Issued(c Credential) bool {
	return c.config != nil && c.config.RootCAs.Equal(a.pool())
}

// serverConfig returns the control plane's side, with a certificate for this process alone.
func (a *Authority) serverConfig() (*tls.Config, error) {
	template := certificate(serverName)
	template.DNSNames = []string{serverName}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	key, der, err := a.issue(template)
	if err != nil {
		return nil, fmt.Errorf("issue the control plane's certificate: %w", err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocol}, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: a.pool(),
	}, nil
}

func (a *Authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func fingerprintOf(der []byte) string {
	sum := sha256.Sum256(der)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// Credential is what a gateway proves itself with, and knows the control plane by.
type Credential struct {
	Name        string
	Fingerprint string
	config      *tls.Config
}

// ReadCredential reads what Issue made from the file at path.
func ReadCredential(path string) (Credential, error) {
	text, err := readSecret(path)
	if err != nil {
		return Credential{}, err
	}
	c, err := ParseCredential(text)
	if err != nil {
		return Credential{}, fmt.Errorf("%s is not a gateway's credential (%w); `berth gateway add` makes one", path, err)
	}
	return c, nil
}

// ParseCredential reads what Issue returned.
func ParseCredential(text []byte) (Credential, error) {
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return Credential{}, err
	}
	if len(pair.Certificate) != 2 || !bytes.HasPrefix(bytes.TrimSpace(text), []byte("-----BEGIN "+blockKey)) {
		return Credential{}, errors.New("not a key and two certificates")
	}
	root, err := x509.ParseCertificate(pair.Certificate[1])
	if err != nil {
		return Credential{}, err
	}
	if err := pair.Leaf.CheckSignatureFrom(root); err != nil {
		return Credential{}, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	fingerprint := fingerprintOf(pair.Certificate[0])
	pair.Certificate = pair.Certificate[:1]
	return Credential{
		Name: pair.Leaf.Subject.CommonName, Fingerprint: fingerprint,
		config: &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{protocol}, ServerName: serverName,
			Certificates: []tls.Certificate{pair}, RootCAs: pool,
		},
	}, nil
}
