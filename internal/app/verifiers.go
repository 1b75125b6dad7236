package app

import (
	"context"
	"fmt"

	"berth/internal/auth"
)

// openVerifiers makes what tells whose a token is, from the settings.
func (b *berth) openVerifiers() error {
	c := b.cfg
	var foreign []auth.Foreign
	if c.HS256Secret != "" {
		secret, err := auth.ReadSecret(c.HS256Secret)
		if err != nil {
			return fmt.Errorf("--hs256-secret: %w", err)
		}
		shared, err := auth.NewShared(auth.SharedConfig{
			Secret: secret, Name: c.HS256Name, Zone: c.Zone, Issuer: c.HS256Issuer, Types: c.HS256Types,
			MaxTTL: c.HS256MaxTTL, Admins: c.HS256Admins, Provision: c.ProvisionUsers,
		}, b.store)
		if err != nil {
			return fmt.Errorf("--hs256-secret: %w", err)
		}
		foreign = append(foreign, shared)
	}
	issuers, err := c.OIDCIssuers()
	if err != nil {
		return fmt.Errorf("--oidc: %w", err)
	}
	for _, i := range issuers {
		provider, err := auth.NewProvider(auth.OIDCConfig{
			Issuer: i.URL, Audience: i.Audience, AdminClaim: i.AdminClaim, AdminValue: i.AdminValue,
			Provision: c.ProvisionUsers,
		}, b.store)
		if err != nil {
			return fmt.Errorf("--oidc: %w", err)
		}
		foreign = append(foreign, provider)
	}
	if b.verifiers, err = auth.NewVerifiers(b.authority, auth.NewSSHSigned(c.Zone, b.store), foreign...); err != nil {
		return err
	}
	b.inner = append(b.inner, func(ctx context.Context) error { return b.authority.Run(ctx, b.log.With("part", "auth")) })
	return nil
}
