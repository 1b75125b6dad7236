// Package app is Berth's composition root: it alone knows every part, makes them in order, lets them serve, and ends them in
// the reverse order. What a part does is in its own package; nothing is decided here but who gets what.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"berth/internal/audit"
	"berth/internal/auth"
	"berth/internal/compute"
	"berth/internal/config"
	"berth/internal/containerd"
	"berth/internal/control"
	"berth/internal/event"
	"berth/internal/httpapi"
	"berth/internal/k8s"
	"berth/internal/link"
	"berth/internal/lobby"
	"berth/internal/monitor"
	"berth/internal/route"
	"berth/internal/session"
	"berth/internal/sshproxy"
	"berth/internal/store"
	"berth/internal/version"
)

var (
	_ engine             = (*containerd.Engine)(nil)
	_ engine             = (*k8s.Engine)(nil)
	_ control.Store      = (*store.Store)(nil)
	_ sshproxy.Directory = (*store.Store)(nil)
	_ sshproxy.Directory = (*link.Replica)(nil)
	_ sshproxy.Changes   = (*link.Replica)(nil).Changes
	_ link.Source        = (*store.Store)(nil)
	_ link.Trail         = (*store.Store)(nil)
	_ httpapi.Service    = (*control.Service)(nil)
	_ httpapi.Tokens     = (*auth.Authority)(nil)
	_ auth.Ledger        = (*store.Store)(nil)
	_ auth.Directory     = (*store.Store)(nil)
	_ auth.Keys          = (*store.Store)(nil)
	_ audit.Store        = (*store.Store)(nil)
	_ audit.Sink         = (*store.Store)(nil)
	_ audit.Sink         = (*link.Spool)(nil)
	_ httpapi.Audit      = (*store.Store)(nil)
	_ lobby.Service      = (*control.Service)(nil)
)

// edge is a server that clients reach.
type edge struct {
	serve    func() error
	shutdown func(context.Context) error
}

// berth is the parts of an installation that live in one process.
type berth struct {
	cfg   config.Config
	log   *slog.Logger
	in    invoker
	files clientFiles
	zone  route.Zone

	lock      *dataLock
	store     *store.Store
	bus       atomic.Pointer[event.Bus]   // the store, which is open before them, hints at both
	link      atomic.Pointer[link.Server] // nil where no gateway may come
	authority *auth.Authority
	verifiers *auth.Verifiers
	operator  Operator
	audit     auditing
	replica   *replica // nil where this is the only control plane
	dialer    session.Dialer
	cluster   *k8s.Engine // nil on a machine
	control   *control.Service
	sessions  *session.Multiplexer
	hostKeys  []ssh.Signer
	linkAddr  string // where gateways of other machines come; empty where none may
	metrics   *monitor.Metrics
	ready     *monitor.Readiness
	adminAddr net.Addr // nil where there is none

	edges     []edge                        // what clients reach
	links     []edge                        // what gateways reach: they end after what may revoke something
	lastEdges []edge                        // what must still answer while those end
	tasks     []func(context.Context) error // what ends together with them
	inner     []func(context.Context) error // what they need: it ends after them
	closers   []func() error                // run in reverse
}

func (b *berth) onClose(f func() error) { b.closers = append(b.closers, f) }

// close undoes what open did, in reverse.
func (b *berth) close() error {
	var errs []error
	for i := len(b.closers) - 1; i >= 0; i-- {
		errs = append(errs, b.closers[i]())
	}
	b.closers = nil
	return errors.Join(errs...)
}

// openState opens what the operator's commands need: the lock, the database and the signing key.
func openState(ctx context.Context, c config.Config, log *slog.Logger) (_ *berth, err error) {
	b := &berth{cfg: c, log: log, audit: newAuditing()}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.in, err = findInvoker(); err != nil {
		return nil, err
	}
	b.files = clientFiles{dir: c.DataDir, in: b.in}
	if b.zone, err = route.ParseZone(c.Zone); err != nil {
		return nil, err
	}
	if b.lock, err = lockData(c.DataDir); err != nil {
		return nil, err
	}
	b.onClose(b.lock.release)
	if err := b.openStore(ctx); err != nil {
		return nil, err
	}
	b.onClose(b.store.Close)
	key, err := auth.OpenKey(b.files.path(tokenKey))
	if err != nil {
		return nil, err
	}
	b.authority = auth.New(key, c.Zone, b.store)
	b.operator = audited{
		Operator: local{
			users: control.Users{Store: b.store, Limits: c.Limits()},
			store: b.store, tokens: b.authority, gateways: gateways{b}, close: b.close,
		},
		store: b.store, gateway: b.audit.gateway, invoker: b.in.name,
	}
	return b, nil
}

// committed wakes whoever follows the changes.
func (b *berth) committed() {
	if bus := b.bus.Load(); bus != nil {
		bus.Hint()
	}
	if server := b.link.Load(); server != nil {
		server.Hint()
	}
}

// OpenOperator returns the operator's use cases of the data directory: through the berth that runs there, or on the database
// itself where none does.
func OpenOperator(ctx context.Context, c config.Config) (Operator, error) {
	if c.Database == "" && !exists(filepath.Join(c.DataDir, databaseFile)) && !exists(filepath.Join(c.DataDir, elsewhereFile)) {
		return nil, fmt.Errorf("there is no berth in %s yet; start one with `berth up`, or give its --data-dir", c.DataDir)
	}
	b, err := openState(ctx, c, slog.New(slog.DiscardHandler))
	var busy busyError
	if errors.As(err, &busy) {
		return dialOperator(c.DataDir)
	}
	if err != nil {
		return nil, err
	}
	return b.operator, nil
}

