package httpapi

import (
	"context"
	"net/http"

	"github.com/gofiber/fiber/v2"

	openapi "berth/api"
	"berth/internal/compute"
	"berth/internal/control"
)

func (s *Server) container(v control.ContainerView) openapi.Container {
	return openapi.NewContainer(v.Container, v.Usage, string(v.ID)+"."+s.zone)
}

// containerID reads the path's id. One that cannot exist is answered as one that does not.
func containerID(c *fiber.Ctx) (compute.ContainerID, error) {
	return compute.ParseContainerID(c.Params("id"))
}

func (s *Server) listContainers(ctx context.Context, _ *fiber.Ctx, p compute.Principal) (answer, error) {
	list, err := s.service.ListContainers(ctx, p)
	if err != nil {
		return answer{}, err
	}
	out := openapi.ContainerList{Containers: make([]openapi.Container, len(list))}
	for i, v := range list {
		out.Containers[i] = s.container(v)
	}
	return answer{http.StatusOK, out}, nil
}

func (s *Server) createContainer(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	r, err := body[openapi.ContainerRequest](c)
	if err != nil {
		return answer{}, err
	}
	v, err := s.service.CreateContainer(ctx, p, wantedContainer(r))
	if err != nil {
		return answer{}, err
	}
	c.Set(fiber.HeaderLocation, "/compute/containers/"+string(v.ID))
	setETag(c, v.Container)
	return answer{http.StatusCreated, s.container(v)}, nil
}

func wantedContainer(r openapi.ContainerRequest) compute.ContainerRequest {
	return compute.ContainerRequest{
		Name: r.Name, InstanceType: given(r.InstanceType), MemoryMB: r.MemoryMB, StorageGB: r.StorageGB,
		SSHKeyIDs: r.SSHKeyIDs, SSHEnabled: given(r.SSHEnabled), MountPaths: r.MountPaths,
	}
}

// given is what a field holds, or nothing where it was left out.
func given[T any](field *T) T {
	if field == nil {
		var nothing T
		return nothing
	}
	return *field
}

func (s *Server) getContainer(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	return s.one(ctx, c, p, s.service.GetContainer)
}

func (s *Server) startContainer(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	return s.one(ctx, c, p, s.service.StartContainer)
}

func (s *Server) stopContainer(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	a, err := s.one(ctx, c, p, s.service.StopContainer)
	if err == nil {
		s.revoked(ctx, c)
	}
	return a, err
}

// onContainer does something with one of a principal's containers.
type onContainer func(context.Context, compute.Principal, compute.ContainerID) (control.ContainerView, error)

// named calls f with the container that the path names.
func named(ctx context.Context, c *fiber.Ctx, p compute.Principal, f onContainer) (control.ContainerView, error) {
	id, err := containerID(c)
	if err != nil {
		return control.ContainerView{}, err
	}
	v, err := f(ctx, p, id)
	if err == nil {
		setETag(c, v.Container)
	}
	return v, err
}

// one answers with the container that the path names, after f.
func (s *Server) one(ctx context.Context, c *fiber.Ctx, p compute.Principal, f onContainer) (answer, error) {
	v, err := named(ctx, c, p, f)
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusOK, s.container(v)}, nil
}

// deleted is the body of every DELETE.
func deleted() answer { return answer{http.StatusOK, openapi.Deleted{Status: openapi.DeletedStatusOk}} }

func (s *Server) deleteContainer(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id, err := containerID(c)
	if err != nil {
		return answer{}, err
	}
	if err := s.service.DeleteContainer(ctx, p, id); err != nil {
		return answer{}, err
	}
	s.revoked(ctx, c)
	return deleted(), nil
}

func sshStatus(on bool) answer { return answer{http.StatusOK, openapi.SSHAccess{SSHEnabled: on}} }

func (s *Server) getSSH(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id, err := containerID(c)
	if err != nil {
		return answer{}, err
	}
	on, err := s.service.SSHEnabled(ctx, p, id)
	if err != nil {
		return answer{}, err
	}
	return sshStatus(on), nil
}

func (s *Server) putSSH(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id, err := containerID(c)
	if err != nil {
		return answer{}, err
	}
	r, err := body[openapi.SSHAccess](c)
	if err != nil {
		return answer{}, err
	}
	on, err := s.service.SetSSHEnabled(ctx, p, id, r.SSHEnabled)
	if err != nil {
		return answer{}, err
	}
	if !on {
		s.revoked(ctx, c)
	}
	return sshStatus(on), nil
}
