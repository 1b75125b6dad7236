package sshproxy

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"
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
