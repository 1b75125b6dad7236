// Package containerd is the embedded engine: it runs containers on this machine with runc and a containerd: one of
// its own, which it starts as a child, or one that is given.
//
// It makes a container's storage, file system, control group and network, and is the only part of Berth that knows how
// they look on the host. What it does not do: decide what should run (control does), keep a list of containers (what is
// there is read from the disk and from containerd), or enter a container otherwise than by its agent's socket.
//
// Everything it does may be cut off at any instant. So no step needs the memory of an earlier one: teardown takes a
// container apart from whatever state it is in, and a start that finds anything but a whole running container tears down
// first. A container belongs to its shim, not to us: it runs on while berth or containerd is away.
//
// A tenant is root in a user namespace. The host follows no path, symlink or directory entry that a tenant can write.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/internal/compute"
	"berth/internal/containerd/hostnet"
)

const (
	serveTimeout = 30 * time.Second // for containerd to answer after its start
	agentTimeout = 20 * time.Second // for the agent to accept connections after its start
	callTimeout  = time.Minute      // for containerd's answer to a call
	defaultGrace = 10 * time.Second // between TERM and KILL for a container
)

// Options configures an Engine. DataDir, InstallationID, ImageArchive and AgentPath are required.
type Options struct {
	DataDir        string
	InstallationID string
	ImageArchive   string // base image, OCI layout or docker archive
	AgentPath      string // agent binary for this machine
	ContainerdPath string // default: containerd

	// ContainerdAddress is the socket of a containerd that runs already, to use in place of one of our own.
	ContainerdAddress string

	AcceptEnv []string

	Subnet       netip.Prefix     // zero: a free one
	Upstreams    []netip.AddrPort // DNS; none: the host's
	ReserveBytes int64            // free disk space below which no storage is made
	MemoryBytes  int64            // what all containers together may use; 0: three quarters of the machine's
	StopGrace    time.Duration    // between TERM and KILL; default 10 s

	Log      *slog.Logger
	Progress func(stage string, done, total int64) // of the image's import, in bytes; may be nil
}

// Engine runs containers on this machine. It implements control.Engine and session.Dialer.
type Engine struct {
	opt     Options
	log     *slog.Logger
	layout  layout
	ids     idRange
	image   image
	images  importer
	agent   string // the directory's name of the current agent
	agents  agents
	memory  int64
	lock    *os.File
	daemon  *daemon
	client  *rpc
	network *hostnet.Network

	cancel context.CancelCauseFunc
	ctx    context.Context // ends with Close
	owned  sync.WaitGroup
	calls  sync.WaitGroup // that change a container; none begins once ctx ended

	mu       sync.Mutex // guards all below; never held over I/O
	units    map[compute.Ref]*unit
	watchers map[*watcher]struct{}
}

var errClosed = errors.New("the engine is closed")

