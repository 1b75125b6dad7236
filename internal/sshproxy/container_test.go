package sshproxy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"berth/internal/compute"
)

func TestStockSessions(t *testing.T) {
	h := newHarbour(t, Options{})
	for _, login := range []string{"aaaaaaaa@" + zone, "root+aaaaaaaa@" + zone, "root@aaaaaaaa." + zone} {
		t.Run(login, func(t *testing.T) {
			for _, tt := range []struct {
				stdin, command string
				out, err       string
				code           int
			}{
				{"", "true", "", "", 0},
				{"", "exit 7", "", "", 7},
				{"", "exit 255", "", "", 255},
				{"", "echo $CONTAINER", "aaaaaaaa\n", "", 0},
				{"", "echo out; echo err >&2; exit 3", "out\n", "err\n", 3},
				{"hello", "cat; echo; echo done", "hello\ndone\n", "", 0},
				{"", "kill -TERM $$", "", "", 255},
				{"", "cat", "", "", 0},
			} {
				out, errs, code := h.stock.run(tt.stdin, login, tt.command)
				if out != tt.out || errs != tt.err || code != tt.code {
					t.Errorf("%q: %q, %q, %d", tt.command, out, errs, code)
				}
			}
		})
	}
	if n := h.machines.dials.Load(); n != 1 {
		t.Errorf("%d transports were dialled", n)
	}
	out, _, code := h.stock.run("", "-tt", "aaaaaaaa@"+zone, "stty size; tty >/dev/null && echo terminal; exit 5")
	if code != 5 || !strings.HasSuffix(out, "terminal\r\n") {
		t.Errorf("with a terminal: %q, %d", out, code)
	}
	if out, errs, code := h.stock.run("", "nosuchuser+aaaaaaaa@"+zone, "true"); code != 255 || out != "" || !strings.HasPrefix(errs, "berth: ") {
		t.Errorf("an unknown user: %q, %q, %d", out, errs, code)
	}
}

func TestExitSignal(t *testing.T) {
	h := newHarbour(t, Options{})
	s, err := h.login(t).NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var exit *gossh.ExitError
	if err := s.Run("kill -TERM $$"); !errors.As(err, &exit) || exit.Signal() != "TERM" {
		t.Errorf("the session ended with %v", err)
	}
}

// TestSignalForwarding sends a signal from the client.
func TestSignalForwarding(t *testing.T) {
	h := newHarbour(t, Options{})
	s, err := h.login(t).NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(`trap 'echo usr1; exit 9' USR1; echo ready; while :; do sleep 0.05; done`); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(gossh.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "the signal arrives", func() {
		b, _ := io.ReadAll(out)
		var exit *gossh.ExitError
		if err := s.Wait(); string(b) != "usr1\n" || !errors.As(err, &exit) || exit.ExitStatus() != 9 {
			t.Errorf("%q, %v", b, err)
		}
	})
}

// frames runs a command and returns the kinds of messages of its channel, in order and without repetitions.
func frames(t *testing.T, h *harbour, command string) []string {
	t.Helper()
	c := loggedInRaw(t, h.gatewayUnderTest, "aaaaaaaa", h.key)
	var list []string
	c.observe = func(p []byte) {
		name := map[byte]string{94: "stdout", 95: "stderr", 96: "EOF", 97: "CLOSE", 98: "request", 99: "reply", 93: "window"}[p[0]]
		if p[0] == 98 {
			var r struct {
				Channel uint32
				Name    string
				Rest    []byte `ssh:"rest"`
			}
			if err := gossh.Unmarshal(p[1:], &r); err != nil {
				t.Fatal(err)
			}
			name = r.Name
		}
		if name != "window" && (len(list) == 0 || list[len(list)-1] != name) {
			list = append(list, name)
		}
	}
	if _, err := c.exec(command); err != nil {
		t.Fatal(err)
	}
	return list
}

func TestFrameOrder(t *testing.T) {
	h := newHarbour(t, Options{})
	for command, want := range map[string][]string{
		"head -c 300000 /dev/zero":     {"reply", "stdout", "exit-status", "EOF", "CLOSE"},
		"head -c 300000 /dev/zero >&2": {"reply", "stderr", "exit-status", "EOF", "CLOSE"},
		"echo x; kill -TERM $$":        {"reply", "stdout", "exit-signal", "EOF", "CLOSE"},
		"true":                         {"reply", "exit-status", "EOF", "CLOSE"},
		"echo a; sleep 0.1; echo b >&2; sleep 0.1; echo c": {"reply", "stdout", "stderr", "stdout", "exit-status", "EOF", "CLOSE"},
	} {
		for range 5 {
			if got := frames(t, h, command); !slices.Equal(got, want) {
				t.Fatalf("%q: %v, want %v", command, got, want)
			}
		}
	}
}

