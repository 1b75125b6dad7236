package app

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth/internal/compute"
	"berth/internal/containerd"
	"berth/internal/control"
	"berth/internal/store"
)

var _ control.Engine = (*replica)(nil)

// replica is the engine as one control plane of several reaches it. Only one of them drives the containers. Before each call
// that changes something it asks the database whether that is still so.
type replica struct {
	store   *store.Store
	settled chan struct{} // closed once it is known who drives

	mu     sync.Mutex // guards what follows; never held over I/O
	engine engine     // that this process has; nil where only who drives has one
	drives bool
	known  bool
}

func newReplica(s *store.Store) *replica { return &replica{store: s, settled: make(chan struct{})} }

// set says which engine this process has, if any, and whether it drives it.
func (r *replica) set(e engine, drives bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.engine, r.drives = e, drives
	if !r.known {
		r.known = true
		close(r.settled)
	}
}

// here returns the engine that this process has, or nil.
func (r *replica) here() engine {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.engine
}

// driving returns the engine that this process drives, or nil.
func (r *replica) driving() engine {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.drives {
		return nil
	}
	return r.engine
}

func elsewhereNow() error {
	return compute.Errorf(compute.CodeUnavailable, "Another control plane drives the containers; ask that one, or try again in a moment.")
}

// driven returns the engine, to change something.
func (r *replica) driven(ctx context.Context) (engine, error) {
	e := r.driving()
	if e == nil {
		return nil, elsewhereNow()
	}
	return e, r.store.CheckTerm(ctx)
}

// Admit refuses what can be told to be impossible here. Where another drives the containers, it finds the rest out.
func (r *replica) Admit(ctx context.Context, s compute.Spec) error {
	if e := r.here(); e != nil {
		return e.Admit(ctx, s)
	}
	return nil
}

// AdmitChange is as Admit.
func (r *replica) AdmitChange(ctx context.Context, was, s compute.Spec) error {
	if e := r.here(); e != nil {
		return e.AdmitChange(ctx, was, s)
	}
	return nil
}

// Provision makes storage.
func (r *replica) Provision(ctx context.Context, s compute.Spec) error {
	e, err := r.driven(ctx)
	if err != nil {
		return err
	}
	return e.Provision(ctx, s)
}

// Apply drives a container to what is desired.
func (r *replica) Apply(ctx context.Context, s compute.Spec) error {
	e, err := r.driven(ctx)
	if err != nil {
		return err
	}
	return e.Apply(ctx, s)
}

// Remove destroys a container that its owner deleted.
func (r *replica) Remove(ctx context.Context, ref compute.Ref) error {
	e, err := r.driven(ctx)
	if err != nil {
		return err
	}
	return e.Remove(ctx, ref)
}

// Stored lists what the engine holds.
func (r *replica) Stored(ctx context.Context) ([]compute.Stored, error) {
	e := r.here()
	if e == nil {
		return nil, elsewhereNow()
	}
	return e.Stored(ctx)
}

// Discard destroys what an administrator says.
func (r *replica) Discard(ctx context.Context, ref compute.Ref, unknown func(context.Context) error) error {
	e, err := r.driven(ctx)
	if err != nil {
		return err
	}
	return e.Discard(ctx, ref, unknown)
}

// Watch follows the engine.
func (r *replica) Watch(ctx context.Context, f func(compute.Observation), synced func()) error {
	e := r.here()
	if e == nil {
		return elsewhereNow()
	}
	return e.Watch(ctx, f, synced)
}

// Usage measures a container, where this process can.
func (r *replica) Usage(ctx context.Context, ref compute.Ref) (compute.Usage, error) {
	e := r.here()
	if e == nil {
		return compute.Usage{}, compute.Errorf(compute.CodeNotRunning, "Only the control plane that drives the containers measures them.")
	}
	return e.Usage(ctx, ref)
}

