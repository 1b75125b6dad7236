package httpapi

import (
	"context"
	"net/http"

	"github.com/gofiber/fiber/v2"

	openapi "berth/api"
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
	return answer{http.StatusOK, openapi.MountPaths{MountPaths: paths}}, nil
}

// putMounts replaces the paths. Left out they are a mistake and not the default of a new container, nor none: either would
// take paths away from somebody who did not say so.
func (s *Server) putMounts(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id, err := containerID(c)
	if err != nil {
		return answer{}, err
	}
	r, err := body[openapi.MountPaths](c)
	if err != nil {
		return answer{}, err
	}
	paths, restarted, err := s.service.SetMountPaths(ctx, p, id, r.MountPaths)
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusOK, openapi.MountPathsChanged{MountPaths: paths, Restarted: restarted}}, nil
}
