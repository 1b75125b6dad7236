package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// network is a container's, seen from the host.
type network struct {
	name  string // as links under /proc/PID/ns have it
	ns    *os.File
	agent int    // the container's PID 1
	group string // the directory of its cgroup that counts CPU time
}

// processes are those in the network whose program's path or title starts with the given one.
func (n *network) processes(program string) ([]int, error) {
	spaces, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, path := range spaces {
		if link, err := os.Readlink(path); err != nil || link != n.name {
			continue // it ended, or is another's
		}
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		if err != nil {
			return nil, err
		}
		if title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.HasPrefix(string(title), program) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// open keeps hold of the network and finds where its container's CPU time is counted.
func (n *network) open() error {
	agents, err := n.processes("/.berth/agent")
	if err != nil {
		return err
	}
	if len(agents) == 0 {
		return errors.New("no agent of this machine is in the container's network")
	}
	n.agent = slices.Min(agents)
	proc := "/proc/" + strconv.Itoa(n.agent)
	if n.ns, err = os.Open(proc + "/ns/net"); err != nil {
		return err
	}
	text, err := os.ReadFile(proc + "/cgroup")
	if err != nil {
		return err
	}
	n.group, err = cpuGroup(string(text))
	return err
}

// within runs f, which starts a process, on a thread in the network. The thread ends with it.
func (n *network) within(f func() error) error {
	if n == nil {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is no use to anybody else
		if err := unix.Setns(int(n.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the container's network: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// cpuGroup finds, from what /proc/PID/cgroup says, the directory where CPU time is counted, with either version of cgroups.
func cpuGroup(text string) (string, error) {
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for name := range strings.SplitSeq(parts[1], ",") {
			if name == "cpuacct" {
				return filepath.Join("/sys/fs/cgroup", "cpuacct", parts[2]), nil
			}
		}
		if parts[0] == "0" {
			dir := filepath.Join("/sys/fs/cgroup", parts[2])
			if _, err := os.Stat(dir + "/cpu.stat"); err == nil {
				return dir, nil
			}
		}
	}
	return "", errors.New("the container's cgroup counts no CPU time")
}

// used is the CPU time that the container has used so far.
func (n *network) used() (time.Duration, error) {
	if text, err := os.ReadFile(n.group + "/cpuacct.usage"); err == nil {
		ns, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		return time.Duration(ns), err
	}
	text, err := os.ReadFile(n.group + "/cpu.stat")
	if err != nil {
		return 0, err
	}
	var us int64
	if _, err := fmt.Sscanf(string(text), "usage_usec %d", &us); err != nil {
		return 0, fmt.Errorf("%s/cpu.stat: %w", n.group, err)
	}
	return time.Duration(us) * time.Microsecond, nil
}

// processTime is the CPU time that a process has used so far, from proc(5)'s stat. The kernel counts it in hundredths of a
// second there, whatever its own clock (USER_HZ).
func processTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(text), ") ") // after the name, which may hold anything but is ours here
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, errors.New("malformed stat")
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// memoryOf is the memory of a process: its proportional set size, in which shared pages count by share.
func memoryOf(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "Pss:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("smaps_rollup has no Pss")
}
