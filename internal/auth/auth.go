// Package auth turns a bearer token into the principal that it proves, and issues this installation's own tokens.
//
// Its tokens are JWTs signed with Ed25519, short-lived, bound to one zone and limited to scopes. Nothing in a token but
// the user's number is believed about the user: name, role and whether the account is still there are looked up at each
// verification. It refuses every algorithm but its own, tokens that live longer than MaxTTL, and whatever it cannot
// read; it knows neither HTTP nor the database.
package auth

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"berth/internal/compute"
)

// Issuer is the issuer claim of this product's own tokens. A token of another issuer belongs to another verifier, with
// one algorithm of its own; this one refuses it.
const Issuer = "berth"

const (
	// MaxTTL is the longest life that a token may have, when issued and when verified.
	MaxTTL = 30 * 24 * time.Hour
	// maxToken bounds what is parsed at all.
	maxToken = 4096
	// leeway forgives clocks of several control planes that differ a little, at a token's beginning only.
	leeway = 30 * time.Second
	// tokenType says in the header that this is an access token (RFC 9068, section 2.1), so that nothing else that the
	// key may come to sign passes for one (RFC 8725, section 3.11).
	tokenType = "at+jwt"
)

// Scope is one thing that a token permits, within what its user may do.
type Scope string

// The scopes. None implies another, but ScopeAll implies them all.
const (
	ScopeAll             Scope = "all"
	ScopeContainersRead  Scope = "containers:read"
	ScopeContainersWrite Scope = "containers:write"
	ScopeKeysRead        Scope = "keys:read"
	ScopeKeysWrite       Scope = "keys:write"
)

// Grant is what a verified token proves: who acts, what for, and until when.
type Grant struct {
	compute.Principal
	Scopes  []Scope
	TokenID string // the token's unique id (jti), for logs: it is no credential
	Expires time.Time
}

// Allows says whether the token permits s.
func (g Grant) Allows(s Scope) bool {
	return slices.Contains(g.Scopes, s) || slices.Contains(g.Scopes, ScopeAll)
}

// Users looks accounts up. CodeNotFound tells that there is none.
type Users interface {
	User(ctx context.Context, id compute.UserID) (compute.User, error)
}

// Authority issues this installation's tokens and verifies them. Its methods may be called concurrently.
type Authority struct {
	key   ed25519.PrivateKey
	zone  string
	users Users
	now   func() time.Time
}

// New returns the Authority of a zone, the audience of its tokens. It does no I/O.
func New(key ed25519.PrivateKey, zone string, users Users) *Authority {
	return &Authority{key: key, zone: zone, users: users, now: time.Now}
}

// claims is a token's body. The order of its fields is that of the wire.
type claims struct {
	jwt.RegisteredClaims
	Scope string `json:"scope"` // separated by spaces (RFC 8693, section 4.2)
}

// Issue returns a token that lets its bearer act as u for ttl, within the scopes; without any, in everything that u may
// do.
func (a *Authority) Issue(u compute.User, ttl time.Duration, scopes ...Scope) (string, error) {
	if ttl < time.Second || ttl > MaxTTL {
		return "", compute.Invalid("ttl", "A token lives from 1 second to %d days.", int(MaxTTL.Hours()/24))
	}
	if len(scopes) == 0 {
		scopes = []Scope{ScopeAll}
	}
	words := make([]string, len(scopes))
	for i, s := range scopes {
		if s == "" || strings.ContainsAny(string(s), " \"\\") {
			return "", compute.Invalid("scopes", "Scope %q is malformed.", s)
		}
		words[i] = string(s)
	}
	now := a.now()
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: Issuer, Subject: strconv.FormatInt(int64(u.ID), 10), Audience: jwt.ClaimStrings{a.zone},
			IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(ttl)), ID: rand.Text(),
		},
		Scope: strings.Join(words, " "),
	})
	t.Header["typ"] = tokenType
	token, err := t.SignedString(a.key)
	if err != nil {
		return "", compute.Internal("sign a token", err)
	}
	return token, nil
}

