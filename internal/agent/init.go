package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// killAfter is how long processes have between TERM and KILL when the container stops.
const killAfter = 5 * time.Second

// Init is the container's first process: it serves on the socket, runs the image's command if there is one, reaps, and ends
// all processes in order when told to stop.
func Init(o Options, socket string, argv []string) error {
	o.Init = os.Getpid() == 1
	s := NewServer(o)
	ends := make(chan os.Signal, 4)
	signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT, unix.SIGPWR, syscall.Signal(rtmin+3)) // …, Docker's and systemd's ways to say halt
	defer signal.Stop(ends)
	// Caught and dropped. What is ignored stays ignored in children: neither hang-ups nor broken pipes would end them.
	dropped := make(chan os.Signal, 1)
	signal.Notify(dropped, syscall.SIGHUP, syscall.SIGPIPE)
	defer signal.Stop(dropped)
	if o.Init {
		children := make(chan os.Signal, 1)
		signal.Notify(children, syscall.SIGCHLD)
		defer signal.Stop(children)
		go func() { // ends with the process
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
	if len(argv) > 0 {
		if err := s.runImage(argv); err != nil {
			fmt.Fprintf(&s.logs, "berth: %s: %v\n", argv[0], err)
		}
	}
	select {
	case err := <-served:
		return err
	case <-ends:
	}
	s.endAll()
	return s.Close()
}

// rtmin is SIGRTMIN as C libraries count it.
const rtmin = 34

// listen makes the socket, in a directory that only root can enter.
func listen(socket string) (net.Listener, error) {
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the socket's directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("close the socket's directory to others: %w", err)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove an old socket: %w", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("make the socket: %w", err)
	}
	return l, os.Chmod(socket, 0o600)
}

// runImage starts the image's own command; its output goes to a ring that gateways read.
func (s *Server) runImage(argv []string) error {
	env := environ(s.environ)
	path, err := lookPath(argv[0], env.value("PATH"))
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		closeAll(r, w)
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	root, err := findAccount(s.passwd, s.group, "root")
	if err == nil {
		_, err = s.procs.start(command{
			path: path, argv: argv, env: s.environ, dir: dir, as: root,
			files: []uintptr{null.Fd(), w.Fd(), w.Fd()},
		})
	}
	closeAll(null, w)
	if err != nil {
		_ = r.Close()
		return err
	}
	go func() { // ends with the last process that has the pipe
		defer r.Close()
		_, _ = io.Copy(&s.logs, r)
	}()
	return nil
}

// endAll asks every process of the container to end, and makes those end that do not.
func (s *Server) endAll() {
	if os.Getpid() != 1 {
		return // everything else on this machine is not ours
	}
	none := s.procs.childless()
	_ = syscall.Kill(-1, syscall.SIGTERM) // fails when there are none
	_ = syscall.Kill(-1, syscall.SIGHUP)  // interactive shells ignore TERM
	_ = syscall.Kill(-1, syscall.SIGCONT)
	ctx, cancel := context.WithTimeout(context.Background(), killAfter)
	defer cancel()
	select {
	case <-none:
		return
	case <-ctx.Done():
	}
	_ = syscall.Kill(-1, syscall.SIGKILL)
	<-none
}

// Connect joins standard input and output to the agent's socket, until either side ends.
func Connect(socket string) error {
	nc, err := net.Dial("unix", socket)
	if err != nil {
		return fmt.Errorf("reach the agent: %w", err)
	}
	defer nc.Close()
	results := make(chan error, 2)
	go func() {
		_, err := io.Copy(nc, os.Stdin)
		_ = nc.(*net.UnixConn).CloseWrite() // it may be gone
		results <- err
	}()
	go func() {
		_, err := io.Copy(os.Stdout, nc)
		results <- err
	}()
	return <-results
}
