package sshproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"berth/internal/compute"
)

// stock is OpenSSH's client with a configuration of its own: it checks host keys, and knows the gateway's alone.
type stock struct {
	t      testing.TB
	config string
	port   string
}

// stockClient writes a configuration as berth writes it: the apex by its address, containers by way of it.
func stockClient(t testing.TB, g *gatewayUnderTest, identity string, more ...string) *stock {
	t.Helper()
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Fatal("these tests need OpenSSH's client: apt-get install openssh-client")
	}
	_, port, err := net.SplitHostPort(g.addr)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var hosts bytes.Buffer
	for _, k := range g.keys {
		key := strings.TrimSpace(string(gossh.MarshalAuthorizedKey(k.PublicKey())))
		fmt.Fprintf(&hosts, "[%s]:%s,%s,*.%s %s\n", zone, port, zone, zone, key)
	}
	known := filepath.Join(dir, "known_hosts")
	config := filepath.Join(dir, "config")
	text := fmt.Sprintf(`%s
Host *
  IdentityFile %s
  IdentitiesOnly yes
  UserKnownHostsFile %s
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  BatchMode yes
  LogLevel ERROR
Host %s
  HostName 127.0.0.1
  HostKeyAlias %s
  Port %s
Host *.%s
  ProxyJump %s
`, strings.Join(more, "\n"), identity, known, zone, zone, port, zone, zone)
	for path, b := range map[string][]byte{known: hosts.Bytes(), config: []byte(text)} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &stock{t: t, config: config, port: port}
}

