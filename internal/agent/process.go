package agent

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// The kernel is to choose what a session runs before it chooses the agent: by this much, and with at least this score.
const (
	moreExpendable = 100
	expendable     = 200
)

// processes starts processes and waits for them. As PID 1 it also reaps what others left behind, and is then the only
// one in its process that waits for children.
type processes struct {
	reap bool // PID 1

	// mu guards what follows, and the processes' fields. It is held over a fork and over the wait for a child that has
	// ended: so no child is reaped before it is known, and no number of a child is another process's while it is used.
	mu      sync.Mutex
	waiting map[int]*process
	none    chan struct{} // closed when there are no children; nil while nobody asks
	refuse  bool
}

func newProcesses(reap bool) *processes {
	return &processes{reap: reap, waiting: make(map[int]*process)}
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

// login says whether it is a login shell for a person.
func (c command) login() bool { return c.tty && strings.HasPrefix(c.argv[0], "-") }

// process is a running child, the leader of a session and a process group of its own.
type process struct {
	p     *processes
	pid   int
	login bool          // a login shell on a terminal
	ended chan struct{} // closed once it was waited for; status is there then

	status syscall.WaitStatus
	over   bool
	handle int // a pidfd, or -1: the group outlives its leader
}

// start starts c. Release the process in the end.
func (p *processes) start(c command) (*process, error) {
	proc := &process{p: p, login: c.login(), ended: make(chan struct{}), handle: -1}
	attr := &syscall.ProcAttr{
		Dir: c.dir, Env: c.env, Files: c.files,
		Sys: &syscall.SysProcAttr{
			Setsid: true, Setctty: c.tty, PidFD: &proc.handle,
			Credential: &syscall.Credential{Uid: c.as.uid, Gid: c.as.gid, Groups: c.as.groups},
		},
	}
	if os.Geteuid() != 0 {
		attr.Sys.Credential = nil // can only be itself
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse {
		return nil, errClosing
	}
	pid, err := forkExpendable(c.path, c.argv, attr)
	if errors.Is(err, syscall.EINVAL) { // emulators and sandboxes give no handle with a child
		attr.Sys.PidFD = nil
		pid, err = forkExpendable(c.path, c.argv, attr)
	}
	if err != nil {
		return nil, err
	}
	proc.pid = pid
	p.waiting[pid] = proc
	if !p.reap {
		go p.await(proc) // ends with the process
	}
	return proc, nil
}

// neverStarted stands for a program that could not be started.
func (p *processes) neverStarted(code int) *process {
	proc := &process{p: p, ended: make(chan struct{}), handle: -1, over: true, status: syscall.WaitStatus(code << 8)}
	close(proc.ended)
	return proc
}

// forkExpendable starts a child that the kernel kills before its parent when memory is short. The parent has the
// child's score for the moment of the fork; it may lower it again to what it had (proc(5), oom_score_adj).
func forkExpendable(path string, argv []string, attr *syscall.ProcAttr) (int, error) {
	const file = "/proc/self/oom_score_adj"
	before, err := os.ReadFile(file)
	if err == nil {
		own, _ := strconv.Atoi(strings.TrimSpace(string(before))) // the kernel wrote it
		score := min(max(own+moreExpendable, expendable), 1000)
		// Where this is not allowed, the kernel chooses as it likes.
		if os.WriteFile(file, []byte(strconv.Itoa(score)), 0) == nil {
			defer func() { _ = os.WriteFile(file, before, 0) }()
		}
	}
	return syscall.ForkExec(path, argv, attr)
}

// await waits for one child, where nobody reaps all.
func (p *processes) await(proc *process) {
	for errors.Is(unix.Waitid(unix.P_PID, proc.pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var status syscall.WaitStatus
	_, _ = syscall.Wait4(proc.pid, &status, syscall.WNOHANG, nil) // it has ended
	p.end(proc.pid, status)
}

// end notes that a child was waited for. p.mu is held.
func (p *processes) end(pid int, status syscall.WaitStatus) {
	if proc := p.waiting[pid]; proc != nil {
		delete(p.waiting, pid)
		proc.over, proc.status = true, status
		close(proc.ended)
	}
}

// reapAll waits for every child that has ended. PID 1 calls it at each SIGCHLD.
func (p *processes) reapAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case pid > 0:
			p.end(pid, status)
		default:
			if errors.Is(err, syscall.ECHILD) && p.none != nil {
				close(p.none)
				p.none = nil
			}
			return
		}
	}
}

// lastOnes makes start refuse, and returns a channel that is closed when no child is left. Only PID 1 knows all
// children.
func (p *processes) lastOnes() <-chan struct{} {
	p.mu.Lock()
	none := make(chan struct{})
	p.none, p.refuse = none, true
	p.mu.Unlock()
	p.reapAll()
	return none
}

// hangUpShells tells the login shells that their line is gone.
func (p *processes) hangUpShells() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for pid, proc := range p.waiting {
		if proc.login {
			_ = syscall.Kill(-pid, syscall.SIGHUP) // it may be ending
		}
	}
}

// signal sends s to the process group, also when its leader is over, where the kernel knows such groups (Linux 6.9).
func (p *process) signal(s syscall.Signal) error {
	p.p.mu.Lock()
	defer p.p.mu.Unlock()
	switch {
	case !p.over:
		return syscall.Kill(-p.pid, s)
	case p.handle >= 0:
		return unix.PidfdSendSignal(p.handle, s, nil, unix.PIDFD_SIGNAL_PROCESS_GROUP)
	}
	return os.ErrProcessDone
}

// release gives back what the process holds here. It goes on, if it runs.
func (p *process) release() {
	p.p.mu.Lock()
	defer p.p.mu.Unlock()
	if p.handle >= 0 {
		_ = unix.Close(p.handle)
		p.handle = -1
	}
}