// share makes this process a candidate for driving the containers that are in one place. While it has the lease it calls drive;
// lost is called when another has it.
func (b *berth) share(place string, rest func(), drive func(context.Context) error, lost func() error) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	log := b.log.With("part", "lease")
	candidate := control.Candidate{
		Lease: b.store, Holder: fmt.Sprintf("%s (pid %d)", host, os.Getpid()), Place: place, Log: log,
	}
	var told string // each reason to wait is logged once
	candidate.Waits = func(err error) {
		if text := compute.UserMessage(err); text != told {
			told = text
			log.Info("stands by", "reason", text)
		}
		rest()
		if compute.CodeOf(err) == compute.CodeConflict { // another has the lease, and needs the engine
			if err := lost(); err != nil {
				log.Warn("close the engine", "err", err)
			}
		}
	}
	b.watchEngine(b.replica.here)
	b.openControl(b.replica)
	b.inner = append(b.inner, func(ctx context.Context) error {
		return errors.Join(candidate.Lead(ctx, drive), lost())
	}, func(ctx context.Context) error { return b.control.Follow(ctx, b.changes) })
	return nil
}

// machine is the engine of this machine, of which one process at a time has it. One goroutine leads, and all of it is that one's.
type machine struct {
	b       *berth
	options containerd.Options
	held    *containerd.Engine // open, and only driven in a term
}

// shareMachine makes this process a candidate for driving the containers of the engine directory.
func (b *berth) shareMachine(o containerd.Options) error {
	place, err := openPlace(o.DataDir)
	if err != nil {
		return fmt.Errorf("name the engine directory: %w", err)
	}
	b.replica = newReplica(b.store)
	m := &machine{b: b, options: o}
	return b.share(place, m.rest, m.drive, m.giveUp)
}

func (m *machine) rest() { m.b.replica.set(nil, false) }

// drive opens the engine and reconciles until ctx ends. An engine whose term is over for want of the database stays open, since
// containers need it for more than being driven, until another has the lease.
func (m *machine) drive(ctx context.Context) (err error) {
	if m.held == nil {
		m.held, err = takeEngine(ctx, m.options)
	}
	switch {
	case errors.Is(err, containerd.ErrInUse): // for another purpose, such as a `berth down`
		m.b.log.Warn("cannot have the engine", "err", err)
		m.rest()
		return nil
	case ctx.Err() != nil:
	case err != nil:
		return err
	default:
		m.b.replica.set(m.held, true)
		err = m.b.control.Run(ctx)
		m.rest()
	}
	if context.Cause(ctx) == control.ErrTermOver {
		return err
	}
	return errors.Join(err, m.giveUp()) // before the lease is released
}

// giveUp closes the engine, if it is open.
func (m *machine) giveUp() error {
	if m.held == nil {
		return nil
	}
	err := m.held.Close()
	m.held = nil
	return err
}

// engineGrace is how long whoever lost the lease has to give up the engine.
const engineGrace = 5 * time.Second

// takeEngine opens the engine. Who had the lease before has it no more: if it holds the engine all the same, it is stopped or
// hangs, and is killed before it can go on.
func takeEngine(ctx context.Context, o containerd.Options) (*containerd.Engine, error) {
	tick := time.NewTicker(engineGrace / 20)
	defer tick.Stop()
	for deadline := time.Now().Add(engineGrace); ; {
		engine, err := containerd.Open(ctx, o)
		if !errors.Is(err, containerd.ErrInUse) {
			return engine, err
		}
		if time.Now().After(deadline) {
			o.Log.Warn("the control plane that had the lease still holds the engine; ending it")
			if err := containerd.EndHolder(ctx, o.DataDir); err != nil {
				return nil, err
			}
			return containerd.Open(ctx, o)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// placeFile names an engine directory, for whoever shares it.
const placeFile = "engine.id"

// openPlace returns the name of an engine directory, and gives it one where it has none.
func openPlace(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, placeFile)
	for {
		text, err := os.ReadFile(path)
		if name := strings.TrimSpace(string(text)); err == nil && name != "" {
			return name, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err == nil {
			return "", fmt.Errorf("%s is empty; the lease in the database has its name as engine", path)
		}
		made, err := os.MkdirTemp(dir, ".place-")
		if err != nil {
			return "", err
		}
		from := filepath.Join(made, placeFile)
		err = writeNew(from, func(w io.Writer) error {
			_, err := io.WriteString(w, rand.Text()+"\n")
			return err
		})
		if err == nil {
			err = renameNew(from, path)
		}
		if err = errors.Join(err, os.RemoveAll(made)); err != nil && !errors.Is(err, fs.ErrExist) { // another was first
			return "", err
		}
	}
}
