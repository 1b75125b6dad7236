package httpapi

import (
	"context"
	"math"
	"net/http"
	"time"

	"github.com/gofiber/fiber/v2"

	"berth/internal/compute"
	"berth/internal/control"
)

// container is a container in the contract's JSON.
type container struct {
	ID            compute.ContainerID `json:"id"`
	Name          string              `json:"name"`
	Status        compute.Status      `json:"status"`
	StatusMessage string              `json:"status_message,omitempty"`
	Hostname      string              `json:"hostname"`
	SSHCommand    string              `json:"ssh_command,omitempty"` // only while SSH is on
	MemoryMB      int                 `json:"memory_mb"`
	MemoryUsedMB  int                 `json:"memory_used_mb"`
	StorageGB     int                 `json:"storage_gb"`
	StorageUsedGB float64             `json:"storage_used_gb"`
	InstanceType  string              `json:"instance_type"`
	CreatedAt     string              `json:"created_at"`
	SSHEnabled    bool                `json:"ssh_enabled"`
	HTTPSEnabled  bool                `json:"https_enabled"`
}

func (s *Server) container(v control.ContainerView) container {
	c := container{
		ID: v.ID, Name: v.Name, Status: v.Status, StatusMessage: v.StatusMessage, Hostname: string(v.ID) + "." + s.zone,
		MemoryMB: v.MemoryMB, MemoryUsedMB: v.Usage.MemoryMB,
		StorageGB: v.StorageGB, StorageUsedGB: roundGB(v.Usage.StorageGB),
		InstanceType: v.InstanceType, CreatedAt: timestamp(v.CreatedAt),
		SSHEnabled: v.SSHEnabled, HTTPSEnabled: v.HTTPSEnabled,
	}
	if c.SSHEnabled {
		c.SSHCommand = "ssh root@" + c.Hostname
	}
	return c
}

// roundGB keeps three digits, about a megabyte: fewer would show an almost empty disk as empty, more would be noise.
func roundGB(gb float64) float64 { return math.Round(gb*1000) / 1000 }

// timestamp is RFC 3339 in UTC, to the second.
func timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// containerID reads the path's id. One that cannot exist is answered as one that does not.
func containerID(c *fiber.Ctx) (compute.ContainerID, error) {
	return compute.ParseContainerID(c.Params("id"))
}

func (s *Server) listContainers(ctx context.Context, _ *fiber.Ctx, p compute.Principal) (answer, error) {
	list, err := s.service.ListContainers(ctx, p)
	if err != nil {
		return answer{}, err
	}
	out := make([]container, len(list))
	for i, v := range list {
		out[i] = s.container(v)
	}
	return answer{http.StatusOK, map[string]any{"containers": out}}, nil
}

func (s *Server) createContainer(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	r, err := readContainerRequest(c)
	if err != nil {
		return answer{}, err
	}
	v, err := s.service.CreateContainer(ctx, p, r)
	if err != nil {
		return answer{}, err
	}
	c.Set(fiber.HeaderLocation, "/compute/containers/"+string(v.ID))
	return answer{http.StatusCreated, s.container(v)}, nil
}

func readContainerRequest(c *fiber.Ctx) (compute.ContainerRequest, error) {
	o, err := body(c)
	if err != nil {
		return compute.ContainerRequest{}, err
	}
	return o.containerRequest()
}

func (o *object) containerRequest() (compute.ContainerRequest, error) {
	var r compute.ContainerRequest
	r.Name, _ = o.text("name")
	r.InstanceType, _ = o.text("instance_type")
	r.MemoryMB = o.integer("memory_mb")
	r.StorageGB = o.integer("storage_gb")
	r.SSHKeyIDs = o.integers("ssh_key_ids")
	r.SSHEnabled, _ = o.boolean("ssh_enabled")
	r.MountPaths = o.texts("mount_paths")
	return r, o.done()
}

func (s *Server) getContainer(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	return s.one(ctx, c, p, s.service.GetContainer)
}

func (s *Server) startContainer(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	return s.one(ctx, c, p, s.service.StartContainer)
}

func (s *Server) stopContainer(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	return s.one(ctx, c, p, s.service.StopContainer)
}

// one answers with the container that the path names, after f.
func (s *Server) one(
	ctx context.Context, c *fiber.Ctx, p compute.Principal,
	f func(context.Context, compute.Principal, compute.ContainerID) (control.ContainerView, error),
) (answer, error) {
	id, err := containerID(c)
	if err != nil {
		return answer{}, err
	}
	v, err := f(ctx, p, id)
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusOK, s.container(v)}, nil
}

// deleted is the body of every DELETE.
func deleted() answer { return answer{http.StatusOK, map[string]string{"status": "ok"}} }

func (s *Server) deleteContainer(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id, err := containerID(c)
	if err != nil {
		return answer{}, err
	}
	if err := s.service.DeleteContainer(ctx, p, id); err != nil {
		return answer{}, err
	}
	return deleted(), nil
}

func sshStatus(on bool) answer { return answer{http.StatusOK, map[string]bool{"ssh_enabled": on}} }

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
	o, err := body(c)
	if err != nil {
		return answer{}, err
	}
	want, err := o.sshRequest()
	if err != nil {
		return answer{}, err
	}
	on, err := s.service.SetSSHEnabled(ctx, p, id, want)
	if err != nil {
		return answer{}, err
	}
	return sshStatus(on), nil
}

func (o *object) sshRequest() (bool, error) {
	on, given := o.boolean("ssh_enabled")
	if err := o.done(); err != nil {
		return false, err
	}
	if !given {
		return false, compute.Invalid("ssh_enabled", "Say whether SSH is to be on: ssh_enabled is true or false.")
	}
	return on, nil
}
