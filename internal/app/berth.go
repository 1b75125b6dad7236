// Package app is Berth's composition root: it alone knows every part, makes them in order, lets them serve, and ends them in
// the reverse order. What a part does is in its own package; nothing is decided here but who gets what.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"berth/internal/auth"
	"berth/internal/compute"
	"berth/internal/config"
	"berth/internal/containerd"
	"berth/internal/control"
	"berth/internal/event"
	"berth/internal/httpapi"
	"berth/internal/lobby"
	"berth/internal/route"
	"berth/internal/session"
	"berth/internal/sshproxy"
	"berth/internal/store"
	"berth/internal/version"
)

var (
	_ control.Engine     = (*containerd.Engine)(nil)
	_ control.Store      = (*store.Store)(nil)
	_ session.Dialer     = (*containerd.Engine)(nil)
	_ sshproxy.Directory = (*store.Store)(nil)
	_ httpapi.Service    = (*control.Service)(nil)
	_ lobby.Service      = (*control.Service)(nil)
)

// shutdownTimeout bounds a graceful stop: then what still serves is cut off.
const shutdownTimeout = 15 * time.Second

// berth is every part of an installation in one process.
type berth struct {
	cfg   config.Config
	log   *slog.Logger
	in    invoker
	files clientFiles
	zone  route.Zone

	lock      *dataLock
	store     *store.Store
	bus       atomic.Pointer[event.Bus] // the store, which is open before it, hints at it
	authority *auth.Authority
	operator  Operator
	engine    *containerd.Engine
	control   *control.Service
	sessions  *session.Multiplexer
	gateway   *sshproxy.Gateway
	api       *httpapi.Server
	hostKeys  []ssh.Signer

	closers []func() error // run in reverse
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
	b := &berth{cfg: c, log: log}
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
	b.store, err = store.Open(ctx, b.files.path("berth.db"), store.Options{OnCommit: b.committed, Log: log})
	if err != nil {
		return nil, err
	}
	b.onClose(b.store.Close)
	key, err := auth.OpenKey(b.files.path("token.key"))
	if err != nil {
		return nil, err
	}
	b.authority = auth.New(key, c.Zone, b.store)
	b.operator = local{
		users: control.Users{Store: b.store, Limits: c.Limits()},
		issue: func(u compute.User, ttl time.Duration) (string, error) { return b.authority.Issue(u, ttl) },
		close: b.close,
	}
	return b, nil
}

// committed wakes the bus, once there is one.
func (b *berth) committed() {
	if bus := b.bus.Load(); bus != nil {
		bus.Hint()
	}
}

