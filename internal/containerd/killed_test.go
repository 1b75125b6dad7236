package containerd

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/compute"
	"berth/internal/enginetest"
)

// openMortal opens an engine for a control plane that may be killed.
func openMortal(config json.RawMessage) enginetest.Opening {
	return func(ctx context.Context, _ string, log *slog.Logger) (enginetest.Engine, error) {
		var o Options
		if err := json.Unmarshal(config, &o); err != nil {
			return nil, err
		}
		// The image is unpacked for the installation that all tests are.
		o.InstallationID, o.ImageArchive, o.Log = installation, baseArchive, log
		return Open(ctx, o)
	}
}

// TestKilledAtEveryStep kills control planes at every step of what owners ask for, and sees the next one finish the work.
func TestKilledAtEveryStep(t *testing.T) { testKilledAtEveryStep(t, newRig(t)) }

func testKilledAtEveryStep(t *testing.T, r *rig) {
	enginetest.RunKilled(t, &enginetest.Mortal{
		Config: struct{ DataDir, AgentPath, ContainerdAddress string }{r.opt.DataDir, r.opt.AgentPath, r.opt.ContainerdAddress},
		Open:   openMortal, Planes: 1,
		Gone: func(t *testing.T, e enginetest.Engine, ref compute.Ref) {
			(&rig{t: t, e: e.(*Engine)}).gone(ref)
		},
	})
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