// Verify returns what a token proves. The error is CodeUnauthenticated when it proves nothing, with a cause for the
// log; an account that cannot be looked up is that lookup's own error.
func (a *Authority) Verify(ctx context.Context, token string) (Grant, error) {
	c, err := a.parse(token)
	if err != nil {
		return Grant{}, err
	}
	id, err := a.check(c)
	if err != nil {
		return Grant{}, err
	}
	u, err := a.users.User(ctx, id)
	switch {
	case compute.CodeOf(err) == compute.CodeNotFound:
		return Grant{}, refuse(fmt.Errorf("user %d: %w", id, err))
	case err != nil:
		return Grant{}, fmt.Errorf("look up the bearer: %w", err)
	case u.Disabled:
		return Grant{}, &compute.Error{
			Code: compute.CodeUnauthenticated, Message: "This account is disabled; ask your operator.",
			Cause: fmt.Errorf("user %d is disabled", id),
		}
	}
	g := Grant{
		Principal: compute.Principal{User: u.ID, Username: u.Username, Role: u.Role},
		TokenID:   c.ID, Expires: c.ExpiresAt.Time,
	}
	for _, s := range strings.Fields(c.Scope) {
		g.Scopes = append(g.Scopes, Scope(s))
	}
	return g, nil
}

// parse checks form and signature. The claims of what it returns are ours, and unchecked.
func (a *Authority) parse(token string) (*claims, error) {
	if len(token) > maxToken {
		return nil, refuse(fmt.Errorf("%d bytes long", len(token)))
	}
	if strings.ContainsFunc(token, foreign) { // Go's base64 skips line ends, even when strict
		return nil, refuse(errors.New("characters that no token has"))
	}
	// The claims are checked below, each one required: the library's checks let absent ones pass.
	// Strict decoding leaves each token a single spelling: the bits that base64 does not use must be zero.
	p := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation(),
	)
	var c claims
	_, err := p.ParseWithClaims(token, &c, func(t *jwt.Token) (any, error) {
		if t.Header["typ"] != tokenType {
			return nil, fmt.Errorf("type %q", t.Header["typ"])
		}
		return a.key.Public(), nil
	})
	if err != nil {
		return nil, refuse(err)
	}
	return &c, nil
}

// foreign says whether r is outside base64url and the dots between.
func foreign(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
}

// check holds the claims against this installation and the clock, and returns whom they name.
func (a *Authority) check(c *claims) (compute.UserID, error) {
	now := a.now()
	switch {
	case c.Issuer != Issuer:
		return 0, refuse(fmt.Errorf("issuer %q", c.Issuer))
	case len(c.Audience) != 1 || c.Audience[0] != a.zone:
		return 0, refuse(fmt.Errorf("audience %q", c.Audience))
	case c.ExpiresAt == nil || c.IssuedAt == nil:
		return 0, refuse(errors.New("no times"))
	case c.ExpiresAt.Sub(c.IssuedAt.Time) > MaxTTL:
		return 0, refuse(fmt.Errorf("lives from %v to %v", c.IssuedAt, c.ExpiresAt))
	case c.IssuedAt.After(now.Add(leeway)), c.NotBefore != nil && c.NotBefore.After(now.Add(leeway)):
		return 0, refuse(errors.New("not valid yet"))
	case !now.Before(c.ExpiresAt.Time):
		return 0, &compute.Error{
			Code: compute.CodeUnauthenticated, Message: "The token has expired; get a new one.",
			Cause: fmt.Errorf("expired at %v", c.ExpiresAt),
		}
	case c.ID == "" || len(c.ID) > 64:
		return 0, refuse(fmt.Errorf("id %q", c.ID))
	}
	id, err := strconv.ParseInt(c.Subject, 10, 64)
	if err != nil || id <= 0 || strconv.FormatInt(id, 10) != c.Subject {
		return 0, refuse(fmt.Errorf("subject %q", c.Subject))
	}
	return compute.UserID(id), nil
}

// refuse says the same of every token that proves nothing; why is for the log.
func refuse(why error) *compute.Error {
	return &compute.Error{
		Code: compute.CodeUnauthenticated, Message: "The token is not valid here; get a new one.",
		Cause: fmt.Errorf("token refused: %w", why),
	}
}