// Open starts the engine: containerd, the network, the base image. Containers that run are adopted as they are.
func Open(ctx context.Context, o Options) (_ *Engine, err error) {
	e, err := prepare(o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if err := sign(e.lock); err != nil {
		return nil, err
	}
	if err := required(ctx, e.opt, e.log); err != nil {
		return nil, err
	}
	if err := roomForWatches(e.log); err != nil {
		return nil, err
	}
	if err := e.serve(ctx); err != nil {
		return nil, err
	}
	if e.image, err = e.images.load(ctx, e.opt.ImageArchive); err != nil {
		return nil, fmt.Errorf("import the base image: %w", err)
	}
	if e.agent, err = e.agents.install(e.opt.AgentPath); err != nil {
		return nil, fmt.Errorf("install the agent: %w", err)
	}
	err = cgroup(e.layout.cgroup()).bound(e.memory, allPIDs())
	if errors.Is(err, unix.EBUSY) { // cgroup v1 refuses a limit below what is used
		e.log.Warn("containers use more memory than all may have; the old limit stays until some are stopped", "mb", e.memory>>20)
	} else if err != nil {
		return nil, err
	}
	e.network, err = hostnet.Open(ctx, hostnet.Options{
		DataDir: e.layout.data, Subnet: e.opt.Subnet, Upstreams: e.opt.Upstreams, Log: e.log,
	})
	if err != nil {
		return nil, fmt.Errorf("open the containers' network: %w", err)
	}
	if err := e.adopt(ctx); err != nil {
		return nil, fmt.Errorf("look for containers of an earlier run: %w", err)
	}
	return e, nil
}

// prepare makes an Engine that has its directories and its lock, and nothing that runs.
func prepare(o Options) (*Engine, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.ContainerdPath == "" {
		o.ContainerdPath = "containerd"
	}
	if o.StopGrace == 0 {
		o.StopGrace = defaultGrace
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("containers need root: run berth with sudo")
	}
	if err := os.MkdirAll(o.DataDir, 0o755); err != nil {
		return nil, err
	}
	l, err := o.layout()
	if err != nil {
		return nil, err
	}
	if err := l.make(); err != nil {
		return nil, err
	}
	e := &Engine{
		opt: o, log: o.Log, layout: l, ids: idRangeOf(o.InstallationID), agents: agents{l.dir("agent")}, memory: o.MemoryBytes,
		units: make(map[compute.Ref]*unit), watchers: make(map[*watcher]struct{}),
	}
	e.images = importer{dir: l.dir("containerd", "images"), ids: e.ids, progress: func(done, total int64) {
		if o.Progress != nil {
			o.Progress("Importing the base image", done, total)
		}
	}}
	if e.memory == 0 {
		all, err := machineMemory()
		if err != nil {
			return nil, err
		}
		e.memory = all / 4 * 3
	}
	if e.lock, err = lockFile(l.lock()); err != nil {
		return nil, err
	}
	if err := checkShims(l); err != nil {
		return nil, errors.Join(err, e.lock.Close())
	}
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	return e, nil
}

// layout is where the instance of these options keeps things.
func (o Options) layout() (layout, error) {
	l, err := layoutOf(o.DataDir)
	if err == nil && o.ContainerdAddress != "" {
		l.given = resolved(o.ContainerdAddress)
	}
	return l, err
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		return nil, err
	}
	if err := f.Truncate(0); err != nil { // whoever had it is gone
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// serve returns when containerd answers: one of our own, which it starts, or the one that was given.
func (e *Engine) serve(ctx context.Context) error {
	if e.layout.given != "" {
		return e.join(ctx)
	}
	var err error
	if e.daemon, err = startDaemon(e.opt.ContainerdPath, e.layout, e.log); err != nil {
		return err
	}
	if e.client, err = connect(e.layout.address(), e.layout.name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, serveTimeout)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		_, err := e.client.version.Version(ctx, &emptypb.Empty{})
		served <- err
	}()
	select {
	case err = <-served:
	case err = <-e.daemon.ended:
		cancel()
		<-served
	}
	if err != nil {
		return fmt.Errorf("containerd does not start: %w; its log %s ends with: %s", err, e.daemon.logPath(), e.daemon.tail())
	}
	return nil
}

// Answers is an error while containerd does not answer.
func (e *Engine) Answers(ctx context.Context) error {
	_, err := e.client.version.Version(ctx, &emptypb.Empty{})
	return err
}

// Close ends containerd, if it is our own, and what else the engine runs. Containers go on; the next Open adopts them.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.cancel(errClosed)
	e.mu.Unlock()
	e.calls.Wait()
	e.owned.Wait()
	var errs []error
	if e.network != nil {
		errs = append(errs, e.network.Close())
	}
	if e.client != nil {
		errs = append(errs, e.client.conn.Close())
	}
	if e.daemon != nil {
		e.daemon.close()
	}
	return errors.Join(append(errs, e.lock.Close())...)
}

// Admit refuses a container that cannot be made, before anything of it is stored.
func (e *Engine) Admit(ctx context.Context, s compute.Spec) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := checkArch(s); err != nil {
		return err
	}
	if _, err := e.image.resolveMounts(s.MountPaths); err != nil {
		return err
	}
	if err := e.roomOnDisk(s.Owner, s.StorageGB); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.roomInMemory(s)
}

// AdmitChange refuses mount paths that the image makes impossible, and sizes for which there is no room.
func (e *Engine) AdmitChange(ctx context.Context, was, s compute.Spec) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !slices.Equal(was.MountPaths, s.MountPaths) {
		if _, err := e.image.resolveMounts(s.MountPaths); err != nil {
			return err
		}
	}
	if more := s.StorageGB - was.StorageGB; more > 0 {
		if err := e.roomOnDisk(s.Owner, more); err != nil {
			return err
		}
	}
	if !s.Running || s.MemoryMB <= was.MemoryMB {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.roomInMemory(s)
}

func checkArch(s compute.Spec) error {
	if s.Arch != runtime.GOARCH {
		return compute.Errorf(compute.CodeCapacity, "no %s node: this machine is %s; choose another instance type.", s.Arch, runtime.GOARCH)
	}
	return nil
}

// roomOnDisk keeps the reserve free, and one owner from filling the disk alone: what their containers may still write and
// so many GB more must fit beside the reserve. Owners together may be promised more than there is.
func (e *Engine) roomOnDisk(owner compute.UserID, more int) error {
	var st unix.Statfs_t
	if err := unix.Statfs(e.layout.dir("volumes"), &st); err != nil {
		return compute.Internal("measure free disk space", err)
	}
	const gb = 1 << 30
	free := int64(st.Bavail) * st.Bsize
	if free < e.opt.ReserveBytes {
		return compute.Errorf(compute.CodeCapacity,
			"The machine's disk has %.1f GB free and keeps %.1f GB in reserve; free some space, or lower the reserve.",
			float64(free)/gb, float64(e.opt.ReserveBytes)/gb)
	}
	promised, err := e.unwritten(owner)
	if err != nil {
		return compute.Internal("measure volumes", err)
	}
	if room := free - e.opt.ReserveBytes - promised; int64(more)*gb > room {
		return compute.Errorf(compute.CodeCapacity,
			"The machine's disk has room for %.1f GB more of your storage, and %d GB were asked for; ask for less, or delete a container.",
			float64(max(0, room))/gb, more)
	}
	return nil
}

