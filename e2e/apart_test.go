package e2e_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// revokeLimit is the second that a revoked session has, with room for a machine that is busy with other tests.
const revokeLimit = 5 * time.Second

// apart starts an instance whose control plane and gateway are two processes.
func apart(t *testing.T) *instance {
	t.Helper()
	i := own(t)
	i.apart = true
	if err := i.start(); err != nil {
		t.Fatal(err)
	}
	return i
}

// cat is a session in a container that sends back what it is sent.
type cat struct {
	t   *testing.T
	s   *ssh.Session
	in  io.Writer
	out *bufio.Reader
}

func (a *account) cat(t *testing.T, id string) *cat {
	t.Helper()
	s := newSession(t, a.dial(t, id))
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("cat"); err != nil {
		t.Fatal(err)
	}
	return &cat{t, s, in, bufio.NewReader(out)}
}

func (c *cat) echo(when string) {
	c.t.Helper()
	if _, err := io.WriteString(c.in, "here\n"); err != nil {
		c.t.Fatalf("%s: %v", when, err)
	}
	if line, err := c.out.ReadString('\n'); err != nil || line != "here\n" {
		c.t.Fatalf("%s: %q, %v", when, line, err)
	}
}

// cutOff waits until the gateway ends the session.
func (c *cat) cutOff(when string) {
	c.t.Helper()
	over := make(chan error, 1)
	go func() { over <- c.s.Wait() }()
	var missing *ssh.ExitMissingError
	var exit *ssh.ExitError
	select {
	case err := <-over:
		if !errors.As(err, &missing) && (!errors.As(err, &exit) || exit.ExitStatus() != 255) {
			c.t.Errorf("%s, the session ended with %v", when, err)
		}
	case <-time.After(revokeLimit):
		c.t.Fatalf("%s, the session goes on after %v", when, revokeLimit)
	}
}

// TestRolesApart runs control plane and gateway as two processes on one data directory: each may end and come back without
// the other, and what one decides the other does at once.
func TestRolesApart(t *testing.T) {
	t.Parallel()
	i := apart(t)
	a := personOn(t, i, "apart")
	id := boxOf(t, a, `{"storage_gb": 1}`)
	logins := 0
	works := func(when string) {
		t.Helper()
		logins += 2
		for _, way := range []string{a.at(id), "root@" + id + "." + i.ready.Zone} {
			if out, err := a.ssh(way, "echo works"); err != nil || out != "works" {
				t.Fatalf("%s: %q, %v", when, out, err)
			}
		}
		if out, err := a.ssh(i.ready.Zone, "ls"); err != nil || !strings.Contains(out, id) {
			t.Fatalf("%s: the lobby lists %q, %v", when, out, err)
		}
	}
	works("both run")
	i.hasNoDatabase(t)

	live := a.cat(t, id)
	live.echo("both run")
	if err := i.main.kill(); err != nil {
		t.Fatal(err)
	}
	for range 3 { // for as long as some logins take
		live.echo("the control plane was killed")
		works("the control plane was killed")
	}
	if err := i.gateway.kill(); err != nil { // which then starts without it
		t.Fatal(err)
	}
	if err := i.startGateway(); err != nil {
		t.Fatal(err)
	}
	if err := a.writeSSHConfig(); err != nil {
		t.Fatal(err)
	}
	works("the gateway was started alone")
	live = a.cat(t, id)
	if err := i.startMain(); err != nil {
		t.Fatal(err)
	}
	if err := a.prepare(); err != nil {
		t.Fatal(err)
	}
	live.echo("the control plane is back")
	works("the control plane is back")

	i.awaitConnected(t, "local")
	if err := a.do(http.MethodPut, "/compute/containers/"+id+"/ssh", `{"ssh_enabled": false}`, nil); err != nil {
		t.Fatal(err)
	}
	live.cutOff("SSH was turned off")
	if err := a.do(http.MethodPut, "/compute/containers/"+id+"/ssh", `{"ssh_enabled": true}`, nil); err != nil {
		t.Fatal(err)
	}
	i.awaitKnown(t, a, id)
	works("SSH is on again")

	gatewayAudits(t, i, a, id, logins)

	if err := i.gateway.kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.await(id, "running", 0); err != nil {
		t.Error(err)
	}
	if err := i.startGateway(); err != nil {
		t.Fatal(err)
	}
	if err := a.prepare(); err != nil {
		t.Fatal(err)
	}
	works("the gateway is back, with the same host keys")
}

