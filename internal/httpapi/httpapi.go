// Package httpapi is the REST surface and the live feed: the contract's routes, its JSON and its statuses, on fiber.
//
// It holds requests against the API's document, asks the control plane, and writes what comes back; limits and rules about
// containers and keys are not its own. It refuses what it cannot read in full, and answers each refusal as
// application/problem+json (RFC 9457) by one table from codes to statuses. It speaks plain HTTP on listeners that it is given.
//
// Nothing here may keep what fiber or fasthttp hand out: they use it again once the handler returns.
package httpapi

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	"berth/internal/auth"
	"berth/internal/compute"
	"berth/internal/control"
	"berth/internal/event"
	"berth/internal/session"
)

// Service is the control plane's use cases, as this edge needs them. An id that is absent and one of somebody else's
// are the same CodeNotFound. Errors that clients may read are *compute.Error.
type Service interface {
	ListContainers(ctx context.Context, p compute.Principal) ([]control.ContainerView, error)
	ListContainersAt(ctx context.Context, p compute.Principal) (list []control.ContainerView, seq int64, err error)
	CreateContainer(ctx context.Context, p compute.Principal, r compute.ContainerRequest) (control.ContainerView, error)
	GetContainer(ctx context.Context, p compute.Principal, id compute.ContainerID) (control.ContainerView, error)
	ChangeContainer(
		ctx context.Context, p compute.Principal, id compute.ContainerID, r compute.ContainerChange, m compute.Match,
	) (control.ContainerView, error)
	// EnterContainer returns a container that runs and that may be entered; CodeNotRunning, CodeSSHDisabled.
	EnterContainer(ctx context.Context, p compute.Principal, id compute.ContainerID) (compute.Container, error)
	// RunningContainer returns a container that runs, whether or not it may be entered; CodeNotRunning.
	RunningContainer(ctx context.Context, p compute.Principal, id compute.ContainerID) (compute.Container, error)
	ContainerHistory(
		ctx context.Context, p compute.Principal, id compute.ContainerID, after int64, limit int,
	) (compute.History, error)
	InstanceTypes() []compute.InstanceType
	StartContainer(ctx context.Context, p compute.Principal, id compute.ContainerID) (control.ContainerView, error)
	StopContainer(ctx context.Context, p compute.Principal, id compute.ContainerID) (control.ContainerView, error)
	DeleteContainer(ctx context.Context, p compute.Principal, id compute.ContainerID) error
	SSHEnabled(ctx context.Context, p compute.Principal, id compute.ContainerID) (bool, error)
	SetSSHEnabled(ctx context.Context, p compute.Principal, id compute.ContainerID, on bool) (bool, error)
	ListIngress(ctx context.Context, p compute.Principal, id compute.ContainerID) ([]compute.IngressRule, error)
	AddIngress(
		ctx context.Context, p compute.Principal, id compute.ContainerID, r compute.IngressRequest,
	) (compute.IngressRule, error)
	DeleteIngress(ctx context.Context, p compute.Principal, id compute.ContainerID, port int) error
	MountPaths(ctx context.Context, p compute.Principal, id compute.ContainerID) ([]string, error)
	SetMountPaths(
		ctx context.Context, p compute.Principal, id compute.ContainerID, paths []string,
	) (stored []string, restarted bool, err error)
	ListKeys(ctx context.Context, p compute.Principal) ([]compute.SSHKey, error)
	AddKey(ctx context.Context, p compute.Principal, name, publicKey string) (compute.SSHKey, error)
	DeleteKey(ctx context.Context, p compute.Principal, id int64) error

	Administration
}

// Verifier says what a bearer token proves; CodeUnauthenticated when it proves nothing.
type Verifier interface {
	Verify(ctx context.Context, token string) (auth.Grant, error)
}

// Events is the stream of committed changes: see event.Bus.
type Events interface {
	Subscribe(owner compute.UserID, buffer int) *event.Subscription
}

// Gateways says which gateways may still admit what was allowed before the newest change.
type Gateways interface {
	// Unacknowledged waits until all know of it, or ctx ends, and names those that may not.
	Unacknowledged(ctx context.Context) []string
}

// Sessions reaches into containers: see session.Multiplexer.
type Sessions interface {
	Run(ctx context.Context, r compute.Ref, c session.Client, cmd session.Command, limit int) (session.Result, error)
	Logs(ctx context.Context, r compute.Ref, c session.Client, q session.LogQuery) (io.ReadCloser, error)
}

