package control

import (
	"context"

	"berth/internal/compute"
)

// MountPaths returns the mount paths of one of the principal's containers.
func (s *Service) MountPaths(ctx context.Context, p compute.Principal, id compute.ContainerID) ([]string, error) {
	c, err := s.store.Container(ctx, p.User, id)
	return c.MountPaths, err
}

// SetMountPaths changes what of the container is kept. One that is to run is started anew for it; a stopped one stays so,
// and paths that stand already change nothing. It returns the paths as stored.
func (s *Service) SetMountPaths(
	ctx context.Context, p compute.Principal, id compute.ContainerID, paths []string,
) (stored []string, restarted bool, err error) {
	if paths, err = compute.ValidateMountPaths(paths, s.limits); err != nil {
		return nil, false, err
	}
	c, err := s.store.Container(ctx, p.User, id)
	if err != nil {
		return nil, false, err
	}
	was := s.spec(c)
	c.MountPaths = paths
	if err := s.engine.AdmitChange(ctx, was, s.spec(c)); err != nil {
		return nil, false, err
	}
	c, changed, err := s.store.SetMountPaths(ctx, p.User, id, paths)
	if err != nil {
		return nil, false, err
	}
	if changed {
		s.loop.kick(c.Ref(), c.Generation)
	}
	return c.MountPaths, changed && c.Desired == compute.DesiredRunning, nil
}
