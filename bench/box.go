package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// box is a container.
type box struct {
	on      *instance
	id      string
	created time.Time
	running time.Time // when the API said so
}

// box makes a container and waits until it runs. It asks, every few milliseconds.
func (i *instance) box(ctx context.Context, fields string) (*box, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, statusLimit, fmt.Errorf("it took more than %v", statusLimit))
	defer cancel()
	return i.boxWithin(ctx, fields, 5*time.Millisecond)
}

// boxWithin does so as often as every says, for as long as ctx says.
func (i *instance) boxWithin(ctx context.Context, fields string, every time.Duration) (*box, error) {
	request := map[string]any{"ssh_key_ids": []int64{i.keyID}, "ssh_enabled": true}
	if err := json.Unmarshal([]byte(fields), &request); err != nil {
		return nil, err
	}
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	var answer struct {
		ID            string `json:"id"`
		Status        string `json:"status"`
		StatusMessage string `json:"status_message"`
	}
	b := &box{on: i, created: time.Now()}
	if err := i.call(ctx, http.MethodPost, "/compute/containers", string(body), &answer); err != nil {
		return nil, err
	}
	b.id = answer.ID
	err = poll(ctx, every, time.Hour, func() (bool, error) {
		if err := i.call(ctx, http.MethodGet, "/compute/containers/"+b.id, "", &answer); err != nil {
			return false, err
		}
		if answer.Status == "failed" {
			return false, fmt.Errorf("container %s failed: %s", b.id, answer.StatusMessage)
		}
		return answer.Status == "running", nil
	})
	b.running = time.Now()
	return b, err
}

// poll calls done again and again until it says so.
func poll(ctx context.Context, every, limit time.Duration, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took more than %v", limit))
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (b *box) at() string       { return b.id + "@" + b.on.ready.Zone }
func (b *box) hostname() string { return "root@" + b.id + "." + b.on.ready.Zone }

// delete deletes the container and waits until its storage is gone, so that this is not measured with what follows.
func (b *box) delete(ctx context.Context) error {
	var answer struct{}
	if err := b.on.call(ctx, http.MethodDelete, "/compute/containers/"+b.id, "", &answer); err != nil {
		return err
	}
	return poll(ctx, 20*time.Millisecond, statusLimit, func() (bool, error) {
		left, err := filepath.Glob(filepath.Join(b.on.data, "volumes", "*"+b.id+"*"))
		return len(left) == 0, err
	})
}

// network returns the container's, which is found by asking inside what it is called.
func (b *box) network(ctx context.Context, c contender) (*network, error) {
	out, _, err := c.run(ctx, nil, nil, "readlink /proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	n := &network{name: strings.TrimSpace(string(out))}
	return n, n.open()
}

const sshdPort = "22"

// installSSHD starts sshd in the container, as its package configures it, on the container's loopback, and returns the
// ssh_config for clients in the container's network.
func (i *instance) installSSHD(ctx context.Context, c contender) (string, error) {
	public, err := os.ReadFile(i.key() + ".pub")
	if err != nil {
		return "", err
	}
	hostKey, _, err := c.run(ctx, bytes.NewReader(public), nil, `set -e
umask 022
mkdir -p /run/sshd
mkdir -p -m 0700 /root/.ssh
cat >/root/.ssh/authorized_keys
ssh-keygen -A >&2
/usr/sbin/sshd -o ListenAddress=127.0.0.1 -p `+sshdPort+`
cat /etc/ssh/ssh_host_ed25519_key.pub`)
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(hostKey))
	if len(fields) < 2 {
		return "", errors.New("it has no host key")
	}
	known := i.path("sshd_known_hosts")
	if err := os.WriteFile(known, []byte("sshd "+fields[0]+" "+fields[1]+"\n"), 0o600); err != nil {
		return "", err
	}
	config := i.path("sshd_ssh_config")
	return config, os.WriteFile(config, fmt.Appendf(nil, `Host sshd
  HostName 127.0.0.1
  Port %s
  User root
  HostKeyAlias sshd
  UserKnownHostsFile "%s"
  StrictHostKeyChecking yes
  IdentityFile "%s"
`, sshdPort, known, i.key()), 0o600)
}

// writeKey makes a key pair in file and file.pub, and returns the public one.
func writeKey(file string) (string, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	block, err := ssh.MarshalPrivateKey(private, "bench")
	if err != nil {
		return "", err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		return "", err
	}
	public := ssh.MarshalAuthorizedKey(signer.PublicKey())
	return string(public), os.WriteFile(file+".pub", public, 0o600)
}
