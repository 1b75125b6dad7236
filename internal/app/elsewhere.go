package app

import (
	"net"
	"os"

	"golang.org/x/crypto/ssh"

	"berth/internal/compute"
)

// Client is a person on this machine who uses a Berth that runs elsewhere, and the files for them in a directory.
type Client struct{ files clientFiles }

// NewClient is for whoever is at the keyboard.
func NewClient(dir string) (Client, error) {
	in, err := findInvoker()
	return Client{clientFiles{dir: dir, in: in}}, err
}

// Username is what their account is called.
func (c Client) Username() string { return c.files.in.username() }

// Keys returns their public keys, or a demo key's where they have none, as lines of authorized_keys.
func (c Client) Keys() ([]string, error) {
	ids, err := c.identities()
	var lines []string
	for _, id := range ids {
		lines = append(lines, id.line)
	}
	return lines, err
}

func (c Client) identities() ([]identity, error) {
	if mine := c.files.in.identities(compute.DefaultLimits()); len(mine) > 0 {
		return mine, nil
	}
	demo, err := c.files.demoKey()
	return []identity{demo}, err
}

// WriteSSH writes ssh_config and known_hosts for a gateway at an address.
func (c Client) WriteSSH(zone, address, username string, hostKeys []ssh.Signer) error {
	ids, err := c.identities()
	if err != nil {
		return err
	}
	return c.files.writeSSH(zone, hostPort(address), username, hostKeys, ids)
}

// WriteFile replaces a file of the directory, for the person.
func (c Client) WriteFile(name, text string, mode os.FileMode) error {
	return c.files.in.writeFile(c.files.path(name), text, mode)
}

// hostPort is the address of a server that may be known by name.
type hostPort string

var _ net.Addr = hostPort("")

func (hostPort) Network() string  { return "tcp" }
func (a hostPort) String() string { return string(a) }
