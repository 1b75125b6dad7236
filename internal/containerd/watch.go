package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/types"
	taskapi "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/typeurl/v2"

	"berth/internal/compute"
)

// watcher is one call of Watch: the containers that it has yet to look at. They are few, so nothing overflows.
type watcher struct {
	dirty map[compute.Ref]bool // Engine.mu guards it
	wake  chan struct{}
}

// Watch tells of every container, then of each that ended by itself.
func (e *Engine) Watch(ctx context.Context, f func(compute.Observation), synced func()) error {
	w := &watcher{dirty: make(map[compute.Ref]bool), wake: make(chan struct{}, 1)}
	e.mu.Lock()
	e.watchers[w] = struct{}{}
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.watchers, w)
		e.mu.Unlock()
	}()
	refs, err := e.known(ctx)
	if err != nil {
		return err
	}
	for _, r := range refs {
		o, err := e.observe(ctx, r)
		if err != nil {
			return err
		}
		f(o)
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
		dirty := w.dirty
		w.dirty = make(map[compute.Ref]bool)
		e.mu.Unlock()
		for r := range dirty {
			o, err := e.observe(ctx, r)
			if err != nil {
				return err
			}
			f(o)
		}
	}
}

// notify has every watcher look at a container. e.mu is held.
func (e *Engine) notify(r compute.Ref) {
	for w := range e.watchers {
		w.dirty[r] = true
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// known lists the containers of which there is a trace on disk or a record.
func (e *Engine) known(ctx context.Context) ([]compute.Ref, error) {
	refs, err := refsOf(e.layout)
	if err != nil {
		return nil, err
	}
	list, err := e.client.list(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		if r, err := compute.ParseRef(c.ID); err == nil && !slices.Contains(refs, r) {
			refs = append(refs, r)
		}
	}
	return refs, nil
}

// observe looks at one container.
func (e *Engine) observe(ctx context.Context, r compute.Ref) (compute.Observation, error) {
	o := compute.Observation{Ref: r}
	e.mu.Lock()
	running := false
	if u := e.units[r]; u != nil {
		running, o.Generation, o.Message = u.pid != 0, u.generation, u.message
	}
	e.mu.Unlock()
	switch err := e.volume(r).check(); {
	case errors.Is(err, errForeignVolume):
		o.Phase, o.Message = compute.PhaseFailed, compute.UserMessage(e.explain(ctx, r, "", err))
	case running:
		o.Phase = compute.PhaseStarting
		if nc, err := e.DialAgent(ctx, r); err == nil {
			nc.Close()
			o.Phase = compute.PhaseRunning
		}
	case errors.Is(err, errNoVolume):
		o.Phase = compute.PhaseAbsent
		refs, err := e.known(ctx)
		if err != nil {
			return o, err
		}
		if slices.Contains(refs, r) { // what else there may be of it is of no use
			o.Phase, o.Message = compute.PhaseFailed, compute.UserMessage(e.explain(ctx, r, "", errNoVolume))
		}
	default:
		o.Phase = compute.PhaseStopped
	}
	return o, ctx.Err()
}

// adopt learns which containers run, removes what nothing needs any more, and begins to follow containerd's events.
func (e *Engine) adopt(ctx context.Context) error {
	images, agents := map[string]bool{e.image.id: true}, map[string]bool{e.agent: true}
	list, err := e.client.list(ctx)
	if err != nil {
		return err
	}
	for _, c := range list {
		r, err := compute.ParseRef(c.ID)
		if err != nil {
			e.log.Warn("unknown container in containerd; left alone", "container", c.ID)
			continue
		}
		if c.Labels[labelInstallation] != e.opt.InstallationID {
			e.log.Warn("container of another installation; left alone until its owner deletes it", "container", c.ID)
		}
		p, err := e.process(ctx, r)
		if err != nil {
			return err
		}
		if p == nil || p.Status == taskapi.Status_STOPPED {
			continue
		}
		images[c.Labels[labelImage]], agents[c.Labels[labelAgent]] = true, true
		if p.Status != taskapi.Status_RUNNING || !e.mounted(r) {
			continue // it was being made, or unmade: Apply clears it away
		}
		spec, err := specOf(c)
		if err != nil {
			return err
		}
		from, err := startedFrom(spec)
		if err != nil {
			e.log.Warn("a running container does not say what it was started from", "container", r, "err", err)
		}
		e.mu.Lock()
		e.units[r] = &unit{ref: r, slot: make(chan struct{}, 1), pid: p.Pid, memoryMB: from.MemoryMB, generation: from.Generation}
		e.mu.Unlock()
	}
	if err := errors.Join(e.images.prune(images), e.agents.prune(agents), e.dropUnfinished()); err != nil {
		return err
	}
	live := make(chan struct{})
	e.owned.Go(func() { e.follow(live) })
	select {
	case <-live:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// dropUnfinished removes volumes that a killed run was about to make: no container ever saw one.
func (e *Engine) dropUnfinished() error {
	list, err := os.ReadDir(e.layout.dir("volumes"))
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range list {
		if strings.HasSuffix(d.Name(), unfinished) {
			errs = append(errs, os.Remove(e.layout.dir("volumes", d.Name())))
		}
	}
	return errors.Join(errs...)
}

// follow takes note of processes that end, until Close. Where the stream of events was cut it looks at all of them.
func (e *Engine) follow(live chan struct{}) {
	for first := true; e.ctx.Err() == nil; first = false {
		ctx, cancel := context.WithCancel(e.ctx)
		err := e.stream(ctx, func() {
			if first {
				close(live)
			}
		})
		cancel()
		if e.ctx.Err() == nil {
			e.log.Info("containerd's events were cut off; following them again", "err", err)
		}
	}
}

// markerTopic is of an event that we send ourselves, to know when a subscription has begun to deliver.
const markerTopic = "/berth/marker"

// stream follows one subscription. It calls ready once nothing can be missed any more.
func (e *Engine) stream(ctx context.Context, ready func()) error {
	own := `namespace=="` + e.layout.name + `"` // a subscription is to all of them
	sub, err := e.client.events.Subscribe(ctx, &events.SubscribeRequest{
		Filters: []string{own + `,topic~="^/tasks/(exit|oom)$"`, own + `,topic=="` + markerTopic + `"`},
	})
	if err != nil {
		return err
	}
	ch, errs := make(chan *types.Envelope), make(chan error, 1)
	e.owned.Go(func() {
		for {
			env, err := sub.Recv() // fails when ctx ends
			if err != nil {
				errs <- err
				return
			}
			select {
			case ch <- env:
			case <-ctx.Done():
				return
			}
		}
	})
	marker, err := typeurl.MarshalAnyToProto(&apievents.NamespaceCreate{Name: e.layout.name})
	if err != nil {
		return err
	}
	mark := time.NewTicker(20 * time.Millisecond)
	defer mark.Stop()
	marks := mark.C
	for {
		select {
		case err := <-errs:
			return err
		case <-marks: // until one comes back
			if _, err := e.client.events.Publish(ctx, &events.PublishRequest{Topic: markerTopic, Event: marker}); err != nil {
				return err
			}
		case env := <-ch:
			if env.Topic != markerTopic {
				e.take(env)
				continue
			}
			if marks == nil {
				continue
			}
			marks = nil
			if err := e.resync(ctx); err != nil {
				return err
			}
			ready()
		}
	}
}

// take notes what an event tells.
func (e *Engine) take(env *types.Envelope) {
	v, err := typeurl.UnmarshalAny(env.Event)
	if err != nil {
		e.log.Warn("unreadable event of containerd's", "topic", env.Topic, "err", err)
		return
	}
	switch v := v.(type) {
	case *apievents.TaskExit:
		if r, err := compute.ParseRef(v.ContainerID); err == nil && v.ID == v.ContainerID {
			e.exited(r, v.Pid, fmt.Sprintf("It ended by itself, with status %d.", v.ExitStatus))
		}
	case *apievents.TaskOOM:
		if r, err := compute.ParseRef(v.ContainerID); err == nil {
			e.mu.Lock()
			if u := e.units[r]; u != nil {
				u.oom = true
			}
			e.mu.Unlock()
		}
	}
}

// resync finds the processes that ended while nobody listened.
func (e *Engine) resync(ctx context.Context) error {
	e.mu.Lock()
	pids := make(map[compute.Ref]uint32)
	for r, u := range e.units {
		if u.pid != 0 {
			pids[r] = u.pid
		}
	}
	e.mu.Unlock()
	for r, pid := range pids {
		p, err := e.process(ctx, r)
		if err != nil {
			return err
		}
		if p == nil || p.Status == taskapi.Status_STOPPED || p.Pid != pid {
			e.exited(r, pid, "It ended by itself.")
		}
	}
	return nil
}
