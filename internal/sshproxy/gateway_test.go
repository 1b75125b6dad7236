package sshproxy

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	gossh "golang.org/x/crypto/ssh"

	"berth/internal/agent"
	"berth/internal/compute"
	"berth/internal/event"
	"berth/internal/session"
	"berth/internal/store"
)

// The test binary is the agent too, which starts itself by /proc/self/exe for sftp.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[0] == "berth-agent" && os.Args[1] == "sftp" {
		if err := agent.ServeSFTP(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	agent.DefaultSignals() // as cmd/agent does
	goleak.VerifyTestMain(m)
}

const zone = "compute.test"

// world is a control plane's state on a real database, with its events.
type world struct {
	*store.Store
	t    testing.TB
	path string
	bus  *event.Bus
	next compute.ContainerID
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, path: filepath.Join(t.TempDir(), "berth.db")}
	var bus atomic.Pointer[event.Bus]
	s, err := store.Open(t.Context(), w.path, store.Options{
		NewID: func() compute.ContainerID { return w.next },
		OnCommit: func() {
			if b := bus.Load(); b != nil {
				b.Hint()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Store = s
	if w.bus, err = event.Open(t.Context(), s, nil); err != nil {
		t.Fatal(err)
	}
	bus.Store(w.bus)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.bus.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) subscribe() (<-chan compute.Event, func()) {
	s := w.bus.Subscribe(0, 64)
	return s.C, s.Close
}

func must[T any](t testing.TB, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (w *world) user(name string) compute.UserID {
	w.t.Helper()
	u, err := w.CreateUser(w.t.Context(), name, compute.RoleUser)
	return must(w.t, u, err).ID
}

func (w *world) key(owner compute.UserID, signer gossh.Signer) int64 {
	w.t.Helper()
	line := strings.TrimSpace(string(gossh.MarshalAuthorizedKey(signer.PublicKey())))
	k, err := w.AddKey(w.t.Context(), compute.SSHKey{
		Owner: owner, Name: "key", PublicKey: line, Fingerprint: gossh.FingerprintSHA256(signer.PublicKey()),
	}, 10)
	return must(w.t, k, err).ID
}

// container makes a container that runs, with SSH on.
func (w *world) container(id compute.ContainerID, owner compute.UserID, keys ...int64) compute.Container {
	w.t.Helper()
	w.next = id
	c, err := w.CreateContainer(w.t.Context(), compute.Container{
		Owner: owner, Name: "box", InstanceType: "nano", MemoryMB: 512, StorageGB: 5, SSHKeyIDs: keys, SSHEnabled: true,
		Desired: compute.DesiredRunning, Status: compute.StatusPending,
	}, 100)
	if err != nil {
		w.t.Fatal(err)
	}
	w.status(id, compute.StatusRunning, "")
	return c
}

func (w *world) status(id compute.ContainerID, s compute.Status, message string) {
	w.t.Helper()
	c, err := w.ReconcileState(w.t.Context(), id)
	if err == nil {
		err = w.SetStatus(w.t.Context(), id, c.Generation, s, message)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) ssh(owner compute.UserID, id compute.ContainerID, on bool) {
	w.t.Helper()
	_, err := w.SetSSH(w.t.Context(), owner, id, on)
	must(w.t, on, err)
}

func newKey(t testing.TB) gossh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := gossh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// identityFile writes a new key for stock clients and returns it and its path.
func identityFile(t testing.TB) (gossh.Signer, string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := gossh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	signer, err := gossh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer, path
}

// testLog goes to the test's output, when somebody asked for it.
func testLog(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return nil
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// gatewayUnderTest is a gateway on a socket of its own.
type gatewayUnderTest struct {
	*Gateway
	addr  string
	hosts gossh.HostKeyCallback
	keys  []gossh.Signer
}

func startGateway(t testing.TB, o Options) *gatewayUnderTest {
	t.Helper()
	if o.Sessions == nil {
		o.Sessions = startSessions(t, session.Options{Dialer: nobody{}})
	}
	keys, err := OpenHostKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	o.Zone, o.HostKeys = zone, keys
	o.Log = testLog(t)
	if o.Lobby == nil {
		o.Lobby = func(_ context.Context, s LobbySession) int {
			fmt.Fprintf(s.Stdout, "lobby %s %q\n", s.Principal.Username, s.Command)
			return 0
		}
	}
	g, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := g.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return &gatewayUnderTest{Gateway: g, addr: l.Addr().String(), hosts: gossh.FixedHostKey(keys[0].PublicKey()), keys: keys}
}

// nobody is an engine on which nothing runs.
type nobody struct{}

func (nobody) DialAgent(_ context.Context, r compute.Ref) (net.Conn, error) {
	return nil, compute.Errorf(compute.CodeNotRunning, "Container %s does not run.", r.ID)
}

func startSessions(t testing.TB, o session.Options) *session.Multiplexer {
	m := session.New(o)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Errorf("close sessions: %v", err)
		}
	})
	return m
}

// clientConfig is an x/crypto client's, which checks the host key.
func (g *gatewayUnderTest) clientConfig(user string, signers ...gossh.Signer) *gossh.ClientConfig {
	return &gossh.ClientConfig{
		User: user, Auth: []gossh.AuthMethod{gossh.PublicKeys(signers...)}, HostKeyCallback: g.hosts,
		HostKeyAlgorithms: []string{gossh.KeyAlgoED25519}, Timeout: 10 * time.Second,
	}
}

func (g *gatewayUnderTest) dial(t testing.TB, user string, signers ...gossh.Signer) *gossh.Client {
	t.Helper()
	c, err := gossh.Dial("tcp", g.addr, g.clientConfig(user, signers...))
	if err != nil {
		t.Fatalf("log in as %q: %v", user, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// within fails the test when f has not returned after d.
func within(t testing.TB, d time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("%s: not within %v", what, d)
	}
}
