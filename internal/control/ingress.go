package control

import (
	"context"

	"berth/internal/compute"
)

// ListIngress returns the ingress rules of one of the principal's containers, oldest first.
func (s *Service) ListIngress(
	ctx context.Context, p compute.Principal, id compute.ContainerID,
) ([]compute.IngressRule, error) {
	return s.store.IngressRules(ctx, p.User, id)
}

// AddIngress exposes a port of one of the principal's containers.
func (s *Service) AddIngress(
	ctx context.Context, p compute.Principal, id compute.ContainerID, r compute.IngressRequest,
) (compute.IngressRule, error) {
	rule, err := r.Validate()
	if err != nil {
		return compute.IngressRule{}, err
	}
	return s.store.AddIngressRule(ctx, p.User, id, rule, s.limits.RulesPerContainer)
}

// DeleteIngress removes the rule for an external port. A port that cannot be exposed has none.
func (s *Service) DeleteIngress(ctx context.Context, p compute.Principal, id compute.ContainerID, port int) error {
	return s.store.DeleteIngressRule(ctx, p.User, id, port)
}
