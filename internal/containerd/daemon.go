package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sys/unix"
)

const (
	daemonStop   = 10 * time.Second // between TERM and KILL
	daemonLogMax = 1 << 20          // at a start, a longer log is begun anew
)

// daemon is our own containerd: a child, started again when it ends. Its shims, and with them the containers, outlive it.
type daemon struct {
	binary string
	layout layout
	log    *slog.Logger

	cancel context.CancelFunc
	owned  sync.WaitGroup
	ended  chan error // the first end, for who waits until it serves
}

// startDaemon starts containerd, in place of one that a killed run left behind.
func startDaemon(binary string, l layout, log *slog.Logger) (*daemon, error) {
	path, err := exec.LookPath(binary)
	if err != nil {
		return nil, fmt.Errorf("containerd is missing; install it, for example with apt-get install containerd runc: %w", err)
	}
	if err := endDaemon(l); err != nil {
		return nil, err
	}
	if err := os.Remove(l.address()); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	if err := replaceFile(l.configPath(), []byte(daemonConfig(l)), 0o600); err != nil {
		return nil, fmt.Errorf("write containerd's configuration: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &daemon{binary: path, layout: l, log: log, cancel: cancel, ended: make(chan error, 1)}
	d.owned.Go(func() { d.supervise(ctx) })
	return d, nil
}

// endDaemon ends the containerd that an earlier run left behind.
func endDaemon(l layout) error {
	signals := []signalStep{{unix.SIGTERM, daemonStop}, {unix.SIGKILL, killWait}}
	if err := endProcesses(func(args []string) bool { return isDaemon(args, l) }, signals); err != nil {
		return fmt.Errorf("end the containerd of an earlier run: %w", err)
	}
	return nil
}

// isDaemon recognizes this instance's containerd by the file that only it is given.
func isDaemon(args []string, l layout) bool {
	return len(args) == 3 && filepath.Base(args[0]) == "containerd" && args[1] == "--config" && args[2] == l.configPath()
}

// daemonConfig is in the format that containerd 1.5 to 2.x read. What berth does not use is off.
func daemonConfig(l layout) string {
	return fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart",
  "io.containerd.monitor.v1.cgroups", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri",
]

[grpc]
  address = %q

[debug]
  level = "warn"
`, l.dir("containerd", "root"), l.statePath(), l.address())
}

// supervise keeps containerd running until ctx ends.
func (d *daemon) supervise(ctx context.Context) {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval = 50*time.Millisecond, 5*time.Second
	for {
		began := time.Now()
		err := d.run(ctx)
		if ctx.Err() != nil {
			return
		}
		select {
		case d.ended <- err:
		default:
		}
		if time.Since(began) > time.Minute {
			retry.Reset()
		}
		wait := retry.NextBackOff()
		d.log.Warn("containerd ended; starting it again", "err", err, "in", wait, "log", d.logPath())
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

func (d *daemon) logPath() string { return d.layout.dir("containerd", "containerd.log") }

// run is one life of containerd. Its output goes to a file, not through us: writing to the pipe of a killed berth would
// end it.
func (d *daemon) run(ctx context.Context) error {
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if fi, err := os.Stat(d.logPath()); err == nil && fi.Size() > daemonLogMax {
		flags |= os.O_TRUNC
	}
	out, err := os.OpenFile(d.logPath(), flags, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, d.binary, "--config", d.layout.configPath())
	cmd.Args[0] = "containerd"
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a terminal's ^C is for berth, which then ends it in order
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = daemonStop
	if err := cmd.Run(); err != nil {
		return err
	}
	return errors.New("exit status 0")
}

// tail returns the last lines of containerd's log.
func (d *daemon) tail() string {
	b, err := os.ReadFile(d.logPath())
	if err != nil {
		return err.Error()
	}
	if len(b) > 1000 {
		b = b[len(b)-1000:]
	}
	return string(bytes.TrimSpace(b))
}

// close ends containerd and waits for it. Containers go on.
func (d *daemon) close() {
	d.cancel()
	d.owned.Wait()
}

// signalStep is a signal, none when 0, and how long to wait for the process to end by it.
type signalStep struct {
	signal unix.Signal
	wait   time.Duration
}

// endProcesses ends the host's processes with matching arguments and returns when they are gone. A container's processes
// cannot pass for one of the host's: they live in another user namespace.
func endProcesses(match func(args []string) bool, steps []signalStep) error {
	pids, err := findProcesses(match)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := endProcess(pid, match, steps); err != nil {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return nil
}

func findProcesses(match func(args []string) bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() && ofHost(pid, match) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// ofHost says whether pid is a process in our own user namespace with matching arguments.
func ofHost(pid int, match func(args []string) bool) bool {
	dir := "/proc/" + strconv.Itoa(pid)
	b, err := os.ReadFile(dir + "/cmdline")
	if err != nil || len(b) == 0 {
		return false
	}
	var args []string
	for _, a := range bytes.Split(bytes.TrimSuffix(b, []byte{0}), []byte{0}) {
		args = append(args, string(a))
	}
	if !match(args) {
		return false
	}
	own, err1 := os.Readlink("/proc/self/ns/user")
	its, err2 := os.Readlink(dir + "/ns/user")
	return err1 == nil && err2 == nil && own == its
}

func endProcess(pid int, match func(args []string) bool, steps []signalStep) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !ofHost(pid, match) { // the pid was reused before the descriptor held it
		return nil
	}
	for _, s := range steps {
		if err := unix.PidfdSendSignal(fd, s.signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		gone, err := pollPidfd(fd, s.wait)
		if err != nil || gone {
			return err
		}
	}
	return errors.New("it does not end")
}

// pollPidfd waits until the process of a pidfd has ended, at most for d.
func pollPidfd(fd int, d time.Duration) (bool, error) {
	deadline := time.Now().Add(d)
	for {
		left := max(0, time.Until(deadline).Milliseconds())
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false, err
		default:
			return n > 0, nil
		}
	}
}

// replaceFile puts a file in place at once, and durably.
func replaceFile(path string, data []byte, mode os.FileMode) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
