package httpapi

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"berth/internal/auth"
	"berth/internal/compute"
	"berth/internal/control"
	"berth/internal/event"
	"berth/internal/store"
)

func TestMain(m *testing.M) {
	// fasthttp keeps one goroutine for the process that writes the Date header.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

const (
	zone     = "compute.example.com"
	patience = 20 * time.Second // for what should take milliseconds
)

// engine runs containers in memory: what is under test is the surface above it.
type engine struct {
	mu      sync.Mutex
	running map[compute.Ref]bool
	admit   error
}

func (e *engine) Admit(context.Context, compute.Spec) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.admit
}

// AdmitChange knows an image in which /link is /proc.
func (e *engine) AdmitChange(_ context.Context, _, s compute.Spec) error {
	if slices.Contains(s.MountPaths, "/link") {
		return compute.Invalid("mount_paths", "Mount path /link is /proc in the image, which belongs to the system.")
	}
	return nil
}
func (e *engine) Provision(context.Context, compute.Spec) error { return nil }

func (e *engine) Apply(_ context.Context, s compute.Spec) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running[s.Ref] = s.Running
	return nil
}

func (e *engine) Remove(_ context.Context, r compute.Ref) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.running, r)
	return nil
}

// Stored lists what was applied, and nothing else: see admin_test.go.
func (e *engine) Stored(context.Context) ([]compute.Stored, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []compute.Stored
	for r, running := range e.running {
		list = append(list, compute.Stored{
			Ref: r, Running: running, Bytes: 3 << 29, WrittenAt: time.Date(2026, 1, 15, 10, 30, 0, 0, time.UTC), Foreign: r.Owner > 1000,
		})
	}
	return list, nil
}

func (e *engine) Discard(ctx context.Context, r compute.Ref, unknown func(context.Context) error) error {
	if err := unknown(ctx); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.running[r]; !ok {
		return compute.NotFound("storage")
	}
	delete(e.running, r)
	return nil
}

func (e *engine) Watch(ctx context.Context, _ func(compute.Observation), synced func()) error {
	synced()
	<-ctx.Done()
	return ctx.Err()
}

func (e *engine) Usage(_ context.Context, r compute.Ref) (compute.Usage, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.running[r] {
		return compute.Usage{}, compute.Errorf(compute.CodeNotRunning, "It does not run.")
	}
	return compute.Usage{MemoryMB: 128, StorageGB: 1.2345678}, nil
}

// api is a server on a real socket, above a real control plane and database.
type api struct {
	t        *testing.T
	server   *Server
	url      string
	addr     string
	store    *store.Store
	engine   *engine
	tokens   issuer
	key      ed25519.PrivateKey
	log      *lockedBuffer
	commits  chan struct{} // a hint after each
	bus      atomic.Pointer[event.Bus]
	stopBus  func()
	narrow   atomic.Bool // see narrowing
	client   *http.Client
	ada, bob compute.User
	adaToken string
	bobToken string

	undescribed bool // answers may be other than the document says
}

