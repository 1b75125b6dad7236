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
	"strings"
	"sync"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"berth/internal/compute"
)

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
	t *time.Ticker
}

func slow(t *testing.T, r io.Reader) *slowReader {
	s := &slowReader{r: r, t: time.NewTicker(time.Millisecond)}
	t.Cleanup(s.t.Stop)
	return s
}

func (s *slowReader) Read(p []byte) (int, error) {
	if s.n++; s.n%16 == 0 {
		<-s.t.C
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
	s.Stdin = slow(t, bytes.NewReader(data))
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
	got, err := io.ReadAll(slow(t, out))
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

// TestStalledSessions never read or are never read, beside sessions that must not notice: in the same connection, and
// in another one to the same container.
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

// TestEveryPacketSize echoes blocks whose packets end just before, at and after the ends of x/crypto's buffer: none may
// stay behind in the gateway.
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