// OpenOperator returns the operator's use cases of the data directory: through the berth that runs there, or on the database
// itself where none does.
func OpenOperator(ctx context.Context, c config.Config) (Operator, error) {
	if !exists(filepath.Join(c.DataDir, "berth.db")) {
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

// openParts makes everything else. The engine's progress goes to p.
func (b *berth) openParts(ctx context.Context, p *progress) (err error) {
	installation, err := b.store.InstallationID(ctx)
	if err != nil {
		return err
	}
	if b.hostKeys, err = sshproxy.OpenHostKeys(b.cfg.DataDir); err != nil {
		return err
	}
	options, err := engineOptions(b.cfg)
	if err != nil {
		return err
	}
	options.InstallationID, options.Log, options.Progress = installation, b.log.With("part", "containerd"), p.step
	if b.engine, err = containerd.Open(ctx, options); err != nil {
		return err
	}
	b.onClose(b.engine.Close)

	bus, err := event.Open(ctx, b.store, b.log.With("part", "event"))
	if err != nil {
		return err
	}
	b.bus.Store(bus)
	b.control = control.New(control.Config{
		Store: b.store, Engine: b.engine, Limits: b.cfg.Limits(), Types: hostTypes(), Log: b.log.With("part", "control"),
	})
	b.sessions = session.New(session.Options{
		Dialer: b.engine, Software: "berth " + version.String(), Log: b.log.With("part", "session"),
	})
	lob := lobby.New(b.zone, b.control, b.log.With("part", "lobby"))
	b.gateway, err = sshproxy.New(sshproxy.Options{
		Zone: b.zone, HostKeys: b.hostKeys, Directory: b.store, Sessions: b.sessions, Changes: b.changes,
		Lobby: func(ctx context.Context, s sshproxy.LobbySession) int { return lob.Run(ctx, lobby.Session(s)) },
		Log:   b.log.With("part", "ssh"),
	})
	if err != nil {
		return err
	}
	b.api = httpapi.New(httpapi.Config{
		Service: b.control, Verifier: b.authority, Zone: b.cfg.Zone, Log: b.log.With("part", "http"),
	})
	return nil
}

// changes subscribes to every event.
func (b *berth) changes() (<-chan compute.Event, func()) {
	s := b.bus.Load().Subscribe(0, 1024)
	return s.C, s.Close
}

// engineOptions are the embedded engine's, from the settings.
func engineOptions(c config.Config) (containerd.Options, error) {
	o := containerd.Options{
		DataDir: c.DataDir, ContainerdPath: c.Containerd, AcceptEnv: c.AcceptEnv,
		ImageArchive: c.Image, AgentPath: c.Agent,
		ReserveBytes: int64(c.ReserveGB) << 30, MemoryBytes: int64(c.MemoryMB) << 20,
	}
	if o.ImageArchive == "" {
		if o.ImageArchive = config.Beside("../build/base-image.tar", "base-image.tar"); o.ImageArchive == "" {
			return o, errors.New("the base image is not there; `make image` makes it, or name one with --image")
		}
	}
	if o.AgentPath == "" {
		name := "berth-agent-linux-" + architecture
		if o.AgentPath = config.Beside(name); o.AgentPath == "" {
			return o, fmt.Errorf("%s is not beside this program; `make build` makes it, or name one with --agent", name)
		}
	}
	var err error
	if c.Subnet != "" {
		if o.Subnet, err = netip.ParsePrefix(c.Subnet); err != nil {
			return o, err
		}
	}
	if c.DNSUpstream != "" {
		upstream, err := netip.ParseAddrPort(c.DNSUpstream)
		if err != nil {
			return o, err
		}
		o.Upstreams = []netip.AddrPort{upstream}
	}
	return o, nil
}

// hostTypes is the table of instance types with every type on this machine's architecture: there is no other machine.
func hostTypes() []compute.InstanceType {
	types := compute.DefaultInstanceTypes()
	for i := range types {
		types[i].Architecture = architecture
	}
	return types
}

// serve lets all parts work on the given listeners until ctx ends or one of them fails, then ends them in order: first what
// lets clients in, then the loop.
func (b *berth) serve(ctx context.Context, l listeners, ready func(context.Context) error) error {
	operators := &http.Server{Handler: operatorHandler(b.operator, b.log), ReadHeaderTimeout: 5 * time.Second}
	g, ctx := errgroup.WithContext(ctx)
	inner, stop := context.WithCancel(context.WithoutCancel(ctx)) // outlives the clients
	defer stop()
	g.Go(func() error { return b.bus.Load().Run(inner) })
	g.Go(func() error { return b.control.Run(inner) })
	g.Go(func() error { return b.gateway.Serve(l.ssh) })
	g.Go(func() error { return b.api.Serve(l.http) })
	g.Go(func() error {
		if err := operators.Serve(l.operator); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error { return b.renewToken(ctx) })
	g.Go(func() error { return ready(ctx) })
	g.Go(func() error {
		<-ctx.Done()
		b.log.Info("stopping")
		deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		err := errors.Join(b.api.Shutdown(deadline), b.gateway.Shutdown(deadline), operators.Shutdown(deadline),
			b.sessions.Close(deadline))
		stop()
		return err
	})
	return g.Wait()
}

// renewToken writes the token file, and writes it again long before the token expires.
func (b *berth) renewToken(ctx context.Context) error {
	for {
		token, err := b.operator.Token(ctx, "", b.cfg.TokenTTL)
		if err == nil {
			err = b.files.writeToken(token)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("write the token file: %w", err)
		}
		t := time.NewTimer(b.cfg.TokenTTL / 2)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// listeners are the sockets that a berth serves.
type listeners struct{ http, ssh, operator net.Listener }

func (l listeners) close() {
	for _, x := range []net.Listener{l.http, l.ssh, l.operator} {
		if x != nil {
			_ = x.Close() // closed already where its server ran
		}
	}
}

// listen opens them all, so that a port that is taken is known before anything slow begins.
func listen(c config.Config) (l listeners, err error) {
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.http, err = listenTCP("http-addr", c.HTTPAddr); err != nil {
		return l, err
	}
	if l.ssh, err = listenTCP("ssh-addr", c.SSHAddr); err != nil {
		return l, err
	}
	l.operator, err = listenOperator(c.DataDir)
	return l, err
}

func listenTCP(setting, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot serve at %s: %w; choose another address with --%s", addr, errors.Unwrap(err), setting)
	}
	return l, nil
}

// Explain writes an error for the person at the terminal, who is the operator: causes too.
func Explain(err error) string { return err.Error() }

func removeQuietly(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
