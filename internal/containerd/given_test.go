package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	taskapi "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/internal/compute"
	"berth/internal/enginetest"
	"berth/internal/leakcheck"
)

// host is a containerd of the machine's, which the test runs and berth is given.
type host struct {
	t       *testing.T
	dir     string
	address string
	flags   uintptr // of namespaces that it has to itself
	ended   chan struct{}
}

func newHost(t *testing.T, flags uintptr) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-host-") // t's own is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, dir: dir, address: filepath.Join(dir, "containerd.sock"), flags: flags}
	own := layout{data: dir, run: dir, name: "unused"}
	if err := os.MkdirAll(own.dir("containerd"), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own.configPath(), []byte(daemonConfig(own)), 0o600); err != nil {
		t.Fatal(err)
	}
	leakcheck.Check(t, filepath.Base(dir))
	t.Cleanup(func() {
		h.kill()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		for _, d := range []string{shimSockets, filepath.Dir(shimSockets)} { // unless they are another's too
			_ = unix.Rmdir(d)
		}
	})
	h.start()
	return h
}

// start starts it and returns when it answers.
func (h *host) start() {
	h.t.Helper()
	cmd := exec.Command("containerd", "--config", filepath.Join(h.dir, "containerd.toml"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Unshareflags: h.flags}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.ended = make(chan struct{})
	go func() {
		defer close(h.ended)
		_ = cmd.Wait() // it is killed
	}()
	if _, err := h.client("unused").version.Version(h.ctx(), &emptypb.Empty{}); err != nil {
		h.t.Fatal(err)
	}
}

// kill kills it and returns when it is dead.
func (h *host) kill() {
	h.t.Helper()
	is := func(args []string) bool { return len(args) == 3 && args[2] == filepath.Join(h.dir, "containerd.toml") }
	if err := endProcesses(is, []signalStep{{unix.SIGKILL, killWait}}); err != nil {
		h.t.Fatal(err)
	}
	<-h.ended
}

func (h *host) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), enginetest.Timeout)
	h.t.Cleanup(cancel)
	return ctx
}

func (h *host) client(namespace string) *rpc {
	h.t.Helper()
	c, err := connect(h.address, namespace)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.conn.Close() })
	return c
}

func (h *host) namespaces() []string {
	h.t.Helper()
	got, err := h.client("unused").namespaces.List(h.ctx(), &namespaces.ListNamespacesRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	var names []string
	for _, n := range got.Namespaces {
		names = append(names, n.Name)
	}
	return names
}

// somebody runs a container in another namespace, under a name that berth might use, until the test ends. It returns what says
// whether that still runs.
func (h *host) somebody(name string) (check func()) {
	h.t.Helper()
	if err := shared.prepare(); err != nil {
		h.t.Fatal(err)
	}
	roots, err := filepath.Glob(sharedImages() + "/*/rootfs")
	if err != nil || len(roots) != 1 {
		h.t.Fatal(roots, err)
	}
	capabilities := []string{"CAP_DAC_OVERRIDE", "CAP_KILL"}
	spec, err := marshalSpec(&specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: roots[0], Readonly: true},
		Process: &specs.Process{
			Args: []string{"/bin/sleep", "100000"}, Cwd: "/", Env: []string{"PATH=/bin"},
			Capabilities: &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
		},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{
			CgroupsPath: "/" + filepath.Base(h.dir),
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}},
		},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	root, err := typeurl.MarshalAnyToProto(&options.Options{Root: filepath.Join(h.dir, "runc")})
	if err != nil {
		h.t.Fatal(err)
	}
	c := h.client("somebody")
	_, err = c.containers.Create(h.ctx(), &containers.CreateContainerRequest{Container: &containers.Container{
		ID: name, Spec: spec, Runtime: &containers.Container_Runtime{Name: "io.containerd.runc.v2", Options: root},
	}})
	if err != nil {
		h.t.Fatal(err)
	}
	created, err := c.tasks.Create(h.ctx(), &tasks.CreateTaskRequest{ContainerID: name})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		_, err1 := c.tasks.Kill(h.ctx(), &tasks.KillRequest{ContainerID: name, Signal: uint32(unix.SIGKILL)})
		_, err2 := c.tasks.Wait(h.ctx(), &tasks.WaitRequest{ContainerID: name})
		_, err3 := c.tasks.Delete(h.ctx(), &tasks.DeleteTaskRequest{ContainerID: name})
		_, err4 := c.containers.Delete(h.ctx(), &containers.DeleteContainerRequest{ID: name})
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			h.t.Errorf("end somebody's container: %v", err)
		}
	})
	if _, err := c.tasks.Start(h.ctx(), &tasks.StartRequest{ContainerID: name}); err != nil {
		h.t.Fatal(err)
	}
	return func() {
		h.t.Helper()
		got, err := c.tasks.Get(h.ctx(), &tasks.GetRequest{ContainerID: name})
		if err != nil || got.Process.Status != taskapi.Status_RUNNING || got.Process.Pid != created.Pid {
			h.t.Errorf("somebody's container is %v, %v", got, err)
		}
	}
}