// hasNoDatabase holds that the gateway needs nothing of what is the control plane's.
func (i *instance) hasNoDatabase(t *testing.T) {
	t.Helper()
	fds, err := filepath.Glob("/proc/" + strconv.Itoa(i.gateway.cmd.Process.Pid) + "/fd/*")
	if err != nil || len(fds) == 0 {
		t.Fatalf("the gateway has %d files open, %v", len(fds), err)
	}
	for _, fd := range fds {
		if file, _ := os.Readlink(fd); strings.Contains(file, "berth.db") || strings.Contains(file, "token.key") {
			t.Errorf("the gateway has %s open", file)
		}
	}
}

// gatewayInfo is what `berth gateway ls --json` says of one.
type gatewayInfo struct {
	Name         string `json:"name"`
	RevokedAt    string `json:"revoked_at"`
	Connected    bool   `json:"connected"`
	Acknowledged int64  `json:"acknowledged"`
}

func (i *instance) gateways(t *testing.T) map[string]gatewayInfo {
	t.Helper()
	out, err := i.run("gateway", "ls", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var list []gatewayInfo
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	byName := make(map[string]gatewayInfo)
	for _, g := range list {
		byName[g.Name] = g
	}
	return byName
}

// soon asks again until the answer is yes.
func soon(t *testing.T, what string, yes func() bool) {
	t.Helper()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(statusLimit); !yes(); <-again.C {
		if time.Now().After(deadline) {
			t.Fatalf("not after %v: %s", statusLimit, what)
		}
	}
}

func (i *instance) awaitConnected(t *testing.T, name string) {
	t.Helper()
	soon(t, "gateway "+name+" is connected", func() bool { return i.gateways(t)[name].Connected })
}

// awaitKnown waits until the gateway knows that a container may be entered: the answer to a grant does not wait for it.
func (i *instance) awaitKnown(t *testing.T, a *account, id string) {
	t.Helper()
	soon(t, "the gateway lets into container "+id, func() bool {
		_, err := a.ssh(a.at(id), "true")
		return err == nil
	})
}

// addKey gives the account the key in file.
func (a *account) addKey(t *testing.T, file string) int64 {
	t.Helper()
	public, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]string{"name": "another", "public_key": string(public)})
	if err != nil {
		t.Fatal(err)
	}
	var key struct {
		ID int64 `json:"id"`
	}
	if err := a.do(http.MethodPost, "/compute/ssh-keys", string(body), &key); err != nil {
		t.Fatal(err)
	}
	return key.ID
}

// deleteKey deletes a key and returns the gateways that may not know it yet.
func (a *account) deleteKey(t *testing.T, id int64) string {
	t.Helper()
	status, header, answer, err := a.call(http.MethodDelete, "/compute/ssh-keys/"+strconv.FormatInt(id, 10), "", "")
	if err != nil || status != http.StatusOK {
		t.Fatalf("delete key %d: %d %s, %v", id, status, answer, err)
	}
	return header.Get("Berth-Unacknowledged")
}

// freeAddress is one of this machine where nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestRevokedStaysRevoked deletes a key, and then kills everything once the gateway has said that it knows. The gateway that
// comes back alone knows.
func TestRevokedStaysRevoked(t *testing.T) {
	t.Parallel()
	i := apart(t)
	a := personOn(t, i, "revoked")
	file := filepath.Join(a.home, "second")
	signer, err := writeKey(file)
	if err != nil {
		t.Fatal(err)
	}
	second := a.addKey(t, file)
	id := boxOf(t, a, fmt.Sprintf(`{"storage_gb": 1, "ssh_key_ids": [%d, %d]}`, a.keyID, second))
	i.awaitKnown(t, a, id)
	bySecond := func() error { // a stock client would try its other key, too
		client, err := i.login(t, i.clientConfig(t, id, signer))
		if err == nil {
			err = client.Close()
		}
		return err
	}
	if err := bySecond(); err != nil {
		t.Fatalf("the second key: %v", err)
	}
	// On a machine that is very busy it may take longer than the answer waits: then another one says when.
	for late := a.deleteKey(t, second); late != ""; late = a.deleteKey(t, a.addKey(t, file)) {
		t.Logf("not acknowledged by %q within a second", late)
	}
	if err := i.kill(); err != nil {
		t.Fatal(err)
	}
	if err := i.startGateway(); err != nil {
		t.Fatal(err)
	}
	if err := a.writeSSHConfig(); err != nil {
		t.Fatal(err)
	}
	if err := bySecond(); err == nil || !strings.Contains(err.Error(), "unable to authenticate") {
		t.Errorf("a key that was deleted: %v", err)
	}
	if out, err := a.ssh(a.at(id), "echo in"); err != nil || out != "in" {
		t.Errorf("the key that was left: %q, %v", out, err)
	}
	if err := i.gateway.stop(); err != nil {
		t.Fatal(err)
	}

	// What a gateway that is away does not know is said.
	if err := i.startMain(); err != nil {
		t.Fatal(err)
	}
	if err := a.prepare(); err != nil {
		t.Fatal(err)
	}
	_, header, _, err := a.call(http.MethodPost, "/compute/containers/"+id+"/stop", "", "")
	if err != nil || header.Get("Berth-Unacknowledged") != "local" {
		t.Errorf("the gateway is away, and the answer names %q, %v", header.Get("Berth-Unacknowledged"), err)
	}
	if err := i.startGateway(); err != nil {
		t.Fatal(err)
	}
}