// openControl makes the use cases, on an engine.
func (b *berth) openControl(engine control.Engine) {
	b.control = control.New(control.Config{
		Store: b.store, Engine: engine, Limits: b.cfg.Limits(), Types: instanceTypes(b.cfg),
		Zone: b.cfg.Zone, Log: b.log.With("part", "control"), Observer: b.observer(),
	})
	b.watchControl(b.control)
}

// settled returns once it is known whether this process drives the containers.
func (b *berth) settled(ctx context.Context) {
	if b.replica == nil {
		return
	}
	select {
	case <-b.replica.settled:
	case <-ctx.Done():
	}
}

// openEvents begins to follow the changes in src.
func (b *berth) openEvents(ctx context.Context, src event.Source) error {
	bus, err := event.Open(ctx, src, b.log.With("part", "event"))
	if err != nil {
		return err
	}
	b.bus.Store(bus)
	b.inner = append(b.inner, bus.Run)
	return nil
}

// openAPI makes the REST server, on l.
func (b *berth) openAPI(l net.Listener) {
	c := httpapi.Config{
		Service: b.control, Verifier: b.verifiers, Tokens: b.authority, Events: b.bus.Load(), Once: b.store,
		Audit: b.store, Record: b.audit.queue.Record, Gateway: b.audit.gateway,
		Sessions: b.sessions, Zone: b.cfg.Zone, Log: b.log.With("part", "http"),
		PublicURL: b.cfg.PublicURL, AllowedOrigins: b.cfg.AllowedOrigins, ExternalIP: b.cfg.GatewayIP(),
		RequestsPerSecond: b.cfg.RequestsPerSecond, MaxFeeds: b.feedClients(), MaxFeedsPerUser: b.cfg.FeedsPerUser,
		Ready: b.ready.Check, Observe: b.observeAnswer,
	}
	if b.link.Load() != nil {
		c.Gateways = gateways{b}
	}
	api := httpapi.New(c)
	b.watchFeed(api)
	b.followAddresses(api)
	b.edges = append(b.edges, edge{func() error { return api.Serve(l) }, api.Shutdown})
}

// feedClients is how many clients of the feed there may be: as many as the settings say, but for the files that this process may
// open. What else it has open, connections to REST and SSH above all, has a quarter of them.
func (b *berth) feedClients() int {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return b.cfg.FeedClients
	}
	most := int(min(files.Cur/4*3, math.MaxInt32))
	if most < b.cfg.FeedClients {
		b.log.Warn("the limit of open files leaves room for fewer clients of the feed", "feed_clients", most, "open_files", files.Cur)
		return most
	}
	return b.cfg.FeedClients
}

// openOperator makes the server of the operator's commands, on l.
func (b *berth) openOperator(l net.Listener) {
	srv := &http.Server{Handler: operatorHandler(b.operator, b.log), ReadHeaderTimeout: 5 * time.Second}
	serve := func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}
	b.edges = append(b.edges, edge{serve, srv.Shutdown})
	b.onClose(func() error { return removeQuietly(b.files.path(operatorSocket)) })
}

// openSessions makes the pool of connections to the agents, which every way into a container shares.
func (b *berth) openSessions(dial session.Dialer) {
	b.sessions = session.New(session.Options{
		Dialer: meteredDialer{dial, b.metrics.Dial}, Software: "berth " + version.String(), Log: b.log.With("part", "session"),
	})
	b.watchSessions(b.sessions)
	b.onClose(func() error { // after those who use it
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return b.sessions.Close(ctx)
	})
}

// openGateway makes the SSH gateway, on l.
func (b *berth) openGateway(
	l net.Listener, dir sshproxy.Directory, changes sshproxy.Changes, containers lobby.Service,
) (err error) {
	if b.hostKeys, err = sshproxy.OpenHostKeys(b.cfg.HostKeyDir()); err != nil {
		return err
	}
	lob := lobby.New(b.zone, containers, b.log.With("part", "lobby"))
	gateway, err := sshproxy.New(sshproxy.Options{
		Zone: b.zone, HostKeys: b.hostKeys, Directory: dir, Sessions: b.sessions, Changes: changes,
		Record: b.audit.queue.Record, Balancers: config.Networks(b.cfg.ProxyProtocolFrom),
		Lobby: func(ctx context.Context, s sshproxy.LobbySession) int { return lob.Run(ctx, lobby.Session(s)) },
		Log:   b.log.With("part", "ssh"),
	})
	if err != nil {
		return err
	}
	b.watchGateway(gateway)
	b.edges = append(b.edges, edge{func() error { return gateway.Serve(l) }, gateway.Shutdown})
	b.inner = append(b.inner, keepHeap)
	return nil
}

// changes subscribes to every event.
func (b *berth) changes() (<-chan compute.Event, func()) {
	s := b.bus.Load().Subscribe(0, 1024)
	return s.C, s.Close
}

// listenTCP opens a socket that is closed at the latest with everything else.
func (b *berth) listenTCP(setting, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, cannotListen(setting, addr, err)
	}
	b.onClose(func() error { return closed(l.Close()) })
	return l, nil
}

func cannotListen(setting, addr string, err error) error {
	return fmt.Errorf("cannot serve at %s: %w; choose another address with --%s", addr, errors.Unwrap(err), setting)
}

// closed passes over that something was closed already.
func closed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func removeQuietly(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
