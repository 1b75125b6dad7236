package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// screen is a terminal with a program on it: what it printed, and a way to wait for it.
type screen struct {
	ptm *os.File
	cmd *exec.Cmd

	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed and made anew when text grows
	ended   bool
}

// startScreen runs cmd on a terminal of that size, set up by stty's arguments.
func startScreen(t *testing.T, size pty.Winsize, stty []string, cmd *exec.Cmd) *screen {
	t.Helper()
	ptm, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	if err := pty.Setsize(ptm, &size); err != nil {
		t.Fatal(err)
	}
	if len(stty) > 0 {
		set := exec.Command("stty", stty...)
		set.Stdin = tty
		if out, err := set.CombinedOutput(); err != nil {
			t.Fatalf("stty: %v: %s", err, out)
		}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &screen{ptm: ptm, cmd: cmd, changed: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.read()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it ended, if all went well
		_ = cmd.Wait()
		_ = ptm.Close()
		<-done
	})
	return s
}

func (s *screen) read() {
	b := make([]byte, 4096)
	for {
		n, err := s.ptm.Read(b)
		s.mu.Lock()
		s.text.Write(b[:n])
		s.ended = err != nil
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
		if err != nil {
			return // EIO: the program is gone
		}
	}
}

// expect waits until what was printed since the last expect matches, and returns the match.
func (s *screen) expect(t *testing.T, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.After(30 * time.Second)
	for {
		s.mu.Lock()
		text, changed, ended := s.text.String(), s.changed, s.ended
		if at := re.FindStringSubmatchIndex(text); at != nil {
			m := re.FindStringSubmatch(text)
			s.text.Next(at[1])
			s.mu.Unlock()
			return m
		}
		s.mu.Unlock()
		if ended {
			t.Fatalf("the program ended; %q is not in %q", pattern, text)
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%q is not in %q", pattern, text)
		}
	}
}

func (s *screen) typeIn(t *testing.T, text string) {
	t.Helper()
	if _, err := s.ptm.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// person makes an account on the shared instance, and cleans up after the test.
func person(t *testing.T, name string) *account {
	t.Helper()
	i, err := sharedInstance()
	if err != nil {
		t.Fatal(err)
	}
	return personOn(t, i, fmt.Sprintf("%s-%d", name, persons.Add(1)))
}

// persons counts those on the shared instance, so that a test may run again on it.
var persons atomic.Int64

func personOn(t *testing.T, i *instance, name string) *account {
	t.Helper()
	a, err := newAccount(i, name, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(tail(i.log))
		}
		if i == shared.i {
			if err := a.deleteAll(); err != nil {
				t.Error(err)
			}
		}
	})
	return a
}