// TestHalfClose is a command that reads to the end of its input and answers after it.
func TestHalfClose(t *testing.T) {
	h := newHarbour(t, Options{})
	c := h.login(t)
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	s.Stdin = bytes.NewReader(bytes.Repeat([]byte("x"), 3<<20))
	if out, err := s.Output("wc -c; echo after"); err != nil || string(out) != "3145728\nafter\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// noise is n bytes that no compression, text mode or terminal leaves alone.
func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewSource(int64(n)))
	for i := range b {
		b[i] = byte(r.Intn(256))
	}
	return b
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// slowReader gives its bytes in small pieces with pauses, as a reader on a bad line takes them.
type slowReader struct {
	r io.Reader
	n int
}

func (s *slowReader) Read(p []byte) (int, error) {
	if s.n++; s.n%16 == 0 {
		time.Sleep(time.Millisecond)
	}
	return s.r.Read(p[:min(len(p), 7001)])
}

func TestBinaryBothWaysThrottled(t *testing.T) {
	h := newHarbour(t, Options{})
	data := noise(8 << 20)
	file := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	c := h.login(t)
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	s.Stdin = &slowReader{r: bytes.NewReader(data)}
	if out, err := s.Output("sha256sum"); err != nil || !strings.HasPrefix(string(out), sum(data)) {
		t.Errorf("up: %q, %v", out, err)
	}
	if s, err = c.NewSession(); err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("cat " + file + "; exit 4"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(&slowReader{r: out})
	if err != nil || sum(got) != sum(data) {
		t.Errorf("down: %d bytes, %v", len(got), err)
	}
	var exit *gossh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 4 {
		t.Errorf("down: %v", err)
	}
}

func TestManySessionsInOneConnection(t *testing.T) {
	h := newHarbour(t, Options{})
	c := h.login(t)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			s, err := c.NewSession()
			if err != nil {
				t.Errorf("session %d: %v", i, err)
				return
			}
			defer s.Close()
			s.Stdin = strings.NewReader(fmt.Sprintf("number %d", i))
			if out, err := s.Output("cat; sleep 0.2"); err != nil || string(out) != fmt.Sprintf("number %d", i) {
				t.Errorf("session %d: %q, %v", i, out, err)
			}
		})
	}
	within(t, 60*time.Second, "50 sessions", wg.Wait)
}

func TestManyConnections(t *testing.T) {
	h := newHarbour(t, Options{})
	var wg sync.WaitGroup
	for i := range 50 {
		id := []compute.ContainerID{"aaaaaaaa", "bbbbbbbb"}[i%2]
		wg.Go(func() {
			out, errs, code := h.stock.run("", string(id)+"@"+zone, fmt.Sprintf("echo $CONTAINER %d", i))
			if want := fmt.Sprintf("%s %d\n", id, i); out != want || code != 0 {
				t.Errorf("connection %d: %q, %q, %d", i, out, errs, code)
			}
		})
	}
	within(t, 120*time.Second, "50 connections", wg.Wait)
	if n := h.machines.dials.Load(); n != 2 {
		t.Errorf("%d transports for two containers", n)
	}
}

