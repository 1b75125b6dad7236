package control

import (
	"context"
	"slices"

	"berth/internal/compute"
)

// ChangeContainer changes what r names of one of the principal's containers, if it is as the condition says. More or less
// memory, and more storage, it gets while it runs; sessions that a key opened which is taken away end.
func (s *Service) ChangeContainer(
	ctx context.Context, p compute.Principal, id compute.ContainerID, r compute.ContainerChange, m compute.Match,
) (ContainerView, error) {
	was, err := s.store.Container(ctx, p.User, id)
	if err != nil {
		return ContainerView{}, err
	}
	change := func(c compute.Container) (compute.Container, error) {
		if err := m.Check(c); err != nil {
			return c, err
		}
		return r.Apply(c, s.limits)
	}
	c, err := change(was)
	if err != nil {
		return ContainerView{}, err
	}
	if err := s.engine.AdmitChange(ctx, s.spec(was), s.spec(c)); err != nil {
		return ContainerView{}, err
	}
	c, _, err = s.store.ChangeContainer(ctx, p.User, id, change)
	if err != nil {
		return ContainerView{}, err
	}
	if c.Generation != was.Generation {
		s.loop.kick(c.Ref(), c.Generation)
	}
	return s.view(ctx, c), nil
}

// InstanceTypes returns the operator's table of machine sizes, in its order.
func (s *Service) InstanceTypes() []compute.InstanceType { return slices.Clone(s.order) }
