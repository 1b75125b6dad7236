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

// Issuer is the issuer claim of this installation's own tokens.
const Issuer = "berth"

const (
	// MaxTTL is the longest life that a token of any issuer may have.
	MaxTTL = 30 * 24 * time.Hour
	// MaxUserTokens is how many live tokens a user may have made, and MaxOperatorTokens how many an operator may have
	// made for one: scripts that ask for a new one at each call make many.
	MaxUserTokens, MaxOperatorTokens = 50, 1000

	// maxToken bounds what is parsed at all.
	maxToken = 4096
	// leeway forgives clocks that differ a little, at a token's beginning only.
	leeway = 30 * time.Second
	// tokenType says in the header that this is an access token (RFC 9068, section 2.1), so that nothing else that the
	// key may come to sign passes for one (RFC 8725, section 3.11).
	tokenType = "at+jwt"
	// maxName bounds a token's name, in characters.
	maxName = 64
)

// Ledger records the tokens that were issued. CodeNotFound tells that there is no such token.
type Ledger interface {
	// AddToken records a token; CodeLimit when its owner has as many live ones of that issuer as limit says,
	// CodeForbidden for a disabled account.
	AddToken(ctx context.Context, t compute.Token, limit int) error
	// Token returns a token and its owner, whatever has become of either.
	Token(ctx context.Context, id string) (compute.Token, compute.User, error)
	// Tokens lists the owner's tokens that are live at a time, oldest first.
	Tokens(ctx context.Context, owner compute.UserID, at time.Time) ([]compute.Token, error)
	// RevokeToken ends one of the owner's live tokens, and tells whoever follows the events.
	RevokeToken(ctx context.Context, owner compute.UserID, id string) error
	// UseTokens records when tokens were last used.
	UseTokens(ctx context.Context, used map[string]time.Time) error
	// PruneTokens removes some that have expired, and says whether there may be more.
	PruneTokens(ctx context.Context) (more bool, err error)
}

// Authority issues this installation's tokens and verifies them. Its methods may be called concurrently.
type Authority struct {
	key    ed25519.PrivateKey
	zone   string
	ledger Ledger
	usage  usage
	now    func() time.Time
}

// New returns the Authority of a zone, the audience of its tokens. It does no I/O.
func New(key ed25519.PrivateKey, zone string, l Ledger) *Authority {
	return &Authority{key: key, zone: zone, ledger: l, now: time.Now}
}

// claims is a token's body. The order of its fields is that of the wire.
type claims struct {
	jwt.RegisteredClaims
	Scope string `json:"scope"` // separated by spaces (RFC 8693, section 4.2)
}

func (c *claims) UnmarshalJSON(text []byte) error {
	type plain claims // without this method
	return readJSON(text, (*plain)(c))
}

// Request is what a token is to be.
type Request struct {
	Name   string // for its owner to know it by
	Scopes []Scope
	TTL    time.Duration
}

// Issue records and returns a token that lets its bearer act as owner.
func (a *Authority) Issue(
	ctx context.Context, owner compute.UserID, by compute.TokenIssuer, r Request,
) (string, compute.Token, error) {
	t, err := a.record(owner, by, r)
	if err != nil {
		return "", compute.Token{}, err
	}
	j := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: Issuer, Subject: strconv.FormatInt(int64(owner), 10), Audience: jwt.ClaimStrings{a.zone},
			IssuedAt: jwt.NewNumericDate(t.CreatedAt), ExpiresAt: jwt.NewNumericDate(t.ExpiresAt), ID: t.ID,
		},
		Scope: strings.Join(t.Scopes, " "),
	})
	j.Header["typ"] = tokenType
	token, err := j.SignedString(a.key)
	if err != nil {
		return "", compute.Token{}, compute.Internal("sign a token", err)
	}
	limit := MaxUserTokens
	if by == compute.IssuedByOperator {
		limit = MaxOperatorTokens
	}
	if err := a.ledger.AddToken(ctx, t, limit); err != nil {
		return "", compute.Token{}, err
	}
	return token, t, nil
}

// record checks r and returns what is to be recorded of its token.
func (a *Authority) record(owner compute.UserID, by compute.TokenIssuer, r Request) (t compute.Token, err error) {
	if r.TTL < time.Second || r.TTL > MaxTTL {
		return t, compute.Invalid("ttl", "A token lives from 1 second to %d days.", int(MaxTTL.Hours()/24))
	}
	name, err := compute.ValidateName(r.Name, maxName)
	if err != nil {
		return t, err
	}
	words := make([]string, len(r.Scopes))
	for i, s := range r.Scopes {
		words[i] = string(s)
	}
	if _, err := ParseScopes(words); err != nil {
		return t, err
	}
	now := a.now().UTC()
	return compute.Token{
		ID: rand.Text(), Owner: owner, IssuedBy: by, Name: name, Scopes: words, CreatedAt: now,
		ExpiresAt: now.Truncate(time.Second).Add(r.TTL), // whole seconds, as the claims have it
	}, nil
}

