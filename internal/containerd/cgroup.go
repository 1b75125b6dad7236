package containerd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"berth/internal/compute"
)

const cgroupRoot = "/sys/fs/cgroup"

// killWait bounds the wait for processes that were sent SIGKILL.
const killWait = 10 * time.Second

// cgroup is a control group by its path from the root of every hierarchy.
type cgroup string

// unified says whether the host has the one hierarchy of cgroup v2 and no others.
func unified() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// bound makes the group with limits for all that is below it together, or sets them anew.
func (g cgroup) bound(memory, pids int64) error {
	type limit struct{ dir, file, value string }
	mem, procs := strconv.FormatInt(memory, 10), strconv.FormatInt(pids, 10)
	var limits []limit
	if unified() {
		// The kernel lets controllers be used below the root only where the root passes them on.
		if err := os.WriteFile(cgroupRoot+"/cgroup.subtree_control", []byte("+cpu +memory +pids"), 0o644); err != nil {
			return fmt.Errorf("pass on cgroup controllers: %w", err)
		}
		dir := cgroupRoot + string(g)
		limits = []limit{{dir, "memory.max", mem}, {dir, "pids.max", procs}}
	} else {
		limits = []limit{
			{cgroupRoot + "/memory" + string(g), "memory.limit_in_bytes", mem},
			{cgroupRoot + "/pids" + string(g), "pids.max", procs},
		}
	}
	for _, l := range limits {
		if err := os.MkdirAll(l.dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(l.dir, l.file), []byte(l.value), 0o644); err != nil {
			return fmt.Errorf("bound all containers: %w", err)
		}
	}
	return nil
}

// cgroupRoots are the mount points of the hierarchies that the host has.
func cgroupRoots() ([]string, error) {
	infos, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	var roots []string
	for _, m := range infos {
		if m.Root == "/" && (m.Mountpoint == cgroupRoot || compute.Within(m.Mountpoint, cgroupRoot)) {
			roots = append(roots, m.Mountpoint)
		}
	}
	return roots, nil
}

// destroy kills every process in the group and removes it, and those below it, from all hierarchies.
func (g cgroup) destroy(ctx context.Context) error {
	roots, err := cgroupRoots()
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range roots {
		if err := destroyGroups(ctx, filepath.Join(root, string(g))); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func destroyGroups(ctx context.Context, dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		if err := killGroup(ctx, d); err != nil {
			return fmt.Errorf("end the processes of %s: %w", d, err)
		}
		// A process that ended leaves its group a moment after it is gone for everybody else, when its parent reaps it.
		deadline := time.Now().Add(killWait)
		for err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT); err = unix.Rmdir(d) {
			if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
				return fmt.Errorf("remove %s: %w", d, err)
			}
			if err := briefly(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// briefly waits for the kernel to finish what it tells nobody of.
func briefly(ctx context.Context) error {
	t := time.NewTimer(time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// killGroup kills what runs in one group until nothing does.
func killGroup(ctx context.Context, dir string) error {
	for range 1000 { // a process may fork while it is being killed
		pids, err := pidsOf(dir)
		if err != nil || len(pids) == 0 {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for _, pid := range pids {
			if err := killProcess(pid); err != nil {
				return err
			}
		}
	}
	return errors.New("new ones keep coming")
}

func killProcess(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it ended
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	gone, err := pollPidfd(fd, killWait)
	if err == nil && !gone {
		err = fmt.Errorf("process %d is still there after SIGKILL", pid)
	}
	return err
}

func pidsOf(dir string) ([]int, error) {
	b, err := os.ReadFile(dir + "/cgroup.procs")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for f := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		if pid > 0 { // 0 stands for a process of another pid namespace
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// memory returns what the group uses, less the file cache that the kernel would drop first.
func (g cgroup) memory() (int64, error) {
	dir, current, inactive := filepath.Join(cgroupRoot, "memory", string(g)), "memory.usage_in_bytes", "total_inactive_file"
	if unified() {
		dir, current, inactive = filepath.Join(cgroupRoot, string(g)), "memory.current", "inactive_file"
	}
	b, err := os.ReadFile(filepath.Join(dir, current))
	if err != nil {
		return 0, err
	}
	used, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, err
	}
	cache, err := statValue(filepath.Join(dir, "memory.stat"), inactive)
	return max(0, used-cache), err
}

func statValue(path, key string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if k, v, ok := strings.Cut(lines.Text(), " "); ok && k == key {
			return strconv.ParseInt(v, 10, 64)
		}
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("%s has no %s", path, key)
}

// swapLimited says whether the host can bound a group's swap: v1 needs the kernel to account for it.
func swapLimited() bool {
	if unified() {
		return true
	}
	_, err := os.Stat(cgroupRoot + "/memory/memory.memsw.limit_in_bytes")
	return err == nil
}

// missingControllers names the controllers that berth needs and the host lacks.
func missingControllers() []string {
	var have []string
	if unified() {
		b, _ := os.ReadFile(cgroupRoot + "/cgroup.controllers")
		have = strings.Fields(string(b))
	} else {
		for _, c := range []string{"memory", "cpu", "pids"} {
			if _, err := os.Stat(filepath.Join(cgroupRoot, c, "cgroup.procs")); err == nil {
				have = append(have, c)
			}
		}
	}
	return slices.DeleteFunc([]string{"memory", "cpu", "pids"}, func(c string) bool { return slices.Contains(have, c) })
}

// machineMemory is the machine's memory in bytes.
func machineMemory() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), "MemTotal:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(v, "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemTotal")
}

// allPIDs is what all containers together may have: half of what the machine can.
func allPIDs() int64 {
	b, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if n, perr := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && perr == nil {
		return n / 2
	}
	return 16384
}
