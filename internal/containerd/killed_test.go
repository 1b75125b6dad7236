package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/compute"
	"berth/internal/enginetest"
)

// helperEnv tells the test's own binary to be a berth that is killed.
const helperEnv = "BERTH_TEST_HELPER"

// order is what such a berth is to do, and after which step it is killed; 0 is never.
type order struct {
	DataDir, Agent, Containerd string
	Spec                       compute.Spec
	Op                         string
	KillAt                     int
}

// killer is a log that kills its process once a number of steps was logged.
type killer struct {
	slog.Handler
	left *atomic.Int32
}

func (k killer) Enabled(context.Context, slog.Level) bool { return true }

func (k killer) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "step" && k.left.Add(-1) == 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return nil
}

func (k killer) WithAttrs([]slog.Attr) slog.Handler { return k }
func (k killer) WithGroup(string) slog.Handler      { return k }

// helper carries out an order, and ends with status 0 when it was not killed.
func helper() {
	var o order
	if err := json.Unmarshal([]byte(os.Getenv(helperEnv)), &o); err != nil {
		panic(err)
	}
	left := new(atomic.Int32)
	left.Store(int32(o.KillAt))
	if err := carryOut(o, slog.New(killer{left: left})); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func carryOut(o order, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(context.Background(), enginetest.Timeout)
	defer cancel()
	e, err := Open(ctx, Options{
		DataDir: o.DataDir, InstallationID: installation, ImageArchive: baseArchive, AgentPath: o.Agent,
		ContainerdAddress: o.Containerd, Log: log,
	})
	if err != nil {
		return err
	}
	switch o.Op {
	case "start":
		o.Spec.Running = true
		if err := e.Provision(ctx, o.Spec); err != nil {
			return err
		}
		err = e.Apply(ctx, o.Spec)
	case "stop":
		err = e.Apply(ctx, o.Spec)
	case "remove":
		err = e.Remove(ctx, o.Spec.Ref)
	default:
		err = fmt.Errorf("unknown operation %q", o.Op)
	}
	return errors.Join(err, e.Close())
}

// killedAt runs an operation in a process of its own that is killed after a step, and says whether it got that far.
func (r *rig) killedAt(s compute.Spec, op string, step int) bool {
	r.t.Helper()
	b, err := json.Marshal(order{
		DataDir: r.opt.DataDir, Agent: r.opt.AgentPath, Containerd: r.opt.ContainerdAddress, Spec: s, Op: op, KillAt: step,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+string(b))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() && ws.Signal() == syscall.SIGKILL {
			return true
		}
	}
	if err != nil {
		r.t.Fatalf("%s, to be killed at step %d: %v: %s", op, step, err, out)
	}
	return false
}

// TestKilledAtEveryStep kills berth at every step of a start, a stop and a removal, and sees the next one finish the work.
func TestKilledAtEveryStep(t *testing.T) {
	for _, op := range []string{"start", "stop", "remove"} {
		t.Run(op, func(t *testing.T) { testKilledAtEveryStep(t, newRig(t), op) })
	}
}

func testKilledAtEveryStep(t *testing.T, r *rig, op string) {
	for step := 1; ; step++ {
		if step > 100 {
			t.Fatal("the operation never ends")
		}
		if !r.killOnce(op, step) {
			t.Logf("%d steps", step-1)
			if step < 10 {
				t.Error("too few steps to have been killed at each")
			}
			return
		}
	}
}

// killOnce makes a container, kills an operation on it at a step, and finishes it. It is false when there is no such step.
func (r *rig) killOnce(op string, step int) bool {
	t := r.t
	s := newSpec()
	s.StorageGB = 1
	s.MountPaths = []string{"/root", "/opt/app"}
	if op != "start" {
		r.open()
		r.provision(s)
		r.run(s)
		r.sh(s, "echo kept > /root/f; echo lost > /f")
		r.close()
	}
	killed := r.killedAt(s, op, step)
	r.open()
	switch op {
	case "start":
		r.provision(s)
		r.run(s)
		r.sh(s, "test -f /root/.profile && test -d /opt/app && touch /root/f /opt/app/f")
	case "stop":
		r.apply(s)
		r.run(s)
		r.sh(s, "test $(cat /root/f) = kept && test ! -e /f")
	}
	r.remove(s)
	r.gone(s.Ref)
	r.close()
	if t.Failed() {
		t.Fatalf("killed at step %d", step)
	}
	return killed
}

// TestContainerdKilled ends containerd under a running container: sessions go on, and the engine works again.
func TestContainerdKilled(t *testing.T) { testContainerdKilled(t, newRig(t)) }

func testContainerdKilled(t *testing.T, r *rig) {
	e := r.open()
	s := newSpec()
	r.provision(s)
	r.run(s)
	r.sh(s, "echo here > /tmp/mark")
	seen := r.watch()

	// A session that was open before goes on.
	nc, err := e.DialAgent(t.Context(), s.Ref)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	r.killDaemon()
	if out, status, err := enginetest.Shell(t.Context(), nc, "cat /tmp/mark"); err != nil || status != 0 || out != "here\n" {
		t.Errorf("the open session gave %q, %d, %v", out, status, err)
	}
	r.eventually(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), enginetest.Timeout)
		defer cancel()
		s.Running = true
		return e.Apply(ctx, s)
	})
	if got := r.sh(s, "cat /tmp/mark"); got != "here\n" {
		t.Errorf("it was started anew: %q", got)
	}
	select {
	case o := <-seen:
		t.Errorf("told without need: %+v", o)
	default:
	}

	// A death is told of, also of one that happened while containerd was away.
	for _, withDaemon := range []bool{true, false} {
		pid := r.pid(s)
		if !withDaemon {
			r.killDaemon()
		}
		if err := unix.Kill(int(pid), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if o := r.await(seen, s.Ref); o.Phase != compute.PhaseStopped {
			t.Errorf("observed as %+v", o)
		}
		r.eventually(func() error { return e.Apply(t.Context(), s) })
	}

	// So does the death of the shim: its container cannot be told apart from a dead one, and is started anew.
	isShim := func(args []string) bool { return isShim(args, e.layout, s.String()) }
	if err := endProcesses(isShim, []signalStep{{unix.SIGKILL, killWait}}); err != nil {
		t.Fatal(err)
	}
	if o := r.await(seen, s.Ref); o.Phase != compute.PhaseStopped {
		t.Errorf("observed as %+v", o)
	}
	r.eventually(func() error { return e.Apply(t.Context(), s) })
	r.sh(s, "true")
}

