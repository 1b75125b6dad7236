package containerd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	taskapi "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"berth/internal/compute"
)

// Labels of a container in containerd.
const (
	labelInstallation = "berth.installation"
	labelImage        = "berth.image"
	labelAgent        = "berth.agent"
)

// Apply drives a container to running, with its agent accepting connections, or to stopped, with nothing left but its
// storage.
func (e *Engine) Apply(ctx context.Context, s compute.Spec) error {
	u, ctx, err := e.acquire(ctx, s.Ref)
	if err != nil {
		return err
	}
	defer e.release(u)
	if !s.Running {
		if err := e.teardown(ctx, u, e.opt.StopGrace); err != nil {
			return e.explain(ctx, s.Ref, "stop the container", err)
		}
		return e.explain(ctx, s.Ref, "look for the container's storage", e.volume(s.Ref).check())
	}
	if err := checkArch(s); err != nil {
		return err
	}
	if err := e.volume(s.Ref).check(); err != nil {
		return e.explain(ctx, s.Ref, "look for the container's storage", err)
	}
	ok, err := e.keep(ctx, u, s)
	if err != nil || ok {
		return e.explain(ctx, s.Ref, "look after the running container", err)
	}
	if err := e.teardown(ctx, u, e.opt.StopGrace); err != nil {
		return e.explain(ctx, s.Ref, "clear away the container's last run", err)
	}
	err = e.launch(ctx, u, s)
	if err != nil && ctx.Err() == nil {
		if err := e.teardown(ctx, u, 0); err != nil {
			e.log.Warn("clear away a start that failed", "container", s.Ref, "err", err)
		}
	} else if err != nil {
		e.expectNone(u)
	}
	return e.explain(ctx, s.Ref, "start the container", err)
}

// Remove destroys the container with its storage.
func (e *Engine) Remove(ctx context.Context, r compute.Ref) error {
	u, ctx, err := e.acquire(ctx, r)
	if err != nil {
		return err
	}
	defer e.release(u)
	if err := e.volume(r).check(); errors.Is(err, errForeignVolume) {
		return e.explain(ctx, r, "", err)
	}
	if err := e.teardown(ctx, u, 0); err != nil {
		return e.explain(ctx, r, "end the container", err)
	}
	return e.explain(ctx, r, "remove the container's storage", e.volume(r).remove(ctx))
}

// keep leaves a running container as it is, but for limits that changed, and says whether there is one to keep. One that
// runs with other mount paths is not: those take a restart.
func (e *Engine) keep(ctx context.Context, u *unit, s compute.Spec) (bool, error) {
	e.mu.Lock()
	expected := u.pid
	e.mu.Unlock()
	p, err := e.process(ctx, s.Ref)
	if err != nil || p == nil || p.Status != taskapi.Status_RUNNING || p.Pid != expected {
		return false, err // one that runs unexpectedly was told to end
	}
	got, err := e.client.containers.Get(ctx, &containers.GetContainerRequest{ID: s.String()})
	if err != nil {
		return false, err
	}
	spec, err := specOf(got.Container)
	if err != nil {
		return false, err
	}
	from, err := startedFrom(spec)
	if err != nil || !slices.Equal(from.MountPaths, s.MountPaths) {
		return false, nil
	}
	if err := e.volume(s.Ref).growMounted(s.StorageGB); errors.Is(err, unix.EPERM) {
		e.log.Info("the volume grows when its container is started next: berth lacks CAP_SYS_RESOURCE", "container", s.Ref)
	} else if err != nil {
		return false, err
	}
	if from.MemoryMB != s.MemoryMB || from.MilliCPU != s.MilliCPU {
		if err := e.resize(ctx, u, s, spec); err != nil {
			return false, err
		}
	}
	if _, err := e.network.Attach(ctx, string(s.ID), noAddr, netns(p.Pid)); err != nil {
		return false, fmt.Errorf("attach to the network: %w", err)
	}
	e.expect(u, p.Pid, s)
	return true, e.awaitAgent(ctx, s.Ref)
}

// resize changes the limits of a running container, and of its record, which has spec.
func (e *Engine) resize(ctx context.Context, u *unit, s compute.Spec, spec *specs.Spec) error {
	if err := e.reserve(u, s); err != nil {
		return err
	}
	res, err := marshalResources(resources(s))
	if err != nil {
		return err
	}
	if _, err := e.client.tasks.Update(ctx, &tasks.UpdateTaskRequest{ContainerID: s.String(), Resources: res}); err != nil {
		return err
	}
	from, err := startedFrom(spec)
	if err != nil {
		return err
	}
	from.MemoryMB, from.MilliCPU = s.MemoryMB, s.MilliCPU
	if err := annotate(spec, from); err != nil {
		return err
	}
	record, err := marshalSpec(spec)
	if err != nil {
		return err
	}
	_, err = e.client.containers.Update(ctx, &containers.UpdateContainerRequest{
		Container:  &containers.Container{ID: s.String(), Spec: record},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"spec"}},
	})
	return err
}