// Config is what a Server is made of. Service, Verifier, Tokens, Events, Once, Sessions, Audit and Zone are required; zero
// elsewhere takes the default.
type Config struct {
	Service  Service
	Verifier Verifier
	Tokens   Tokens
	Events   Events
	Once     Once
	Sessions Sessions
	Gateways Gateways // nil where there are none but this process's own
	Audit    Audit
	Record   func(compute.AuditRecord) // takes what the store does not record with a change, and never waits; nil drops it
	Gateway  string                    // the name of this process in audit records
	Zone     string
	Log      *slog.Logger

	PublicURL      string   // the API's own origin as browsers see it; empty: the Host header says
	AllowedOrigins []string // of other web pages that may use it with a user's session
	ExternalIP     string   // the gateway's IPv4, for the feed; empty: unknown

	Ready   func(context.Context) error // what /readyz asks; nil: always ready
	Observe func(Observation)           // told of every answer; must not block

	MaxFeeds        int // feed clients; one more is told 503
	MaxFeedsPerUser int // of one account; one more is told 429
	feedTimes       feedTimes

	RequestsPerSecond int // of one account, on average; 0: no bound

	MaxConns       int           // open connections; one more is told 503 and closed
	ReadTimeout    time.Duration // for one request, headers and body
	RequestTimeout time.Duration // for one answer
	WriteTimeout   time.Duration // for sending it
	IdleTimeout    time.Duration // between two requests of a connection
}

// The defaults, and the bounds that are not for configuring: no request of the contract comes near them.
const (
	defaultMaxConns       = 1024
	defaultReadTimeout    = 10 * time.Second
	defaultRequestTimeout = 30 * time.Second
	defaultWriteTimeout   = 30 * time.Second
	defaultIdleTimeout    = 2 * time.Minute

	maxBody   = 64 << 10
	maxHeader = 16 << 10 // the request line too

	// cleanerSleep is how often fasthttp's cleaner of idle workers wakes, and so how long it outlives the server.
	cleanerSleep = 250 * time.Millisecond
)

// Server serves the API. Its methods may be called concurrently.
type Server struct {
	service   Service
	verifier  Verifier
	tokens    Tokens
	events    Events
	saved     Once
	sessions  Sessions
	gateways  Gateways
	audit     Audit
	record    func(compute.AuditRecord)
	gateway   string
	zone      string
	origins   origins
	addresses *addresses
	log       *slog.Logger
	timeout   time.Duration
	ready     func(context.Context) error
	observe   func(Observation)
	tickets   *tickets
	pace      *pace
	feeds     *feeds
	runs      *seats // commands

	writeBuffers sync.Pool // of WebSockets

	app   *fiber.App
	next  fasthttp.RequestHandler // fiber's
	conns *connSet

	// base is the parent of every request's context; it ends when Shutdown's patience does.
	base context.Context
	end  context.CancelCauseFunc

	mu       sync.Mutex
	ended    bool           // guarded by mu: no request begins any more
	inflight sync.WaitGroup // requests being answered; Add under mu
}

