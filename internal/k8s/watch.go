package k8s

import (
	"context"
	"crypto/sha256"
	"errors"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"

	"berth/internal/compute"
)

// unit is what the engine remembers of one container. Losing it costs nothing: the cluster has it.
type unit struct {
	slot  chan struct{} // full while a call changes the container
	wake  chan struct{} // told of changes while one does
	users int           // calls that hold or await the slot; Engine.mu guards this and all below

	busy  bool
	known sight // as it was told of last, or as a call left it

	measured *measurement // the last one, or the one under way; nil: none yet

	spec       *compute.Spec                // what was applied last; nil: nothing yet, or not all of it
	seeded     []string                     // with it: the mount paths that needed no seeding
	bent       map[string][sha256.Size]byte // what the API server made of an object, where it is not as applied
	restraints map[string]*restraint        // by object, of those that somebody else changed
}

// watcher is one call of Watch: what it has yet to tell. A death is not replaced by the life that followed it.
type watcher struct {
	queue map[compute.Ref]compute.Observation // Engine.mu guards it
	wake  chan struct{}
}

var errBusy = errors.New("another call changes the container")

// acquireIdle is acquire for who does not wait: errBusy where another call changes the container.
func (e *Engine) acquireIdle(ctx context.Context, r compute.Ref) (_ *unit, _ context.Context, release func(error), err error) {
	return e.enter(ctx, r, false)
}

// acquire makes the caller the only one that changes the container, and returns a context that also ends with the engine.
func (e *Engine) acquire(ctx context.Context, r compute.Ref) (_ *unit, _ context.Context, release func(error), err error) {
	return e.enter(ctx, r, true)
}

func (e *Engine) enter(ctx context.Context, r compute.Ref, wait bool) (_ *unit, _ context.Context, release func(error), err error) {
	e.mu.Lock()
	if e.ctx.Err() != nil {
		e.mu.Unlock()
		return nil, nil, nil, closing(e.ctx)
	}
	u := e.unit(r)
	if u.users > 0 && !wait {
		e.mu.Unlock()
		return nil, nil, nil, errBusy
	}
	u.users++
	e.calls.Add(1)
	e.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(e.ctx, func() { cancel(closing(e.ctx)) })
	leave := func() {
		e.mu.Lock()
		u.users--
		if u.users == 0 && u.known.phase == compute.PhaseAbsent {
			delete(e.units, r)
		}
		e.mu.Unlock()
		stop()
		cancel(nil)
		e.calls.Done()
	}
	if ctx.Err() != nil { // a select may take either
		defer leave()
		return nil, nil, nil, context.Cause(ctx)
	}
	select {
	case u.slot <- struct{}{}:
	case <-ctx.Done():
		defer leave()
		return nil, nil, nil, context.Cause(ctx)
	}
	e.mu.Lock()
	u.busy = true
	e.mu.Unlock()
	return u, ctx, func(err error) {
		e.mu.Lock()
		u.busy = false
		if err != nil {
			u.known = e.look(r)
		} else {
			e.tell(u, e.look(r)) // what came after the call's last look
		}
		e.mu.Unlock()
		e.reviews.AddAfter(r, settleAfter)
		<-u.slot
		leave()
	}, nil
}

func closing(ctx context.Context) error {
	return &compute.Error{Code: compute.CodeUnavailable, Message: "Berth is shutting down.", Cause: context.Cause(ctx)}
}

// unit returns what is remembered of a container. e.mu is held.
func (e *Engine) unit(r compute.Ref) *unit {
	u := e.units[r]
	if u == nil {
		u = &unit{slot: make(chan struct{}, 1), wake: make(chan struct{}, 1), known: e.look(r)}
		e.units[r] = u
	}
	return u
}

// changed takes note that an object changed in the caches.
func (e *Engine) changed(object any) {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	o, err := meta.Accessor(object)
	if err != nil {
		return
	}
	name := o.GetNamespace()
	if name == "" || name == e.opt.GatewayNamespace { // a load balancer there
		name = o.GetName()
	}
	r, err := compute.ParseRef(name)
	if err != nil {
		return // an object with our labels somewhere else
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	u := e.unit(r)
	e.reviews.AddAfter(r, settleAfter)
	if u.busy {
		select {
		case u.wake <- struct{}{}:
		default:
		}
		return
	}
	e.tell(u, e.look(r))
	if u.users == 0 && u.known.phase == compute.PhaseAbsent {
		delete(e.units, r)
	}
}

// tell has every watcher told of a container that is no longer as it was known, and says whether it was. One that runs again
// after it ended is told of as ended: sessions and what it held in memory are gone. e.mu is held.
func (e *Engine) tell(u *unit, now sight) bool {
	before := u.known
	u.known = now
	if now.phase == before.phase && now.life == before.life && (now.phase != compute.PhaseFailed || now.message == before.message) {
		return false
	}
	o := now.observation()
	if before.life != "" && now.phase == compute.PhaseRunning {
		o.Phase, o.Message = compute.PhaseStopped, now.lastEnding()
	}
	e.post(o)
	return true
}

// post gives every watcher an observation. e.mu is held.
func (e *Engine) post(o compute.Observation) {
	for w := range e.watchers {
		up := o.Phase == compute.PhaseStarting || o.Phase == compute.PhaseRunning
		if was, ok := w.queue[o.Ref]; ok && was.Phase == compute.PhaseStopped && up {
			continue
		}
		w.queue[o.Ref] = o
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// Watch tells of every container, then of each that changed by itself.
func (e *Engine) Watch(ctx context.Context, f func(compute.Observation), synced func()) error {
	w := &watcher{queue: make(map[compute.Ref]compute.Observation), wake: make(chan struct{}, 1)}
	e.mu.Lock()
	e.watchers[w] = struct{}{}
	for _, u := range e.units {
		u.spec = nil // others may have applied something since
	}
	e.stale = true
	e.mu.Unlock()
	e.renew()
	defer func() {
		e.mu.Lock()
		delete(e.watchers, w)
		e.mu.Unlock()
	}()
	list, err := e.namespaces.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, ns := range list {
		r, err := compute.ParseRef(ns.Name)
		if err != nil {
			e.log.Warn("a namespace with our labels has no container's name; left alone", "namespace", ns.Name)
			continue
		}
		f(e.look(r).observation())
	}
	synced()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-e.ctx.Done():
			return context.Cause(e.ctx)
		case <-w.wake:
		}
		e.mu.Lock()
		queue := w.queue
		w.queue = make(map[compute.Ref]compute.Observation)
		e.mu.Unlock()
		for _, o := range queue {
			f(o)
		}
	}
}