// launch starts a container of which nothing but the volume is there.
func (e *Engine) launch(ctx context.Context, u *unit, s compute.Spec) error {
	if err := e.reserve(u, s); err != nil {
		return err
	}
	step := e.steps(s.Ref)
	resolved, err := e.image.resolveMounts(s.MountPaths)
	if err != nil {
		return err
	}
	t := e.tree(s.Ref)
	if err := t.assemble(ctx, s, identity{s.Hostname, e.network.Gateway()}, step); err != nil {
		return err
	}
	spec, err := e.ociSpec(ctx, s, t, resolved)
	if err != nil {
		return err
	}
	if err := e.record(ctx, s, spec); err != nil {
		return fmt.Errorf("record the container: %w", err)
	}
	step("recorded")
	created, err := e.client.tasks.Create(ctx, &tasks.CreateTaskRequest{ContainerID: s.String()})
	if err != nil {
		return fmt.Errorf("create the container's process: %w", err)
	}
	step("created")
	if _, err := e.network.Attach(ctx, string(s.ID), noAddr, netns(created.Pid)); err != nil {
		return fmt.Errorf("attach to the network: %w", err)
	}
	step("attached")
	e.expect(u, created.Pid, s)
	if _, err := e.client.tasks.Start(ctx, &tasks.StartRequest{ContainerID: s.String()}); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	step("started")
	return e.awaitAgent(ctx, s.Ref)
}

// record tells containerd of a container.
func (e *Engine) record(ctx context.Context, s compute.Spec, spec *specs.Spec) error {
	runtime, err := typeurl.MarshalAnyToProto(&options.Options{Root: e.layout.runcPath()})
	if err != nil {
		return err
	}
	record, err := marshalSpec(spec)
	if err != nil {
		return err
	}
	_, err = e.client.containers.Create(ctx, &containers.CreateContainerRequest{Container: &containers.Container{
		ID: s.String(),
		Labels: map[string]string{
			labelInstallation: e.opt.InstallationID, labelImage: e.image.id, labelAgent: e.agent,
		},
		Runtime: &containers.Container_Runtime{Name: "io.containerd.runc.v2", Options: runtime},
		Spec:    record,
	}})
	return err
}

// steps returns what logs each step of a container's making and unmaking. Tests cut a run off at every one of them.
func (e *Engine) steps(r compute.Ref) func(string) {
	return func(name string) { e.log.Debug("step", "container", r, "done", name) }
}

func netns(pid uint32) string { return "/proc/" + strconv.Itoa(int(pid)) + "/ns/net" }

// process returns the container's first process as containerd knows it; nil when there is none.
func (e *Engine) process(ctx context.Context, r compute.Ref) (*taskapi.Process, error) {
	got, err := e.client.tasks.Get(ctx, &tasks.GetRequest{ContainerID: r.String()})
	if errdefs.IsNotFound(err) {
		return nil, nil //nolint:nilnil // absence is an answer here
	}
	if err != nil {
		return nil, fmt.Errorf("ask containerd: %w", err)
	}
	return got.Process, nil
}

// teardown takes the container apart, whatever is there of it, down to its volume. It does not change a container of which
// nothing else is there.
func (e *Engine) teardown(ctx context.Context, u *unit, grace time.Duration) error {
	e.expectNone(u)
	step := e.steps(u.ref)
	if err := e.end(ctx, u.ref, grace); err != nil {
		return err
	}
	step("ended")
	_, err := e.client.containers.Delete(ctx, &containers.DeleteContainerRequest{ID: u.ref.String()})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the container's record: %w", err)
	}
	step("unrecorded")
	if err := sweepTask(ctx, e.layout, u.ref); err != nil {
		return err
	}
	step("swept")
	if e.network != nil { // Down destroys it as a whole
		if err := e.network.Detach(ctx, string(u.ref.ID)); err != nil {
			return fmt.Errorf("detach from the network: %w", err)
		}
	}
	step("detached")
	if err := e.tree(u.ref).dismantle(ctx, step); err != nil {
		return err
	}
	step("dismantled")
	return nil
}

