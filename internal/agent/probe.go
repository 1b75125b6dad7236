package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Probed is what a probe found.
type Probed struct {
	Reached   []string `json:"reached,omitempty"`   // addresses that took a connection when it was last tried
	Processes int      `json:"processes,omitempty"` // that were there at once
	Bounded   bool     `json:"bounded,omitempty"`   // no more were possible
}

const (
	probeDial  = 2 * time.Second // for a connection to be made; what is dropped takes all of it
	probeAgain = 500 * time.Millisecond
)

// Probe looks at what surrounds a pod that is there for nothing else, from inside it, and writes what it found to w. It is
// how an operator learns whether the cluster keeps its promises: of policies, which nobody sees from without, and of limits.
//
//	listen ADDRESS             take connections, and end with SIGTERM
//	reached SECONDS ADDRESS…   try until all are reached, for so long
//	missed SECONDS ADDRESS…    try until none is, twice in a row: a network may be late to learn what it must not let through
//	processes MOST             start as many
//
// The address "resolver" means where this pod has names resolved.
func Probe(w io.Writer, args []string) error {
	var p Probed
	var err error
	switch {
	case len(args) == 2 && args[0] == "listen":
		return probeListen(args[1])
	case len(args) >= 3 && (args[0] == "reached" || args[0] == "missed"):
		p.Reached, err = probeReach(args[0] == "reached", args[1], args[2:])
	case len(args) == 2 && args[0] == "processes":
		p, err = probeProcesses(args[1])
	default:
		return errors.New("probe what? listen ADDRESS, reached SECONDS ADDRESS…, missed SECONDS ADDRESS… or processes MOST")
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(p)
}

func probeListen(address string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		c.Close()
	}
}

// probeReach tries all addresses again and again until they are as wanted or the time is up, and returns those that took a
// connection at the end.
func probeReach(wanted bool, seconds string, addresses []string) ([]string, error) {
	n, err := strconv.Atoi(seconds)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("%q is no number of seconds", seconds)
	}
	within := time.After(time.Duration(n) * time.Second)
	again := time.NewTicker(probeAgain)
	defer again.Stop()
	for missed := 0; ; {
		reached, err := dialAll(addresses)
		if err != nil {
			return nil, err
		}
		missed++
		if len(reached) > 0 {
			missed = 0
		}
		if wanted && len(reached) == len(addresses) || !wanted && missed == 2 {
			return reached, nil
		}
		select {
		case <-within:
			return reached, nil
		case <-again.C:
		}
	}
}

func dialAll(addresses []string) ([]string, error) {
	var mu sync.Mutex
	var reached []string
	var wg sync.WaitGroup
	for _, address := range addresses {
		to := address
		if to == "resolver" {
			var err error
			if to, err = resolver("/etc/resolv.conf"); err != nil {
				return nil, err
			}
		}
		wg.Go(func() {
			c, err := net.DialTimeout("tcp", to, probeDial)
			if err != nil {
				return // what refuses is not distinguished from what drops: a firewall may do either
			}
			c.Close()
			mu.Lock()
			reached = append(reached, address)
			mu.Unlock()
		})
	}
	wg.Wait()
	slices.Sort(reached)
	return reached, nil
}

// resolver returns where names are resolved first.
func resolver(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			return net.JoinHostPort(f[1], "53"), nil
		}
	}
	return "", fmt.Errorf("%s names no nameserver", file)
}

// probeProcesses counts how many processes there may be at once. They end at once and are not waited for, so that each takes
// a number and next to no memory.
func probeProcesses(most string) (Probed, error) {
	n, err := strconv.Atoi(most)
	if err != nil || n < 1 {
		return Probed{}, fmt.Errorf("%q is no number of processes", most)
	}
	var started []int
	defer func() {
		for _, pid := range started {
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
	}()
	for len(started) < n {
		pid, errno := forkSpent()
		if errno == unix.EAGAIN {
			return Probed{Processes: len(started), Bounded: true}, nil
		}
		if errno != 0 {
			return Probed{}, fmt.Errorf("start process %d: %w", len(started)+1, errno)
		}
		started = append(started, pid)
	}
	return Probed{Processes: len(started)}, nil
}

// forkSpent makes a process that ends at once. It runs no Go, whose runtime would not survive a fork, and no program, of which
// thousands would take a minute.
func forkSpent() (pid int, _ unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if r == 0 && errno == 0 {
		for {
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	return int(r), errno
}
