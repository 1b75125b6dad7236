package agent_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"berth/internal/agent"
	"berth/internal/agentproto"
)

// The test binary is the agent too: sessions start it by /proc/self/exe.
func TestMain(m *testing.M) {
	var err error
	switch {
	case os.Args[0] == "berth-agent" && os.Args[1] == "sftp":
		err = agent.ServeSFTP()
	case os.Args[0] == "berth-boot":
		err = bootMain(os.Args[1:])
	default:
		agent.DefaultSignals() // as cmd/agent does: nohup ignores what tests send
		code := m.Run()
		_ = os.RemoveAll(built.dir)
		if err := goleak.Find(); code == 0 && err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

const patience = 20 * time.Second

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func socketpair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

// dial returns a gateway's connection to a fresh agent with accounts of its own. Root's home is not this machine's:
// bash reads its .bashrc in a session of SSH.
func dial(t testing.TB) *agentproto.Conn {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"passwd": "root:x:0:0:root:" + dir + ":/bin/bash\nalice:x:4242:4243:Alice:" + dir + "/alice:/bin/sh\n" +
			"barred:x:4244:4244::/:/usr/sbin/nologin\nhomeless:x:4245:4245::/nowhere:/bin/sh\nshellless:x:4246:4246::/:/no/such/shell\n" +
			"toor:x:0:0::/:/no/such/shell\nturned:x:4247:4247::/:/no/such/nologin\n",
		"group": "root:x:0:\nalice:x:4243:\ncrew:x:4300:bob,alice\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Others must be able to reach their homes.
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "alice"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(dir, "alice"), 4242, 4243); err != nil {
		t.Fatal(err)
	}
	s := agent.NewServer(agent.Options{
		Environ: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"},
		Passwd:  filepath.Join(dir, "passwd"), Group: filepath.Join(dir, "group"),
	})
	a, b := socketpair(t)
	served := make(chan struct{})
	go func() {
		s.ServeConn(b)
		close(served)
	}()
	conn, err := agentproto.Dial(within(t), a, agentproto.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		<-served
		shut(t, s)
	})
	return conn
}

// shut ends an agent at once; what does not end in time shows.
func shut(t testing.TB, s *agent.Server) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	ended := make(chan struct{})
	go func() {
		_ = s.Close(ctx)
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("sessions do not end")
	}
}

type session struct {
	t testing.TB
	*agentproto.Channel
	a *agentproto.Attachment
}