// New returns a Server. It does no I/O.
func New(c Config) *Server {
	s := &Server{
		service: c.Service, verifier: c.Verifier, tokens: c.Tokens, events: c.Events, saved: c.Once, sessions: c.Sessions,
		gateways: c.Gateways, zone: c.Zone, log: c.Log, audit: c.Audit, record: c.Record, gateway: c.Gateway,
		origins: newOrigins(c.PublicURL, c.AllowedOrigins, c.Zone), addresses: newAddresses(c.ExternalIP),
		timeout: cmp.Or(c.RequestTimeout, defaultRequestTimeout),
		tickets: newTickets(time.Now), pace: newPace(c.RequestsPerSecond),
		ready: c.Ready, observe: c.Observe, runs: newSeats(maxRuns, maxRunsPerUser, "commands that run"),
	}
	s.feeds = newFeeds(cmp.Or(c.MaxFeeds, defaultMaxFeeds), cmp.Or(c.MaxFeedsPerUser, defaultMaxFeedsPerUser), c.feedTimes)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.record == nil {
		s.record = func(compute.AuditRecord) {}
	}
	s.conns = newConnSet(cmp.Or(c.MaxConns, defaultMaxConns), s.log)
	s.base, s.end = context.WithCancelCause(context.Background())
	s.app = fiber.New(fiber.Config{
		CaseSensitive: true, StrictRouting: true, Immutable: true,
		BodyLimit: maxBody, ReadBufferSize: maxHeader, DisablePreParseMultipartForm: true,
		ReadTimeout: cmp.Or(c.ReadTimeout, defaultReadTimeout), WriteTimeout: cmp.Or(c.WriteTimeout, defaultWriteTimeout),
		IdleTimeout: cmp.Or(c.IdleTimeout, defaultIdleTimeout),
		// The cap is connSet's. This one counts workers, which end a little later than their connections, and answers
		// in text.
		Concurrency:           2 * s.conns.limit,
		DisableStartupMessage: true,
		ErrorHandler:          func(c *fiber.Ctx, err error) error { s.fail(c.Context(), err); return nil },
	})
	s.routes()
	s.next = s.app.Handler()
	srv := s.app.Server()
	srv.Handler = s.serve
	srv.ErrorHandler = s.unreadable
	srv.SecureErrorLogMessage = true // its errors quote less of the request
	srv.CloseOnShutdown = true
	srv.MaxIdleWorkerDuration = cleanerSleep
	return s
}

// routes lists the API, as api/openapi.yaml describes it. What is below /compute is behind a token that has the scope.
func (s *Server) routes() {
	s.app.Use(s.noteRoute)
	if len(s.origins.allowed) > 0 {
		s.app.Use(s.shareWithPages())
	}
	s.app.Get("/healthz", func(c *fiber.Ctx) error { return c.SendString("ok") })
	s.app.Get("/readyz", s.readyz)
	s.app.Get("/openapi.json", serveForm(documentForm))
	s.app.Get("/docs", serveForm(pageForm))

	s.handle(fiber.MethodGet, "/compute/containers", auth.ScopeContainersRead, s.listContainers)
	s.handle(fiber.MethodPost, "/compute/containers", auth.ScopeContainersWrite, s.once(s.createContainer))
	s.handle(fiber.MethodGet, "/compute/containers/:id", auth.ScopeContainersRead, s.getContainer)
	s.handle(fiber.MethodPatch, "/compute/containers/:id", auth.ScopeContainersWrite, s.changeContainer)
	s.handle(fiber.MethodDelete, "/compute/containers/:id", auth.ScopeContainersWrite, s.deleteContainer)
	s.handle(fiber.MethodPost, "/compute/containers/:id/start", auth.ScopeContainersWrite, s.startContainer)
	s.handle(fiber.MethodPost, "/compute/containers/:id/stop", auth.ScopeContainersWrite, s.stopContainer)
	s.handle(fiber.MethodGet, "/compute/containers/:id/ssh", auth.ScopeContainersRead, s.getSSH)
	s.handle(fiber.MethodPut, "/compute/containers/:id/ssh", auth.ScopeContainersWrite, s.putSSH)
	s.handle(fiber.MethodGet, "/compute/containers/:id/ssh-keys", auth.ScopeContainersRead, s.getContainerKeys)
	s.handle(fiber.MethodPut, "/compute/containers/:id/ssh-keys", auth.ScopeContainersWrite, s.putContainerKeys)
	s.handle(fiber.MethodGet, "/compute/containers/:id/ingress", auth.ScopeContainersRead, s.listIngress)
	s.handle(fiber.MethodPost, "/compute/containers/:id/ingress", auth.ScopeContainersWrite, s.once(s.addIngress))
	s.handle(fiber.MethodDelete, "/compute/containers/:id/ingress/:port", auth.ScopeContainersWrite, s.deleteIngress)
	s.handle(fiber.MethodGet, "/compute/containers/:id/mounts", auth.ScopeContainersRead, s.getMounts)
	s.handle(fiber.MethodPut, "/compute/containers/:id/mounts", auth.ScopeContainersWrite, s.putMounts)

	s.handleCredential(fiber.MethodPost, "/compute/containers/:id/exec", auth.ScopeContainersExec, s.execCommand)

	s.handle(fiber.MethodGet, "/compute/instance-types", auth.ScopeContainersRead, s.listInstanceTypes)

	s.handle(fiber.MethodGet, "/compute/ssh-keys", auth.ScopeKeysRead, s.listKeys)
	s.handle(fiber.MethodPost, "/compute/ssh-keys", auth.ScopeKeysWrite, s.once(s.addKey))
	s.handle(fiber.MethodDelete, "/compute/ssh-keys/:id", auth.ScopeKeysWrite, s.deleteKey)

	s.tokenRoutes()
	s.handle(fiber.MethodGet, "/compute/audit", auth.ScopeAuditRead, s.listAuditRecords)
	s.adminRoutes()

	// These authenticate by themselves.
	s.open(fiber.MethodPost, "/compute/session", s.openSession)
	s.open(fiber.MethodDelete, "/compute/session", s.closeSession)
	s.open(fiber.MethodPost, "/compute/ws-ticket", s.issueTicket)
	s.app.Get("/compute/ws", s.openFeed)
	s.handleStream("/compute/containers/:id/events", s.openEvents)
	s.handleStream("/compute/containers/:id/logs", s.openLogs)
}

