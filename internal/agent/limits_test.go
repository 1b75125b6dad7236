package agent_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"berth/internal/agent"
	"berth/internal/agentproto"
)

// What goes over the wire for a command: the answer before its output, all output before the status, then EOF and CLOSE
// (the order that scp and sftp of other systems insist on).
func TestOrderOfFrames(t *testing.T) {
	const attach, open, accept, data, eof, request, reply, closed = 2, 3, 4, 6, 8, 10, 11, 12
	ours, theirs := socketpair(t)
	s := agent.NewServer(agent.Options{Passwd: "/no/such", Group: "/no/such", Environ: []string{"PATH=/usr/bin:/bin"}})
	served := make(chan struct{})
	go func() {
		s.ServeConn(theirs)
		close(served)
	}()
	t.Cleanup(func() {
		ours.Close()
		<-served
		shut(t, s)
	})
	send := func(kind byte, stream uint32, payload []byte) {
		b := []byte{kind, 0, byte(len(payload) >> 8), byte(len(payload))}
		if _, err := ours.Write(append(binary.BigEndian.AppendUint32(b, stream), payload...)); err != nil {
			t.Fatal(err)
		}
	}
	send(1, 0, []byte(`{"min":1,"max":1}`))
	send(attach, 1, []byte(`{"user":"root"}`))
	send(open, 3, append([]byte{0, 1, 0, 0, 0, 0, 0, 1, 7}, "session"...))
	if err := ours.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	var got []string
	for len(got) == 0 || got[len(got)-1] != fmt.Sprint(closed, " ") {
		h := make([]byte, 8)
		if _, err := io.ReadFull(ours, h); err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		p := make([]byte, int(h[2])<<8|int(h[3]))
		if _, err := io.ReadFull(ours, p); err != nil {
			t.Fatal(err)
		}
		if binary.BigEndian.Uint32(h[4:]) == 3 {
			got = append(got, fmt.Sprint(h[0], " ", string(p)))
			if h[0] == accept {
				exec := ssh.Marshal(struct{ Line string }{"printf out; exit 7"})
				send(request, 3, append([]byte("\x01\x04exec"), exec...))
			}
		}
	}
	want := []string{
		fmt.Sprint(accept, " \x00\x00\x80\x00"), fmt.Sprint(reply, " \x01"), fmt.Sprint(data, " out"),
		fmt.Sprint(request, " \x00\x0bexit-status\x00\x00\x00\x07"), fmt.Sprint(eof, " "), fmt.Sprint(closed, " "),
	}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("%q\nwant %q", got, want)
	}
}

// 50 sessions of one client work beside one that takes nothing and one that is never read from.
func TestManySessionsBesideStalledOnes(t *testing.T) {
	conn := dial(t)
	stalled := openAs(t, conn, "root")
	stalled.exec("yes")
	deaf := openAs(t, conn, "root")
	deaf.exec("sleep 1000")
	blocked := make(chan struct{})
	go func() {
		defer close(blocked)
		_, _ = deaf.Write(make([]byte, 8<<20))
	}()
	a := openAs(t, conn, "alice").a
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			ch, err := a.Open(within(t), "session", nil)
			if err != nil {
				t.Error(err)
				return
			}
			s := session{t, ch, a}
			s.exec("cat; exit 5")
			in := strings.Repeat(fmt.Sprint(i, ","), 50_000)
			go func() {
				_, _ = io.WriteString(s, in)
				_ = s.CloseWrite()
			}()
			if out, _, how := s.end(); out != in || how != "exit 5" {
				t.Errorf("%d bytes of %d came back, %q", len(out), len(in), how)
			}
		})
	}
	wg.Wait()
	stalled.must("signal", struct{ Name string }{"INT"})
	if _, _, how := stalled.end(); how != "INT" {
		t.Errorf("the stalled session ended with %q", how)
	}
	select {
	case <-blocked:
		t.Error("8 MiB fit where nobody reads")
	default:
	}
	deaf.must("signal", struct{ Name string }{"TERM"})
	if _, _, how := deaf.end(); how != "TERM" {
		t.Errorf("the deaf session ended with %q", how)
	}
	<-blocked
}

