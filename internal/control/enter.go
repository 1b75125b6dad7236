package control

import (
	"context"

	"berth/internal/compute"
)

// EnterContainer returns one of the principal's containers if it may be entered now: it runs, and SSH is on for it. That
// switch is for every way in.
func (s *Service) EnterContainer(ctx context.Context, p compute.Principal, id compute.ContainerID) (compute.Container, error) {
	c, err := s.store.Container(ctx, p.User, id)
	if err != nil {
		return compute.Container{}, err
	}
	return c, c.Entry()
}

// ContainerHistory returns up to limit changes of the status of one of the principal's containers after an event's number.
func (s *Service) ContainerHistory(
	ctx context.Context, p compute.Principal, id compute.ContainerID, after int64, limit int,
) (compute.History, error) {
	return s.store.ContainerHistory(ctx, p.User, id, after, limit)
}
