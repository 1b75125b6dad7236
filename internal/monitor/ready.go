package monitor

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"berth/internal/compute"
)

const (
	// fresh is how long an answer stands: whoever asks oftener, and anybody may, costs nothing.
	fresh = time.Second
	// probeTimeout bounds one look at everything.
	probeTimeout = 2 * time.Second
)

// errStopping is why a Berth is not ready that was told to stop.
var errStopping = compute.Errorf(compute.CodeUnavailable, "It is stopping.")

// Readiness says whether this process can do its work now. Its methods may be called concurrently; Add comes before the first
// Check.
type Readiness struct {
	log    *slog.Logger
	probes []probe
	now    func() time.Time
	turn   chan struct{} // holds one while somebody looks

	mu       sync.Mutex // guards what follows; no I/O under it
	stopping bool
	at       time.Time // of err
	err      error
}

type probe struct {
	what string
	try  func(context.Context) error
}

// NewReadiness returns a Readiness without probes: it is ready until Stop. Changes go to log.
func NewReadiness(log *slog.Logger) *Readiness {
	return &Readiness{log: log, now: time.Now, turn: make(chan struct{}, 1)}
}

// Add has Check try something. What is what does not work where try fails, in the words of a sentence: "the database does not
// answer". Try's own error goes to the log.
func (r *Readiness) Add(what string, try func(context.Context) error) {
	r.probes = append(r.probes, probe{what, try})
}

// Stop makes Check say that it is stopping, from now on.
func (r *Readiness) Stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopping = true
}

// Check returns nil when everything works, and else a *compute.Error that anybody may read.
func (r *Readiness) Check(ctx context.Context) error {
	if err, known := r.known(); known {
		return err
	}
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err, known := r.known(); known { // somebody else has looked meanwhile
		return err
	}
	// Not this client's patience: others are told the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
	defer cancel()
	return r.note(r.try(ctx))
}

// known returns what the answer is now, if that is known.
func (r *Readiness) known() (err error, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopping {
		return errStopping, true
	}
	return r.err, !r.at.IsZero() && r.now().Sub(r.at) < fresh
}

func (r *Readiness) try(ctx context.Context) error {
	for _, p := range r.probes {
		if err := p.try(ctx); err != nil {
			return &compute.Error{Code: compute.CodeUnavailable, Message: "It is not ready: " + p.what + ".", Cause: err}
		}
	}
	return nil
}

// note remembers err, and logs where it is news.
func (r *Readiness) note(err error) error {
	r.mu.Lock()
	before, first := r.err, r.at.IsZero()
	r.at, r.err = r.now(), err
	r.mu.Unlock()
	switch {
	case err != nil && (first || before == nil):
		r.log.Warn("not ready", "err", err)
	case err == nil && before != nil:
		r.log.Info("ready again")
	}
	return err
}
