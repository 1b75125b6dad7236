package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDebugOutputNamesCiphers(t *testing.T) {
	const one = "debug1: Remote protocol version 2.0, remote software version OpenSSH_9.2p1 Debian-2\r\n" +
		"debug1: kex: server->client cipher: chacha20-poly1305@openssh.com MAC: <implicit> compression: none\r\n" +
		"debug1: kex: client->server cipher: chacha20-poly1305@openssh.com MAC: <implicit> compression: none\r\n"
	c := contender{}
	if err := c.parseDebug(one); err != nil {
		t.Fatal(err)
	}
	if c.cipher != "chacha20-poly1305" || c.peer != "OpenSSH_9.2p1 Debian-2" {
		t.Errorf("%+v", c)
	}
	inner := strings.ReplaceAll(one, "chacha20-poly1305@openssh.com", "aes256-ctr")
	if err := c.parseDebug(one + inner); err != nil || c.cipher != "chacha20-poly1305 + aes256-ctr" {
		t.Errorf("%q, %v", c.cipher, err)
	}
	if err := c.parseDebug("Permission denied"); err == nil {
		t.Error("output without a cipher passes")
	}
}

func TestClockTellsBrokenRuns(t *testing.T) {
	c := contender{label: "shell"}
	took, _, err := c.clock(exec.Command("sh", "-c", "exit 0"))
	if err != nil || took <= 0 {
		t.Errorf("%v, %v", took, err)
	}
	var exit *exec.ExitError
	_, _, err = c.clock(exec.Command("sh", "-c", "echo no entry >&2; exit 7"))
	if !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(err.Error(), "no entry") {
		t.Errorf("%v", err)
	}
}

// TestClockDoesNotWaitForTheClientOfAJump has a command leave behind a process with its standard error, as ssh -J does.
func TestClockDoesNotWaitForTheClientOfAJump(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 60 & exit 0")
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	defer func() {
		if cmd.Process != nil {
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		}
	}()
	c := contender{label: "shell"}
	if took, _, err := c.clock(cmd); err != nil || took > 30*time.Second {
		t.Errorf("%v, %v", took, err)
	}
}

func TestCommandAsksNobody(t *testing.T) {
	t.Setenv("SSH_AUTH_SOCK", "/somewhere")
	t.Setenv("BERTH_ZONE", "elsewhere.example")
	c := contender{args: []string{"-F", "file", "host"}}
	cmd := c.command(context.Background(), []string{"-tt"}, "true")
	line := strings.Join(cmd.Args, " ")
	if !strings.Contains(line, "BatchMode=yes") || !strings.HasSuffix(line, "-tt -F file host true") {
		t.Error(line)
	}
	for _, kv := range cmd.Env {
		if kv == "SSH_AUTH_SOCK=/somewhere" || strings.HasPrefix(kv, "BERTH_") {
			t.Error(kv)
		}
	}
}

func TestWithinStartsInTheNetwork(t *testing.T) {
	host, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	made := make(chan error, 1)
	n := &network{}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends in its new network
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	defer n.ns.Close()
	in := func(n *network) string {
		var out strings.Builder
		cmd := exec.Command("readlink", "/proc/self/ns/net")
		cmd.Stdout = &out
		if err := n.within(cmd.Start); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out.String())
	}
	if there := in(n); there == host || !strings.HasPrefix(there, "net:[") {
		t.Errorf("it ran in %s, and the host's is %s", there, host)
	}
	if here := in(nil); here != host {
		t.Errorf("without a network it ran in %s, and the host's is %s", here, host)
	}
}

func TestCPUGroup(t *testing.T) {
	got, err := cpuGroup("9:name=systemd:/x\n2:cpu,cpuacct:/berth-1/compute-1-aa\n0::/x\n")
	if err != nil || got != "/sys/fs/cgroup/cpuacct/berth-1/compute-1-aa" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := cpuGroup("0::/no/such/group\n"); err == nil {
		t.Errorf("%q counts CPU time", got)
	}
}

func TestProcessFigures(t *testing.T) {
	before, err := processTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		_ = strings.Repeat("x", 1<<20) // what uses CPU time
		used, err := processTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if used > before {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("work for a minute used %v", used-before)
		}
	}
	if bytes, err := memoryOf(os.Getpid()); err != nil || bytes < 1<<20 {
		t.Errorf("%v, %v", bytes, err)
	}
}

func TestAwaitBegunReadsNoFurther(t *testing.T) {
	r := strings.NewReader("a line of ssh's\r\n" + begun + "\nx")
	if err := awaitBegun(r); err != nil || r.Len() != 1 {
		t.Errorf("%v, %d left", err, r.Len())
	}
	if err := awaitBegun(strings.NewReader("Connection refused")); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
}
