package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	nonblock = unix.O_NONBLOCK | unix.O_CLOEXEC // a FIFO in place of a file must not hold PID 1 up

	// childOOM makes the kernel choose what a session runs before it chooses the agent.
	childOOM = 200
)

// processes starts processes and waits for them. As PID 1 it also reaps what others left behind, and is then the only one
// in its process that waits for children.
type processes struct {
	reap bool // PID 1

	mu      sync.Mutex // guards what follows; held over a fork, so that no child is reaped before it is known
	waiting map[int]chan syscall.WaitStatus
	none    chan struct{} // closed when there are no children; nil while nobody asks
}

func newProcesses(reap bool) *processes {
	return &processes{reap: reap, waiting: make(map[int]chan syscall.WaitStatus)}
}

// command is what to start.
type command struct {
	path  string
	argv  []string
	env   []string
	dir   string
	files []uintptr // 0, 1, 2
	tty   bool      // 0 is a terminal, to be the controlling one
	as    account
}

// process is a running child, the leader of a session and a process group of its own.
type process struct {
	pid   int
	ended chan struct{} // closed once it was waited for

	mu     sync.Mutex // guards what follows
	over   bool
	status syscall.WaitStatus
}

// start starts c.
func (p *processes) start(c command) (*process, error) {
	attr := &syscall.ProcAttr{
		Dir: c.dir, Env: c.env, Files: c.files,
		Sys: &syscall.SysProcAttr{
			Setsid: true, Setctty: c.tty,
			Credential: &syscall.Credential{Uid: c.as.uid, Gid: c.as.gid, Groups: c.as.groups},
		},
	}
	if os.Geteuid() != 0 {
		attr.Sys.Credential = nil // can only be itself
	}
	p.mu.Lock()
	pid, err := forkExpendable(c.path, c.argv, attr)
	if err != nil {
		p.mu.Unlock()
		return nil, err
	}
	ended := make(chan syscall.WaitStatus, 1)
	if p.reap {
		p.waiting[pid] = ended
	}
	p.mu.Unlock()
	if !p.reap {
		go func() { ended <- waitFor(pid) }()
	}
	proc := &process{pid: pid, ended: make(chan struct{})}
	go func() {
		status := <-ended
		proc.mu.Lock()
		proc.over, proc.status = true, status
		proc.mu.Unlock()
		close(proc.ended)
	}()
	return proc, nil
}

// forkExpendable starts a child that the kernel kills before its parent when memory is short. The parent has the child's
// score for the moment of the fork; it may lower it again to what it had (proc(5), oom_score_adj).
func forkExpendable(path string, argv []string, attr *syscall.ProcAttr) (int, error) {
	const file = "/proc/self/oom_score_adj"
	before, err := os.ReadFile(file)
	if err == nil && atoi(string(before)) < childOOM {
		// Where this is not allowed, the kernel chooses as it likes.
		if os.WriteFile(file, []byte(strconv.Itoa(childOOM)), 0) == nil {
			defer func() { _ = os.WriteFile(file, before, 0) }()
		}
	}
	return syscall.ForkExec(path, argv, attr)
}

func atoi(s string) int {
	n, _ := strconv.Atoi(strings.TrimSpace(s)) // the kernel wrote it
	return n
}

func waitFor(pid int) (status syscall.WaitStatus) {
	for {
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if !errors.Is(err, syscall.EINTR) {
			return status
		}
	}
}

// reapAll waits for every child that has ended. PID 1 calls it at each SIGCHLD.
func (p *processes) reapAll() {
	for {
		p.mu.Lock()
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil || pid <= 0:
			if errors.Is(err, syscall.ECHILD) && p.none != nil {
				close(p.none)
				p.none = nil
			}
			p.mu.Unlock()
			return
		default:
			if w := p.waiting[pid]; w != nil {
				delete(p.waiting, pid)
				w <- status
			}
		}
		p.mu.Unlock()
	}
}

// childless returns a channel that is closed when no child is left.
func (p *processes) childless() <-chan struct{} {
	p.mu.Lock()
	none := make(chan struct{})
	p.none = none
	p.mu.Unlock()
	p.reapAll()
	return none
}

// signal sends s to the process group, unless its leader is over and the number may be another's.
func (p *process) signal(s syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return os.ErrProcessDone
	}
	return syscall.Kill(-p.pid, s)
}

// shellPath is the account's login shell.
func (a account) shellPath() string {
	if a.shell == "" {
		return "/bin/sh" // passwd(5)
	}
	return a.shell
}

// mayLogIn is false for an account whose shell turns people away (nologin(8)): it gets no sftp either.
func (a account) mayLogIn() bool {
	switch filepath.Base(a.shellPath()) {
	case "nologin", "false":
		return false
	}
	return true
}

// isProgram says whether path is a file that can be run.
func isProgram(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// lookPath finds name in the directories of a PATH.
func lookPath(name, dirs string) (string, error) {
	if strings.Contains(name, "/") {
		if isProgram(name) {
			return name, nil
		}
		return "", fmt.Errorf("%s: not found", name)
	}
	for dir := range strings.SplitSeq(dirs, ":") {
		if p := filepath.Join(dir, name); isProgram(p) {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: not found", name)
}