// What containerd was about to remove when it was killed, and has put a dot before, is removed with the container.
func TestRemovesWhatContainerdForgot(t *testing.T) {
	r := newRig(t)
	e := r.open()
	s := newSpec()
	r.provision(s)
	r.run(s)
	if err := e.end(t.Context(), s.Ref, 0); err != nil {
		t.Fatal(err)
	}
	for _, dir := range taskDirs(e.layout)[:2] {
		if err := os.MkdirAll(filepath.Join(dir, "."+s.String(), "rest"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	refs, err := refsOf(e.layout)
	if err != nil || !slices.Contains(refs, s.Ref) {
		t.Fatalf("%v, %v", refs, err)
	}
	r.remove(s)
	r.gone(s.Ref)
}

// killDaemon kills containerd and returns when it is dead; one that was given is started again.
func (r *rig) killDaemon() {
	r.t.Helper()
	if r.host != nil {
		r.host.kill()
		r.host.start()
		return
	}
	isOurs := func(args []string) bool { return isDaemon(args, r.e.layout) }
	pids, err := findProcesses(isOurs)
	if err != nil || len(pids) != 1 {
		r.t.Fatalf("containerd's processes are %v, %v", pids, err)
	}
	if err := endProcesses(isOurs, []signalStep{{unix.SIGKILL, killWait}}); err != nil {
		r.t.Fatal(err)
	}
}

// eventually retries as control does, for what fails while a part is away.
func (r *rig) eventually(f func() error) {
	r.t.Helper()
	deadline := time.Now().Add(enginetest.Timeout)
	for {
		err := f()
		if err == nil {
			return
		}
		if code := compute.CodeOf(err); code != compute.CodeUnavailable || time.Now().After(deadline) {
			r.t.Fatal(err)
		}
		r.t.Log("again:", err)
	}
}
