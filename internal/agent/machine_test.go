package agent_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/internal/agentproto"
)

// run runs a line as a user, and returns its output and how it ended.
func run(t testing.TB, conn *agentproto.Conn, user, line string) (out, how string) {
	t.Helper()
	s := openAs(t, conn, user)
	s.exec(line)
	_ = s.CloseWrite()
	out, errs, how := s.end()
	return out + errs, how
}

// What a program of a session finds is as in any login: nothing of the agent's signals, files or place in the process
// tree.
func TestMachineSessions(t *testing.T) {
	conn := boot(t, false).dial()
	for _, c := range []struct{ user, line, out, how string }{
		{"root", "grep -E 'Sig(Ign|Blk)' /proc/self/status | cut -f2 | sort -u", "0000000000000000\n", "exit 0"},
		{"root", "ls /proc/self/fd", "0\n1\n2\n3\n", "exit 0"}, // the last one is the directory
		{"root", "umask; id -u; id -G; echo $IMAGE $HOME", "0022\n0\n0\nyes /root\n", "exit 0"},
		{"alice", "umask; id -u; id -G; pwd", "0022\n4242\n4242\n/home/alice\n", "exit 0"},
		{"alice", "cat /proc/1/comm /proc/self/oom_score_adj", "agent\n200\n", "exit 0"},
		{"alice", "kill -TERM $$", "", "TERM"},
		{"nobody", "exit 7", "", "exit 7"},
	} {
		if out, how := run(t, conn, c.user, c.line); out != c.out || how != c.how {
			t.Errorf("%s: %s: %q, %q; want %q, %q", c.user, c.line, out, how, c.out, c.how)
		}
	}
}

// The reaper takes no status from a session while orphans end by the hundred.
func TestMachineReapsAndKeepsStatuses(t *testing.T) {
	conn := boot(t, false).dial()
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			for j := range 5 {
				want := (i + j) % 10
				line := fmt.Sprintf("for i in 1 2 3 4 5 6 7 8; do (/bin/true & ) ; done; exit %d", want)
				out, how := run(t, conn, "root", line)
				if how != fmt.Sprintf("exit %d", want) {
					t.Errorf("%q %q, want exit %d", out, how, want)
				}
			}
		})
	}
	wg.Wait()
	// Those that ended last may be waiting for the reaper: it is asked until it had its turn.
	for deadline := time.Now().Add(patience); ; {
		out, _ := run(t, conn, "root", "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z '")
		if strings.TrimSpace(out) == "0" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s zombies stay", strings.TrimSpace(out))
		}
	}
}

func TestMachineEndsInOrder(t *testing.T) {
	for name, c := range map[string]struct {
		line        string // none: a login shell
		least, most time.Duration
		how         string
	}{
		"all end when they are told": {
			"trap 'exit 5' TERM; echo up; while :; do sleep 1000 & wait $!; done", 0, 5 * time.Second, "exit 5",
		},
		"one ignores that": {
			"trap '' TERM HUP; echo up; while :; do /bin/sleep 1; done", 5 * time.Second, patience, "KILL",
		},
		"an interactive shell": {"", 0, 5 * time.Second, "HUP"},
		"one that is stopped": {
			"trap 'exit 5' TERM; echo up; kill -STOP $$; exit 9", 0, 5 * time.Second, "exit 5",
		},
		"an orphan holds on to stdout": {
			"(trap '' TERM HUP; echo up; exec sleep 1000) & wait", 5 * time.Second, patience, "TERM",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := boot(t, false)
			s := openAs(t, m.dial(), "root")
			if c.line != "" {
				s.exec(c.line)
			} else {
				s.must("pty-req", ptyRequest{"dumb", 80, 24, 0, 0, ""})
				s.must("shell", nil)
				if _, err := s.Write([]byte("echo u''p\n")); err != nil {
					t.Fatal(err)
				}
			}
			s.awaitOutput("up")
			began := time.Now()
			if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			_, _, how := s.end()
			err := m.wait()
			if d := time.Since(began); err != nil || d < c.least || d > c.most {
				t.Errorf("it ended after %v with %v", d, err)
			}
			if how != c.how {
				t.Errorf("the client learned %q, not %q", how, c.how)
			}
		})
	}
}

func TestMachineRunsTheImagesCommand(t *testing.T) {
	m := boot(t, false, "--", "sh", "-c", "echo $IMAGE is the last; exec sleep 1000")
	conn := m.dial()
	l := openLog(t, conn, whole)
	l.line("berth: started sh")
	l.line("yes is the last")
	find := `until for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' <$p/cmdline)" = "sleep 1000 " ] && ` +
		`cat $p/oom_score_adj && break; done; do :; done`
	if out, _ := run(t, conn, "root", find); out != "200\n" {
		t.Errorf("the command's score is %q", out)
	}
}