// boxOf makes a container that runs, or fails the test.
func boxOf(t *testing.T, a *account, fields string) string {
	t.Helper()
	id, err := a.box(fields)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestTerminal holds what a person at a terminal sees of the stock client: sizes, modes, keys, and how it ends.
func TestTerminal(t *testing.T) {
	t.Parallel()
	a := person(t, "terminal")
	id := boxOf(t, a, "")
	for _, way := range []string{a.at(id), "root@" + id + "." + a.on.ready.Zone} {
		t.Run(way, func(t *testing.T) {
			cmd := exec.Command("ssh", "-F", a.sshConfig(), "-tt", way)
			cmd.Env = append(os.Environ(), "TERM=xterm-256color")
			s := startScreen(t, pty.Winsize{Rows: 24, Cols: 80}, []string{"intr", "^B"}, cmd)
			s.expect(t, "# ")
			s.typeIn(t, "stty size; echo $TERM\r")
			s.expect(t, "24 80\r\nxterm-256color\r\n")

			// A resize is seen by who asks, and told to who listens. Not to bash: one that comes just before it waits for a key it
			// looks at after the key.
			s.typeIn(t, `perl -e '$| = 1; $SIG{WINCH} = sub { $n++ }; print "list", "ening\n"; `+
				`while (1) { select(undef, undef, undef, 0.02); if ($n) { $n = 0; print "resized ", `+"`stty size`"+` } }'`+"\r")
			s.expect(t, "listening")
			if err := pty.Setsize(s.ptm, &pty.Winsize{Rows: 50, Cols: 132}); err != nil {
				t.Fatal(err)
			}
			s.expect(t, "resized 50 132\r\n")
			for n := range uint16(100) { // a person drags the corner of a window; the last size counts
				if err := pty.Setsize(s.ptm, &pty.Winsize{Rows: 30 + n, Cols: 100 + n}); err != nil {
					t.Fatal(err)
				}
			}
			s.expect(t, "resized 129 199\r\n")
			s.typeIn(t, "\x02") // the interrupt key, see above
			s.expect(t, "# ")
			s.typeIn(t, "stty size\r")
			s.expect(t, "129 199\r\n")

			// The client's modes: its interrupt key is ^B, and ^B interrupts.
			s.typeIn(t, "stty -a\r")
			s.expect(t, `intr = \^B;`)
			s.typeIn(t, "sh -c 'echo sleep\"\"ing; exec sleep 1000'\r")
			s.expect(t, "sleeping\r\n")
			s.typeIn(t, "\x02")
			s.expect(t, `\^B`)
			s.typeIn(t, "echo code $?\r")
			s.expect(t, "code 130\r\n")

			// A program on the whole screen, and job control.
			s.typeIn(t, "seq 1000 | less\r")
			s.expect(t, "128\r\n:")
			s.typeIn(t, "G")
			s.expect(t, "1000\r\n")
			s.typeIn(t, "q")
			s.expect(t, "# ")
			s.typeIn(t, `perl -e '$| = 1; $SIG{CONT} = sub { print "aw", "ake\n" }; print "sleep", "ing\n"; sleep 1 while 1'`+"\r")
			s.expect(t, "sleeping\r\n")
			s.typeIn(t, "\x1a")
			s.expect(t, "Stopped +perl -e")
			s.typeIn(t, "fg\r")
			s.expect(t, "awake\r\n") // bash has given it the terminal
			s.typeIn(t, "\x02")
			s.expect(t, "# ")
			s.typeIn(t, "echo code $?\r")
			s.expect(t, "code 130\r\n")

			s.typeIn(t, "exit 5\r")
			s.expect(t, "closed")
			if err := s.cmd.Wait(); s.cmd.ProcessState.ExitCode() != 5 {
				t.Errorf("ssh ended with %v, want 5", err)
			}
		})
	}
}

// TestTerminalGone holds that what runs on a terminal gets a hang-up when the client goes.
func TestTerminalGone(t *testing.T) {
	t.Parallel()
	a := person(t, "gone")
	id := boxOf(t, a, "")
	s := startScreen(t, pty.Winsize{Rows: 24, Cols: 80}, nil, exec.Command("ssh", "-F", a.sshConfig(), "-tt", a.at(id)))
	s.expect(t, "# ")
	s.typeIn(t, "trap 'echo hung up >/root/hup; exit' HUP; echo re''ady; while :; do sleep 0.1; done\r")
	s.expect(t, "ready")
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if out, err := a.ssh(a.at(id), "timeout 20 sh -c 'until test -s /root/hup; do sleep 0.1; done'; cat /root/hup"); err != nil || out != "hung up" {
		t.Errorf("the shell's trap wrote %q, %v", out, err)
	}
}

// TestSlowTerminal types into a session beside one that a stalled client fills, in the same connection.
func TestSlowTerminal(t *testing.T) {
	t.Parallel()
	a := person(t, "slow")
	id := boxOf(t, a, "")
	client := a.dial(t, id)
	stalled, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stalled.StdoutPipe(); err != nil { // which nobody reads
		t.Fatal(err)
	}
	if err := stalled.Start("cat /dev/zero"); err != nil {
		t.Fatal(err)
	}
	var worst time.Duration
	for n := range 50 {
		began := time.Now()
		s, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		out, err := s.Output(fmt.Sprint("echo ", n))
		if err != nil || string(out) != fmt.Sprintln(n) {
			t.Fatalf("got %q, %v", out, err)
		}
		worst = max(worst, time.Since(began))
	}
	t.Logf("the slowest of 50 commands beside a stalled one: %v", worst)
	if worst > 5*time.Second {
		t.Errorf("a command took %v beside a stalled session", worst)
	}
}