func openAs(t testing.TB, conn *agentproto.Conn, user string) session {
	t.Helper()
	a, err := conn.Attach(within(t), agentproto.Attach{User: user, Remote: "192.0.2.7:5022", Local: "198.51.100.1:22"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	ch, err := a.Open(within(t), "session", nil)
	if err != nil {
		t.Fatal(err)
	}
	return session{t, ch, a}
}

func (s session) must(name string, payload any) {
	s.t.Helper()
	if !s.ask(name, payload) {
		s.t.Fatalf("%s is refused", name)
	}
}

func (s session) ask(name string, payload any) bool {
	s.t.Helper()
	var b []byte
	if payload != nil {
		b = ssh.Marshal(payload)
	}
	ok, err := s.Request(within(s.t), name, true, b)
	if err != nil {
		s.t.Fatal(err)
	}
	return ok
}

func (s session) exec(line string) {
	s.t.Helper()
	s.must("exec", struct{ Command string }{line})
}

// end reads the session to its end and returns output, stderr and how it ended: a status in decimal or a signal's name.
func (s session) end() (out, errs, how string) {
	s.t.Helper()
	timer := time.AfterFunc(patience, func() { s.Close() })
	defer timer.Stop()
	stderr := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(s.Stderr())
		stderr <- string(b)
	}()
	b, err := io.ReadAll(s)
	if err != nil {
		s.t.Fatalf("reading output: %v", err)
	}
	for r := range s.Requests() {
		switch r.Name {
		case "exit-status":
			how = "exit " + string(rune('0'+binary.BigEndian.Uint32(r.Payload)%10))
			if n := binary.BigEndian.Uint32(r.Payload); n > 9 {
				how = "exit many"
			}
		case "exit-signal":
			var m struct {
				Name string
				Rest []byte `ssh:"rest"`
			}
			if err := ssh.Unmarshal(r.Payload, &m); err != nil {
				s.t.Fatal(err)
			}
			how = m.Name
		}
	}
	errs = <-stderr
	s.Close()
	return string(b), errs, how
}

// awaitOutput reads until text has come, and returns all of it.
func (s session) awaitOutput(text string) string {
	s.t.Helper()
	timer := time.AfterFunc(patience, func() { s.Close() })
	defer timer.Stop()
	var out []byte
	for buf := make([]byte, 4096); !bytes.Contains(out, []byte(text)); {
		n, err := s.Read(buf)
		if out = append(out, buf[:n]...); err != nil {
			s.t.Fatalf("%q does not come, but %q, %v", text, out, err)
		}
	}
	return string(out)
}

func TestExec(t *testing.T) {
	conn := dial(t)
	for _, c := range []struct{ user, line, out, errs, how string }{
		{"root", "echo out; echo err >&2; exit 7", "out\n", "err\n", "exit 7"},
		{"root", "kill -TERM $$", "", "", "TERM"},
		{"root", "kill -KILL $$", "", "", "KILL"},
		{"root", "kill -BUS $$", "", "", "SIG@openssh.com"},
		{"root", "no-such-program 2>/dev/null", "", "", "exit many"},
		{"alice", "id -u; id -g; id -G; pwd | grep -o 'alice$'", "4242\n4243\n4243 4300\nalice\n", "", "exit 0"},
		{"alice", "echo $USER $LOGNAME $SHELL; [ $HOME = $PWD ]", "alice alice /bin/sh\n", "", "exit 0"},
		{"alice", "echo $PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games\n", "", "exit 0"},
		{"alice", "echo $SSH_CONNECTION; echo $SSH_CLIENT", "192.0.2.7 5022 198.51.100.1 22\n192.0.2.7 5022 22\n", "", "exit 0"},
		{"alice", "echo $LANG", "C.UTF-8\n", "", "exit 0"},
		{"homeless", "pwd", "/\n", "", "exit 0"},
		{"shellless", "echo a", "", "berth: the account's shell /no/such/shell is not in the container\n", "exit many"},
		{"toor", "echo a  b; echo $SHELL", "a b\n/no/such/shell\n", "", "exit 0"},
		{"barred", "id -u", "This account is currently not available.\n", "", "exit 1"},
		{"turned", "id -u", "", "berth: this account is not for logging in\n", "exit many"},
		{"root", "sleep 0 & echo x", "x\n", "", "exit 0"},
		{"root", "cat /proc/self/oom_score_adj", "200\n", "", "exit 0"},
	} {
		s := openAs(t, conn, c.user)
		s.exec(c.line)
		s.CloseWrite()
		if out, errs, how := s.end(); out != c.out || errs != c.errs || how != c.how {
			t.Errorf("%s: %s: %q, %q, %q; want %q, %q, %q", c.user, c.line, out, errs, how, c.out, c.errs, c.how)
		}
	}
	if text, err := os.ReadFile("/proc/self/oom_score_adj"); err != nil || strings.TrimSpace(string(text)) == "200" {
		t.Errorf("the agent itself is as expendable as its children: %s, %v", text, err)
	}
}

func TestUnknownUserAndKind(t *testing.T) {
	conn := dial(t)
	a, err := conn.Attach(within(t), agentproto.Attach{User: "mallory"})
	if err != nil {
		t.Fatal(err)
	}
	var refusal *agentproto.OpenError
	_, err = a.Open(within(t), "session", nil)
	if !errors.As(err, &refusal) || !strings.Contains(refusal.Message, "mallory") {
		t.Errorf("error is %v", err)
	}
	_, err = a.Open(within(t), "direct-tcpip", nil)
	if !errors.As(err, &refusal) || refusal.Reason != agentproto.ReasonUnknownKind {
		t.Errorf("error is %v", err)
	}
}

func TestStdinHalfClose(t *testing.T) {
	s := openAs(t, dial(t), "root")
	s.exec("cat; echo end")
	in := bytes.Repeat([]byte("0123456789abcdef"), 300_000)
	go func() {
		_, _ = s.Write(in)
		_ = s.CloseWrite()
	}()
	if out, _, how := s.end(); out != string(in)+"end\n" || how != "exit 0" {
		t.Errorf("%d bytes came back of %d, %q", len(out), len(in), how)
	}
}

func TestEnvironment(t *testing.T) {
	s := openAs(t, dial(t), "root")
	type env struct{ Name, Value string }
	for name, want := range map[string]bool{
		"LANG": true, "LC_ALL": true, "COLORTERM": true, "LD_PRELOAD": false, "PATH": false, "LC_\x00": false, "": false,
	} {
		if got := s.ask("env", env{name, "C.UTF-8"}); got != want {
			t.Errorf("env %q: %v", name, got)
		}
	}
	s.exec("echo $LC_ALL $COLORTERM $LD_PRELOAD")
	if out, _, _ := s.end(); out != "C.UTF-8 C.UTF-8\n" {
		t.Errorf("environment is %q", out)
	}
}

type ptyRequest struct {
	Term                         string
	Columns, Rows, Width, Height uint32
	Modes                        string
}

func TestTerminal(t *testing.T) {
	conn := dial(t)
	s := openAs(t, conn, "alice")
	modes := string([]byte{53, 0, 0, 0, 0, 3, 0, 0, 0, 8, 0}) // no ECHO, VERASE is ^H
	s.must("pty-req", ptyRequest{"xterm-256color", 100, 40, 0, 0, modes})
	if s.ask("pty-req", ptyRequest{"xterm", 1, 1, 0, 0, ""}) {
		t.Error("a second terminal")
	}
	s.exec("tty; stty size; stty -a | grep -o 'erase = ^H'; stty -a | grep -ow -- '-echo'; echo $TERM; " +
		"stat -c %u $(tty); read x; stty size; echo got $x; exit 3")
	buf := make([]byte, 4096)
	var out string
	for !strings.Contains(out, "\n4242\r\n") {
		n, err := s.Read(buf)
		if out += string(buf[:n]); err != nil {
			t.Fatalf("%q, %v", out, err)
		}
	}
	s.must("window-change", struct{ C, R, W, H uint32 }{132, 50, 0, 0})
	if _, err := s.Write([]byte("hello\r")); err != nil {
		t.Fatal(err)
	}
	rest, _, how := s.end()
	out += rest
	for _, want := range []string{
		"/dev/pts/", "\r\n40 100\r\n", "erase = ^H", "-echo", "xterm-256color", "\r\n50 132\r\n", "got hello\r\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %q", want, out)
		}
	}
	if how != "exit 3" {
		t.Errorf("it ended with %q", how)
	}
}

