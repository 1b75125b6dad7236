package app

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// tokenKey is the file of the key that tokens are signed with.
const tokenKey = "token.key"

// readyFile is there while Berth serves.
const readyFile = "ready.json"

// Ready is what ready.json says while Berth serves.
type Ready struct {
	APIURL  string `json:"api_url"`
	SSHAddr string `json:"ssh_addr,omitempty"`
	Admin   string `json:"admin_url,omitempty"`
	Zone    string `json:"zone"`
	User    string `json:"user"`
	PID     int    `json:"pid"`
}

// clientFiles are the files in the data directory that a person or a script on this machine uses to reach Berth.
type clientFiles struct {
	dir string
	in  invoker
}

func (f clientFiles) path(name string) string { return filepath.Join(f.dir, name) }

const demoKeyFile = "id_ed25519"

// readDemoKey returns the key pair in the data directory.
func (f clientFiles) readDemoKey() (identity, error) {
	public, err := os.ReadFile(f.path(demoKeyFile) + ".pub")
	return identity{line: strings.TrimSpace(string(public)), file: f.path(demoKeyFile)}, err
}

// demoComment tells the key that berth makes from a person's own.
const demoComment = "berth demo key"

// demoKey returns the key pair in the data directory, made if it is not there.
func (f clientFiles) demoKey() (identity, error) {
	if id, err := f.readDemoKey(); err == nil {
		return id, nil
	}
	path := f.path(demoKeyFile)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return identity{}, fmt.Errorf("make a demo key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(private, demoComment)
	if err != nil {
		return identity{}, fmt.Errorf("make a demo key: %w", err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return identity{}, fmt.Errorf("make a demo key: %w", err)
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + " " + demoComment
	if err := f.in.writeFile(path, string(pem.EncodeToMemory(block)), 0o600); err != nil {
		return identity{}, fmt.Errorf("write the demo key: %w", err)
	}
	if err := f.in.writeFile(path+".pub", line+"\n", 0o644); err != nil {
		return identity{}, fmt.Errorf("write the demo key: %w", err)
	}
	return identity{line: line, file: path}, nil
}

// writeSSH writes ssh_config and known_hosts for a gateway at addr, so that `ssh -F ssh_config root@<id>.<zone>` works with
// the host keys checked.
func (f clientFiles) writeSSH(zone string, addr net.Addr, username string, hostKeys []ssh.Signer, ids []identity) error {
	var known strings.Builder
	for _, k := range hostKeys {
		fmt.Fprintln(&known, knownhosts.Line([]string{zone, "*." + zone}, k.PublicKey()))
	}
	if err := f.in.writeFile(f.path("known_hosts"), known.String(), 0o644); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(dialable(addr))
	if err != nil {
		return err
	}
	var identities strings.Builder
	for _, id := range ids {
		fmt.Fprintf(&identities, "  IdentityFile %s\n", quote(id.file))
	}
	common := fmt.Sprintf("  UserKnownHostsFile %s\n  StrictHostKeyChecking yes\n%s", quote(f.path("known_hosts")), identities.String())
	text := fmt.Sprintf(`# Written by Berth: do not edit. Use it as: ssh -F %[1]s root@<id>.%[2]s
# To have it always, add to ~/.ssh/config: Include %[1]s
Host %[2]s
  HostName %[3]s
  Port %[4]s
  User %[5]s
  HostKeyAlias %[2]s
%[6]s
Host *.%[2]s
  ProxyJump %[2]s
%[6]s`, quote(f.path("ssh_config")), zone, host, port, username, common)
	return f.in.writeFile(f.path("ssh_config"), text, 0o644)
}

// quote writes a path as ssh_config(5) takes it: in quotes, with % doubled.
func quote(path string) string { return `"` + strings.ReplaceAll(path, "%", "%%") + `"` }

// dialable returns an address that reaches a listener from this machine.
func dialable(a net.Addr) string {
	host, port, err := net.SplitHostPort(a.String())
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

func (f clientFiles) writeToken(token string) error {
	return f.in.writeFile(f.path("token"), token+"\n", 0o600)
}

func (f clientFiles) writeReady(r Ready) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return f.in.writeFile(f.path(readyFile), string(text)+"\n", 0o644)
}
