package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"berth/internal/leakcheck"
)

// machineContainerd is a containerd that an operator runs.
type machineContainerd struct {
	dir     string
	address string
	cmd     *exec.Cmd
}

// ownContainerd starts a containerd that ends with the test.
func ownContainerd(t *testing.T) *machineContainerd {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-e2e-host-")
	if err != nil {
		t.Fatal(err)
	}
	leakcheck.Check(t, filepath.Base(dir))
	c := &machineContainerd{dir: dir, address: filepath.Join(dir, "containerd.sock")}
	t.Cleanup(func() {
		if err := errors.Join(c.kill(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
		for _, d := range []string{"/run/containerd/s", "/run/containerd"} { // unless they are another's too
			_ = syscall.Rmdir(d)
		}
	})
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n"+
		"[grpc]\n  address = %q\n", filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.address)
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	c.start(t)
	return c
}

func (c *machineContainerd) start(t *testing.T) {
	t.Helper()
	c.cmd = exec.Command("containerd", "--config", filepath.Join(c.dir, "config.toml"))
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "containerd answers", func() error {
		_, err := c.ctr("version")
		return err
	})
}

func (c *machineContainerd) kill() error {
	if c.cmd == nil || c.cmd.ProcessState != nil {
		return nil
	}
	if err := c.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = c.cmd.Wait() // it was killed
	return nil
}

// ctr asks it, as an operator does.
func (c *machineContainerd) ctr(args ...string) (string, error) {
	out, err := exec.Command("ctr", append([]string{"--address", c.address}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}