type lockedBuffer struct {
	mu    sync.Mutex
	b     bytes.Buffer
	wrote chan struct{} // a hint after each write, where it is set
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.wrote <- struct{}{}:
	default:
	}
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// newAPI starts everything; edit may change the server's configuration.
func newAPI(t *testing.T, edit func(*Config)) *api {
	t.Helper()
	a := &api{
		t: t, engine: &engine{running: map[compute.Ref]bool{}}, commits: make(chan struct{}, 1),
		log:    &lockedBuffer{wrote: make(chan struct{}, 1)},
		client: &http.Client{Transport: &http.Transport{}, Timeout: patience},
	}
	var err error
	a.store, err = store.Open(t.Context(), filepath.Join(t.TempDir(), "berth.db"), store.Options{OnCommit: func() {
		select {
		case a.commits <- struct{}{}:
		default:
		}
		if bus := a.bus.Load(); bus != nil {
			bus.Hint()
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	bus, err := event.Open(t.Context(), a.store, nil)
	if err != nil {
		t.Fatal(err)
	}
	a.bus.Store(bus)
	service := control.New(control.Config{
		Store: a.store, Engine: a.engine, Limits: compute.DefaultLimits(), Types: compute.DefaultInstanceTypes(),
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ran := make(chan error, 2)
	go func() { ran <- service.Run(ctx) }()
	busCtx, stopBus := context.WithCancel(ctx)
	a.stopBus = stopBus
	go func() { ran <- bus.Run(busCtx) }()

	if _, a.key, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	a.tokens = issuer{auth.New(a.key, zone, a.store), t}
	a.ada, a.adaToken = a.account("ada")
	a.bob, a.bobToken = a.account("bob")

	c := Config{
		Service: service, Verifier: a.verifiers(), Tokens: a.tokens.Authority, Events: bus, Once: a.store, Zone: zone,
		Audit: a.store, Record: a.record, Gateway: "machine-1",
		Log: slog.New(slog.NewJSONHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if edit != nil {
		edit(&c)
	}
	served := a.serve(c)
	t.Cleanup(func() {
		a.client.CloseIdleConnections()
		stop, done := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer done()
		if err := a.server.Shutdown(stop); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		cancel()
		for range cap(ran) {
			if err := <-ran; err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("control, or the bus: %v", err)
			}
		}
		if err := a.store.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	return a
}

// record stores a record at once, so that a test finds it.
func (a *api) record(r compute.AuditRecord) {
	if err := a.store.AppendAudit(context.WithoutCancel(a.t.Context()), []compute.AuditRecord{r}); err != nil {
		a.t.Errorf("record %+v: %v", r, err)
	}
}

// issuer issues tokens as tests want them.
type issuer struct {
	*auth.Authority
	t *testing.T
}

// Issue returns a token that lets its bearer act as u for ttl, within the scopes; without any, in everything that u may do.
func (i issuer) Issue(u compute.User, ttl time.Duration, scopes ...auth.Scope) (string, error) {
	if len(scopes) == 0 {
		scopes = []auth.Scope{auth.ScopeAll}
	}
	r := auth.Request{Name: "of a test", Scopes: scopes, TTL: ttl}
	token, _, err := i.Authority.Issue(i.t.Context(), u.ID, compute.IssuedByOperator, r)
	return token, err
}

// verifiers verify our own tokens and signed ones.
func (a *api) verifiers() *auth.Verifiers {
	a.t.Helper()
	v, err := auth.NewVerifiers(a.tokens.Authority, auth.NewSSHSigned(zone, a.store))
	if err != nil {
		a.t.Fatal(err)
	}
	return v
}

func (a *api) serve(c Config) <-chan error {
	a.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		a.t.Fatal(err)
	}
	a.server, a.addr = New(c), ln.Addr().String()
	a.url = "http://" + a.addr
	served := make(chan error, 1)
	go func() { served <- a.server.Serve(narrowing{ln, &a.narrow}) }()
	return served
}

func (a *api) account(name string) (compute.User, string) {
	a.t.Helper()
	u, err := a.store.CreateUser(a.t.Context(), name, compute.RoleUser)
	if err != nil {
		a.t.Fatal(err)
	}
	token, err := a.tokens.Issue(u, time.Hour)
	if err != nil {
		a.t.Fatal(err)
	}
	return u, token
}

// reply is a whole answer.
type reply struct {
	status int
	header http.Header
	body   string
	closes bool // it said Connection: close
}

// do sends a request with a JSON body, as token's bearer where there is one.
func (a *api) do(method, path, token, body string) reply {
	a.t.Helper()
	return a.send(method, path, body, func(r *http.Request) {
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
	})
}

func (a *api) send(method, path, body string, edit func(*http.Request)) reply {
	a.t.Helper()
	r, err := a.try(method, path, body, edit)
	if err != nil {
		a.t.Fatal(err)
	}
	return r
}

func (a *api) try(method, path, body string, edit func(*http.Request)) (reply, error) {
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.url+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	if edit != nil {
		edit(req)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	r := reply{resp.StatusCode, resp.Header, string(text), resp.Close}
	if err == nil && !a.undescribed {
		r.conforms(a.t, method, req.URL.EscapedPath())
	}
	return r, err
}

// into decodes a reply of the given status.
func (r reply) into(t *testing.T, status int, v any) {
	t.Helper()
	if r.status != status {
		t.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	if ct := r.header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("content type %q", ct)
	}
	if err := json.Unmarshal([]byte(r.body), v); err != nil {
		t.Fatalf("%v: %s", err, r.body)
	}
}

// isProblem checks that a reply is an RFC 9457 body of that status, code and field, and returns its detail.
func (r reply) isProblem(t *testing.T, status int, code compute.Code, field string) string {
	t.Helper()
	if r.status != status {
		t.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	if ct := r.header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("content type %q: %s", ct, r.body)
	}
	var p problem
	d := json.NewDecoder(strings.NewReader(r.body))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		t.Fatalf("%v: %s", err, r.body)
	}
	if p.Status != status || p.Title != http.StatusText(status) || p.Type != "about:blank" || p.Code != code || p.Field != field {
		t.Errorf("%+v; want status %d, code %q, field %q", p, status, code, field)
	}
	if len(p.Detail) < 10 || !strings.ContainsAny(p.Detail[len(p.Detail)-1:], ".?") {
		t.Errorf("detail %q is no sentence", p.Detail)
	}
	return p.Detail
}

// newKey returns a public key's line.
func newKey(t testing.TB, comment string) string {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + " " + comment)
}

// addKey adds a key and returns its id.
func (a *api) addKey(token, name string) int64 {
	a.t.Helper()
	var k struct{ ID int64 }
	a.do("POST", "/compute/ssh-keys", token, fmt.Sprintf(`{"name":%q,"public_key":%q}`, name, newKey(a.t, ""))).into(a.t, 201, &k)
	return k.ID
}

// create makes a container and returns it.
func (a *api) create(token, name string, key int64) container {
	a.t.Helper()
	var c container
	a.do("POST", "/compute/containers", token, fmt.Sprintf(`{"name":%q,"ssh_key_ids":[%d]}`, name, key)).into(a.t, 201, &c)
	return c
}

// nextCommit waits for the database to change.
func (a *api) nextCommit() {
	a.t.Helper()
	select {
	case <-a.commits:
	case <-time.After(patience):
		a.t.Fatal("nothing changes any more")
	}
}

// await returns the container once it has the status, looking again after each commit.
func (a *api) await(token string, id compute.ContainerID, want compute.Status) container {
	a.t.Helper()
	deadline := time.After(patience)
	for {
		var c container
		a.do("GET", "/compute/containers/"+string(id), token, "").into(a.t, 200, &c)
		if c.Status == want {
			return c
		}
		select {
		case <-a.commits:
		case <-deadline:
			a.t.Fatalf("it is still %s, want %s", c.Status, want)
		}
	}
}
