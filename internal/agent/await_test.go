package agent_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/agent"
)

// Files may come in any order; a socket counts once somebody listens.
func TestAwait(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := agent.Await(ctx, []string{dir + "/f"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what never comes: %v", err)
	}
	l, err := net.Listen("unix", dir+"/s")
	must(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	must(t, l.Close(), os.WriteFile(dir+"/f", nil, 0o600), os.WriteFile(dir+"/wait", nil, 0o600))
	ctx, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := agent.Await(ctx, []string{dir + "/f", dir + "/s"}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a socket that nobody has: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- agent.Await(t.Context(), []string{dir + "/s", dir + "/f"}) }()
	must(t, os.Remove(dir+"/s"))
	l, err = net.Listen("unix", dir+"/s")
	must(t, err)
	defer l.Close()
	must(t, <-ended)
}

// A program that prepares something stays until it is told to end, and then ends well; a failure ends it at once.
func TestStandBy(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(buildAgent(t), "seed", "--volume", dir, "--mark", dir+"/mark", "--stand-by")
	must(t, cmd.Start())
	must(t, agent.Await(t.Context(), []string{dir + "/mark"}), cmd.Process.Signal(syscall.SIGTERM))
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ends with %v", err)
	}
	out, err := exec.Command(buildAgent(t), "seed", "--volume", dir, "--mark", dir+"/second", "--stand-by", "a").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not NAME:PATH") {
		t.Errorf("a failure: %v, %s", err, out)
	}
	if _, err := os.Stat(dir + "/second"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a failure leaves a mark: %v", err)
	}
}

// Where preparing failed, the agent lets nobody in.
func TestUnprepared(t *testing.T) {
	dir := t.TempDir()
	out, err := exec.Command(buildAgent(t), "init", "--socket", dir+"/s/agent.sock", "--prepared", dir+"/mark").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not prepared") {
		t.Errorf("%v, %s", err, out)
	}
	if _, err := os.Stat(dir + "/s"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it made %v", err)
	}
}
