package sshproxy

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	gossh "golang.org/x/crypto/ssh"

	"berth/internal/agent"
	"berth/internal/compute"
	"berth/internal/session"
)

// machines is an engine whose containers are real agents in this process; what they run are processes of this machine.
type machines struct {
	t     testing.TB
	dials atomic.Int64

	mu     sync.Mutex
	agents map[compute.ContainerID]*agent.Server
	wg     sync.WaitGroup
}

func newMachines(t testing.TB, ids ...compute.ContainerID) *machines {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("the agent sets users' identities: run the tests as root")
	}
	m := &machines{t: t, agents: make(map[compute.ContainerID]*agent.Server)}
	for _, id := range ids {
		m.start(id)
	}
	t.Cleanup(func() {
		for _, id := range ids {
			m.stop(id)
		}
		m.wg.Wait()
	})
	return m
}

// start begins a container's agent, with root's home in a directory of the test.
func (m *machines) start(id compute.ContainerID) {
	m.t.Helper()
	dir := m.t.TempDir()
	for name, text := range map[string]string{
		"passwd": "root:x:0:0:root:" + dir + ":/bin/sh\n", "group": "root:x:0:\n", ".hushlogin": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			m.t.Fatal(err)
		}
	}
	s := agent.NewServer(agent.Options{
		Environ: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "CONTAINER=" + string(id)},
		Passwd:  filepath.Join(dir, "passwd"), Group: filepath.Join(dir, "group"),
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.agents[id] = s
}

// stop ends a container's agent and what it runs.
func (m *machines) stop(id compute.ContainerID) {
	m.mu.Lock()
	s := m.agents[id]
	delete(m.agents, id)
	m.mu.Unlock()
	if s != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // leaves the sessions no time: the container is gone
		if err := s.Close(ctx); err != nil {
			m.t.Errorf("close agent: %v", err)
		}
	}
}

func (m *machines) DialAgent(ctx context.Context, r compute.Ref) (net.Conn, error) {
	m.dials.Add(1)
	m.mu.Lock()
	s := m.agents[r.ID]
	m.mu.Unlock()
	if s == nil {
		return nobody{}.DialAgent(ctx, r)
	}
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	m.wg.Go(func() { s.ServeConn(theirs) })
	return ours, nil
}

func socketpair() (a, b net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		conns[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			return nil, nil, err
		}
	}
	return conns[0], conns[1], nil
}

// harbour is a whole gateway: one account with one key, and its containers aaaaaaaa and bbbbbbbb.
type harbour struct {
	*gatewayUnderTest
	*world
	machines *machines
	alice    compute.UserID
	keyID    int64
	key      gossh.Signer
	stock    *stock
}

func newHarbour(t testing.TB, o Options) *harbour {
	t.Helper()
	h := &harbour{world: newWorld(t)}
	var identity string
	h.key, identity = identityFile(t)
	h.alice = h.user("alice")
	h.keyID = h.world.key(h.alice, h.key)
	h.container("aaaaaaaa", h.alice, h.keyID)
	h.container("bbbbbbbb", h.alice, h.keyID)
	h.machines = newMachines(t, "aaaaaaaa", "bbbbbbbb")
	o.Directory, o.Changes = h.world, h.subscribe
	o.Sessions = startSessions(t, session.Options{Dialer: h.machines, Log: testLog(t)})
	h.gatewayUnderTest = startGateway(t, o)
	h.stock = stockClient(t, h.gatewayUnderTest, identity)
	return h
}

// login is an x/crypto client in the container aaaaaaaa.
func (h *harbour) login(t testing.TB) *gossh.Client {
	t.Helper()
	return h.dial(t, "aaaaaaaa", h.key)
}
