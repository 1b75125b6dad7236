package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"berth/internal/compute"
	"berth/internal/containerd/hostnet"
)

// downAtOnce is how many containers Down stops at the same time.
const downAtOnce = 8

// Down stops every container of an instance that is not running, each in order, and removes all that is outside of the data
// directory: shims, mounts, loop devices, control groups, links, tables, sockets. With deleteData it also removes the
// containers' storage, the images and the agents for good, and the instance's namespace from a containerd that was given.
// DataDir, and what Open was given of ContainerdPath, ContainerdAddress and StopGrace, are all it needs of the options.
func Down(ctx context.Context, o Options, deleteData bool) error {
	l, err := o.layout()
	if err != nil {
		return err
	}
	if _, err := os.Stat(l.lock()); errors.Is(err, os.ErrNotExist) { // somebody removed it: what ran from it may still run
		return errors.Join(sweep(ctx, l, slog.Debug), hostnet.Destroy(ctx, l.data))
	}
	e, err := prepare(o)
	if err != nil {
		return err
	}
	stopErr := e.stopAll(ctx)
	if stopErr != nil {
		e.log.Warn("containers could not all be stopped in order; ending them", "err", stopErr)
	}
	if e.daemon != nil {
		e.daemon.close()
		e.daemon = nil
	}
	err = errors.Join(sweep(ctx, e.layout, e.log.Debug), hostnet.Destroy(ctx, e.layout.data))
	switch {
	case e.layout.given == "":
	case stopErr != nil: // its records and files of them are left, which nobody else removes
		err = errors.Join(fmt.Errorf("the containers are ended, but containerd may still know them; run this again when it answers: %w", stopErr), err)
	case err == nil && deleteData:
		err = e.withdraw(ctx)
	}
	if err == nil && deleteData {
		err = removeData(e.layout)
	}
	return errors.Join(err, e.Close())
}

// removeData removes what the engine has in the data directory, and nothing that somebody else put beside it.
func removeData(l layout) error {
	var errs []error
	remove := func(dir string, ours func(name string) bool) {
		list, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, d := range list {
			if ours(d.Name()) {
				errs = append(errs, os.RemoveAll(filepath.Join(dir, d.Name())))
			}
		}
		_ = os.Remove(dir) // unless something else is in it
	}
	remove(l.dir("volumes"), func(name string) bool {
		_, err := compute.ParseRef(strings.TrimSuffix(strings.TrimSuffix(name, ".tmp"), ".img"))
		return err == nil
	})
	remove(l.dir("agent"), isAgent)
	remove(l.dir("containerd"), func(name string) bool {
		return name == "root" || name == "images" || name == filepath.Base(l.lock()) || strings.HasPrefix(name, "containerd.log")
	})
	return errors.Join(errs...)
}

// stopAll stops what runs by way of containerd, when there is anything to stop. One that was given may know containers that do
// not run.
func (e *Engine) stopAll(ctx context.Context) error {
	running, err := findProcesses(func(args []string) bool { return isShim(args, e.layout, "") })
	if err != nil || len(running) == 0 && e.layout.given == "" {
		return err
	}
	if err := e.serve(ctx); err != nil {
		return err
	}
	refs, err := e.known(ctx)
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(downAtOnce)
	for _, r := range refs {
		g.Go(func() error {
			u, ctx, err := e.acquire(ctx, r)
			if err != nil {
				return err
			}
			defer e.release(u)
			return e.teardown(ctx, u, e.opt.StopGrace)
		})
	}
	return g.Wait()
}

// sweep removes what an instance has outside of its data directory, whatever state it was left in, without containerd.
func sweep(ctx context.Context, l layout, say func(string, ...any)) error {
	if err := endDaemon(l); err != nil {
		return err
	}
	if err := cgroup(l.cgroup()).destroy(ctx); err != nil {
		return err
	}
	isAnyShim := func(args []string) bool { return isShim(args, l, "") }
	if err := endProcesses(isAnyShim, []signalStep{{0, 2 * time.Second}, {unix.SIGKILL, killWait}}); err != nil {
		return fmt.Errorf("end shims: %w", err)
	}
	refs, err := refsOf(l)
	if err != nil {
		return err
	}
	for _, r := range refs {
		if err := sweepTask(ctx, l, r); err != nil {
			return err
		}
	}
	if err := unmountBelow(ctx, l.run); err != nil {
		return err
	}
	for _, r := range refs {
		if err := errors.Join(l.place(r).remove(), waitDetached(ctx, l.dir("volumes", r.String()+".img"))); err != nil {
			return err
		}
	}
	if err := removeRun(l); err != nil {
		return err
	}
	if l.given != "" {
		return nil
	}
	for _, d := range []string{shimSockets, filepath.Dir(shimSockets)} { // unless they are another's too
		if err := unix.Rmdir(d); err == nil {
			say("removed an empty directory of containerd's", "dir", d)
		}
	}
	return nil
}

// refsOf lists every container of which there is a trace on disk: a volume, mount points, a shim's or runc's state.
func refsOf(l layout) ([]compute.Ref, error) {
	var refs []compute.Ref
	for _, dir := range append(taskDirs(l), l.dir("volumes"), l.run+"/c") {
		list, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, d := range list {
			name := strings.TrimPrefix(strings.TrimSuffix(d.Name(), ".img"), ".") // see sweepTask
			if r, err := compute.ParseRef(name); err == nil && !slices.Contains(refs, r) {
				refs = append(refs, r)
			}
		}
	}
	return refs, nil
}

// unmountBelow ends every mount at or below dir, the last made first.
func unmountBelow(ctx context.Context, dir string) error {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(infos) {
		if err := unmount(ctx, m.Mountpoint); err != nil {
			return err
		}
	}
	return nil
}

// removeRun removes the directory in /run. A volume that is still mounted there would lose its files: so never while
// anything is.
func removeRun(l layout) error {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(l.run))
	if err != nil {
		return err
	}
	if len(infos) > 0 {
		return fmt.Errorf("%s is still mounted", infos[0].Mountpoint)
	}
	for _, p := range []string{l.run + "/c", l.run} {
		list, err := os.ReadDir(p)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, d := range list {
			if err := os.RemoveAll(filepath.Join(p, d.Name())); err != nil { // the link to the data is removed as a link
				return err
			}
		}
		if err := unix.Rmdir(p); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}
