package sshproxy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	gossh "golang.org/x/crypto/ssh"
)

// hostKeyFiles are the gateway's host keys, the preferred first. RSA is left out: every client that knows one of our
// key exchanges knows one of these.
var hostKeyFiles = []struct {
	file string
	make func() (crypto.PrivateKey, error)
}{
	{"ssh_host_ed25519_key", func() (crypto.PrivateKey, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}},
	{"ssh_host_ecdsa_key", func() (crypto.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }},
}

// HostKeyFiles are the names of the host keys' files.
func HostKeyFiles() []string {
	names := make([]string, len(hostKeyFiles))
	for i, k := range hostKeyFiles {
		names[i] = k.file
	}
	return names
}

// OpenHostKeys returns the host keys in dir, and makes those that are not there. A key that is there and cannot be read
// is an error, never a reason for a new one: clients would take the change for an attack. Two processes that open the
// same empty directory end up with the same keys.
func OpenHostKeys(dir string) ([]gossh.Signer, error) {
	signers := make([]gossh.Signer, 0, len(hostKeyFiles))
	for _, k := range hostKeyFiles {
		path := filepath.Join(dir, k.file)
		signer, err := readHostKey(path)
		if errors.Is(err, fs.ErrNotExist) {
			if err = makeHostKey(path, k.make); err == nil {
				signer, err = readHostKey(path)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("host key: %w", err)
		}
		signers = append(signers, signer)
	}
	return signers, nil
}

func readHostKey(path string) (gossh.Signer, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	// As sshd does, only the owner is told of its file's mode: those that a cluster mounts are root's, for a group.
	if info.Sys().(*syscall.Stat_t).Uid == uint32(os.Geteuid()) && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %04o); make new keys, or chmod 600 it if nobody did",
			path, info.Mode().Perm())
	}
	signer, err := gossh.ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return signer, nil
}

// makeHostKey writes a new key. It appears whole or not at all, and never takes the place of one
// that another process wrote meanwhile: a link fails where a rename would replace.
func makeHostKey(path string, generate func() (crypto.PrivateKey, error)) error {
	key, err := generate()
	if err != nil {
		return err
	}
	block, err := gossh.MarshalPrivateKey(key, "")
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(pem.EncodeToMemory(block))
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
