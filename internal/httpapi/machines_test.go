package httpapi

import (
	"bufio"
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/agent"
	"berth/internal/compute"
	"berth/internal/session"
)

// machine is an agent that stands for every container: what it runs are processes of this machine.
type machine struct {
	agent *agent.Server
	dir   string // root's home
	wg    sync.WaitGroup
}

// withMachine lets commands run, in m.
func withMachine(t *testing.T) (m *machine, edit func(*Config)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("the agent sets users' identities: run the tests as root")
	}
	m = &machine{dir: t.TempDir()}
	for name, text := range map[string]string{"passwd": "root:x:0:0:root:" + m.dir + ":/bin/sh\n", "group": "root:x:0:\n"} {
		if err := os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m.agent = agent.NewServer(agent.Options{
		Environ: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"},
		Passwd:  filepath.Join(m.dir, "passwd"), Group: filepath.Join(m.dir, "group"),
	})
	sessions := session.New(session.Options{Dialer: m})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := sessions.Close(ctx); err != nil {
			t.Errorf("close sessions: %v", err)
		}
		if err := m.agent.Close(ctx); err != nil {
			t.Errorf("close agent: %v", err)
		}
		m.wg.Wait()
	})
	return m, func(c *Config) { c.Sessions = sessions }
}

func (m *machine) DialAgent(ctx context.Context, _ compute.Ref) (net.Conn, error) {
	ln, err := net.Listen("unix", filepath.Join(m.dir, "s"))
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	var d net.Dialer
	ours, err := d.DialContext(ctx, "unix", ln.Addr().String())
	if err != nil {
		return nil, err
	}
	theirs, err := ln.Accept()
	if err != nil {
		return nil, err
	}
	m.wg.Go(func() { m.agent.ServeConn(theirs) })
	return ours, nil
}

// pidfd opens a process; an error when there is none.
func pidfd(pid int) (int, error) { return unix.PidfdOpen(pid, 0) }

// awaitReadable waits until there is something to read, which of a process is its end.
func awaitReadable(fd int, limit time.Duration) error {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(limit.Milliseconds()))
	if err == nil && n == 0 {
		err = os.ErrDeadlineExceeded
	}
	return err
}

func readReplies(nc net.Conn, n int) (list []reply, err error) {
	for b := bufio.NewReader(nc); len(list) < n; {
		r, err := readReply(b)
		if err != nil {
			return list, err
		}
		list = append(list, r)
	}
	return list, nil
}