// end ends the container's processes: the agent is asked to end them in order, and after grace they are killed.
func (e *Engine) end(ctx context.Context, r compute.Ref, grace time.Duration) error {
	p, err := e.process(ctx, r)
	if err != nil || p == nil {
		return err
	}
	svc := e.client.tasks
	if p.Status != taskapi.Status_STOPPED {
		waited := make(chan error, 1)
		wctx, cancel := context.WithCancel(ctx)
		go func() {
			_, err := svc.Wait(wctx, &tasks.WaitRequest{ContainerID: r.String()})
			waited <- err
		}()
		err := e.signal(ctx, r, p.Status, grace, waited)
		cancel()
		if err != nil {
			<-waited
			return err
		}
	}
	if _, err := svc.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: r.String()}); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the container's process: %w", err)
	}
	return nil
}

// signal sends TERM, then KILL, and returns when waited has told of the end.
func (e *Engine) signal(ctx context.Context, r compute.Ref, status taskapi.Status, grace time.Duration, waited chan error) error {
	steps := []signalStep{{unix.SIGTERM, grace}, {unix.SIGKILL, killWait}}
	if grace == 0 || status != taskapi.Status_RUNNING {
		steps = steps[1:]
	}
	for _, s := range steps {
		_, err := e.client.tasks.Kill(ctx, &tasks.KillRequest{
			ContainerID: r.String(), Signal: uint32(s.signal), All: s.signal == unix.SIGKILL,
		})
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
			return fmt.Errorf("end the container: %w", err)
		}
		e.steps(r)("sent " + unix.SignalName(s.signal))
		t := time.NewTimer(s.wait)
		select {
		case err := <-waited:
			t.Stop()
			waited <- nil
			if err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("wait for the container's end: %w", err)
			}
			return nil
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-t.C:
		}
	}
	return errors.New("the container's processes do not end")
}

// sweepTask removes what is left of a container's process once containerd does not know it: processes in its control
// group, the shim, its socket, runc's state.
func sweepTask(ctx context.Context, l layout, r compute.Ref) error {
	if err := cgroup(l.cgroup() + "/" + r.String()).destroy(ctx); err != nil {
		return err
	}
	// A shim whose task was deleted ends by itself in a moment.
	isShim := func(args []string) bool { return isShim(args, l, r.String()) }
	if err := endProcesses(isShim, []signalStep{{0, 2 * time.Second}, {unix.SIGKILL, killWait}}); err != nil {
		return fmt.Errorf("end the container's shim: %w", err)
	}
	if err := os.Remove(shimSocket(l, r.String())); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	for _, dir := range taskDirs(l) {
		if err := unmount(ctx, filepath.Join(dir, r.String(), "rootfs")); err != nil {
			return err
		}
		// containerd puts a dot before the name of what it is about to remove, and forgets it when it is killed then.
		errs = append(errs, os.RemoveAll(filepath.Join(dir, r.String())), os.RemoveAll(filepath.Join(dir, "."+r.String())))
	}
	return errors.Join(errs...)
}

// taskDirs are the directories that have one for each container's process: containerd's bundles, its work, and runc's state.
// A containerd that was given has the first two where only its configuration says, which its API does not show. They are left
// to it: it removes them with the process, or when it is started next.
func taskDirs(l layout) []string {
	const plugin = "io.containerd.runtime.v2.task"
	runc := filepath.Join(l.runcPath(), l.name)
	if l.given != "" {
		return []string{runc}
	}
	return []string{filepath.Join(l.statePath(), plugin, l.name), l.dir("containerd", "root", plugin, l.name), runc}
}

// isShim recognizes a shim of this instance, by its namespace in containerd; for one container, or for any when id is empty.
func isShim(args []string, l layout, id string) bool {
	if filepath.Base(args[0]) != "containerd-shim-runc-v2" {
		return false
	}
	return flagOf(args, "-namespace") == l.name && (id == "" || flagOf(args, "-id") == id)
}

// shimSocket is where containerd 1.4 to 2.x put a shim's socket, wherever containerd's own state is.
func shimSocket(l layout, id string) string {
	return fmt.Sprintf("%s/%x", shimSockets, sha256.Sum256([]byte(filepath.Join(l.address(), l.name, id))))
}

const shimSockets = "/run/containerd/s"

// mounted says whether the container's volume is mounted.
func (e *Engine) mounted(r compute.Ref) bool {
	ok, err := mountinfo.Mounted(e.layout.place(r).volume())
	return err == nil && ok
}
