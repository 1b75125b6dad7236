package agent_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// foreign is an architecture that this machine is not, of those that the agent is built for: its name in Go, its emulator, and
// what the kernel knows its programs by.
type foreign struct{ arch, emulator, magic string }

func other() foreign {
	if runtime.GOARCH == "arm64" {
		return foreign{"amd64", "/usr/bin/qemu-x86_64-static", `\x3e\x00`}
	}
	return foreign{"arm64", "/usr/bin/qemu-aarch64-static", `\xb7\x00`}
}

// emulate has programs of the other architecture run in the caller's user namespace alone, as long as proc is mounted: each has a
// list of such interpreters of its own since Linux 6.7. The F has the emulator opened now, so that the machine's root need not have it.
func emulate(proc string) error {
	o, dir := other(), filepath.Join(proc, "sys/fs/binfmt_misc")
	if err := unix.Mount("binfmt_misc", dir, "binfmt_misc", 0, ""); err != nil {
		return err
	}
	magic := `\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00` + o.magic
	mask := strings.Repeat(`\xff`, 7) + `\x00` + strings.Repeat(`\xff`, 8) + `\xfe\xff\xff\xff`
	return os.WriteFile(filepath.Join(dir, "register"), []byte(":other:M::"+magic+":"+mask+":"+o.emulator+":F"), 0)
}

// TestOtherArchitecture has the agent for the architecture that this machine is not do what it does everywhere.
func TestOtherArchitecture(t *testing.T) {
	program := filepath.Join(t.TempDir(), "agent")
	build := exec.Command("go", "build", "-trimpath", "-o", program, "berth/cmd/agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+other().arch)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m := bootAgent(t, emulatedMachine, program)
	conn := m.dial()
	for _, c := range []struct{ user, line, out, how string }{
		{"root", "echo out; exit 7", "out\n", "exit 7"},
		{"alice", "id -un; echo $HOME", "alice\n/home/alice\n", "exit 0"},
		{"root", "kill -TERM $$", "", "TERM"},
	} {
		if out, how := run(t, conn, c.user, c.line); out != c.out || how != c.how {
			t.Errorf("%s: %s: %q, %q", c.user, c.line, out, how)
		}
	}
	want := strings.Repeat("0123456789abcdef", 100_000)
	s := openAs(t, conn, "alice")
	s.exec("cat >copy; cat copy")
	go func() {
		_, _ = s.Write([]byte(want))
		_ = s.CloseWrite()
	}()
	if out, _, how := s.end(); out != want || how != "exit 0" {
		t.Errorf("%d bytes of %d came back, %q", len(out), len(want), how)
	}
	// The stock clients, by the way in without a gateway: a terminal, and files.
	tty := m.stockSSH("ssh", "-tt", "alice@box", "tty; exit 3")
	if out, _ := tty.CombinedOutput(); !strings.Contains(string(out), "/dev/pts/0") || tty.ProcessState.ExitCode() != 3 {
		t.Errorf("a terminal: %q, %v", out, tty.ProcessState)
	}
	sftp := m.stockSSH("sftp", "-b", "-", "alice@box")
	sftp.Stdin = strings.NewReader("rename copy moved\nls -l moved\n")
	if out, err := sftp.CombinedOutput(); err != nil || !strings.Contains(string(out), "1600000") {
		t.Errorf("sftp: %s, %v", out, err)
	}
}