// TestGatewayElsewhere gives a gateway a directory, a credential and an address, as on another machine. Its lobby works; when
// its credential is revoked it is cut off, puts everybody out and lets nobody in.
func TestGatewayElsewhere(t *testing.T) {
	t.Parallel()
	i := own(t)
	i.flags = []string{"--link-address", freeAddress(t)}
	i.apart = true
	if err := i.startMain(); err != nil {
		t.Fatal(err)
	}
	i.ready.SSHAddr = "127.0.0.1:1" // until there is one
	far := &instance{dir: t.TempDir(), ready: i.ready, apart: true}
	far.data = filepath.Join(far.dir, "data")
	credential := filepath.Join(far.dir, "far.pem")
	if _, err := i.run("gateway", "add", "far", "--out", credential); err != nil {
		t.Fatal(err)
	}
	far.flags = append([]string{"--link-credential", credential}, i.flags...)
	if err := far.startGateway(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := far.gateway.stop(); err != nil {
			t.Error(err)
		}
	})
	a := personOn(t, i, "elsewhere")
	i.ready.SSHAddr = far.ready.SSHAddr
	if err := a.writeSSHConfig(); err != nil {
		t.Fatal(err)
	}
	lobby := func(args ...string) (string, error) {
		known := "UserKnownHostsFile=" + filepath.Join(far.data, "known_hosts")
		return a.ssh(append([]string{"-o", known, i.ready.Zone}, args...)...)
	}
	soon(t, "the gateway knows the account", func() bool {
		out, err := lobby("whoami")
		return err == nil && out == a.name
	})
	if info, err := os.Stat(credential); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the credential's file: %v, %v", info, err)
	}
	out, err := i.run("gateway", "ls")
	if err != nil || !strings.Contains(out, "connected") || !strings.Contains(out, "never") {
		t.Errorf("gateway ls says %q, %v", out, err)
	}
	var seen struct {
		Records []struct{ Action, Target, Gateway, Username string }
	}
	soon(t, "who came there is in the audit log, as of that gateway", func() bool {
		if err := a.do(http.MethodGet, "/compute/audit?action=login", "", &seen); err != nil {
			t.Fatal(err)
		}
		return len(seen.Records) > 0
	})
	if r := seen.Records[0]; r.Gateway != "far" || r.Target != "lobby" || r.Username != a.name {
		t.Errorf("recorded is %+v", r)
	}
	live, err := far.login(t, far.clientConfig(t, a.name, a.signer))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.run("gateway", "revoke", "far"); err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- live.Wait() }()
	select {
	case <-over:
	case <-time.After(revokeLimit):
		_ = live.Close()
		t.Errorf("who was in is in still, %v after the gateway was revoked", revokeLimit)
	}
	var said string
	soon(t, "the gateway lets nobody in", func() bool {
		_, err := lobby("whoami")
		said = ""
		if err != nil {
			said = err.Error()
		}
		return strings.Contains(said, "taken out of service")
	})
	if !strings.Contains(said, "Permission denied") {
		t.Errorf("a client is told %q", said)
	}
	if g := i.gateways(t)["far"]; g.Connected || g.RevokedAt == "" {
		t.Errorf("it is listed as %+v", g)
	}
	var exit *exec.ExitError
	_, err = i.run("gateway", "revoke", "far")
	if !errors.As(err, &exit) || !strings.Contains(err.Error(), "no such gateway") {
		t.Errorf("a second time: %v", err)
	}
}
