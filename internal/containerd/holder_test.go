package containerd

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// hold has another process lock the engine's directory, signed or not, and stand still.
func hold(t *testing.T, l layout, signed bool) *exec.Cmd {
	t.Helper()
	script := `echo held; exec cat`
	if signed {
		script = `echo $$ >"$0"; ` + script
	}
	cmd := exec.Command("flock", "--no-fork", l.lock(), "sh", "-c", script, l.lock())
	in, err := cmd.StdinPipe() // cat ends with it at the latest
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Signal(syscall.SIGCONT)
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "held\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func emptyLayout(t *testing.T) layout {
	t.Helper()
	l, err := layoutOf(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(l.lock()), 0o755); err != nil {
		t.Fatal(err)
	}
	return l
}

// A process that holds the engine and stands still is ended, and the engine is free.
func TestEndHolder(t *testing.T) {
	l := emptyLayout(t)
	if err := EndHolder(t.Context(), l.data); err != nil {
		t.Fatalf("nobody holds it: %v", err)
	}
	cmd := hold(t, l, true)
	if f, err := lockFile(l.lock()); !errors.Is(err, ErrInUse) {
		t.Fatalf("%v, %v", f, err)
	}
	if err := EndHolder(t.Context(), l.data); err != nil {
		t.Fatal(err)
	}
	f, err := lockFile(l.lock())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_ = cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
	if text, err := os.ReadFile(l.lock()); err != nil || len(text) != 0 {
		t.Errorf("the lock is still signed by the one that is gone: %q, %v", text, err)
	}
}

// Who holds the engine for something else, such as a removal, is left alone, and so is this very process.
func TestEndHolderSparesOthers(t *testing.T) {
	l := emptyLayout(t)
	cmd := hold(t, l, false)
	if err := EndHolder(t.Context(), l.data); !errors.Is(err, ErrInUse) {
		t.Errorf("%v", err)
	}
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("it is gone: %v", err)
	}
	own := emptyLayout(t)
	f, err := lockFile(own.lock())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := sign(f); err != nil {
		t.Fatal(err)
	}
	if err := EndHolder(t.Context(), own.data); !errors.Is(err, ErrInUse) {
		t.Errorf("%v", err)
	}
}
