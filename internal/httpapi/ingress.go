package httpapi

import (
	"context"
	"net/http"
	"strconv"

	"github.com/gofiber/fiber/v2"

	openapi "berth/api"
	"berth/internal/compute"
)

func (s *Server) listIngress(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id, err := containerID(c)
	if err != nil {
		return answer{}, err
	}
	list, err := s.service.ListIngress(ctx, p, id)
	if err != nil {
		return answer{}, err
	}
	out := openapi.IngressRuleList{Rules: make([]openapi.IngressRule, len(list))}
	for i, r := range list {
		out.Rules[i] = openapi.NewIngressRule(r)
	}
	return answer{http.StatusOK, out}, nil
}

func (s *Server) addIngress(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id, err := containerID(c)
	if err != nil {
		return answer{}, err
	}
	r, err := body[openapi.IngressRuleRequest](c)
	if err != nil {
		return answer{}, err
	}
	actsOn(ctx, "ingress_rule:"+strconv.Itoa(r.Port))
	rule, err := s.service.AddIngress(ctx, p, id, compute.IngressRequest{Port: &r.Port, TargetPort: r.TargetPort})
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusCreated, openapi.NewIngressRule(rule)}, nil
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
