package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// OIDCConfig is what a Provider is made of.
type OIDCConfig struct {
	Issuer   string // its URL, exactly as its tokens have it
	Audience string // what this installation is called there
	// AdminClaim and AdminValue name the tokens that are an administrator's: those whose claim is that value, or a list
	// with it. Empty: none.
	AdminClaim, AdminValue string
	Provision              bool // make accounts for those who have none
}

// Provider verifies the tokens of an OpenID Connect issuer: ID tokens, and access tokens that are JWTs. Its keys come
// from the issuer, and say which algorithm each is for.
type Provider struct {
	c        OIDCConfig
	accounts accounts
	keys     *keySet
	now      func() time.Time
}

// NewProvider returns the verifier of an issuer. It does no I/O: the issuer is asked when there is a token of its.
func NewProvider(c OIDCConfig, d Directory) (*Provider, error) {
	if err := CheckIssuerURL(c.Issuer); err != nil {
		return nil, err
	}
	if c.Audience == "" {
		return nil, fmt.Errorf("the issuer %s needs an audience: else tokens for anybody would be good here", c.Issuer)
	}
	return &Provider{c: c, accounts: accounts{d, c.Provision}, keys: newKeySet(c.Issuer), now: time.Now}, nil
}

// Issuer is the issuer claim of the tokens.
func (p *Provider) Issuer() string { return p.c.Issuer }

// Verify returns what a token of the issuer proves. CodeUnavailable when its keys cannot be had.
func (p *Provider) Verify(ctx context.Context, token string) (Grant, error) {
	var b body
	f := form{maxBytes: maxForeign, algs: algorithms(), types: []string{"", "jwt", "at+jwt"}}
	err := f.parse(token, func(h header) (any, error) {
		found, err := p.keys.find(ctx, h.alg, h.kid)
		if err != nil {
			return nil, err
		}
		set := jwt.VerificationKeySet{}
		for _, k := range found {
			set.Keys = append(set.Keys, k)
		}
		return set, nil
	}, &b)
	if err != nil {
		return Grant{}, refused(err)
	}
	id, expires, err := p.check(&b)
	if err != nil {
		return Grant{}, refused(err)
	}
	scopes, err := b.foreignScopes()
	if err != nil {
		return Grant{}, refuse(err)
	}
	who, err := p.accounts.find(ctx, id)
	if err != nil {
		return Grant{}, err
	}
	return Grant{Principal: who, Kind: KindOIDC, Scopes: scopes, TokenID: b.loggedID(), Expires: expires}, nil
}

// check holds the claims against the settings and the clock, and returns whom they name and until when.
func (p *Provider) check(b *body) (id identity, expires time.Time, err error) {
	if issuer, _, err := b.text("iss"); err != nil || issuer != p.c.Issuer {
		return id, expires, fmt.Errorf("issuer %q, %w", clip(issuer), orElse(err, "not this one"))
	}
	if audience, err := b.texts("aud"); err != nil || !slices.Contains(audience, p.c.Audience) {
		return id, expires, fmt.Errorf("not for this installation, %w", orElse(err, "by its audience"))
	}
	if expires, err = b.window(p.now(), MaxTTL); err != nil {
		return id, expires, err
	}
	subject, _, err := b.text("sub")
	if err != nil {
		return id, expires, err
	}
	if err := checkSubject(subject); err != nil {
		return id, expires, err
	}
	wish, _, err := b.text("preferred_username")
	if err != nil {
		return id, expires, err
	}
	admin, err := p.isAdmin(b)
	return identity{issuer: p.c.Issuer, subject: subject, wish: wish, admin: admin}, expires, err
}

func (p *Provider) isAdmin(b *body) (bool, error) {
	if p.c.AdminClaim == "" {
		return false, nil
	}
	values, err := b.texts(p.c.AdminClaim)
	if err != nil {
		return false, errors.Join(errors.New("the claim that makes administrators"), err)
	}
	return slices.Contains(values, p.c.AdminValue), nil
}
