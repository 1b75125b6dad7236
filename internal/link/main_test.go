package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"berth/internal/compute"
	"berth/internal/store"
)

// childEnv names the part that a process started by a test plays instead of running tests.
const childEnv = "BERTH_LINK_TEST_CHILD"

var children = map[string]func() error{"gateway": gatewayChild, "plane": planeChild, "seer": seerChild}

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		if err := children[name](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// patience is for what must happen, on a machine that is busy with other things.
const patience = 30 * time.Second

// plane is a control plane: a store and the server of the link on it.
type plane struct {
	t      testing.TB
	dir    string
	store  *store.Store
	server *Server
	addr   string
	ca     *Authority

	hinted atomic.Pointer[Server]
	served chan error
	opt    ServerOptions
	wrap   func(*store.Store) Source // what the server reads in place of the store

	wrapTrail func(*store.Store) Trail
}

// newPlane starts one in a directory of its own. Heartbeats are fast.
func newPlane(t testing.TB) *plane {
	t.Helper()
	p := &plane{t: t, dir: t.TempDir(), opt: ServerOptions{Heartbeat: 50 * time.Millisecond, Timeout: 10 * time.Second}}
	p.start()
	t.Cleanup(p.stop)
	return p
}

// start begins, or begins again on the same database and address.
func (p *plane) start() {
	p.t.Helper()
	var err error
	p.store, err = store.Open(context.Background(), filepath.Join(p.dir, "berth.db"), store.Options{OnCommit: func() {
		if s := p.hinted.Load(); s != nil {
			s.Hint()
		}
	}})
	if err != nil {
		p.t.Fatal(err)
	}
	if p.ca, err = OpenAuthority(filepath.Join(p.dir, "link_ca.pem")); err != nil {
		p.t.Fatal(err)
	}
	o := p.opt
	o.Source, o.Trail = p.store, p.store
	if p.wrap != nil {
		o.Source = p.wrap(p.store)
	}
	if p.wrapTrail != nil {
		o.Trail = p.wrapTrail(p.store)
	}
	o.Authority, o.Log = p.ca, testLog(p.t)
	if p.server, err = NewServer(o); err != nil {
		p.t.Fatal(err)
	}
	p.hinted.Store(p.server)
	addr := p.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		p.t.Fatal(err)
	}
	p.addr = l.Addr().String()
	p.served = make(chan error, 1)
	server := p.server
	go func(served chan error) { served <- server.Serve(l) }(p.served)
}

// stop ends it; it may be started again.
func (p *plane) stop() {
	if p.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p.hinted.Store(nil)
	if err := errors.Join(p.server.Shutdown(ctx), <-p.served, p.store.Close()); err != nil {
		p.t.Errorf("stop the control plane: %v", err)
	}
	p.server = nil
}

// credential makes a gateway's.
func (p *plane) credential(name string) Credential {
	p.t.Helper()
	text, fingerprint, err := p.ca.Issue(name)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.store.AddGateway(context.Background(), name, fingerprint); err != nil {
		p.t.Fatal(err)
	}
	path := filepath.Join(p.t.TempDir(), name+".pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		p.t.Fatal(err)
	}
	c, err := ReadCredential(path)
	if err != nil {
		p.t.Fatal(err)
	}
	if c.Name != name || c.Fingerprint != fingerprint {
		p.t.Fatalf("the credential is read as %s %s", c.Name, c.Fingerprint)
	}
	return c
}