// However many sizes a client sends, the last one holds, and nothing else is lost.
func TestFloodOfWindowChanges(t *testing.T) {
	s := openAs(t, dial(t), "root")
	s.must("pty-req", ptyRequest{"dumb", 80, 24, 0, 0, ""})
	s.exec("echo ready; read x; stty size")
	s.awaitOutput("ready")
	for i := range uint32(5000) {
		size := ssh.Marshal(struct{ C, R, W, H uint32 }{i + 1, i + 2, 0, 0})
		if _, err := s.Request(within(t), "window-change", false, size); err != nil {
			t.Fatal(i, err)
		}
	}
	s.must("window-change", struct{ C, R, W, H uint32 }{132, 50, 0, 0})
	if _, err := s.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if out, _, how := s.end(); !strings.HasSuffix(out, "50 132\r\n") || how != "exit 0" {
		t.Errorf("%q, %q", out, how)
	}
}

func TestBoundsOfRequests(t *testing.T) {
	conn := dial(t)
	s := openAs(t, conn, "root")
	if s.ask("pty-req", ptyRequest{"xterm", 80, 24, 0, 0, string([]byte{53, 0})}) {
		t.Error("modes that are cut short are taken")
	}
	if s.ask("pty-req", ptyRequest{"x\x00term", 80, 24, 0, 0, ""}) {
		t.Error("a terminal type with a NUL is taken")
	}
	for i := range 200 {
		if s.ask("env", struct{ Name, Value string }{"LC_" + strconv.Itoa(i), "x"}) != (i < 128) {
			t.Errorf("variable %d", i)
		}
	}
	if s.ask("env", struct{ Name, Value string }{"LANG", strings.Repeat("x", 40<<10)}) {
		t.Error("a variable of 40 kB is taken")
	}
	if s.ask("signal", struct{ Name string }{"TERM"}) || s.ask("exec", nil) || s.ask("nonsense", nil) {
		t.Error("a signal before a command, or a malformed request")
	}
	s.exec("cat #" + strings.Repeat("x", 100_000))
	if s.ask("exec", struct{ Command string }{"true"}) || s.ask("shell", nil) {
		t.Error("a second command")
	}
	_ = s.CloseWrite()
	if _, errs, how := s.end(); how != "exit 0" {
		t.Errorf("a command of 100 kB: %q, %q", errs, how)
	}
	s = openAs(t, conn, "root")
	s.exec("true #" + strings.Repeat("x", 200_000)) // over the kernel's MAX_ARG_STRLEN
	if _, errs, how := s.end(); how != "exit many" || !strings.Contains(errs, "argument list too long") {
		t.Errorf("a command of 200 kB: %q, %q", errs, how)
	}
}

// All output of a terminal arrives, though the command is over before it is read.
func TestTerminalIsDrained(t *testing.T) {
	s := openAs(t, dial(t), "root")
	s.must("pty-req", ptyRequest{"dumb", 80, 24, 0, 0, ""})
	s.exec("stty -onlcr; head -c 3000 /dev/zero | tr '\\0' x; seq 300000; exit 6")
	first := s.awaitOutput("xxx")
	rest, _, how := s.end()
	if out := first + rest; len(out) != 3000+1988895 || !strings.HasSuffix(out, "\n300000\n") || how != "exit 6" {
		t.Errorf("%d bytes, %q", len(out), how)
	}
}

