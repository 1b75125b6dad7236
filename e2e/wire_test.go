package e2e_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// clientConfig is x/crypto's client for a user name and keys, with the host keys that Berth wrote.
func (i *instance) clientConfig(t *testing.T, user string, keys ...ssh.Signer) *ssh.ClientConfig {
	t.Helper()
	known, err := knownhosts.New(filepath.Join(i.data, "known_hosts"))
	if err != nil {
		t.Fatal(err)
	}
	c := &ssh.ClientConfig{User: user, HostKeyCallback: known, Timeout: 20 * time.Second}
	if len(keys) > 0 {
		c.Auth = []ssh.AuthMethod{ssh.PublicKeys(keys...)}
	}
	return c
}

// login connects to the gateway; hosts are known by the zone's name.
func (i *instance) login(t *testing.T, c *ssh.ClientConfig) (*ssh.Client, error) {
	t.Helper()
	check := c.HostKeyCallback
	c.HostKeyCallback = ssh.HostKeyCallback(func(_ string, addr net.Addr, key ssh.PublicKey) error {
		return check(i.ready.Zone+":22", addr, key)
	})
	return ssh.Dial("tcp", i.ready.SSHAddr, c)
}

// dial logs in to the account's container, for the length of the test.
func (a *account) dial(t *testing.T, id string) *ssh.Client {
	t.Helper()
	client, err := a.on.login(t, a.on.clientConfig(t, id, a.signer))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() }) // closed already where the test ended it
	return client
}