// unwritten is how much an owner's volumes may grow, being sparse.
func (e *Engine) unwritten(owner compute.UserID) (bytes int64, err error) {
	list, err := os.ReadDir(e.layout.dir("volumes"))
	if err != nil {
		return 0, err
	}
	for _, d := range list {
		r, err := compute.ParseRef(strings.TrimSuffix(d.Name(), ".img"))
		if err != nil || r.Owner != owner {
			continue
		}
		var st unix.Stat_t
		switch err := unix.Lstat(e.layout.dir("volumes", d.Name()), &st); {
		case errors.Is(err, unix.ENOENT): // deleted meanwhile
		case err != nil:
			return 0, err
		default:
			bytes += max(0, st.Size-st.Blocks*512)
		}
	}
	return bytes, nil
}

// roomInMemory keeps the containers that run within what all may use together: one that uses all of its own must not
// have the kernel take another's. e.mu is held.
func (e *Engine) roomInMemory(s compute.Spec) error {
	taken := int64(0)
	for r, u := range e.units {
		if r != s.Ref {
			taken += int64(u.memoryMB) << 20
		}
	}
	if taken+int64(s.MemoryMB)<<20 > e.memory {
		return compute.Errorf(compute.CodeCapacity,
			"Running containers have %d MB of the %d MB of memory that this machine gives them; stop one, or ask for less.",
			taken>>20, e.memory>>20)
	}
	return nil
}

// Provision makes the container's volume unless it is there.
func (e *Engine) Provision(ctx context.Context, s compute.Spec) error {
	u, ctx, err := e.acquire(ctx, s.Ref)
	if err != nil {
		return err
	}
	defer e.release(u)
	v := e.volume(s.Ref)
	if errors.Is(v.check(), errNoVolume) {
		if err := e.roomOnDisk(s.Owner, s.StorageGB); err != nil {
			return err
		}
	}
	return e.explain(ctx, s.Ref, "make the container's storage", v.create(ctx, s.StorageGB, e.steps(s.Ref)))
}

// explain gives an owner words for what may go wrong.
func (e *Engine) explain(ctx context.Context, r compute.Ref, op string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case compute.AsError(err) != nil:
		return err
	case errdefs.IsUnavailable(err), errdefs.IsDeadlineExceeded(err):
		return &compute.Error{
			Code: compute.CodeUnavailable, Cause: fmt.Errorf("%s: %w", op, err),
			Message: "The container engine does not answer at the moment; this is tried again.",
		}
	case errors.Is(err, errNoVolume):
		return &compute.Error{
			Code: compute.CodeStorageMissing, Cause: fmt.Errorf("%s: %w", e.volume(r).file, err),
			Message: "storage missing: the container's disk is gone, and is not made anew; ask your operator to restore it.",
		}
	case errors.Is(err, errForeignVolume):
		return &compute.Error{
			Code: compute.CodeConflict, Cause: fmt.Errorf("%s: %w", e.volume(r).file, err),
			Message: "The storage under this container's name is another installation's; it is left alone until your operator looks at it.",
		}
	case errors.Is(err, unix.ENOSPC):
		return &compute.Error{Code: compute.CodeCapacity, Cause: err, Message: "The machine's disk is full."}
	}
	return compute.Internal(op, err)
}

// Usage measures a running container.
func (e *Engine) Usage(ctx context.Context, r compute.Ref) (compute.Usage, error) {
	if ctx.Err() != nil {
		return compute.Usage{}, context.Cause(ctx)
	}
	if !e.running(r) {
		return compute.Usage{}, notRunning()
	}
	memory, err := e.cgroupOf(r).memory()
	if err != nil {
		return compute.Usage{}, gone("measure memory", err)
	}
	bytes, err := e.volume(r).used()
	if err != nil {
		return compute.Usage{}, gone("measure storage", err)
	}
	return compute.Usage{MemoryMB: int(memory >> 20), StorageGB: float64(bytes) / (1 << 30)}, nil
}

func notRunning() *compute.Error {
	return compute.Errorf(compute.CodeNotRunning, "The container is not running.")
}

// gone tells a container that ended meanwhile from a fault.
func gone(op string, err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return notRunning()
	}
	return compute.Internal(op, err)
}

func (e *Engine) volume(r compute.Ref) volume { return volumeOf(e.layout, e.opt.InstallationID, r) }

func (e *Engine) cgroupOf(r compute.Ref) cgroup {
	return cgroup(e.layout.cgroup() + "/" + r.String())
}

func (e *Engine) tree(r compute.Ref) tree {
	return tree{
		place: e.layout.place(r), volume: e.volume(r), image: e.image, ids: e.ids,
		link: e.layout.link("containerd", "images", e.image.id, "rootfs"),
	}
}
