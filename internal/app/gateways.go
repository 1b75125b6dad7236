package app

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"berth/internal/compute"
	"berth/internal/link"
)

// GatewayInfo is a gateway as the operator's commands print it.
type GatewayInfo struct {
	Name         string     `json:"name"`
	Fingerprint  string     `json:"fingerprint"`
	CreatedAt    time.Time  `json:"created_at"`
	RevokedAt    *time.Time `json:"revoked_at,omitempty"`
	SeenAt       *time.Time `json:"seen_at,omitempty"`
	Connected    bool       `json:"connected"`
	Remote       string     `json:"remote,omitempty"`
	Acknowledged int64      `json:"acknowledged,omitempty"` // the newest event that it has durably
}

// gateways is the operator's use cases of gateways, and what the API asks about them.
type gateways struct{ b *berth }

func (g gateways) info(c compute.Gateway, connected map[string]link.Status) GatewayInfo {
	i := GatewayInfo{Name: c.Name, Fingerprint: c.Fingerprint, CreatedAt: c.CreatedAt}
	if c.Revoked() {
		i.RevokedAt = &c.RevokedAt
	}
	if !c.SeenAt.IsZero() {
		i.SeenAt = &c.SeenAt
	}
	if s, ok := connected[c.Fingerprint]; ok {
		i.Connected, i.Remote, i.Acknowledged = true, s.Remote, s.Seq
	}
	return i
}

// add makes a credential, and returns the file that the gateway takes.
func (g gateways) add(ctx context.Context, name string) (string, error) {
	if err := compute.ValidateGatewayName(name); err != nil {
		return "", err
	}
	authority, err := link.OpenAuthority(g.b.files.path(linkAuthority))
	if err != nil {
		return "", compute.Internal("open the gateways' authority", err)
	}
	text, fingerprint, err := authority.Issue(name)
	if err != nil {
		return "", compute.Internal("issue a credential", err)
	}
	_, err = g.b.store.AddGateway(ctx, name, fingerprint)
	return string(text), err
}

func (g gateways) list(ctx context.Context) ([]GatewayInfo, error) {
	all, err := g.b.store.Gateways(ctx)
	if err != nil {
		return nil, err
	}
	var connected map[string]link.Status
	if server := g.b.link.Load(); server != nil {
		connected = server.Connected()
	}
	out := make([]GatewayInfo, len(all))
	for i, c := range all {
		out[i] = g.info(c, connected)
	}
	return out, nil
}

func (g gateways) revoke(ctx context.Context, name string) (GatewayInfo, error) {
	c, err := g.b.store.RevokeGateway(ctx, name)
	return g.info(c, nil), err
}

// Unacknowledged names the gateways that do not know yet, when ctx ends, of all that was committed before.
func (g gateways) Unacknowledged(ctx context.Context) []string {
	server := g.b.link.Load()
	if server == nil {
		return g.away(ctx)
	}
	last, err := g.b.store.LastEvent(ctx)
	if err != nil {
		last = math.MaxInt64 // then it is known of none
	}
	names, uerr := server.Unacknowledged(ctx, last)
	if err := errors.Join(err, uerr); err != nil {
		g.b.log.Error("ask which gateways know of a change", "err", err)
	}
	return names
}

// away names the gateways that go on without a control plane: they know of nothing that is changed now.
func (g gateways) away(ctx context.Context) (names []string) {
	list, err := g.b.store.Gateways(context.WithoutCancel(ctx))
	if err != nil {
		g.b.log.Error("ask which gateways know of a change", "err", err)
	}
	for _, c := range list {
		if link.MayAdmit(c, g.b.cfg.MaxStale, time.Now()) {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (o local) AddGateway(ctx context.Context, name string) (string, error) {
	return o.gateways.add(ctx, name)
}

func (o local) Gateways(ctx context.Context) ([]GatewayInfo, error) { return o.gateways.list(ctx) }

func (o local) RevokeGateway(ctx context.Context, name string) (GatewayInfo, error) {
	return o.gateways.revoke(ctx, name)
}

func handleGateways(o Operator, handle func(name string, f func(context.Context, operatorCall) (any, error))) {
	handle("gateway-add", func(ctx context.Context, c operatorCall) (any, error) { return o.AddGateway(ctx, c.Name) })
	handle("gateway-ls", func(ctx context.Context, _ operatorCall) (any, error) { return o.Gateways(ctx) })
	handle("gateway-revoke", func(ctx context.Context, c operatorCall) (any, error) {
		return o.RevokeGateway(ctx, c.Name)
	})
}

func (r remote) AddGateway(ctx context.Context, name string) (text string, err error) {
	err = r.call(ctx, "gateway-add", operatorCall{Name: name}, &text)
	return text, err
}

func (r remote) Gateways(ctx context.Context) (list []GatewayInfo, err error) {
	err = r.call(ctx, "gateway-ls", operatorCall{}, &list)
	return list, err
}

func (r remote) RevokeGateway(ctx context.Context, name string) (g GatewayInfo, err error) {
	err = r.call(ctx, "gateway-revoke", operatorCall{Name: name}, &g)
	return g, err
}
