package control

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"berth/internal/compute"
)

// Lease is what control planes on one database agree by who drives the engine. Its time is the database's.
type Lease interface {
	// TakeLease begins a term, for ttl; CodeConflict while another has one, or where the containers are in another place.
	TakeLease(ctx context.Context, holder, place string, ttl time.Duration) (term int64, err error)
	// RenewLease prolongs a term; CodeConflict when it is over.
	RenewLease(ctx context.Context, term int64, ttl time.Duration) error
	// ReleaseLease ends a term before its time.
	ReleaseLease(ctx context.Context, term int64) error
}

// leaseTTL is how long the others wait for one that does not answer. It renews three times as often.
const leaseTTL = 9 * time.Second

// ErrTermOver is the cause of the end of a term that another control plane's may follow.
var ErrTermOver = errors.New("another control plane may drive the containers now")

// Candidate is a control plane that drives the engine when no other does.
type Candidate struct {
	Lease  Lease
	Holder string        // who it is, for people
	Place  string        // names where the containers are
	TTL    time.Duration // 0: 9 s
	Log    *slog.Logger

	// Waits is told why another try to take the lease failed; it may be nil.
	Waits func(err error)
}

// Lead runs f whenever the candidate has the lease, with a context that ends when it has it no more, until ctx ends or f
// fails. F returns when its context ends, with nothing left that drives the engine.
func (c Candidate) Lead(ctx context.Context, f func(ctx context.Context) error) error {
	if c.TTL == 0 {
		c.TTL = leaseTTL
	}
	for {
		began := time.Now()
		term, err := c.Lease.TakeLease(ctx, c.Holder, c.Place, c.TTL)
		switch {
		case err == nil:
			c.Log.Info("drives the containers", "term", term)
			if err := c.lead(ctx, term, began, f); err != nil {
				return err
			}
			c.Log.Info("drives the containers no more", "term", term)
		case ctx.Err() == nil && c.Waits != nil:
			c.Waits(err)
		}
		if !pause(ctx, c.TTL/3, nil) {
			return nil
		}
	}
}

// lead is one term, which began before a time.
func (c Candidate) lead(ctx context.Context, term int64, began time.Time, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	renewing := make(chan struct{})
	go func() {
		defer close(renewing)
		c.renew(ctx, term, began, cancel)
	}()
	err := f(ctx)
	over := context.Cause(ctx) == ErrTermOver
	cancel(nil)
	<-renewing
	release, stop := context.WithTimeout(context.WithoutCancel(ctx), c.TTL)
	defer stop()
	if rerr := c.Lease.ReleaseLease(release, term); rerr != nil {
		c.Log.Warn("the lease runs out by itself", "term", term, "err", rerr)
	}
	if over {
		return nil
	}
	return err
}

// renew prolongs the term until ctx ends, and ends it when that fails for so long that another may have the lease.
func (c Candidate) renew(ctx context.Context, term int64, sure time.Time, over context.CancelCauseFunc) {
	for pause(ctx, c.TTL/3, nil) {
		began := time.Now()
		call, stop := context.WithDeadline(ctx, sure.Add(c.TTL))
		err := c.Lease.RenewLease(call, term, c.TTL)
		stop()
		switch {
		case err == nil:
			sure = began
			continue
		case ctx.Err() != nil:
			return
		}
		c.Log.Warn("cannot renew the lease", "term", term, "err", err)
		if compute.CodeOf(err) == compute.CodeConflict || time.Since(sure) > c.TTL*2/3 {
			over(ErrTermOver)
			return
		}
	}
}