// An image with nothing but a static program: no shell, no accounts, no libraries.
func TestBareMachine(t *testing.T) {
	conn := boot(t, true).dial()
	for line, want := range map[string]string{
		"/.berth/agent --version":              "0",
		"/.berth/agent 'no such' command":      "2",
		`/.berth/agent "--version"`:            "0",
		"no-such-program":                      "many",
		"/.berth/agent 'unfinished":            "many",
		"":                                     "many",
		"PATH=x /.berth/agent --version; true": "many",
	} {
		if out, how := run(t, conn, "root", line); how != "exit "+want || out == "" {
			t.Errorf("%q: %q, %q", line, out, how)
		}
	}
	s := openAs(t, conn, "root")
	s.must("pty-req", ptyRequest{"xterm", 80, 24, 0, 0, ""})
	s.must("shell", nil)
	if _, errs, how := s.end(); !strings.HasSuffix(errs, "name a program to run\r\n") || how != "exit many" {
		t.Errorf("a shell: %q, %q", errs, how)
	}
	s = openAs(t, conn, "")
	s.must("subsystem", struct{ Name string }{"sftp"})
	if _, err := s.Write([]byte{0, 0, 0, 5, 1, 0, 0, 0, 3}); err != nil { // SSH_FXP_INIT
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 9)); err != nil {
		t.Errorf("sftp: %v", err)
	}
	s = openAs(t, conn, "root")
	s.must("pty-req", ptyRequest{"xterm", 80, 24, 0, 0, ""})
	s.exec("/.berth/agent --version")
	if out, _, how := s.end(); !strings.HasSuffix(out, "\r\n") || how != "exit 0" {
		t.Errorf("with a terminal: %q, %q", out, how)
	}
}

// helloBytes is what a gateway says first, as an argument of printf(1).
const helloBytes = `'\001\000\000\021\000\000\000\000{"min":1,"max":1}'`