// Delegate issues a token to whom g was granted, for no more than g permits.
func (a *Authority) Delegate(ctx context.Context, g Grant, r Request) (string, compute.Token, error) {
	for _, s := range r.Scopes {
		if slices.Contains(Scopes(), s) && !g.Allows(s) {
			return "", compute.Token{}, compute.Errorf(compute.CodeForbidden,
				"You act with a credential that lacks the scope %s, and it cannot give what it lacks.", s)
		}
		if s == ScopeAdmin && g.Role != compute.RoleAdmin {
			return "", compute.Token{}, compute.Errorf(compute.CodeForbidden,
				"Only an administrator's token has the scope %s.", s)
		}
	}
	return a.Issue(ctx, g.User, compute.IssuedByUser, r)
}

// Tokens lists the owner's live tokens, oldest first.
func (a *Authority) Tokens(ctx context.Context, owner compute.UserID) ([]compute.Token, error) {
	return a.ledger.Tokens(ctx, owner, a.now())
}

// Revoke ends one of the owner's tokens at once. CodeNotFound when it is not a live one of theirs.
func (a *Authority) Revoke(ctx context.Context, owner compute.UserID, id string) error {
	return a.ledger.RevokeToken(ctx, owner, id)
}

// Verify returns what a token of this installation proves.
func (a *Authority) Verify(ctx context.Context, token string) (Grant, error) {
	var c claims
	r := form{maxBytes: maxToken, algs: []string{jwt.SigningMethodEdDSA.Alg()}, types: []string{tokenType}}
	err := r.parse(token, func(header) (any, error) { return a.key.Public(), nil }, &c)
	if err != nil {
		return Grant{}, refused(err)
	}
	owner, err := a.check(&c)
	if err != nil {
		return Grant{}, err
	}
	t, u, err := a.ledger.Token(ctx, c.ID)
	switch {
	case compute.CodeOf(err) == compute.CodeNotFound:
		return Grant{}, refuse(fmt.Errorf("token %s is not recorded", c.ID))
	case err != nil:
		return Grant{}, fmt.Errorf("look up the token: %w", err)
	case t.Owner != owner:
		return Grant{}, refuse(fmt.Errorf("token %s names user %d and is recorded as user %d's", c.ID, owner, t.Owner))
	case !t.RevokedAt.IsZero():
		return Grant{}, &compute.Error{
			Code: compute.CodeUnauthenticated, Message: "The token was revoked; get a new one.",
			Cause: fmt.Errorf("token %s was revoked at %v", c.ID, t.RevokedAt),
		}
	case u.Disabled:
		return Grant{}, disabled(u)
	}
	a.usage.mark(t, a.now())
	g := Grant{
		Principal: compute.Principal{User: u.ID, Username: u.Username, Role: u.Role},
		Kind:      KindToken, TokenID: c.ID, Expires: c.ExpiresAt.Time,
	}
	for _, s := range strings.Fields(c.Scope) {
		g.Scopes = append(g.Scopes, Scope(s))
	}
	return g, nil
}

// check holds the claims against this installation and the clock, and returns whom they name. Each is required: the
// library's own checks let absent ones pass.
func (a *Authority) check(c *claims) (compute.UserID, error) {
	now := a.now()
	switch {
	case c.Issuer != Issuer:
		return 0, refuse(fmt.Errorf("issuer %q", clip(c.Issuer)))
	case len(c.Audience) != 1 || c.Audience[0] != a.zone:
		return 0, refuse(fmt.Errorf("audience %q", c.Audience))
	case c.ExpiresAt == nil || c.IssuedAt == nil:
		return 0, refuse(errors.New("no times"))
	case c.ExpiresAt.Sub(c.IssuedAt.Time) > MaxTTL:
		return 0, refuse(fmt.Errorf("lives from %v to %v", c.IssuedAt, c.ExpiresAt))
	case c.IssuedAt.After(now.Add(leeway)), c.NotBefore != nil && c.NotBefore.After(now.Add(leeway)):
		return 0, refuse(errors.New("not valid yet"))
	case !now.Before(c.ExpiresAt.Time):
		return 0, expired(fmt.Errorf("expired at %v", c.ExpiresAt))
	case c.ID == "" || len(c.ID) > 64:
		return 0, refuse(fmt.Errorf("id %q", clip(c.ID)))
	}
	id, err := strconv.ParseInt(c.Subject, 10, 64)
	if err != nil || id <= 0 || strconv.FormatInt(id, 10) != c.Subject {
		return 0, refuse(fmt.Errorf("subject %q", clip(c.Subject)))
	}
	return compute.UserID(id), nil
}
