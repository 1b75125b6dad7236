package containerd

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/compute"
	"berth/internal/enginetest"
	"berth/internal/leakcheck"
)

// What all tests share: a directory with the base image, unpacked once for the installation that they all are, and the agent.
var shared struct {
	dir     string
	prepare func() error
}

func sharedImages() string { return filepath.Join(shared.dir, "images") }
func sharedAgent() string  { return filepath.Join(shared.dir, "agent") }

const (
	installation = "11111111-2222-3333-4444-555555555555"
	baseArchive  = "../../build/base-image.tar"
)

func TestMain(m *testing.M) {
	enginetest.Victim(openMortal)
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the engine's tests make mounts, namespaces and networks: run them as root")
		return 1
	}
	dir, err := os.MkdirTemp("", "berth-engine-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	shared.dir = dir
	shared.prepare = sync.OnceValue(prepareShared)
	return m.Run()
}

func prepareShared() error {
	if err := os.Mkdir(sharedImages(), 0o700); err != nil {
		return err
	}
	im := importer{dir: sharedImages(), ids: idRangeOf(installation), progress: func(int64, int64) {}}
	if _, err := im.load(context.Background(), baseArchive); err != nil {
		return fmt.Errorf("%w (`make image` makes it)", err)
	}
	return enginetest.BuildAgent(sharedAgent())
}

// rig is an instance of its own for one test, of which nothing is left when the test ends.
type rig struct {
	t   *testing.T
	opt Options
	e   *Engine

	host *host // containerd that it is given; nil: it has its own
}

func newRig(t *testing.T, change ...func(*Options)) *rig {
	t.Helper()
	if err := shared.prepare(); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, opt: Options{
		DataDir: t.TempDir(), InstallationID: installation, ImageArchive: baseArchive, AgentPath: sharedAgent(),
		StopGrace: 20 * time.Second, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}}
	for _, f := range change {
		f(&r.opt)
	}
	l, err := layoutOf(r.opt.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	leakcheck.Check(t, l.name, l.data, strings.TrimPrefix(l.name, "berth-"))
	if err := os.Mkdir(l.dir("containerd"), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(sharedImages(), l.dir("containerd", "images")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.down(true) })
	return r
}

// down ends the instance, however the test left it.
func (r *rig) down(deleteData bool) {
	r.t.Helper()
	r.close()
	ctx, cancel := context.WithTimeout(context.Background(), enginetest.Timeout)
	defer cancel()
	if err := Down(ctx, r.opt, deleteData); err != nil {
		r.t.Errorf("down: %v", err)
	}
}

func (r *rig) open() *Engine {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), enginetest.Timeout)
	defer cancel()
	e, err := Open(ctx, r.opt)
	if err != nil {
		r.t.Fatalf("open: %v", err)
	}
	r.e = e
	return e
}

func (r *rig) close() {
	r.t.Helper()
	if r.e != nil {
		if err := r.e.Close(); err != nil {
			r.t.Errorf("close: %v", err)
		}
		r.e = nil
	}
}

func (r *rig) subject() *enginetest.Subject {
	return &enginetest.Subject{
		Engine: r.e, Shell: enginetest.Shell, Spec: newSpec, Quota: true, GrowsRunning: capable(r.t, unix.CAP_SYS_RESOURCE),
		Reopen: func(*testing.T) enginetest.Engine {
			r.close()
			return r.open()
		},
	}
}

// capable says whether this process has a capability.
func capable(t *testing.T, capability int) bool {
	t.Helper()
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&h, &sets[0]); err != nil {
		t.Fatal(err)
	}
	return sets[capability/32].Effective&(1<<(capability%32)) != 0
}

func newSpec() compute.Spec {
	id := compute.NewContainerID()
	return compute.Spec{
		Ref: compute.Ref{Owner: 7, ID: id}, Hostname: string(id) + ".compute.localhost", MilliCPU: 1000, Arch: runtime.GOARCH,
		MemoryMB: 256, StorageGB: 2, MountPaths: []string{"/root"},
	}
}

// testWriter gives what is logged to the test.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

func TestContract(t *testing.T) {
	r := newRig(t)
	r.open()
	enginetest.Run(t, r.subject())
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), enginetest.Timeout)
	r.t.Cleanup(cancel)
	return ctx
}

func (r *rig) provision(s compute.Spec) {
	r.t.Helper()
	if err := r.e.Provision(r.ctx(), s); err != nil {
		r.t.Fatalf("provision %s: %v", s.Ref, err)
	}
}