func TestMachineAdmitsRootAlone(t *testing.T) {
	m := boot(t, false)
	conn := m.dial() // the host's root is no user of the container
	st, err := os.Lstat(filepath.Dir(m.socket()))
	if err != nil {
		t.Fatal(err)
	}
	if sys := st.Sys().(*syscall.Stat_t); st.Mode().Perm() != 0o700 || sys.Uid != firstID {
		t.Errorf("the socket's directory is %v, uid %d", st.Mode(), sys.Uid)
	}
	knock := "printf " + helloBytes + " | /.berth/agent connect 2>/dev/null | head -c 1 | wc -c"
	for _, user := range []string{"alice", "nobody"} {
		out, _ := run(t, conn, user, "/.berth/agent connect </dev/null")
		if !strings.Contains(out, "permission denied") {
			t.Errorf("%s: %q", user, out)
		}
	}
	if out, _ := run(t, conn, "root", knock); out != "1\n" {
		t.Errorf("the container's root: %q", out)
	}
	// Root opens the directory up by mistake: the socket still tells who is there.
	if out, how := run(t, conn, "root", "chmod 755 /.berth/run && chmod 666 /.berth/run/agent.sock"); how != "exit 0" {
		t.Fatal(out)
	}
	for _, user := range []string{"alice", "nobody"} {
		for _, within := range []string{"", "unshare -Ur ", "unshare -Urpf "} {
			line := within + "sh -c " + quote(knock)
			if out, _ := run(t, conn, user, line); out != "0\n" {
				t.Errorf("%s: %s: %q", user, line, out)
			}
		}
	}
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func TestConnect(t *testing.T) {
	m := boot(t, false)
	ours, theirs := socketpair(t)
	f, err := theirs.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	c := m.inside("/.berth/agent", "connect")
	c.Stdin, c.Stdout, c.Stderr = f, f, os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	conn, err := agentproto.Dial(within(t), ours, agentproto.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s := openAs(t, conn, "root")
	s.exec("cat; exit 3")
	in := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	go func() {
		_, _ = s.Write(in)
		_ = s.CloseWrite()
	}()
	if out, _, how := s.end(); out != string(in) || how != "exit 3" {
		t.Errorf("%d bytes of %d came back, %q", len(out), len(in), how)
	}
	conn.Close()
	if err := c.Wait(); err != nil {
		t.Errorf("connect ended with %v", err)
	}
}

// stockSSH is a client's command line to the break-glass server.
func (m *machine) stockSSH(program string, args ...string) *exec.Cmd {
	proxy := "nsenter " + strings.Join(m.enter(), " ") + " /.berth/agent ssh"
	c := exec.Command(program, append([]string{
		"-F", "none", "-o", "ProxyCommand=" + proxy,
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "BatchMode=yes",
	}, args...)...)
	c.WaitDelay = patience
	return c
}

func TestBreakGlass(t *testing.T) {
	m := boot(t, false)
	for _, c := range []struct {
		args, in, out string
		code          int
	}{
		{"root@box|echo out; exit 7", "", "out\n", 7},
		{"root@box|echo err >&2", "", "err\n", 0},
		{"alice@box|id -un; cat", "in", "alice\nin", 0},
		{"root@box|kill -TERM $$", "", "", 255},
		{"-tt|alice@box|tty; stty size; exit 3", "", "/dev/pts/0\r\n", 3},
		{"-tt|root@box", "echo shell $0; exit 4\n", "what survives a stop: /root\r\n", 4},
		{"mallory@box|true", "", `there is no user "mallory" in the container`, 255},
	} {
		cmd := m.stockSSH("ssh", strings.Split(c.args, "|")...)
		cmd.Stdin = strings.NewReader(c.in)
		out, err := cmd.CombinedOutput()
		if !strings.Contains(string(out), c.out) || cmd.ProcessState.ExitCode() != c.code {
			t.Errorf("%s: %q, %v", c.args, out, err)
		}
	}
	dir := t.TempDir()
	want := bytes.Repeat([]byte("binary \x00\xff\n"), 300_000)
	if err := os.WriteFile(filepath.Join(dir, "up"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*exec.Cmd{
		m.stockSSH("scp", filepath.Join(dir, "up"), "alice@box:copy"),
		m.stockSSH("scp", "alice@box:copy", filepath.Join(dir, "down")),
		m.stockSSH("scp", "-O", "alice@box:copy", filepath.Join(dir, "down2")),
	} {
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%v: %s, %v", c.Args, out, err)
		}
	}
	for _, name := range []string{"down", "down2"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
		}
	}
	if st, err := os.Stat(m.path("home/alice/copy")); err != nil || st.Sys().(*syscall.Stat_t).Uid != firstID+alice {
		t.Errorf("the copy is %v, %v", st, err)
	}
	sftp := m.stockSSH("sftp", "-b", "-", "alice@box")
	sftp.Stdin = strings.NewReader("mkdir d\nrename copy d/moved\nls -l d\n")
	if out, err := sftp.CombinedOutput(); err != nil || !strings.Contains(string(out), "d/moved") {
		t.Errorf("sftp: %s, %v", out, err)
	}
}

// The client's end, however it comes, is a hang-up for what runs.
func TestBreakGlassHangsUp(t *testing.T) {
	m := boot(t, false)
	fifo := m.path("root/fifo")
	if err := errors.Join(syscall.Mkfifo(fifo, 0o600), os.Chown(fifo, firstID, firstID)); err != nil {
		t.Fatal(err)
	}
	c := m.stockSSH("ssh", "root@box",
		"trap 'echo hung up >/root/fifo; exit' HUP; echo ready; while :; do sleep 1 & wait $!; done")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if got := <-readSoon(t, fifo); got != "hung up\n" {
		t.Errorf("%q", got)
	}
}

// readSoon reads a FIFO to its end.
func readSoon(t *testing.T, fifo string) <-chan string {
	t.Helper()
	f, err := os.OpenFile(fifo, os.O_RDWR, 0) // so that opening waits for nobody
	if err != nil {
		t.Fatal(err)
	}
	if err := f.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	text := make(chan string, 1)
	go func() {
		defer f.Close()
		b := make([]byte, 100)
		n, _ := f.Read(b)
		text <- string(b[:n])
	}()
	return text
}

// The agent takes little memory of its container.
func TestMachineMemory(t *testing.T) {
	m := boot(t, false)
	conn := m.dial()
	fresh := m.memory()
	var list []session
	for range 50 {
		s := openAs(t, conn, "root")
		s.exec("cat")
		list = append(list, s)
	}
	busy := m.memory()
	for _, s := range list {
		_ = s.CloseWrite()
		s.end()
	}
	t.Logf("resident: %s fresh, %s with 50 idle sessions, %s after them", fresh, busy, m.memory())
	if fresh.anonymous > 6<<10 || busy.anonymous > 12<<10 {
		t.Errorf("%s fresh, %s with 50 idle sessions", fresh, busy)
	}
}

type memory struct{ resident, anonymous int } // kB

func (m memory) String() string {
	return fmt.Sprintf("%d kB (%d kB of it its own)", m.resident, m.anonymous)
}

func (m *machine) memory() (got memory) {
	m.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch f[0] {
		case "VmRSS:":
			got.resident, _ = strconv.Atoi(f[1])
		case "RssAnon:":
			got.anonymous, _ = strconv.Atoi(f[1])
		}
	}
	return got
}
