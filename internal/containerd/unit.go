package containerd

import (
	"context"

	"berth/internal/compute"
)

// unit is what the engine remembers of one container. Losing it costs nothing: the next run reads it from containerd.
type unit struct {
	ref   compute.Ref
	slot  chan struct{} // full while a call changes the container
	users int           // calls that hold or await the slot; Engine.mu guards this and all below

	busy       bool
	end        func() // of the call's context
	pid        uint32 // of its first process, which is meant to run; 0: none is
	memoryMB   int    // what it has of the memory for all
	generation int64
	died       bool   // it ended by itself during a call
	oom        bool   // the kernel ended something of it for want of memory
	message    string // why it ended
}

// acquire makes the caller the only one that changes the container, and returns a context that also ends with the engine.
// Control sees to the first too; here it orders the observations behind the calls.
func (e *Engine) acquire(ctx context.Context, r compute.Ref) (*unit, context.Context, error) {
	e.mu.Lock()
	if e.ctx.Err() != nil {
		e.mu.Unlock()
		return nil, nil, closing(e.ctx)
	}
	u := e.units[r]
	if u == nil {
		u = &unit{ref: r, slot: make(chan struct{}, 1)}
		e.units[r] = u
	}
	u.users++
	e.calls.Add(1)
	e.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(e.ctx, func() { cancel(closing(e.ctx)) })
	end := func() { stop(); cancel(nil) }
	select {
	case u.slot <- struct{}{}:
	case <-ctx.Done():
		e.mu.Lock()
		e.leave(u)
		e.mu.Unlock()
		err := context.Cause(ctx)
		end()
		return nil, nil, err
	}
	e.mu.Lock()
	u.busy, u.end = true, end
	e.mu.Unlock()
	if ctx.Err() != nil {
		err := context.Cause(ctx)
		e.release(u)
		return nil, nil, err
	}
	return u, ctx, nil
}

func closing(ctx context.Context) error {
	return &compute.Error{Code: compute.CodeUnavailable, Message: "Berth is shutting down.", Cause: context.Cause(ctx)}
}

// release ends a call and tells of a death that came after its last look.
func (e *Engine) release(u *unit) {
	e.mu.Lock()
	end := u.end
	u.busy, u.end = false, nil
	if u.died {
		u.died = false
		e.notify(u.ref)
	}
	e.leave(u)
	e.mu.Unlock()
	end()
	<-u.slot
}

// leave forgets a unit that nobody needs. e.mu is held.
func (e *Engine) leave(u *unit) {
	u.users--
	e.calls.Done()
	if u.users == 0 && u.pid == 0 && u.message == "" {
		delete(e.units, u.ref)
	}
}

// expect says that the container's first process is pid and should run on.
func (e *Engine) expect(u *unit, pid uint32, s compute.Spec) {
	e.mu.Lock()
	defer e.mu.Unlock()
	u.pid, u.memoryMB, u.generation = pid, s.MemoryMB, s.Generation
	u.died, u.oom, u.message = false, false, ""
}

// expectNone says that the container's processes may end: they are told to.
func (e *Engine) expectNone(u *unit) {
	e.mu.Lock()
	defer e.mu.Unlock()
	u.pid, u.memoryMB, u.generation = 0, 0, 0
	u.died, u.oom, u.message = false, false, ""
}

// reserve takes the container's share of the memory for all, or says that there is none.
func (e *Engine) reserve(u *unit, s compute.Spec) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.roomInMemory(s); err != nil {
		return err
	}
	u.memoryMB = s.MemoryMB
	return nil
}

func (e *Engine) running(r compute.Ref) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	u := e.units[r]
	return u != nil && u.pid != 0
}

// exited takes note of a first process that ended, and tells of it when nobody asked for that.
func (e *Engine) exited(r compute.Ref, pid uint32, message string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	u := e.units[r]
	if u == nil || u.pid == 0 || u.pid != pid {
		return
	}
	u.pid, u.memoryMB, u.message = 0, 0, message
	if u.oom {
		u.message = "It ran out of memory."
	}
	if u.busy {
		u.died = true
	} else {
		e.notify(r)
	}
}
