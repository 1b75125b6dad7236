package httpapi

import (
	"context"
	"net/http"

	"github.com/gofiber/fiber/v2"

	"berth/internal/compute"
)

func (s *Server) getMounts(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id, err := containerID(c)
	if err != nil {
		return answer{}, err
	}
	paths, err := s.service.MountPaths(ctx, p, id)
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusOK, map[string]any{"mount_paths": paths}}, nil
}

func (s *Server) putMounts(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id, err := containerID(c)
	if err != nil {
		return answer{}, err
	}
	o, err := body(c)
	if err != nil {
		return answer{}, err
	}
	want, err := o.mountsRequest()
	if err != nil {
		return answer{}, err
	}
	paths, restarted, err := s.service.SetMountPaths(ctx, p, id, want)
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusOK, map[string]any{"mount_paths": paths, "restarted": restarted}}, nil
}

// mountsRequest reads mount paths. Left out they are a mistake and not the default of a new container, nor none: either
// would take paths away from somebody who did not say so.
func (o *object) mountsRequest() ([]string, error) {
	paths := o.texts("mount_paths")
	if err := o.done(); err != nil {
		return nil, err
	}
	if paths == nil {
		return nil, compute.Invalid("mount_paths", "Say which directories to keep: mount_paths is a list, [] for none.")
	}
	return paths, nil
}
