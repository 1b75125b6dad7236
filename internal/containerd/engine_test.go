package containerd

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/internal/compute"
	"berth/internal/containerd/hostnet"
)

func wantCode(t *testing.T, op string, err error, want compute.Code) {
	t.Helper()
	if err == nil || compute.CodeOf(err) != want {
		t.Errorf("%s: error %v, want one with code %s", op, err, want)
	}
}

// TestMissingVolume loses the file of a volume that was recorded.
func TestMissingVolume(t *testing.T) {
	r := newRig(t)
	e := r.open()
	s := newSpec()
	r.provision(s)
	r.run(s)
	file := e.volume(s.Ref).file
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	s.Running = true
	wantCode(t, "start over a running one", e.Apply(r.ctx(), s), compute.CodeStorageMissing)
	r.sh(s, "true") // what runs is left running: it holds the only copy
	s.Running = false
	wantCode(t, "stop", e.Apply(r.ctx(), s), compute.CodeStorageMissing)
	s.Running = true
	wantCode(t, "start", e.Apply(r.ctx(), s), compute.CodeStorageMissing)
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("it was made anew: %v", err)
	}
	if err := os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	r.apply(s)
}

// TestForeignVolume opens a data directory with another database's installation id. Nothing is run, changed or deleted.
func TestForeignVolume(t *testing.T) {
	r := newRig(t)
	r.open()
	s := newSpec()
	r.provision(s)
	r.run(s)
	r.sh(s, "echo kept > /root/f")
	r.close()

	own := r.opt.InstallationID
	r.opt.InstallationID = "another"
	images := filepath.Join(r.opt.DataDir, "containerd", "images")
	if err := errors.Join(os.Remove(images), os.Mkdir(images, 0o700)); err != nil { // not the one that tests share
		t.Fatal(err)
	}
	e := r.open()
	refs, err := e.known(r.ctx())
	if err != nil || len(refs) != 1 || refs[0] != s.Ref {
		t.Fatalf("known: %v, %v", refs, err)
	}
	if o, err := e.observe(r.ctx(), s.Ref); err != nil || o.Phase != compute.PhaseFailed || o.Message == "" {
		t.Errorf("observed as %+v, %v", o, err)
	}
	wantCode(t, "provision", e.Provision(r.ctx(), s), compute.CodeConflict)
	for _, s.Running = range []bool{true, false} {
		wantCode(t, "apply", e.Apply(r.ctx(), s), compute.CodeConflict)
	}
	wantCode(t, "remove", e.Remove(r.ctx(), s.Ref), compute.CodeConflict)
	r.close()

	r.opt.InstallationID = own
	if err := errors.Join(os.RemoveAll(images), os.Symlink(sharedImages(), images)); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.run(s)
	if got := r.sh(s, "cat /root/f"); got != "kept\n" {
		t.Errorf("it had %q", got)
	}
}

// TestSeveralInstances runs the same container in two instances side by side, of which one goes away.
func TestSeveralInstances(t *testing.T) {
	a, b := newRig(t), newRig(t)
	a.open()
	b.open()
	s := newSpec()
	for _, r := range []*rig{a, b} {
		r.provision(s)
		r.run(s)
	}
	a.sh(s, "echo a > /root/me")
	b.sh(s, "echo b > /root/me")
	if got := a.sh(s, "cat /root/me"); got != "a\n" {
		t.Errorf("a has %q", got)
	}
	a.down(true)
	if got := b.sh(s, "cat /root/me"); got != "b\n" {
		t.Errorf("b has %q", got)
	}
	b.remove(s)
	b.gone(s.Ref)
}

// TestDown takes an instance down without its data, while it runs not at all, and up again.
func TestDown(t *testing.T) {
	r := newRig(t)
	r.open()
	s, never := newSpec(), newSpec()
	r.provision(s)
	r.provision(never)
	r.run(s)
	r.sh(s, "echo kept > /root/f")
	if err := Down(r.ctx(), r.opt, true); err == nil || !strings.Contains(err.Error(), "another berth") {
		t.Errorf("down while it runs: %v", err)
	}
	l := r.e.layout
	r.down(false)
	for _, p := range []string{l.run, shimSocket(l, s.String())} {
		if _, err := os.Lstat(p); !os.IsNotExist(err) {
			t.Errorf("left behind: %s (%v)", p, err)
		}
	}
	r.down(false) // again
	r.open()
	r.run(s)
	if got := r.sh(s, "cat /root/f"); got != "kept\n" {
		t.Errorf("it had %q", got)
	}
	r.run(never)
	r.down(true)
	for _, d := range []string{"volumes", "agent", "containerd"} {
		if _, err := os.Lstat(l.dir(d)); !os.IsNotExist(err) {
			t.Errorf("left behind: %s (%v)", d, err)
		}
	}
}