// TestStalledSessions never read or are never read, beside sessions that must not notice: in the same connection, and in
// another one to the same container.
func TestStalledSessions(t *testing.T) {
	h := newHarbour(t, Options{})
	c := h.login(t)
	start := func(command string) *gossh.Session {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	unread := start("")
	out, err := unread.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var told bytes.Buffer
	unread.Stderr = &told
	if err := unread.Start("yes"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 64<<10)); err != nil { // and no more, for ever
		t.Fatal(err)
	}
	deaf := start("")
	in, err := deaf.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := deaf.Start("exec sleep 1000"); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(in, endless{}) }()
	for _, active := range []*gossh.Client{c, h.login(t)} {
		for range 10 {
			s, err := active.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			s.Stdin = bytes.NewReader(make([]byte, 1<<20))
			within(t, 20*time.Second, "a session beside stalled ones", func() {
				if out, err := s.Output("cat"); err != nil || len(out) != 1<<20 {
					t.Errorf("%d bytes, %v", len(out), err)
				}
			})
		}
	}
	// A request passes both kinds of stall.
	if err := unread.Signal(gossh.SIGKILL); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	within(t, 10*time.Second, "a signal to the unread session", func() {
		var exit *gossh.ExitError
		if err := unread.Wait(); !errors.As(err, &exit) || exit.Signal() != "KILL" {
			t.Errorf("unread: %v %q", err, &told)
		}
	})
	if err := deaf.Signal(gossh.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- deaf.Wait() }()
	select {
	case err := <-ended:
		var exit *gossh.ExitError
		if !errors.As(err, &exit) || exit.Signal() != "TERM" {
			t.Errorf("deaf: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a signal to the deaf session did not end it")
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestTerminalResize(t *testing.T) {
	h := newHarbour(t, Options{})
	s, err := h.login(t).NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RequestPty("xterm", 24, 80, gossh.TerminalModes{gossh.ECHO: 0}); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(`trap 'stty size' WINCH; stty size; while :; do sleep 0.05; done`); err != nil {
		t.Fatal(err)
	}
	lines := newLines(out)
	lines.until(t, "24 80")
	for i := range 200 { // a person drags the window's corner
		if err := s.WindowChange(30, 100+i); err != nil {
			t.Fatal(err)
		}
	}
	lines.until(t, "30 299")
}

// lines reads a terminal line by line.
type lines struct{ c chan string }

func newLines(r io.Reader) *lines {
	l := &lines{c: make(chan string, 1024)}
	go func() {
		defer close(l.c)
		var line []byte
		b := make([]byte, 1)
		for {
			if _, err := r.Read(b); err != nil {
				return
			}
			if b[0] == '\n' {
				l.c <- strings.TrimRight(string(line), "\r")
				line = nil
				continue
			}
			line = append(line, b[0])
		}
	}()
	return l
}

func (l *lines) until(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(15 * time.Second)
	var seen []string
	for {
		select {
		case s, ok := <-l.c:
			if !ok {
				t.Fatalf("the output ended before %q: %q", want, seen)
			}
			if s == want {
				return
			}
			seen = append(seen, s)
		case <-deadline:
			t.Fatalf("no %q: %q", want, seen)
		}
	}
}

// TestHangUp ends a client's connection under a running command, which must get SIGHUP.
func TestHangUp(t *testing.T) {
	h := newHarbour(t, Options{})
	mark := filepath.Join(t.TempDir(), "hup")
	c := h.login(t)
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("exec 2>/dev/null; trap 'echo hup > " + mark + "; exit' HUP; echo ready; while :; do sleep 0.05; done"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	c.Close()
	within(t, 10*time.Second, "SIGHUP", func() {
		for {
			if b, _ := os.ReadFile(mark); string(b) == "hup\n" {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
}

func TestLossOfTheContainer(t *testing.T) {
	h := newHarbour(t, Options{})
	e := endOfSession(t, h.login(t), "echo here; sleep 1000", func() { h.machines.stop("aaaaaaaa") })
	e.check(t, "The connection to the container was lost")
	h.machines.start("aaaaaaaa")
	defer h.machines.stop("aaaaaaaa")
	if out, errs, code := h.stock.run("", "aaaaaaaa@"+zone, "echo again"); out != "again\n" || code != 0 {
		t.Errorf("after a restart: %q, %q, %d", out, errs, code)
	}
}

func TestRevocation(t *testing.T) {
	for what, tt := range map[string]struct {
		revoke func(h *harbour) error
		want   string
	}{
		"key":  {func(h *harbour) error { return h.DeleteKey(h.t.Context(), h.alice, h.keyID) }, "this key does not open"},
		"SSH":  {func(h *harbour) error { _, err := h.SetSSH(h.t.Context(), h.alice, "aaaaaaaa", false); return err }, "SSH is off for container aaaaaaaa"},
		"user": {func(h *harbour) error { _, err := h.SetUserDisabled(h.t.Context(), h.alice, true); return err }, "this key does not open"},
		"stop": {
			func(h *harbour) error {
				_, err := h.SetDesired(h.t.Context(), h.alice, "aaaaaaaa", compute.DesiredStopped)
				return err
			}, "stopped by its owner",
		},
		"delete": {
			func(h *harbour) error {
				_, err := h.SetDesired(h.t.Context(), h.alice, "aaaaaaaa", compute.DesiredDeleted)
				return err
			}, "this key does not open",
		},
	} {
		t.Run(what, func(t *testing.T) {
			h := newHarbour(t, Options{})
			var other *gossh.Client
			if what != "key" && what != "user" {
				other = h.dial(t, "bbbbbbbb", h.key)
			}
			c := h.login(t)
			e := endOfSession(t, c, "echo here; sleep 1000", func() {
				if err := tt.revoke(h); err != nil {
					t.Fatal(err)
				}
			})
			e.check(t, tt.want)
			within(t, 2*time.Second, "the connection closes", func() { _ = c.Wait() })
			if other == nil {
				return
			}
			s, err := other.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			if out, err := s.Output("echo $CONTAINER"); err != nil || string(out) != "bbbbbbbb\n" {
				t.Errorf("another container: %q, %v", out, err)
			}
		})
	}
}

// TestChannelsAreAuthorizedAnew takes the key away from a gateway that hears of no changes.
func TestChannelsAreAuthorizedAnew(t *testing.T) {
	w := newWorld(t)
	key := newKey(t)
	alice := w.user("alice")
	id := w.key(alice, key)
	w.container("aaaaaaaa", alice, id)
	g := startGateway(t, Options{Directory: w})
	c := g.dial(t, "aaaaaaaa", key)
	if err := w.DeleteKey(t.Context(), alice, id); err != nil {
		t.Fatal(err)
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var stderr bytes.Buffer
	s.Stderr = &stderr
	var exit *gossh.ExitError
	if err := s.Run("true"); !errors.As(err, &exit) || exit.ExitStatus() != 255 || !strings.Contains(stderr.String(), "does not open") {
		t.Errorf("%v, %q", err, &stderr)
	}
}

func TestForwardingIsRefusedWithWords(t *testing.T) {
	h := newHarbour(t, Options{})
	_, errs, _ := h.stock.run("", "-o", "LogLevel=INFO", "-W", "127.0.0.1:80", "aaaaaaaa@"+zone)
	if !strings.Contains(errs, "forwarding into a container (-L, -D, -W) is not offered yet") {
		t.Errorf("-W: %q", errs)
	}
	_, errs, code := h.stock.run("", "-R", "8080:127.0.0.1:80", "aaaaaaaa@"+zone, "true")
	if !strings.Contains(errs, "remote forwarding (-R) is not offered yet") || code != 0 {
		t.Errorf("-R: %q, %d", errs, code)
	}
	c := h.login(t)
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var stderr bytes.Buffer
	s.Stderr = &stderr
	for _, kind := range []string{"auth-agent-req@openssh.com", "x11-req", "winadj@putty.projects.tartarus.org", "x"} {
		if ok, err := s.SendRequest(kind, true, nil); ok || err != nil {
			t.Errorf("%s: %v, %v", kind, ok, err)
		}
	}
	if err := s.Run("sleep 0.3"); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"agent forwarding (-A) is not offered yet", "X11 forwarding (-X) is not offered yet"} {
		if strings.Count(stderr.String(), want) != 1 {
			t.Errorf("stderr is %q, want %q", &stderr, want)
		}
	}
}

func TestFileTransfer(t *testing.T) {
	h := newHarbour(t, Options{})
	dir := t.TempDir()
	data := noise(5 << 20)
	local := filepath.Join(dir, "local")
	if err := os.WriteFile(local, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"aaaaaaaa@" + zone, "root@aaaaaaaa." + zone} {
		for i, command := range [][]string{
			{"scp", "-F", h.stock.config, local, host + ":" + dir + "/up"},
			{"scp", "-F", h.stock.config, host + ":" + dir + "/up", dir + "/down"},
			{"scp", "-O", "-F", h.stock.config, local, host + ":" + dir + "/up"},
			{"scp", "-O", "-F", h.stock.config, host + ":" + dir + "/up", dir + "/down"},
			{"rsync", "-e", "ssh -F " + h.stock.config, local, host + ":" + dir + "/up"},
			{"rsync", "-e", "ssh -F " + h.stock.config, host + ":" + dir + "/up", dir + "/down"},
		} {
			if _, err := exec.LookPath(command[0]); err != nil {
				t.Fatalf("these tests need %s", command[0])
			}
			if i%2 == 0 {
				_ = os.Remove(dir + "/up")
				_ = os.Remove(dir + "/down")
			}
			cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%q: %v\n%s", command, err, out)
			}
			if i%2 == 1 {
				if got, err := os.ReadFile(dir + "/down"); err != nil || sum(got) != sum(data) {
					t.Errorf("%q: %d bytes, %v", command, len(got), err)
				}
			}
		}
	}
}

// TestEveryPacketSize echoes blocks whose packets end just before, at and after the ends of x/crypto's buffer: none may stay
// behind in the gateway.
func TestEveryPacketSize(t *testing.T) {
	h := newHarbour(t, Options{})
	for _, cipher := range []string{gossh.CipherAES128GCM, gossh.CipherChaCha20Poly1305, gossh.CipherAES256CTR} {
		t.Run(cipher, func(t *testing.T) {
			config := h.clientConfig("aaaaaaaa", h.key)
			config.Ciphers, config.MACs = []string{cipher}, []string{gossh.HMACSHA256} // the MAC that can fill the buffer exactly
			c, err := gossh.Dial("tcp", h.addr, config)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s, err := c.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			in, err := s.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := s.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Start("exec cat"); err != nil {
				t.Fatal(err)
			}
			for _, around := range []int{4096, 8192} {
				for n := around - 90; n < around+30; n++ {
					within(t, 10*time.Second, fmt.Sprintf("an echo of %d bytes", n), func() {
						data := noise(n)
						if _, err := in.Write(data); err != nil {
							t.Error(err)
						}
						got := make([]byte, n)
						if _, err := io.ReadFull(out, got); err != nil || !bytes.Equal(got, data) {
							t.Errorf("%d bytes: %v", n, err)
						}
					})
				}
			}
		})
	}
}
