package e2e_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// account is a user of an instance: a person with a key, a token, and a home with an ssh_config.
type account struct {
	on     *instance
	name   string
	home   string
	signer ssh.Signer
	keyID  int64
	token  string
}

// newAccount makes a user on the instance, with a key that nobody else has, and a home in dir.
func newAccount(i *instance, name, dir string) (*account, error) {
	a := &account{on: i, name: name, home: filepath.Join(dir, name)}
	if err := os.MkdirAll(a.home, 0o700); err != nil {
		return nil, err
	}
	var err error
	if a.signer, err = writeKey(a.key()); err != nil {
		return nil, err
	}
	if _, err := i.run("user", "add", name, "--key", a.key()+".pub"); err != nil {
		return nil, err
	}
	return a, a.prepare()
}

// prepare gets what a person needs of an instance that just started: a token, and an ssh_config with its port.
func (a *account) prepare() error {
	token, err := a.on.run("token", "--user", a.name)
	if err != nil {
		return err
	}
	a.token = strings.TrimSpace(token)
	var keys struct {
		SSHKeys []struct {
			ID int64 `json:"id"`
		} `json:"ssh_keys"`
	}
	if err := a.get("/compute/ssh-keys", &keys); err != nil {
		return err
	}
	if len(keys.SSHKeys) == 0 {
		return fmt.Errorf("%s has no key", a.name)
	}
	a.keyID = keys.SSHKeys[0].ID
	return a.writeSSHConfig()
}

// writeSSHConfig is for when the gateway has another port.
func (a *account) writeSSHConfig() error {
	host, port, err := net.SplitHostPort(a.on.ready.SSHAddr)
	if err != nil {
		return err
	}
	zone := a.on.ready.Zone
	return os.WriteFile(a.sshConfig(), fmt.Appendf(nil, `Host %[1]s
  HostName %[2]s
  Port %[3]s
  User %[4]s
  HostKeyAlias %[1]s
Host *.%[1]s
  ProxyJump %[1]s
Host *
  UserKnownHostsFile "%[5]s"
  StrictHostKeyChecking yes
  IdentityFile %[6]s
  IdentitiesOnly yes
  BatchMode yes
`, zone, host, port, a.name, strings.ReplaceAll(filepath.Join(a.on.data, "known_hosts"), "%", "%%"), a.key()), 0o600)
}

func (a *account) key() string       { return filepath.Join(a.home, "id_ed25519") }
func (a *account) sshConfig() string { return filepath.Join(a.home, "ssh_config") }

// writeKey makes a key pair in file and file.pub.
func writeKey(file string) (ssh.Signer, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, filepath.Base(file))
	if err != nil {
		return nil, err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, err
	}
	return signer, os.WriteFile(file+".pub", ssh.MarshalAuthorizedKey(signer.PublicKey()), 0o600)
}

var apiClient = &http.Client{Timeout: 30 * time.Second}

// call sends a request with the account's token and returns the status and the body.
func (a *account) call(method, path, contentType, body string) (status int, header http.Header, answer []byte, err error) {
	req, err := http.NewRequest(method, a.on.ready.APIURL+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := apiClient.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, answer, err
}

// do is call with JSON, for what should succeed.
func (a *account) do(method, path, body string, into any) error {
	contentType := ""
	if body != "" {
		contentType = "application/json"
	}
	status, _, answer, err := a.call(method, path, contentType, body)
	if err != nil {
		return err
	}
	if status/100 != 2 {
		return fmt.Errorf("%s %s: %d: %s", method, path, status, answer)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(answer, into)
}

func (a *account) get(path string, into any) error { return a.do(http.MethodGet, path, "", into) }

// container is what tests read of one.
type container struct {
	ID            string  `json:"id"`
	Status        string  `json:"status"`
	StatusMessage string  `json:"status_message"`
	Hostname      string  `json:"hostname"`
	MemoryUsedMB  int     `json:"memory_used_mb"`
	StorageUsedGB float64 `json:"storage_used_gb"`
}

// create asks for a container; fields replace those of a small one with SSH.
func (a *account) create(fields string) (container, error) {
	request := map[string]any{
		"name": "box", "memory_mb": 256, "storage_gb": 2, "ssh_key_ids": []int64{a.keyID}, "ssh_enabled": true,
	}
	if fields != "" {
		if err := json.Unmarshal([]byte(fields), &request); err != nil {
			return container{}, err
		}
	}
	body, err := json.Marshal(request)
	if err != nil {
		return container{}, err
	}
	var c container
	return c, a.do(http.MethodPost, "/compute/containers", string(body), &c)
}

// await waits until the container has the status. A container that fails meanwhile is an error. It asks again and again: until
// there is a feed that is what users do.
func (a *account) await(id, status string, limit time.Duration) (c container, err error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; <-tick.C {
		if err := a.get("/compute/containers/"+id, &c); err != nil {
			return c, err
		}
		switch {
		case c.Status == status:
			return c, nil
		case c.Status == "failed":
			return c, fmt.Errorf("container %s failed: %s", id, c.StatusMessage)
		case time.Now().After(deadline):
			return c, fmt.Errorf("container %s is %s, not %s, after %v: %s", id, c.Status, status, limit, c.StatusMessage)
		}
	}
}

// statusLimit is how long a container may take from one status to the next on a machine that runs other tests, too.
const statusLimit = 45 * time.Second

// box makes a container and returns its id when it runs.
func (a *account) box(fields string) (string, error) {
	c, err := a.create(fields)
	if err != nil {
		return "", err
	}
	_, err = a.await(c.ID, "running", statusLimit)
	return c.ID, err
}

// ssh runs the stock client with the account's configuration and returns what it printed, trimmed.
func (a *account) ssh(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ssh", append([]string{"-F", a.sshConfig()}, args...)...)
	cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK=")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("ssh %q: %w: %s", args, err, &errs)
	}
	return strings.TrimSpace(out.String()), nil
}

// at is how the container is named for ssh on the apex.
func (a *account) at(id string) string { return id + "@" + a.on.ready.Zone }