// newGuest is an instance that is given a containerd.
func newGuest(t *testing.T, h *host) *rig {
	t.Helper()
	r := newRig(t, func(o *Options) { o.ContainerdAddress, o.ContainerdPath = h.address, "/absent/containerd" })
	r.host = h
	return r
}

// TestContractGiven holds the engine to the contract on a containerd that runs already, which it leaves as it was.
func TestContractGiven(t *testing.T) {
	h := newHost(t, 0)
	r := newGuest(t, h)
	e := r.open()
	enginetest.Run(t, r.subject())
	s := newSpec()
	r.provision(s)
	r.run(s)
	check := h.somebody(s.String())
	r.close()
	r.down(true)
	check()
	if got := h.namespaces(); !slices.Equal(got, []string{"somebody"}) {
		t.Errorf("after down --delete its namespaces are %v", got)
	}
	if pids, err := findProcesses(func(args []string) bool { return isDaemon(args, e.layout) }); err != nil || len(pids) > 0 {
		t.Errorf("a containerd of its own runs: %v, %v", pids, err)
	}
}

// TestGivenKilled ends the containerd that was given, which somebody starts again.
func TestGivenKilled(t *testing.T) {
	h := newHost(t, 0)
	testContainerdKilled(t, newGuest(t, h))
}

// TestGivenKilledAtEveryStep kills berth at every step, with a containerd that goes on.
func TestGivenKilledAtEveryStep(t *testing.T) { testKilledAtEveryStep(t, newGuest(t, newHost(t, 0))) }