func (p *plane) last() int64 {
	p.t.Helper()
	seq, err := p.store.LastEvent(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	return seq
}

// user makes an account with one key, whose fingerprint is made of its name.
func (p *plane) user(name string) (compute.UserID, int64) {
	p.t.Helper()
	u, err := p.store.CreateUser(context.Background(), name, compute.RoleUser, compute.SSHKey{
		Name: name, PublicKey: "ssh-ed25519 AAAA" + name, Fingerprint: keyPrint(name),
	})
	if err != nil {
		p.t.Fatal(err)
	}
	keys, err := p.store.Keys(context.Background(), u.ID)
	if err != nil {
		p.t.Fatal(err)
	}
	return u.ID, keys[0].ID
}

func keyPrint(name string) string { return "SHA256:" + name }

// box makes a container that runs.
func (p *plane) box(owner compute.UserID, keys ...int64) compute.Container {
	p.t.Helper()
	c, err := p.store.CreateContainer(context.Background(), compute.Container{
		Owner: owner, Name: "dev-box", InstanceType: "nano", MemoryMB: 512, StorageGB: 5, SSHKeyIDs: keys, SSHEnabled: true,
		MountPaths: []string{"/root"},
	}, 1000)
	if err != nil {
		p.t.Fatal(err)
	}
	p.status(c, compute.StatusRunning)
	return c
}

func (p *plane) status(c compute.Container, s compute.Status) {
	p.t.Helper()
	if err := p.store.SetStatus(context.Background(), c.ID, c.Generation, s, ""); err != nil {
		p.t.Fatal(err)
	}
}

// gateway is a replica and the client that feeds it.
type gateway struct {
	t       testing.TB
	path    string
	cred    Credential
	dial    func(context.Context) (net.Conn, error)
	opt     ReplicaOptions
	timeout time.Duration
	replica *Replica
	spool   *Spool

	cancel context.CancelFunc
	ran    chan error
}

// gateway makes one of the plane, and starts it.
func (p *plane) gateway(name string) *gateway {
	p.t.Helper()
	g := &gateway{
		t: p.t, path: filepath.Join(p.t.TempDir(), "replica"), cred: p.credential(name), dial: dialer(p.addr),
		opt: ReplicaOptions{Log: testLog(p.t)}, timeout: 10 * time.Second,
	}
	g.start()
	p.t.Cleanup(g.stop)
	return g
}

func dialer(addr string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}

func (g *gateway) start() {
	g.t.Helper()
	g.replica = OpenReplica(g.path, g.opt)
	client := NewClient(ClientOptions{
		Replica: g.replica, Spool: g.spool, Credential: always(g.cred), Dial: g.dial, Timeout: g.timeout, Log: testLog(g.t),
	})
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel, g.ran = cancel, make(chan error, 1)
	go func(ran chan error) { ran <- client.Run(ctx) }(g.ran)
}

func always(c Credential) func() (Credential, error) {
	return func() (Credential, error) { return c, nil }
}

func (g *gateway) stop() {
	if g.replica == nil {
		return
	}
	g.cancel()
	if err := errors.Join(<-g.ran, g.replica.Close()); err != nil {
		g.t.Errorf("stop the gateway: %v", err)
	}
	g.replica = nil
}

// alone starts a gateway that reaches nobody.
func (g *gateway) alone() {
	dial := g.dial
	g.dial = func(context.Context) (net.Conn, error) { return nil, errors.New("nobody is there") }
	g.start()
	g.dial = dial
}

// await waits until every gateway has acknowledged all there is.
func (p *plane) await(gateways ...*gateway) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, g := range gateways {
		if err := g.replica.Ready(ctx); err != nil {
			p.t.Fatalf("a gateway is not ready: %v", err)
		}
	}
	seq := p.last()
	for {
		p.server.mu.Lock()
		changed, behind := p.server.changed, 0
		for _, g := range gateways {
			if p.server.peers[g.cred.Fingerprint] == nil || p.server.acked[g.cred.Fingerprint] < seq {
				behind++
			}
		}
		p.server.mu.Unlock()
		if behind == 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			p.t.Fatalf("%d of %d gateways have not acknowledged %d", behind, len(gateways), seq)
		}
	}
}

// eventually asks again whenever the plane's heartbeat may have changed the answer.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !ok() {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("not after %v: %s", patience, what)
		}
	}
}

// opens says whether a fingerprint opens a container at the gateway.
func (g *gateway) opens(id compute.ContainerID, fingerprint string) bool {
	target, err := g.replica.Target(context.Background(), id)
	if err != nil {
		return false
	}
	for _, k := range target.Keys {
		if k.Fingerprint == fingerprint {
			return true
		}
	}
	return false
}

// testLog writes to the test's log while the test runs.
func testLog(t testing.TB) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(w.end)
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct {
	mu sync.Mutex // guards t
	t  testing.TB
}

func (w *testWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Log(string(b))
	}
	return len(b), nil
}

func (w *testWriter) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.t = nil
}
