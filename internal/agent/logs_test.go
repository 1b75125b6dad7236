package agent_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/agentproto"
)

// logOf is a log that is read.
type logOf struct {
	t testing.TB
	*bufio.Reader
	ch *agentproto.Channel
}

func openLog(t testing.TB, conn *agentproto.Conn, q agentproto.Logs) logOf {
	t.Helper()
	payload, err := q.Encode()
	if err != nil {
		t.Fatal(err)
	}
	a, err := conn.Attach(within(t), agentproto.Attach{User: "nobody in particular"})
	if err != nil {
		t.Fatal(err)
	}
	ch, err := a.Open(within(t), agentproto.KindLogs, payload)
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { ch.Close() })
	t.Cleanup(func() {
		timer.Stop()
		a.Close()
	})
	return logOf{t, bufio.NewReader(ch), ch}
}

// rest reads to the end.
func (l logOf) rest() string {
	l.t.Helper()
	b, err := io.ReadAll(l)
	if err != nil {
		l.t.Fatalf("%v after %q", err, b)
	}
	return string(b)
}

func (l logOf) line(want string) {
	l.t.Helper()
	if got, err := l.ReadString('\n'); err != nil || got != want+"\n" {
		l.t.Fatalf("%q, %v, want %q", got, err, want)
	}
}

func last(n int64) *int64 { return &n }

var whole = agentproto.Logs{Follow: true} // ends once nothing more can come

func TestMachineLogs(t *testing.T) {
	for name, tc := range map[string]struct {
		argv []string
		want string
	}{
		"nothing to run": {nil, ""},
		"an end": {
			[]string{"sh", "-c", "echo one; echo two >&2; printf 'th\\0\\377ree'; exit 3"},
			"berth: started sh\none\ntwo\nth\x00\xffree\nberth: sh exited with status 3\n",
		},
		"a signal":   {[]string{"sh", "-c", "kill -KILL $$"}, "berth: started sh\nberth: sh was ended by SIGKILL\n"},
		"no program": {[]string{"no-such-program"}, "berth: not started: no-such-program: not found\n"},
		"no format":  {[]string{"/etc/motd"}, "berth: not started: /etc/motd: not found\n"},
		"outputs closed": {
			[]string{"sh", "-c", "exec >&- 2>&-; sleep 0.1; exit 4"}, "berth: started sh\nberth: sh exited with status 4\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			conn := boot(t, false, append([]string{"--"}, tc.argv...)...).dial()
			if got := openLog(t, conn, whole).rest(); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
			// It ends neither the container nor what is known of it.
			if out, how := run(t, conn, "root", "echo fine"); out != "fine\n" || how != "exit 0" {
				t.Errorf("%q, %q", out, how)
			}
			lines := strings.SplitAfter(strings.TrimSuffix(tc.want, "\n"), "\n")
			for n := range len(lines) + 2 {
				want := tc.want
				if n < len(lines) {
					want = strings.Join(lines[len(lines)-n:], "")
					if n > 0 {
						want += "\n"
					}
				}
				for _, follow := range []bool{false, true} {
					if got := openLog(t, conn, agentproto.Logs{Tail: last(int64(n)), Follow: follow}).rest(); got != want {
						t.Errorf("the last %d lines are %q, want %q", n, got, want)
					}
				}
			}
		})
	}
}

// The image's command is its user's, with her home, groups and working directory, and may open its own output.
func TestMachineImageUser(t *testing.T) {
	conn := boot(t, false, "--user", "alice:65534", "--", "sh", "-c", "id -u; id -g; echo $HOME $IMAGE; pwd; echo out >/proc/self/fd/1; echo err >/proc/self/fd/2").dial()
	if got, want := openLog(t, conn, whole).rest(), "berth: started sh\n4242\n65534\n/home/alice yes\n/\nout\nerr\nberth: sh exited with status 0\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if out, how := run(t, conn, "root", "id -u"); out != "0\n" || how != "exit 0" {
		t.Errorf("a session is %q, %q", out, how)
	}
	conn = boot(t, false, "--user", "mallory", "--", "true").dial()
	if got := openLog(t, conn, whole).rest(); !strings.Contains(got, `not started: the image's user "mallory": there is no such user`) {
		t.Errorf("%q", got)
	}
}

// fifo makes one in the machine that a command of root's reads, and returns how to let that go on.
func (m *machine) fifo(name string) (proceed func()) {
	m.t.Helper()
	path := m.path(name)
	made := path + ".new" // whoever waits for it may read it at once
	if err := errors.Join(syscall.Mkfifo(made, 0o600), os.Chown(made, firstID, firstID), os.Rename(made, path)); err != nil {
		m.t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0) // so that opening waits for nobody
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { f.Close() })
	return func() {
		if _, err := f.WriteString("\n"); err != nil {
			m.t.Fatal(err)
		}
	}
}

