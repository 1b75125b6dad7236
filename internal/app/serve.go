package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// serve lets all parts work until ctx ends or one of them fails, then ends them in order: first what lets clients in, then
// what they need. ready is called once everything serves.
func (b *berth) serve(ctx context.Context, ready func(context.Context) error) error {
	told := ctx
	g, ctx := errgroup.WithContext(ctx)
	innerCtx, stopInner := context.WithCancel(context.WithoutCancel(ctx)) // outlives the clients
	defer stopInner()
	for _, run := range b.inner {
		g.Go(func() error { return run(innerCtx) })
	}
	for _, e := range slices.Concat(b.edges, b.links, b.lastEdges) {
		g.Go(e.serve)
	}
	for _, run := range b.tasks {
		g.Go(func() error { return run(ctx) })
	}
	g.Go(func() error { return ready(ctx) })
	g.Go(func() error {
		<-ctx.Done()
		b.ready.Stop()
		if told.Err() != nil { // else a part has failed, and there is nothing to wait for
			b.announceStop()
		}
		err := b.drain(context.WithoutCancel(ctx))
		stopInner()
		return err
	})
	return g.Wait()
}

// announceStop lets load balancers notice, before anybody is turned away. A second signal ends it with the process.
func (b *berth) announceStop() {
	if b.cfg.DrainDelay <= 0 {
		return
	}
	b.log.Info("not ready any more; stopping soon", "drain_delay", b.cfg.DrainDelay)
	<-time.After(b.cfg.DrainDelay)
}

// drain ends what clients reach, all at once, so that one who stays to the end takes no other's time. What still serves when
// the time is over is cut off, which is no fault of ours.
func (b *berth) drain(ctx context.Context) error {
	b.log.Info("stopping", "drain_timeout", b.cfg.DrainTimeout)
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, b.cfg.DrainTimeout)
	defer cancel()
	err := errors.Join(shutAll(ctx, b.edges), shutAll(ctx, b.links))
	// It answers until the others are gone, and is asked for little.
	lastCtx, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancelLast()
	if last := shutAll(lastCtx, b.lastEdges); !errors.Is(last, context.DeadlineExceeded) {
		err = errors.Join(err, last)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("what was still under way after %s was cut off (drain-timeout): %w", b.cfg.DrainTimeout, err)
	}
	b.log.Info("stopped serving", "took", time.Since(began).Round(time.Millisecond))
	return err
}

func shutAll(ctx context.Context, edges []edge) error {
	errs := make([]error, len(edges))
	var wg sync.WaitGroup
	for i, e := range edges {
		wg.Go(func() { errs[i] = e.shutdown(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
