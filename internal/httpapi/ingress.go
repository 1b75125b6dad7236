package httpapi

import (
	"context"
	"net/http"
	"strconv"

	"github.com/gofiber/fiber/v2"

	"berth/internal/compute"
)

// ingressRule is an ingress rule in the contract's JSON. Its time is in Unix seconds, unlike all others.
type ingressRule struct {
	ID         int64 `json:"id"`
	Port       int   `json:"port"`
	TargetPort int   `json:"target_port"`
	CreatedAt  int64 `json:"created_at"`
}

func toIngressRule(r compute.IngressRule) ingressRule {
	return ingressRule{ID: r.ID, Port: r.Port, TargetPort: r.TargetPort, CreatedAt: r.CreatedAt.Unix()}
}

func (s *Server) listIngress(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id, err := containerID(c)
	if err != nil {
		return answer{}, err
	}
	list, err := s.service.ListIngress(ctx, p, id)
	if err != nil {
		return answer{}, err
	}
	out := make([]ingressRule, len(list))
	for i, r := range list {
		out[i] = toIngressRule(r)
	}
	return answer{http.StatusOK, map[string]any{"rules": out}}, nil
}

func (s *Server) addIngress(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id, err := containerID(c)
	if err != nil {
		return answer{}, err
	}
	o, err := body(c)
	if err != nil {
		return answer{}, err
	}
	r, err := o.ingressRequest()
	if err != nil {
		return answer{}, err
	}
	rule, err := s.service.AddIngress(ctx, p, id, r)
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusCreated, toIngressRule(rule)}, nil
}

func (o *object) ingressRequest() (compute.IngressRequest, error) {
	r := compute.IngressRequest{Port: o.integer("port"), TargetPort: o.integer("target_port")}
	return r, o.done()
}

func (s *Server) deleteIngress(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id, err := containerID(c)
	if err != nil {
		return answer{}, err
	}
	text := c.Params("port")
	port, err := strconv.Atoi(text)
	if err != nil || strconv.Itoa(port) != text {
		port = 0 // what is no port has no rule, as port 0
	}
	if err := s.service.DeleteIngress(ctx, p, id, port); err != nil {
		return answer{}, err
	}
	return deleted(), nil
}
