package control

import (
	"context"

	"berth/internal/compute"
)

// Changes subscribes to the events of all that is committed, here and in other processes, until the function that it returns
// is called. The channel is closed when an event was missed.
type Changes func() (<-chan compute.Event, func())

// Follow has the loop take up what other processes store of containers, until ctx ends, while Run drives them.
func (s *Service) Follow(ctx context.Context, changes Changes) error {
	retry := newRetry()
	for {
		events, unsubscribe := changes()
		err := s.follow(ctx, events)
		unsubscribe()
		if ctx.Err() != nil {
			return nil
		}
		s.log.Warn("changes were missed; looking at every container", "err", err)
		if !pause(ctx, retry.NextBackOff(), nil) {
			return nil
		}
	}
}

// follow takes up what was stored before the first event, and then event by event until one is missed.
func (s *Service) follow(ctx context.Context, events <-chan compute.Event) error {
	list, err := s.store.Reconcilable(ctx)
	if err != nil {
		return err
	}
	s.loop.catchUp(list)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-events:
			if !ok {
				return nil
			}
			if err := s.took(ctx, e); err != nil {
				return err
			}
		}
	}
}

// took takes up what an event tells of.
func (s *Service) took(ctx context.Context, e compute.Event) error {
	switch e.Kind {
	case compute.EventContainerCreated, compute.EventContainerChanged, compute.EventContainerDeleted:
	default:
		return nil
	}
	c, err := s.store.ReconcileState(ctx, e.Container)
	if compute.CodeOf(err) == compute.CodeNotFound {
		return nil // gone since
	}
	if err == nil {
		s.loop.kickNewer(c.Ref(), c.Generation)
	}
	return err
}