// TestReboot finds a data directory as after a power cut: records of containers, and nothing of theirs on the host.
func TestReboot(t *testing.T) {
	r := newRig(t)
	e := r.open()
	s := newSpec()
	r.provision(s)
	r.run(s)
	r.sh(s, "echo kept > /root/f; echo lost > /f; sync")
	r.close()
	if err := errors.Join(sweep(r.ctx(), e.layout, func(string, ...any) {}), hostnet.Destroy(r.ctx(), e.layout.data)); err != nil {
		t.Fatal(err)
	}
	e = r.open()
	if o, err := e.observe(r.ctx(), s.Ref); err != nil || o.Phase != compute.PhaseStopped {
		t.Errorf("observed as %+v, %v", o, err)
	}
	r.run(s)
	r.sh(s, "test $(cat /root/f) = kept && test ! -e /f")
	r.remove(s)
	r.gone(s.Ref)
}

// TestDataDirectoryRemoved has somebody delete the data directory under running containers, and then ask for an end.
func TestDataDirectoryRemoved(t *testing.T) {
	r := newRig(t)
	r.open()
	s := newSpec()
	r.provision(s)
	r.run(s)
	r.close()
	if err := os.RemoveAll(r.opt.DataDir); err != nil {
		t.Fatal(err)
	}
	r.down(false)
}

// TestStopGivesBack has what a stop drops go back to the host's disk, and not only to the container.
func TestStopGivesBack(t *testing.T) {
	r := newRig(t)
	e := r.open()
	s := newSpec()
	r.provision(s)
	r.run(s)
	taken := func() int64 {
		var st unix.Stat_t
		if err := unix.Stat(e.volume(s.Ref).file, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512 >> 20
	}
	r.sh(s, "head -c 64M /dev/urandom >/tmp/loose; head -c 8M /dev/urandom >/root/kept; sync")
	if n := taken(); n < 72 {
		t.Fatalf("the volume takes %d MB of the disk, with 72 MB written", n)
	}
	stopped := s
	stopped.Running = false
	r.apply(stopped)
	if n := taken(); n < 8 || n > 40 {
		t.Errorf("the volume takes %d MB of the disk after a stop, with 8 MB kept", n)
	}
}

// TestRoom refuses what the machine has no room for, before anything is made.
func TestRoom(t *testing.T) {
	r := newRig(t, func(o *Options) { o.MemoryBytes = 300 << 20 })
	e := r.open()
	s, other := newSpec(), newSpec()
	r.provision(s)
	r.provision(other)
	r.run(s)
	for _, f := range []string{"memory" + e.layout.cgroup() + "/memory.limit_in_bytes", e.layout.cgroup() + "/memory.max"} {
		if b, err := os.ReadFile(filepath.Join(cgroupRoot, f)); err == nil && string(b) != "314572800\n" {
			t.Errorf("all containers together may have %s bytes of memory", b)
		} else if err == nil {
			break
		} else if unified() == strings.HasSuffix(f, ".max") {
			t.Error(err)
		}
	}
	wantCode(t, "admit", e.Admit(r.ctx(), newSpec()), compute.CodeCapacity)
	other.Running = true
	wantCode(t, "start", e.Apply(r.ctx(), other), compute.CodeCapacity)
	r.apply(s) // it is stopped, and its memory is the other's
	r.apply(other)
	// Storage that could not all be written is not promised, and what one owner's volumes may still take counts.
	if n, err := e.unwritten(s.Owner); err != nil || n < 3<<30 || n > 4<<30 { // of two volumes of 2 GB
		t.Errorf("unwritten are %d, %v", n, err)
	}
	if n, err := e.unwritten(s.Owner + 1); err != nil || n != 0 {
		t.Errorf("unwritten of nobody's are %d, %v", n, err)
	}
	huge := newSpec()
	huge.StorageGB = 1 << 20
	wantCode(t, "admit", e.Admit(r.ctx(), huge), compute.CodeCapacity)
	r.close()
	r.opt.ReserveBytes = 1 << 60
	e = r.open()
	wantCode(t, "admit", e.Admit(r.ctx(), newSpec()), compute.CodeCapacity)
	third := newSpec()
	wantCode(t, "provision", e.Provision(r.ctx(), third), compute.CodeCapacity)
	if _, err := os.Lstat(e.volume(third.Ref).file); !os.IsNotExist(err) {
		t.Errorf("a volume was made: %v", err)
	}
	wantCode(t, "start of one that another still has the memory of", func() error { s.Running = true; return e.Apply(r.ctx(), s) }(),
		compute.CodeCapacity) // known from the running one, over the restart
}

// TestOddDirectory has a data directory whose name is long, and full of what TOML, mount options and sockets stumble over.
func TestOddDirectory(t *testing.T) {
	r := newRig(t, func(o *Options) {
		o.DataDir = filepath.Join(o.DataDir, `a:b,c d"e\f=é'`, strings.Repeat("long", 30))
		if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
			t.Fatal(err)
		}
	})
	r.open()
	s := newSpec()
	r.provision(s)
	r.run(s)
	r.sh(s, "echo x > /root/f")
	r.remove(s)
	r.gone(s.Ref)
}