// command is ssh with those arguments, ended with the test.
func (s *stock) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ssh", append([]string{"-F", s.config}, args...)...)
	cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK=")
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run runs ssh to its end.
func (s *stock) run(stdin string, args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := s.command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		s.t.Fatalf("ssh %q: %v\n%s%s", args, err, &out, &errs)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestStockLobby(t *testing.T) {
	w := newWorld(t)
	alice, identity := identityFile(t)
	w.key(w.user("alice"), alice)
	g := startGateway(t, Options{Directory: w, Lobby: func(_ context.Context, s LobbySession) int {
		fmt.Fprintf(s.Stdout, "%s %q %v\n", s.Principal.Username, s.Command, s.Terminal)
		fmt.Fprintln(s.Stderr, "so much for that")
		return 42
	}})
	client := stockClient(t, g, identity)
	for _, tt := range []struct {
		args     []string
		out, err string
	}{
		{[]string{"anybody@" + zone, "ls", "--json"}, "alice \"ls --json\" false\n", "so much for that\n"},
		{[]string{zone}, "alice \"\" false\n", "so much for that\n"},
		{[]string{"-tt", zone, "ls"}, "alice \"ls\" true\r\nso much for that\r\n", ""},
	} {
		out, errs, code := client.run("", tt.args...)
		if tt.err == "" { // a terminal shows both; the client writes them as they come
			out, errs = out+errs, ""
		}
		if out != tt.out || errs != tt.err || code != 42 {
			t.Errorf("%q: %q, %q, %d", tt.args, out, errs, code)
		}
	}
	out, errs, code := client.run("", "-s", zone, "sftp")
	if code != 255 || !strings.Contains(errs, "The lobby has no files") {
		t.Errorf("sftp in the lobby: %q, %q, %d", out, errs, code)
	}
}

func TestLobbyOfSeveralAccounts(t *testing.T) {
	w := newWorld(t)
	key, identity := identityFile(t)
	w.key(w.user("alice"), key)
	w.key(w.user("bob"), key)
	client := stockClient(t, startGateway(t, Options{Directory: w}), identity)
	if out, _, code := client.run("", "bob@"+zone, "whoami"); code != 0 || out != "lobby bob \"whoami\"\n" {
		t.Errorf("bob: %q, %d", out, code)
	}
	if out, errs, code := client.run("", "carol@"+zone, "whoami"); code != 255 || out != "" ||
		!strings.Contains(errs, "ssh <account>@"+zone) {
		t.Errorf("carol: %q, %q, %d", out, errs, code)
	}
}

// TestStockReasons are the containers that cannot be entered now: one line, and 255.
func TestStockReasons(t *testing.T) {
	w := newWorld(t)
	key, identity := identityFile(t)
	alice := w.user("alice")
	id := w.key(alice, key)
	w.container("aaaaaaaa", alice, id)
	w.ssh(alice, "aaaaaaaa", false)
	w.container("bbbbbbbb", alice, id)
	w.status("bbbbbbbb", compute.StatusStopped, "")
	w.container("cccccccc", alice, id)
	w.status("cccccccc", compute.StatusFailed, "no arm64 node")
	w.container("dddddddd", alice, id)
	w.status("dddddddd", compute.StatusPending, "")
	w.container("eeeeeeee", alice, id) // runs by the database, and not in truth
	client := stockClient(t, startGateway(t, Options{Directory: w}), identity)
	for login, want := range map[string]string{
		"aaaaaaaa@" + zone:      "berth: SSH is off for container aaaaaaaa; its owner turns it on with PUT /compute/containers/aaaaaaaa/ssh.",
		"root@aaaaaaaa." + zone: "berth: SSH is off for container aaaaaaaa;",
		"x+bbbbbbbb@" + zone:    "berth: Container bbbbbbbb is stopped; its owner starts it with POST /compute/containers/bbbbbbbb/start.",
		"x@bbbbbbbb." + zone:    "berth: Container bbbbbbbb is stopped;",
		"cccccccc@" + zone:      "berth: Container cccccccc has failed: no arm64 node",
		"dddddddd@" + zone:      "berth: Container dddddddd is starting (pending); try again in a moment.",
		"eeeeeeee@" + zone:      "berth: Container eeeeeeee does not run.",
	} {
		for _, args := range [][]string{{login, "true"}, {login}, {"-s", login, "sftp"}} {
			out, errs, code := client.run("", args...)
			if code != 255 || out != "" || !strings.HasPrefix(errs, want) || strings.Count(errs, "\n") != 1 {
				t.Errorf("%q: %q, %q, %d", args, out, errs, code)
			}
		}
		if out, errs, code := client.run("", "-tt", login); code != 255 || !strings.HasSuffix(out+errs, "\r\n") {
			t.Errorf("%s with a terminal: %q, %q, %d", login, out, errs, code)
		}
	}
	if _, errs, code := client.run("", "root@ffffffff."+zone, "true"); code != 255 || !strings.Contains(errs, "Permission denied (publickey)") {
		t.Errorf("an absent container behind the jump: %q, %d", errs, code)
	}
}

func TestJumpDestinations(t *testing.T) {
	w := newWorld(t)
	key, identity := identityFile(t)
	w.key(w.user("alice"), key)
	client := stockClient(t, startGateway(t, Options{Directory: w}), identity)
	for dest, want := range map[string]string{
		"127.0.0.1:22":             "administratively prohibited: this gateway connects to <id>." + zone + " alone",
		"[::1]:80":                 "administratively prohibited: this gateway connects to <id>." + zone + " alone",
		"aaaaaaaa." + zone + ":80": "administratively prohibited: a jump is to port 22",
		zone + ":22":               "administratively prohibited: this is " + zone + " already",
		"x.y." + zone + ":22":      "administratively prohibited: this gateway connects to",
	} {
		if _, errs, code := client.run("", "-o", "LogLevel=INFO", "-W", dest, zone); code != 255 || !strings.Contains(errs, want) {
			t.Errorf("-W %s: %q, %d", dest, errs, code)
		}
	}
}

// TestStockCiphers checks what a stock client ends up with, and that one that was configured otherwise gets in.
func TestStockCiphers(t *testing.T) {
	w := newWorld(t)
	key, identity := identityFile(t)
	w.key(w.user("alice"), key)
	client := stockClient(t, startGateway(t, Options{Directory: w}), identity)
	for _, tt := range []struct{ args, want string }{
		{"", "aes128-gcm@openssh.com"},
		{"-c aes256-gcm@openssh.com", "aes256-gcm@openssh.com"},
		{"-c chacha20-poly1305@openssh.com", "chacha20-poly1305@openssh.com"},
		{"-c aes256-ctr", "aes256-ctr"},
	} {
		_, errs, code := client.run("", append(strings.Fields(tt.args), "-v", "-o", "LogLevel=debug1", zone, "ls")...)
		if code != 0 || !strings.Contains(errs, "kex: client->server cipher: "+tt.want) ||
			!strings.Contains(errs, "kex: server->client cipher: "+tt.want) {
			t.Errorf("%q: %d, %s", tt.args, code, errs)
		}
	}
}