// The end of the command comes after what it wrote, and before what it left behind writes.
func TestMachineLogsAreInOrder(t *testing.T) {
	m := boot(t, false, "--", "sh", "-c",
		"until [ -p /root/go ]; do :; done; (read x; echo late) </root/go & echo early; exit 3")
	proceed := m.fifo("root/go")
	conn := m.dial()
	l := openLog(t, conn, whole)
	for _, line := range []string{"berth: started sh", "early", "berth: sh exited with status 3"} {
		l.line(line)
	}
	// Who does not follow reads what there is and no more.
	if got := openLog(t, conn, agentproto.Logs{Tail: last(2)}).rest(); got != "early\nberth: sh exited with status 3\n" {
		t.Errorf("%q", got)
	}
	fresh := openLog(t, conn, agentproto.Logs{Tail: last(0), Follow: true})
	left := openLog(t, conn, whole)
	if err := left.ch.Close(); err != nil { // which is nothing to the others
		t.Fatal(err)
	}
	proceed()
	for _, each := range []logOf{l, fresh} {
		if got := each.rest(); got != "late\n" {
			t.Errorf("%q", got)
		}
	}
}

// Who follows hears the last words of a command that is told to end with its container, and that holds up nothing.
func TestMachineLogsEndWithIt(t *testing.T) {
	m := boot(t, false, "--", "sh", "-c", "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done")
	l := openLog(t, m.dial(), whole)
	l.line("berth: started sh")
	l.line("up")
	began := time.Now()
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := l.rest(); !strings.HasSuffix(got, "bye\nberth: sh exited with status 5\n") { // the shell may tell of sleep's end
		t.Errorf("%q", got)
	}
	if err := m.wait(); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("it ended after %v with %v", time.Since(began), err)
	}
}

// The command never waits for who reads its log: what they miss is counted, byte by byte, and they are told where.
func TestMachineLogsLoseForTheSlow(t *testing.T) {
	const lines = 400_000 // of 10 bytes
	m := boot(t, false, "--", "sh", "-c",
		fmt.Sprintf("until [ -p /root/go ]; do :; done; read x </root/go; exec seq -f %%09.0f %d", lines))
	proceed := m.fifo("root/go")
	conn := m.dial()
	slow := openLog(t, conn, whole)
	slow.line("berth: started sh")
	proceed()
	over := openLog(t, conn, whole)
	if got := over.rest(); !strings.HasSuffix(got, fmt.Sprintf("%09d\nberth: sh exited with status 0\n", lines)) {
		t.Fatalf("it ends with %q", got[max(0, len(got)-200):])
	}
	late := openLog(t, conn, agentproto.Logs{})
	for name, l := range map[string]logOf{"slow": slow, "late": late} {
		at, lost := 0, 0
		if name == "late" {
			at = -len("berth: started sh\n")
		}
		within := 0 // of the line before a gap
		for {
			line, err := l.ReadString('\n')
			if err != nil || line == "berth: sh exited with status 0\n" {
				break
			}
			if n, ok := strings.CutPrefix(line, "berth: "); ok {
				gap, err := strconv.Atoi(strings.TrimSuffix(n, " bytes of the output are lost here\n"))
				if err != nil {
					t.Fatalf("%s: %q", name, line)
				}
				if within > 0 { // its newline was not the command's
					at--
				}
				at, lost = at+gap, lost+gap
				continue
			}
			if within = len(line) - 10; within == 0 {
				if n, err := strconv.Atoi(line[:9]); err != nil || (n-1)*10 != at && (n-1)*10 != at-1 {
					t.Fatalf("%s: at %d after a loss of %d there is %q", name, at, lost, line)
				}
				at = (at + 9) / 10 * 10
			}
			if within < 0 {
				within = 1
			}
			at += len(line)
		}
		if at != lines*10 || lost < lines*5 {
			t.Errorf("%s: it ends at %d, and %d bytes were lost", name, at, lost)
		}
	}
}

func TestMachineLogsRefused(t *testing.T) {
	conn := boot(t, false).dial()
	a, err := conn.Attach(within(t), agentproto.Attach{User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	for _, payload := range []string{"", `{"tail":-1}`, `{"tail":"x"}`, `[]`} {
		var refused *agentproto.OpenError
		if _, err := a.Open(within(t), agentproto.KindLogs, []byte(payload)); !errors.As(err, &refused) ||
			refused.Reason != agentproto.ReasonConnectFailed {
			t.Errorf("%q: %v", payload, err)
		}
	}
}