// TestUpgrade replaces the agent and the limits of the machine under a running container: it keeps its agent until its
// user restarts it, and takes new limits at once.
func TestUpgrade(t *testing.T) {
	r := newRig(t)
	e := r.open()
	s := newSpec()
	r.provision(s)
	r.run(s)
	old := e.agent
	r.close()
	b, err := os.ReadFile(sharedAgent())
	if err != nil {
		t.Fatal(err)
	}
	r.opt.AgentPath = filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(r.opt.AgentPath, append(b, 0), 0o755); err != nil {
		t.Fatal(err)
	}
	e = r.open()
	if e.agent == old {
		t.Fatal("both agents have one name")
	}
	s.MilliCPU, s.MemoryMB = 500, 300
	r.run(s)
	if got := r.sh(s, "sha256sum < /.berth/agent"); !strings.HasPrefix(got, old) {
		t.Errorf("its agent is %s, and was %s", got, old)
	}
	if limit := r.sh(s, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"); limit != "314572800\n" {
		t.Errorf("its memory is %s", limit)
	}
	s.Running = false
	r.apply(s)
	r.run(s)
	if got := r.sh(s, "sha256sum < /.berth/agent"); !strings.HasPrefix(got, e.agent) {
		t.Errorf("its agent is %s, and should be %s", got, e.agent)
	}
	r.close()
	r.open()
	if list, err := os.ReadDir(e.agents.dir); err != nil || len(list) != 1 {
		t.Errorf("agents are %v, %v; want the one in use", list, err)
	}
}

// TestBusyMount stops a container while somebody on the host looks through its files.
func TestBusyMount(t *testing.T) {
	r := newRig(t)
	e := r.open()
	s := newSpec()
	r.provision(s)
	r.run(s)
	d, err := os.Open(e.layout.place(s.Ref).rootfs())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	steps := make(chan string, 100)
	r.e.log = slog.New(stepLog{steps})
	done := make(chan error, 1)
	go func() { done <- e.Apply(r.ctx(), s) }()
	for name := range steps {
		if name == "detached" { // the next is to unmount
			break
		}
	}
	d.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// stepLog tells of the steps that are logged.
type stepLog struct{ steps chan string }

func (l stepLog) Enabled(context.Context, slog.Level) bool { return true }
func (l stepLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l stepLog) WithGroup(string) slog.Handler            { return l }
func (l stepLog) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "done" {
			l.steps <- a.Value.String()
		}
		return true
	})
	return nil
}

// TestChecks names what the machine lacks, with a cure, and nothing that it has.
func TestChecks(t *testing.T) {
	o := Options{DataDir: t.TempDir()}
	names := make(map[string]bool)
	for _, c := range Checks(t.Context(), o) {
		names[c.Name] = true
		if c.Problem != nil && c.Name != "other firewalls" { // those are the machine's own affair
			t.Errorf("%s: %v", c.Name, c.Problem)
		}
	}
	if len(names) < 10 {
		t.Errorf("only %v were looked at", names)
	}
	o.ContainerdPath, o.ReserveBytes = "/absent/containerd", 1<<60
	want := map[string]string{"containerd": "apt-get install containerd", "disk space": "reserve"}
	for _, c := range Checks(t.Context(), o) {
		if c.Name == "other firewalls" {
			continue
		}
		cure := want[c.Name]
		if (c.Problem == nil) != (cure == "") || c.Problem != nil && (!strings.Contains(c.Problem.Error(), cure) || strings.Contains(c.Problem.Error(), "\n")) {
			t.Errorf("%s: %v", c.Name, c.Problem)
		}
		if c.Name == "disk space" && c.Fatal {
			t.Error("a full disk would keep berth, and so its users, from their containers")
		}
	}
	r := newRig(t, func(o *Options) { o.ContainerdPath = "/absent/containerd" })
	if _, err := Open(r.ctx(), r.opt); err == nil || !strings.Contains(err.Error(), "apt-get install containerd") {
		t.Errorf("opened without containerd: %v", err)
	}
	r.opt.ContainerdPath = "/bin/false"
	if _, err := Open(r.ctx(), r.opt); err == nil || !strings.Contains(err.Error(), "containerd does not start") {
		t.Errorf("opened with a broken containerd: %v", err)
	}
}

// TestPlaceIsPrivate keeps other users of the host out of containers' trees, in which there are setuid programs.
func TestPlaceIsPrivate(t *testing.T) {
	r := newRig(t)
	e := r.open()
	s := newSpec()
	r.provision(s)
	r.run(s)
	p := e.layout.place(s.Ref)
	for path, want := range map[string]os.FileMode{string(p): 0o710, p.volume(): 0o755, e.volume(s.Ref).file: 0o600, e.layout.dir("volumes"): 0o700} {
		fi, err := os.Stat(path)
		if err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s has mode %v, %v; want %v", path, fi.Mode(), err, want)
		}
	}
}
