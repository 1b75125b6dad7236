package enginetest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"time"

	"berth/internal/compute"
	"berth/internal/control"
	"berth/internal/store"
)

// Opening opens an engine for an installation, as a control plane does when it starts.
type Opening func(ctx context.Context, installation string, log *slog.Logger) (Engine, error)

// Plane is a control plane in this process: the product's use cases and reconcile loop, on a database in a file and an engine.
type Plane struct {
	Service *control.Service
	Store   *store.Store
	Engine  Engine
	Owner   compute.Principal
	Admin   compute.Principal

	key  int64
	stop func() error
}

const (
	zone    = "compute.localhost"
	testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJpZmZhYmlmZmFiaWZmYWJpZmZhYmlmZmFiaWZmYWJp"
)

// OpenPlane starts a control plane on a database, which it makes where it is not there.
func OpenPlane(ctx context.Context, database string, open Opening, log *slog.Logger) (_ *Plane, err error) {
	p := &Plane{stop: func() error { return nil }}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.Store, err = store.Open(ctx, database, store.Options{Log: log}); err != nil {
		return nil, err
	}
	limits := compute.DefaultLimits()
	limits.DefaultType, limits.ContainersPerUser = "here", 100
	if err := p.principals(ctx, limits); err != nil {
		return nil, err
	}
	installation, err := p.Store.InstallationID(ctx)
	if err != nil {
		return nil, err
	}
	if p.Engine, err = open(ctx, installation, log); err != nil {
		return nil, err
	}
	p.Service = control.New(control.Config{
		Store: stepping{p.Store, log}, Engine: p.Engine, Limits: limits, Zone: zone, Log: log,
		Types: []compute.InstanceType{{Name: "here", Architecture: runtime.GOARCH, MilliCPU: 1000}},
	})
	life, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Service.Run(life) }()
	p.stop = func() error { cancel(); return <-ended }
	return p, nil
}

// principals makes the owner of the containers and the administrator, or finds them.
func (p *Plane) principals(ctx context.Context, limits compute.Limits) error {
	users := control.Users{Store: p.Store, Limits: limits}
	for name, who := range map[string]*compute.Principal{"owner": &p.Owner, "admin": &p.Admin} {
		role := compute.RoleUser
		if who == &p.Admin {
			role = compute.RoleAdmin
		}
		u, err := p.Store.UserByName(ctx, name)
		if compute.CodeOf(err) == compute.CodeNotFound && err != nil {
			u, err = users.Add(ctx, name, role, []string{testKey})
		}
		if err != nil {
			return err
		}
		*who = compute.Principal{User: u.ID, Username: name, Role: role}
	}
	keys, err := p.Store.Keys(ctx, p.Owner.User)
	if err != nil {
		return err
	}
	p.key = keys[0].ID
	return nil
}

// Close ends the control plane in order. Containers go on.
func (p *Plane) Close() error {
	err := p.stop()
	p.stop = func() error { return nil }
	if e, ok := p.Engine.(interface{ Close() error }); ok {
		err = errors.Join(err, e.Close())
	}
	if p.Store != nil {
		err = errors.Join(err, p.Store.Close())
	}
	p.Engine, p.Store = nil, nil
	return err
}

// Create asks for a small container.
func (p *Plane) Create(ctx context.Context) (compute.Ref, error) {
	memory, storage := 128, 1
	v, err := p.Service.CreateContainer(ctx, p.Owner, compute.ContainerRequest{
		Name: "box", SSHKeyIDs: []int64{p.key}, MemoryMB: &memory, StorageGB: &storage, MountPaths: []string{"/root", "/opt/app"},
	})
	return v.Ref(), err
}

// AwaitStatus returns when a container has a status, with words in its message; or, of a deleted one, when its row is gone.
func (p *Plane) AwaitStatus(ctx context.Context, r compute.Ref, want compute.Status, message string) error {
	return p.await(ctx, func() error {
		c, err := p.Store.ReconcileState(ctx, r.ID)
		switch {
		case err != nil:
			return err
		case c.Status != want || !strings.Contains(c.StatusMessage, message):
			return fmt.Errorf("%s is %s %q, not %s %q", r, c.Status, c.StatusMessage, want, message)
		}
		return nil
	})
}

// AwaitGone returns when nothing is known of a container any more.
func (p *Plane) AwaitGone(ctx context.Context, r compute.Ref) error {
	return p.await(ctx, func() error {
		_, err := p.Store.ReconcileState(ctx, r.ID)
		if err == nil {
			return fmt.Errorf("%s is not gone", r)
		}
		if compute.CodeOf(err) == compute.CodeNotFound {
			return nil
		}
		return err
	})
}

// Settle returns when the loop has looked at every container, and has nothing more to do.
func (p *Plane) Settle(ctx context.Context) error {
	return p.await(ctx, func() error {
		if b := p.Service.Backlog(); b.Containers > 0 {
			return fmt.Errorf("the loop is not done: %+v", b)
		}
		return p.Service.Ready()
	})
}

// await asks until there is no error.
func (p *Plane) await(ctx context.Context, ask func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// Sh runs a script in a container, which must succeed.
func (p *Plane) Sh(ctx context.Context, r compute.Ref, script string) (string, error) {
	nc, err := p.Engine.DialAgent(ctx, r)
	if err != nil {
		return "", err
	}
	defer nc.Close()
	out, status, err := Shell(ctx, nc, script)
	if err == nil && status != 0 {
		err = fmt.Errorf("status %d", status)
	}
	if err != nil {
		return out, fmt.Errorf("in %s: %s: %w; it printed %q", r, script, err, out)
	}
	return strings.TrimSuffix(out, "\n"), nil
}

// stepping logs each change of the database that the loop depends on as a step, as engines do theirs.
type stepping struct {
	control.Store
	log *slog.Logger
}

func (s stepping) step(err error, what string) error {
	if err == nil {
		s.log.Debug(stepMessage, "stored", what)
	}
	return err
}

func (s stepping) CreateContainer(ctx context.Context, c compute.Container, limit int) (compute.Container, error) {
	c, err := s.Store.CreateContainer(ctx, c, limit)
	return c, s.step(err, "a container")
}

func (s stepping) SetDesired(
	ctx context.Context, owner compute.UserID, id compute.ContainerID, d compute.Desired,
) (compute.Container, error) {
	c, err := s.Store.SetDesired(ctx, owner, id, d)
	return c, s.step(err, "what is desired")
}

func (s stepping) RecordStorage(ctx context.Context, id compute.ContainerID) error {
	return s.step(s.Store.RecordStorage(ctx, id), "that it has storage")
}

func (s stepping) SetStatus(ctx context.Context, id compute.ContainerID, generation int64, to compute.Status, message string) error {
	return s.step(s.Store.SetStatus(ctx, id, generation, to, message), "its status")
}

func (s stepping) Purge(ctx context.Context, id compute.ContainerID) error {
	return s.step(s.Store.Purge(ctx, id), "that it is gone")
}

// rowsOf lists the containers of a database that nobody has open.
func rowsOf(ctx context.Context, database string) (refs []compute.Ref, err error) {
	s, err := store.Open(ctx, database, store.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	list, err := s.Reconcilable(ctx)
	for _, c := range list {
		refs = append(refs, c.Ref())
	}
	return refs, err
}