// answer is what a handler returns: a status and what goes into the body as JSON.
type answer struct {
	status int
	body   any
}

// handle registers f for principals whose token has scope, and for requests that are as the document says.
func (s *Server) handle(method, path string, scope auth.Scope, f handler) {
	s.handleCredential(method, path, scope, func(ctx context.Context, c *fiber.Ctx, cred credential) (answer, error) {
		return f(ctx, c, cred.Principal)
	})
}

// handleCredential is handle for what lasts, and so must look at the credential again.
func (s *Server) handleCredential(
	method, path string, scope auth.Scope, f func(context.Context, *fiber.Ctx, credential) (answer, error),
) {
	described := describe(method, path)
	admit := func(ctx context.Context, c *fiber.Ctx) (credential, error) {
		return s.admit(ctx, c, scope, headerOrCookie)
	}
	if scope == auth.ScopeAdmin {
		admit = s.admitAdmin
	}
	checked := s.audited(described, func(ctx context.Context, c *fiber.Ctx) (answer, error) {
		cred, err := admit(ctx, c)
		if err != nil {
			return answer{}, err
		}
		if err := described.check(c); err != nil {
			return answer{}, err
		}
		return f(ctx, c, cred)
	})
	s.add(method, path, checked)
	if method == fiber.MethodGet { // net/http's clients and probes send HEAD; the body is left out on the way
		s.add(fiber.MethodHead, path, checked)
	}
}

// open registers f, which lets in whom it likes, and then checks what it is asked.
func (s *Server) open(method, path string, f func(context.Context, *fiber.Ctx, operation) (answer, error)) {
	described := describe(method, path)
	s.add(method, path, s.audited(described, func(ctx context.Context, c *fiber.Ctx) (answer, error) {
		return f(ctx, c, described)
	}))
}

func (s *Server) add(method, path string, f func(context.Context, *fiber.Ctx) (answer, error)) {
	s.app.Add(method, path, func(c *fiber.Ctx) error {
		a, err := f(requestOf(c.Context()).ctx, c)
		if err != nil {
			return err
		}
		return writeJSON(c.Context(), a.status, "application/json", a.body)
	})
}

// Serve answers on ln, which it closes, until Shutdown or until ln fails. It returns nil after Shutdown.
func (s *Server) Serve(ln net.Listener) error {
	l, ok := s.conns.listen(ln)
	if !ok {
		return ln.Close()
	}
	return s.app.Listener(l)
}

// errStopping is why requests end that are under way when Shutdown's patience does.
var errStopping = errors.New("the server is stopping")

// Shutdown stops accepting, ends idle connections at once, says goodbye on WebSockets, and waits for these and for the
// requests under way. When ctx ends first, they are cancelled, every connection is closed, and the error is ctx's. When it
// returns, no request and no connection is left.
func (s *Server) Shutdown(ctx context.Context) error {
	s.conns.stop()
	s.feeds.stop()
	err := s.app.ShutdownWithContext(ctx) // which knows nothing of WebSockets
	if werr := s.feeds.wait(ctx); err == nil {
		err = werr
	}
	s.end(errStopping)
	s.conns.abort()
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.inflight.Wait()
	s.feeds.running.Wait()
	s.conns.wait()
	return err
}

// begin counts a request in; false when none may begin any more.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.inflight.Add(1)
	return true
}