// TestGivenAway has containerd away for a while, during which a container dies and Berth is taken down.
func TestGivenAway(t *testing.T) {
	h := newHost(t, 0)
	check := h.somebody("compute-1-00000001")
	r := newGuest(t, h)
	e := r.open()
	s, other := newSpec(), newSpec()
	for _, s := range []compute.Spec{s, other} {
		r.provision(s)
		r.run(s)
	}
	seen := r.watch()
	pid := r.pid(s)
	if err := e.Answers(r.ctx()); err != nil {
		t.Error(err)
	}
	h.kill()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := e.Answers(ctx); err == nil {
		t.Error("it is said to answer")
	}
	r.sh(other, "echo kept > /root/f")
	if err := unix.Kill(int(pid), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.start()
	if o := r.await(seen, s.Ref); o.Phase != compute.PhaseStopped {
		t.Errorf("observed as %+v", o)
	}
	r.run(s)
	r.close()

	// Down ends what runs all the same, says what it could not do, and does that later. The data stays until then.
	h.kill()
	if err := Down(r.ctx(), r.opt, true); err == nil || !strings.Contains(err.Error(), "run this again") {
		t.Errorf("down without containerd: %v", err)
	}
	if pids, err := findProcesses(func(args []string) bool { return isShim(args, e.layout, "") }); err != nil || len(pids) > 0 {
		t.Errorf("shims are left: %v, %v", pids, err)
	}
	h.start()
	r.open()
	r.run(other)
	if got := r.sh(other, "cat /root/f"); got != "kept\n" {
		t.Errorf("it had %q", got)
	}
	r.close()
	r.down(true)
	if got := h.namespaces(); !slices.Equal(got, []string{"somebody"}) {
		t.Errorf("after down --delete its namespaces are %v", got)
	}
	check()
}

// TestGivenChanged gives and takes a containerd while containers run: they are not run twice.
func TestGivenChanged(t *testing.T) {
	h := newHost(t, 0)
	r := newGuest(t, h)
	s := newSpec()
	r.open()
	r.provision(s)
	r.run(s)
	r.close()
	refused := func(address, want string) {
		t.Helper()
		o := r.opt
		o.ContainerdAddress, o.ContainerdPath = address, ""
		if _, err := Open(r.ctx(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("opened with %q: %v", address, err)
		}
		if err := Down(r.ctx(), o, true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("taken down with %q: %v", address, err)
		}
	}
	refused("", "give --containerd-address "+h.address)
	refused(filepath.Join(h.dir, "another"), "give --containerd-address "+h.address)

	link := filepath.Join(h.dir, "link")
	if err := os.Symlink(h.address, link); err != nil {
		t.Fatal(err)
	}
	r.opt.ContainerdAddress = link // another name of the same
	r.open()
	r.sh(s, "true")
	r.down(false)
	r.opt.ContainerdAddress, r.opt.ContainerdPath = "", ""
	r.open()
	r.run(s)
	r.close()
	refused(h.address, "leave out containerd-address")
}

// TestCheckGiven says what is wrong with a containerd, and how to mend it.
func TestCheckGiven(t *testing.T) {
	dir, err := os.MkdirTemp("", "berth-check-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listen := func(name string) (net.Listener, string) {
		t.Helper()
		path := filepath.Join(dir, name)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l, path
	}
	versioned := func(v string) string {
		t.Helper()
		l, path := listen(v)
		s := grpc.NewServer()
		version.RegisterVersionServer(s, versionServer{v: v})
		go func() { _ = s.Serve(l) }()
		t.Cleanup(s.Stop)
		return path
	}
	another := grpc.NewServer()
	l, speaksAnother := listen("another")
	go func() { _ = another.Serve(l) }()
	t.Cleanup(another.Stop)
	_, silent := listen("silent")
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A listener of another user's, by a thread that is theirs, and ends.
	users := make(chan string)
	go func() {
		runtime.LockOSThread()
		path := filepath.Join(dir, "users")
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		err = errors.Join(err, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			err = errors.Join(err, errno)
		}
		err = errors.Join(err, unix.Listen(fd, 10))
		if err != nil {
			path = err.Error()
		}
		users <- path
	}()

	for _, tc := range []struct{ what, address, want string }{
		{"nothing", filepath.Join(dir, "absent"), "start containerd"},
		{"a place in a file", file + "/x", "start containerd"},
		{"a file", file, "nobody listens"},
		{"a directory", dir, "nobody listens"},
		{"another user's", <-users, "runs as user 65534"},
		{"another program", speaksAnother, "does not answer as containerd does"},
		{"one that says nothing", silent, "does not answer as containerd does"},
		{"an old one", versioned("v1.4.13"), "install 1.5 or later"},
		{"an older one", versioned("0.9"), "install 1.5 or later"},
		{"an odd one", versioned("unknown"), "unknown version"},
		{"one out of sight", newHost(t, unix.CLONE_NEWNS).address, "does not see what berth mounts"},
		{"a good one", versioned("1.5.0"), ""},
		{"a newer one", versioned("v2.2.9-rc.1"), ""},
		{"this machine's", newHost(t, 0).address, ""},
	} {
		o := Options{DataDir: t.TempDir(), ContainerdAddress: tc.address}
		found := false
		for _, c := range machineChecks(t.Context(), o) {
			if c.Name != "containerd" {
				continue
			}
			found = true
			text := fmt.Sprint(c.Problem)
			if (c.Problem == nil) != (tc.want == "") || !strings.Contains(text, tc.want) && tc.want != "" || strings.Contains(text, "\n") || !c.Fatal {
				t.Errorf("%s: %v", tc.what, c.Problem)
			}
		}
		if !found {
			t.Errorf("%s: not looked at", tc.what)
		}
	}
	r := newRig(t, func(o *Options) { o.ContainerdAddress = filepath.Join(dir, "absent") })
	if _, err := Open(r.ctx(), r.opt); err == nil || !strings.Contains(err.Error(), "containerd-address: there is no socket") {
		t.Errorf("opened without containerd: %v", err)
	}
	r.opt.ContainerdAddress = "" // nothing ran: nothing is to be asked of it
}

// versionServer is a containerd of some version, as far as the check asks.
type versionServer struct {
	version.UnimplementedVersionServer
	v string
}

func (s versionServer) Version(context.Context, *emptypb.Empty) (*version.VersionResponse, error) {
	return &version.VersionResponse{Version: s.v}, nil
}