func (r *rig) apply(s compute.Spec) {
	r.t.Helper()
	if err := r.e.Apply(r.ctx(), s); err != nil {
		r.t.Fatalf("apply %s: %v", s.Ref, err)
	}
}

func (r *rig) run(s compute.Spec) {
	r.t.Helper()
	s.Running = true
	r.apply(s)
}

func (r *rig) remove(s compute.Spec) {
	r.t.Helper()
	if err := r.e.Remove(r.ctx(), s.Ref); err != nil {
		r.t.Fatalf("remove %s: %v", s.Ref, err)
	}
}

// sh runs a script in the container, which must succeed.
func (r *rig) sh(s compute.Spec, script string) string {
	r.t.Helper()
	nc, err := r.e.DialAgent(r.ctx(), s.Ref)
	if err != nil {
		r.t.Fatalf("dial %s: %v", s.Ref, err)
	}
	defer nc.Close()
	out, status, err := enginetest.Shell(r.ctx(), nc, script)
	if err != nil || status != 0 {
		r.t.Fatalf("in %s: %s: status %d, %v; it printed %q", s.Ref, script, status, err, out)
	}
	return out
}

// pid is the host's number of the container's first process.
func (r *rig) pid(s compute.Spec) uint32 {
	r.t.Helper()
	p, err := r.e.process(r.ctx(), s.Ref)
	if err != nil || p == nil {
		r.t.Fatalf("process of %s: %v, %v", s.Ref, p, err)
	}
	return p.Pid
}

// watch returns what the engine tells after its first list.
func (r *rig) watch() <-chan compute.Observation {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	seen := make(chan compute.Observation, 100)
	synced, ended := make(chan struct{}), make(chan struct{})
	first := true
	go func() {
		defer close(ended)
		_ = r.e.Watch(ctx, func(o compute.Observation) {
			if !first {
				seen <- o
			}
		}, func() { first = false; close(synced) })
	}()
	r.t.Cleanup(func() { cancel(); <-ended })
	select {
	case <-synced:
	case <-ended:
		r.t.Fatal("watch ended")
	}
	return seen
}

func (r *rig) await(seen <-chan compute.Observation, ref compute.Ref) compute.Observation {
	r.t.Helper()
	deadline := time.After(enginetest.Timeout)
	for {
		select {
		case o := <-seen:
			if o.Ref == ref {
				return o
			}
		case <-deadline:
			r.t.Fatalf("nothing was told of %s", ref)
		}
	}
}

// gone checks that nothing of a container is left, at once and not only when the whole instance is gone.
func (r *rig) gone(ref compute.Ref) {
	r.t.Helper()
	l := r.e.layout
	paths := []string{
		l.dir("volumes", ref.String()+".img"), l.dir("volumes", ref.String()+unfinished), string(l.place(ref)), shimSocket(l, ref.String()),
	}
	for _, dir := range taskDirs(l) {
		paths = append(paths, filepath.Join(dir, ref.String()), filepath.Join(dir, "."+ref.String()))
	}
	for _, p := range paths {
		if _, err := os.Lstat(p); !os.IsNotExist(err) {
			r.t.Errorf("left behind: %s (%v)", p, err)
		}
	}
	roots, err := cgroupRoots()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, root := range roots {
		if _, err := os.Lstat(filepath.Join(root, string(r.e.cgroupOf(ref)))); !os.IsNotExist(err) {
			r.t.Errorf("left behind: control group in %s (%v)", root, err)
		}
	}
	if loops, err := loopsOver(l.dir("volumes", ref.String()+".img")); err != nil || len(loops) > 0 {
		r.t.Errorf("left behind: loop devices %v (%v)", loops, err)
	}
	if pids, err := findProcesses(func(args []string) bool { return isShim(args, l, ref.String()) }); err != nil || len(pids) > 0 {
		r.t.Errorf("left behind: shims %v (%v)", pids, err)
	}
	if attached, err := r.e.network.Attached(r.ctx()); err != nil {
		r.t.Error(err)
	} else {
		for _, a := range attached {
			if a.ID == string(ref.ID) {
				r.t.Errorf("left behind: link %s", a.HostIf)
			}
		}
	}
	if p, err := r.e.process(r.ctx(), ref); err != nil || p != nil {
		r.t.Errorf("left behind: task %v (%v)", p, err)
	}
}
