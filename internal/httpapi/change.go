package httpapi

import (
	"context"
	"net/http"
	"regexp"
	"strings"

	"github.com/gofiber/fiber/v2"

	openapi "berth/api"
	"berth/internal/compute"
	"berth/internal/control"
)

func (s *Server) changeContainer(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	r, err := body[openapi.ContainerChange](c)
	if err != nil {
		return answer{}, err
	}
	return s.one(ctx, c, p, s.changeTo(c, compute.ContainerChange{Name: r.Name, MemoryMB: r.MemoryMB, StorageGB: r.StorageGB}))
}

// changeTo makes the change if the request's conditions hold.
func (s *Server) changeTo(c *fiber.Ctx, change compute.ContainerChange) onContainer {
	return func(ctx context.Context, p compute.Principal, id compute.ContainerID) (control.ContainerView, error) {
		m, err := ifMatch(c)
		if err != nil {
			return control.ContainerView{}, err
		}
		return s.service.ChangeContainer(ctx, p, id, change, m)
	}
}

func (s *Server) getContainerKeys(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	return keysOf(ctx, c, p, s.service.GetContainer)
}

func (s *Server) putContainerKeys(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	r, err := body[openapi.ContainerKeys](c)
	if err != nil {
		return answer{}, err
	}
	a, err := keysOf(ctx, c, p, s.changeTo(c, compute.ContainerChange{SSHKeyIDs: r.SSHKeyIDs}))
	if err == nil {
		s.revoked(ctx, c)
	}
	return a, err
}

// keysOf answers with the keys of the container that the path names, after f.
func keysOf(ctx context.Context, c *fiber.Ctx, p compute.Principal, f onContainer) (answer, error) {
	v, err := named(ctx, c, p, f)
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusOK, openapi.ContainerKeys{SSHKeyIDs: v.SSHKeyIDs}}, nil
}

func (s *Server) listInstanceTypes(context.Context, *fiber.Ctx, compute.Principal) (answer, error) {
	list := openapi.InstanceTypeList{InstanceTypes: []openapi.InstanceType{}}
	for _, t := range s.service.InstanceTypes() {
		list.InstanceTypes = append(list.InstanceTypes, openapi.InstanceType{
			Name: t.Name, Architecture: t.Architecture, CPUs: float64(t.MilliCPU) / 1000,
		})
	}
	return answer{http.StatusOK, list}, nil
}

func setETag(c *fiber.Ctx, of compute.Container) { c.Set(fiber.HeaderETag, `"`+of.Version()+`"`) }

// entityTags is a list of entity tags, with what is between them (RFC 9110, section 8.8.3).
var entityTags = regexp.MustCompile(`^[ \t,]*((W/)?"[^"\x00-\x20\x7f]*"[ \t]*(,[ \t,]*|$))+$`)

// ifMatch reads the condition of a change (RFC 9110, section 13.1.1). A weak tag matches nothing.
func ifMatch(c *fiber.Ctx) (compute.Match, error) {
	var values []string
	for _, v := range c.Request().Header.PeekAll(fiber.HeaderIfMatch) {
		values = append(values, string(v))
	}
	value := strings.Join(values, ",")
	if values == nil || value == "*" {
		return nil, nil //nolint:nilnil // no condition: what is not there is told of anyway
	}
	if !entityTags.MatchString(value) {
		return nil, compute.Errorf(compute.CodeInvalid, `If-Match has entity tags, such as "3f2a", as the ETag header gave them.`)
	}
	m := compute.Match{}
	for _, tag := range strings.Split(value, ",") { // no tag of ours has a comma
		if tag = strings.TrimSpace(tag); strings.HasPrefix(tag, `"`) {
			m = append(m, strings.Trim(tag, `"`))
		}
	}
	return m, nil
}