// A client that reads no more says so, and its command's next output fails as on a broken pipe; its input goes on.
func TestEndOfTheClientsOutput(t *testing.T) {
	conn := dial(t)
	for line, want := range map[string]string{
		"yes":                     "PIPE",
		"read x; echo $x; exit 4": "PIPE",
	} {
		s := openAs(t, conn, "root")
		s.exec(line)
		if s.must("eow@openssh.com", nil); line != "yes" {
			_, _ = s.Write([]byte("x\n"))
		}
		if out, _, how := s.end(); how != want {
			t.Errorf("%s: %d bytes, %q", line, len(out), how)
		}
	}
	s := openAs(t, conn, "root")
	s.must("pty-req", ptyRequest{"dumb", 80, 24, 0, 0, ""})
	s.exec("echo up; cat")
	s.awaitOutput("up")
	if s.ask("eow@openssh.com", nil) {
		t.Error("a terminal ends one way")
	}
}

// A process that does not care for its client's end goes on, and holds nothing of the session's.
func TestHangUpOfOneThatStays(t *testing.T) {
	for _, tty := range []bool{false, true} {
		t.Run(fmt.Sprint("terminal ", tty), func(t *testing.T) {
			conn := dial(t)
			before := descriptors(t, conn)
			s := openAs(t, conn, "root")
			if tty {
				s.must("pty-req", ptyRequest{"dumb", 80, 24, 0, 0, ""})
			}
			s.exec("trap '' HUP TERM; echo pid $$ end; exec sleep 1000")
			var pid int
			if _, err := fmt.Sscanf(s.awaitOutput("end"), "pid %d end", &pid); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
			go func() { _, _ = s.Write(make([]byte, 4<<20)) }() // more than anybody takes
			s.Close()
			awaitDescriptors(t, before)
			if err := syscall.Kill(pid, 0); err != nil {
				t.Errorf("the process: %v", err)
			}
		})
	}
}

// Background processes that keep the output open outlive their shell, and are hung up with the client (Linux 6.9).
func TestHangUpReachesTheGroup(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	s := openAs(t, dial(t), "root")
	s.exec("(trap 'echo hung up >" + fifo + "; exit' HUP; echo ready; while :; do sleep 1 & wait $!; done) & exit 0")
	s.awaitOutput("ready")
	s.a.Close()
	if got := <-readSoon(t, fifo); got != "hung up\n" {
		t.Errorf("%q", got)
	}
}

// Sessions of every kind, however they end, give back what they had open.
func TestSessionsLeaveNothingOpen(t *testing.T) {
	conn := dial(t)
	before := descriptors(t, conn)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			s := openAs(t, conn, []string{"root", "alice"}[i%2])
			if i%4 < 2 {
				s.must("pty-req", ptyRequest{"dumb", 80, 24, 0, 0, ""})
			}
			switch i % 5 {
			case 0:
				s.exec("echo x; exit 3")
				s.end()
			case 1:
				s.exec("sleep 1000")
				s.Close()
			case 2:
				s.Close()
			case 3:
				_, _ = s.Request(within(t), "exec", false, ssh.Marshal(struct{ Line string }{"cat"}))
				s.Close()
			case 4:
				s.exec("exec 0<&- 1>&- 2>&-; exit 4")
				go func() { _, _ = s.Write(bytes.Repeat([]byte("x"), 1<<20)) }()
				s.end()
			}
			s.a.Close()
		})
	}
	wg.Wait()
	awaitDescriptors(t, before)
}

// descriptors counts those of this process, which is the agent too, once all is there that one session needs.
func descriptors(t *testing.T, conn *agentproto.Conn) int {
	t.Helper()
	if out, how := run(t, conn, "root", "echo x"); how != "exit 0" {
		t.Fatal(out, how)
	}
	n := -1
	for again := 0; again < 100; again++ { // what the first one had may be on its way out
		if now := openFiles(t); now != n {
			n, again = now, 0
		}
		runtime.Gosched()
	}
	return n
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// awaitDescriptors waits until there are no more than most.
func awaitDescriptors(t *testing.T, most int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for n := openFiles(t); n > most; n = openFiles(t) {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors are open, expected %d", n, most)
		}
		runtime.Gosched()
	}
}