func TestLoginShell(t *testing.T) {
	s := openAs(t, dial(t), "root")
	s.must("pty-req", ptyRequest{"dumb", 80, 24, 0, 0, ""})
	s.must("shell", nil)
	go func() { _, _ = s.Write([]byte("echo zero is $0; shopt -q login_shell && echo login; exit 5\r")) }()
	out, _, how := s.end()
	if !strings.Contains(out, "zero is -bash") || !strings.Contains(out, "\nlogin") || how != "exit 5" {
		t.Errorf("%q, %q", out, how)
	}
}

func TestSignals(t *testing.T) {
	s := openAs(t, dial(t), "root")
	s.exec("trap 'echo caught; exit 4' USR1; echo ready; while :; do sleep 1 & wait $!; done")
	if _, err := io.ReadFull(s, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	type sig struct{ Name string }
	if s.ask("signal", sig{"NOPE"}) {
		t.Error("an unknown signal")
	}
	s.must("signal", sig{"USR1"})
	if out, _, how := s.end(); out != "caught\n" || how != "exit 4" {
		t.Errorf("%q, %q", out, how)
	}
}

func TestBreakInterruptsTheForeground(t *testing.T) {
	s := openAs(t, dial(t), "root")
	s.must("pty-req", ptyRequest{"dumb", 80, 24, 0, 0, ""})
	s.exec("stty brkint; trap 'echo caught; exit 6' INT; echo ready; while :; do sleep 1 & wait $!; done")
	if _, err := io.ReadFull(s, make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	s.must("break", struct{ Milliseconds uint32 }{500})
	if out, _, how := s.end(); !strings.Contains(out, "caught") || how != "exit 6" {
		t.Errorf("%q, %q", out, how)
	}
}

// A client that goes takes its process group with it, whether its channel or all of it goes.
func TestHangUp(t *testing.T) {
	conn := dial(t)
	for name, leave := range map[string]func(s session){
		"channel":    func(s session) { s.Close() },
		"attachment": func(s session) { s.a.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			fifo := filepath.Join(t.TempDir(), "fifo")
			if err := syscall.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			s := openAs(t, conn, "root")
			s.exec("trap 'echo hung up >" + fifo + "; exit' HUP; echo ready; while :; do sleep 1 & wait $!; done")
			if _, err := io.ReadFull(s, make([]byte, 6)); err != nil {
				t.Fatal(err)
			}
			leave(s)
			got := make(chan string, 1)
			go func() {
				b, _ := os.ReadFile(fifo)
				got <- string(b)
			}()
			select {
			case text := <-got:
				if text != "hung up\n" {
					t.Errorf("%q", text)
				}
			case <-time.After(patience):
				t.Error("the process was not told")
			}
		})
	}
}

// Output that is in flight when the command ends arrives whole, whoever reads how slowly.
func TestOutputOutlivesTheCommand(t *testing.T) {
	s := openAs(t, dial(t), "root")
	s.exec("head -c 3000000 /dev/zero; exit 9")
	read := 0
	for read < 2_000_000 {
		n, err := s.Read(make([]byte, 777))
		if err != nil {
			t.Fatalf("%v after %d bytes", err, read)
		}
		read += n
	}
	if out, _, how := s.end(); read+len(out) != 3_000_000 || how != "exit 9" {
		t.Errorf("%d bytes, %q", read+len(out), how)
	}
}

func TestSFTP(t *testing.T) {
	conn := dial(t)
	s := openAs(t, conn, "alice")
	if s.ask("subsystem", struct{ Name string }{"nope"}) {
		t.Error("an unknown subsystem")
	}
	s.must("subsystem", struct{ Name string }{"sftp"})
	// SSH_FXP_INIT, version 3 (draft-ietf-secsh-filexfer-02, section 4).
	if _, err := s.Write([]byte{0, 0, 0, 5, 1, 0, 0, 0, 3}); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 9)
	if _, err := io.ReadFull(s, answer); err != nil || answer[4] != 2 || answer[8] != 3 {
		t.Errorf("answer is %v, %v", answer, err)
	}
	s.CloseWrite()
	if _, errs, how := s.end(); how != "exit 0" {
		t.Errorf("%q %q", errs, how)
	}
	barred := openAs(t, conn, "barred")
	if barred.ask("subsystem", struct{ Name string }{"sftp"}) {
		t.Error("sftp for an account that is not for logging in")
	}
}

func TestStats(t *testing.T) {
	got, err := dial(t).Call(within(t), "stats", nil)
	if err != nil || !bytes.Contains(got, []byte(`"disk_total_bytes":`)) {
		t.Errorf("%s, %v", got, err)
	}
}