func newSession(t *testing.T, client *ssh.Client) *ssh.Session {
	t.Helper()
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSignals holds both directions: a command that a signal ends says which (RFC 4254, section 6.10), and a signal that
// the client sends arrives (section 6.9).
func TestSignals(t *testing.T) {
	t.Parallel()
	a := person(t, "signals")
	id := boxOf(t, a, "")
	client := a.dial(t, id)
	for name, command := range map[string]string{
		"TERM": "kill -TERM $$", "KILL": "kill -KILL $$", "HUP": "kill -HUP $$", "INT": "kill -INT $$", "ABRT": "kill -ABRT $$",
		"SEGV": "kill -SEGV $$", "PIPE": "kill -PIPE $$", "USR1": "kill -USR1 $$",
	} {
		var exit *ssh.ExitError
		err := newSession(t, client).Run(command)
		if !errors.As(err, &exit) || exit.Signal() != name {
			t.Errorf("%s: ended with %v", command, err)
		}
	}
	for _, sig := range []ssh.Signal{ssh.SIGTERM, ssh.SIGHUP, ssh.SIGINT, ssh.SIGUSR1, ssh.SIGUSR2, ssh.SIGQUIT, ssh.SIGALRM} {
		s := newSession(t, client)
		out, err := s.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start("trap 'echo got it; exit 9' " + string(sig) + "; echo ready; while :; do sleep 0.05; done"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
			t.Fatal(err)
		}
		if err := s.Signal(sig); err != nil {
			t.Fatal(err)
		}
		rest, rerr := io.ReadAll(out)
		err = s.Wait()
		var exit *ssh.ExitError
		if rerr != nil || string(rest) != "got it\n" || !errors.As(err, &exit) || exit.ExitStatus() != 9 {
			t.Errorf("after %s: %q (%v), %v", sig, rest, rerr, err)
		}
	}
}

// TestEndOfSession holds, for a client that reads late, that every byte comes, and that the status comes, too.
func TestEndOfSession(t *testing.T) {
	t.Parallel()
	a := person(t, "end")
	id := boxOf(t, a, "")
	client := a.dial(t, id)
	const size = 8 << 20 // more than all windows and buffers together
	for _, tt := range []struct {
		command string
		status  int
		eof     bool // a half-close is needed for it to end
	}{
		{command: "head -c 8388608 /dev/zero; exit 3", status: 3},
		{command: "cat >/dev/null; head -c 8388608 /dev/zero; exit 4", status: 4, eof: true},
		{command: "head -c 8388608 /dev/zero & sleep 0.1; exit 5", status: 5},
	} {
		s := newSession(t, client)
		in, err := s.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := s.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start(tt.command); err != nil {
			t.Fatal(err)
		}
		if tt.eof {
			if err := in.Close(); err != nil {
				t.Fatal(err)
			}
		}
		// Other sessions of the connection come and go before the first byte is read.
		for range 20 {
			if err := newSession(t, client).Run("true"); err != nil {
				t.Fatal(err)
			}
		}
		n, err := io.Copy(io.Discard, out)
		if err != nil || n != size {
			t.Errorf("%s: %d bytes of %d, %v", tt.command, n, size, err)
		}
		var exit *ssh.ExitError
		if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != tt.status {
			t.Errorf("%s: ended with %v", tt.command, err)
		}
	}
}

// TestBinaryClean sends every byte value through a session and a terminal in raw mode, both ways.
func TestBinaryClean(t *testing.T) {
	t.Parallel()
	a := person(t, "binary")
	id := boxOf(t, a, "")
	client := a.dial(t, id)
	text := make([]byte, 1<<20)
	_, _ = rand.Read(text) // never fails: see crypto/rand
	for n := range 256 {
		text[n] = byte(n)
	}
	for _, terminal := range []bool{false, true} {
		s := newSession(t, client)
		s.Stdin = bytes.NewReader(text)
		command := "cat"
		if terminal {
			raw := ssh.TerminalModes{
				ssh.ECHO: 0, ssh.ICANON: 0, ssh.ISIG: 0, ssh.IXON: 0, ssh.IXOFF: 0, ssh.ICRNL: 0, ssh.OPOST: 0, ssh.IEXTEN: 0,
				ssh.INLCR: 0, ssh.IGNCR: 0, ssh.ISTRIP: 0, ssh.INPCK: 0, ssh.PARMRK: 0, ssh.CS8: 1, ssh.IUTF8: 0,
			}
			if err := s.RequestPty("dumb", 24, 80, raw); err != nil {
				t.Fatal(err)
			}
			command = "head -c 1048576"
		}
		out, err := s.Output(command)
		if err != nil || !bytes.Equal(out, text) {
			t.Errorf("terminal %v: %d bytes came back of %d, %v", terminal, len(out), len(text), err)
		}
	}
}

// TestNoCredential holds that nobody gets in without a key, and that "none" lists keys alone.
func TestNoCredential(t *testing.T) {
	t.Parallel()
	a := person(t, "nobody")
	id := boxOf(t, a, "")
	for _, user := range []string{id, "root+" + id, "root", a.name, ""} {
		client, err := a.on.login(t, a.on.clientConfig(t, user))
		if err == nil {
			_ = client.Close()
			t.Fatalf("%q logged in without a credential", user)
		}
		if !strings.Contains(err.Error(), "unable to authenticate") {
			t.Errorf("%q: %v", user, err)
		}
	}
	c := a.on.clientConfig(t, id)
	c.Auth = []ssh.AuthMethod{ssh.Password("x"), ssh.KeyboardInteractive(
		func(string, string, []string, []bool) ([]string, error) { return nil, errors.New("asked") })}
	if _, err := a.on.login(t, c); err == nil || !strings.Contains(err.Error(), "attempted methods [none]") {
		t.Errorf("a password: %v", err)
	}
}

// TestNothingIsDialled holds that the apex is no relay: it connects to nothing, whatever is asked for.
func TestNothingIsDialled(t *testing.T) {
	t.Parallel()
	a := person(t, "relay")
	id := boxOf(t, a, "")
	apex, err := a.on.login(t, a.on.clientConfig(t, a.name, a.signer))
	if err != nil {
		t.Fatal(err)
	}
	defer apex.Close()
	for _, to := range []string{
		strings.TrimPrefix(a.on.ready.APIURL, "http://"), "127.0.0.1:22", "example.com:80", id + "." + a.on.ready.Zone + ":80",
		a.on.ready.Zone + ":22", "00000000.example.com:22",
	} {
		if nc, err := apex.Dial("tcp", to); err == nil {
			_ = nc.Close()
			t.Errorf("the apex connects to %s", to)
		}
	}
	in := a.dial(t, id)
	if nc, err := in.Dial("tcp", strings.TrimPrefix(a.on.ready.APIURL, "http://")); err == nil {
		_ = nc.Close()
		t.Error("a container's connection reaches the host's API")
	}
	if l, err := in.Listen("tcp", "127.0.0.1:0"); err == nil {
		_ = l.Close()
		t.Error("the gateway listens for a client")
	}
	if nc, err := in.Dial("unix", filepath.Join(a.on.data, "operator.sock")); err == nil {
		_ = nc.Close()
		t.Error("the gateway connects to a socket of the host's")
	}
	for _, kind := range []string{"x11", "auth-agent@openssh.com", "tun@openssh.com", "forwarded-tcpip", "no-such"} {
		var refused *ssh.OpenChannelError
		if _, _, err := in.OpenChannel(kind, nil); !errors.As(err, &refused) {
			t.Errorf("channel %s: %v", kind, err)
		}
	}
	if out, err := newSession(t, in).Output("echo fine"); err != nil || string(out) != "fine\n" {
		t.Errorf("after all that: %q, %v", out, err)
	}
}
