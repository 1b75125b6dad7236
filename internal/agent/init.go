package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultSocket is where the agent serves gateways.
const DefaultSocket = "/.berth/run/agent.sock"

// Times of the end.
const (
	killAfter   = 5 * time.Second // between TERM and KILL
	hangUpAgain = 500 * time.Millisecond
	lastWords   = 2 * time.Second // for clients to learn how their commands ended
)

// Init is the container's first process: it serves on the socket, runs the image's command if there is one, reaps, and
// ends all processes in order when told to stop.
func Init(o Options, socket string, argv []string) error {
	if err := prepared(o.Prepared); err != nil {
		return err
	}
	o.Init = os.Getpid() == 1
	s := NewServer(o)
	defer settle()()
	syscall.Umask(0o022) // as a login has it
	ends := make(chan os.Signal, 1)
	// TERM is Kubernetes' and containerd's way to say halt, RTMIN+3 and PWR are systemd's and LXC's.
	signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT, syscall.SIGPWR, syscall.Signal(rtmin+3))
	defer signal.Stop(ends)
	if o.Init {
		children := make(chan os.Signal, 1)
		signal.Notify(children, syscall.SIGCHLD)
		go func() { // ends with the process: there are orphans to the last
			for range children {
				s.procs.reapAll()
			}
		}()
	}
	l, err := listen(socket)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	s.RunImage(argv)
	select {
	case err := <-served:
		return err
	case <-ends:
	}
	s.stopWork()
	s.endAll()
	ctx, cancel := context.WithTimeout(context.Background(), lastWords)
	defer cancel()
	return s.Close(ctx)
}

// rtmin is SIGRTMIN as C libraries count it.
const rtmin = 34

// settle keeps signals from ending this process, and what its caller left open to itself. Signals are caught, not
// ignored: a child would go on ignoring them, and be deaf to the hang-up of its client.
func settle() (undo func()) {
	c := make(chan os.Signal, 1) // nobody reads it
	signal.Notify(c, syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGQUIT)
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // Linux 5.11; engines do it too
	return func() { signal.Stop(c) }
}

// listen makes the socket, in a directory that only root can enter.
func listen(socket string) (net.Listener, error) {
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the socket's directory: %w", err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, 0, 0); err != nil {
			return nil, fmt.Errorf("take the socket's directory: %w", err)
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("close the socket's directory to others: %w", err)
	}
	if nc, err := net.Dial("unix", socket); err == nil {
		_ = nc.Close()
		return nil, errors.New("there is an agent at " + socket + " already")
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove an old socket: %w", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("make the socket: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("close the socket to others: %w", err)
	}
	return l, nil
}

// endAll asks every process of the container to end, and makes those end that do not.
func (s *Server) endAll() {
	none := s.procs.lastOnes()
	if os.Getpid() != 1 {
		return // everything else on this machine is not ours
	}
	_ = syscall.Kill(-1, syscall.SIGTERM) // fails when there are none
	kill := time.NewTimer(killAfter)
	defer kill.Stop()
	again := time.NewTicker(hangUpAgain)
	defer again.Stop()
	for over := false; !over; {
		s.procs.hangUpShells() // they ignore TERM
		_ = syscall.Kill(-1, syscall.SIGCONT)
		select {
		case <-none:
			return
		case <-again.C: // bash(1) passes over a hang-up that comes with another signal
		case <-kill.C:
			over = true
		}
	}
	_ = syscall.Kill(-1, syscall.SIGKILL)
	<-none
}

// Connect joins standard input and output to the agent's socket, until the agent ends. The end of the input is passed
// on.
func Connect(socket string) error {
	nc, err := net.Dial("unix", socket)
	if err != nil {
		return fmt.Errorf("reach the agent: %w", err)
	}
	defer nc.Close()
	go func() { // ends with the process: nothing else ends a read of standard input
		if err := pour(nc, &unhurried{in: os.Stdin}); err != nil {
			_ = nc.Close()
			return
		}
		_ = nc.(*net.UnixConn).CloseWrite() // it may be gone
	}()
	if err := pour(os.Stdout, nc); err != nil {
		return fmt.Errorf("pass on: %w", err)
	}
	return nil
}

// pour copies from here to there by reading and writing. io.Copy would splice from the socket into the pipe, page by page with
// who reads the pipe: that took four times the processor.
func pour(to io.Writer, from io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, passed))
	return err
}

const (
	passed = 64 << 10 // at a time: as much as a pipe holds
	// fill is a pause in which a runtime that passes on bulk in pieces of 4 kB, as containerd's shim does, fills the pipe.
	fill = 200 * time.Microsecond
)

// unhurried reads a pipe. In bulk that comes without a break it leaves the other end time to write more than a little.
type unhurried struct {
	in    io.Reader
	total int // without a break
	few   bool
}

func (u *unhurried) Read(p []byte) (int, error) {
	if u.few && u.total >= bulk {
		ts := unix.NsecToTimespec(int64(fill))
		_ = unix.Nanosleep(&ts, nil) // a signal may cut it short
	}
	began := time.Now()
	n, err := u.in.Read(p)
	if time.Since(began) > longBreak {
		u.total = 0
	}
	u.total += n
	u.few = n < len(p)/2
	return n, err
}
