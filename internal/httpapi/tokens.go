package httpapi

import (
	"context"
	"net/http"
	"regexp"
	"time"

	"github.com/gofiber/fiber/v2"

	"berth/internal/auth"
	"berth/internal/compute"
)

// Tokens issues, lists and revokes the tokens of this installation. A token that is absent and one of somebody else's
// are the same CodeNotFound.
type Tokens interface {
	// Delegate issues a token to whom g was granted, for no more than g permits.
	Delegate(ctx context.Context, g auth.Grant, r auth.Request) (string, compute.Token, error)
	Tokens(ctx context.Context, owner compute.UserID) ([]compute.Token, error)
	Revoke(ctx context.Context, owner compute.UserID, id string) error
}

// anyScope is the scope of routes that every good token may use.
const anyScope auth.Scope = ""

// defaultTokenTTL is the life of a token that was asked for without one.
const defaultTokenTTL = 24 * time.Hour

// tokenRoutes lists what there is about who acts, and with what.
func (s *Server) tokenRoutes() {
	s.handle(fiber.MethodGet, "/compute/whoami", anyScope, s.whoami)
	s.handle(fiber.MethodGet, "/compute/tokens", auth.ScopeTokensRead, s.listTokens)
	s.handle(fiber.MethodPost, "/compute/tokens", auth.ScopeTokensWrite, s.addToken)
	s.handle(fiber.MethodDelete, "/compute/tokens/:id", auth.ScopeTokensWrite, s.deleteToken)
}

// token is a recorded token in JSON, with the token itself where it was made by this request.
type token struct {
	ID         string              `json:"id"`
	Name       string              `json:"name"`
	Scopes     []string            `json:"scopes"`
	IssuedBy   compute.TokenIssuer `json:"issued_by"`
	CreatedAt  string              `json:"created_at"`
	ExpiresAt  string              `json:"expires_at"`
	LastUsedAt string              `json:"last_used_at,omitempty"`
	Token      string              `json:"token,omitempty"`
}

func toToken(t compute.Token) token {
	out := token{
		ID: t.ID, Name: t.Name, Scopes: t.Scopes, IssuedBy: t.IssuedBy,
		CreatedAt: timestamp(t.CreatedAt), ExpiresAt: timestamp(t.ExpiresAt),
	}
	if !t.LastUsedAt.IsZero() {
		out.LastUsedAt = timestamp(t.LastUsedAt)
	}
	return out
}

func (s *Server) listTokens(ctx context.Context, _ *fiber.Ctx, p compute.Principal) (answer, error) {
	list, err := s.tokens.Tokens(ctx, p.User)
	if err != nil {
		return answer{}, err
	}
	out := make([]token, len(list))
	for i, t := range list {
		out[i] = toToken(t)
	}
	return answer{http.StatusOK, map[string]any{"tokens": out}}, nil
}

func (s *Server) addToken(ctx context.Context, c *fiber.Ctx, _ compute.Principal) (answer, error) {
	o, err := body(c)
	if err != nil {
		return answer{}, err
	}
	r, err := o.tokenRequest()
	if err != nil {
		return answer{}, err
	}
	text, t, err := s.tokens.Delegate(ctx, requestOf(c.Context()).grant, r)
	if err != nil {
		return answer{}, err
	}
	out := toToken(t)
	out.Token = text
	return answer{http.StatusCreated, out}, nil
}

// tokenRequest reads a token to make. Scopes must be named: one that may do everything is asked for, not left over.
func (o *object) tokenRequest() (r auth.Request, err error) {
	r.Name, _ = o.text("name")
	words := o.texts("scopes")
	seconds := o.integer("ttl_seconds")
	if err := o.done(); err != nil {
		return r, err
	}
	if r.Scopes, err = auth.ParseScopes(words); err != nil {
		return r, err
	}
	r.TTL = defaultTokenTTL
	if seconds != nil {
		if *seconds < 1 || *seconds > int(auth.MaxTTL/time.Second) {
			return r, compute.Invalid("ttl_seconds", "A token lives from 1 to %d seconds, which is %d days.",
				int(auth.MaxTTL/time.Second), int(auth.MaxTTL.Hours()/24))
		}
		r.TTL = time.Duration(*seconds) * time.Second
	}
	return r, nil
}

// tokenID is the form of the ids of tokens.
var tokenID = regexp.MustCompile(`^[A-Za-z0-9]{1,64}$`)

func (s *Server) deleteToken(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
	id := c.Params("id")
	if !tokenID.MatchString(id) {
		return answer{}, compute.NotFound("token") // one that cannot exist is answered as one that does not
	}
	if err := s.tokens.Revoke(ctx, p.User, id); err != nil {
		return answer{}, err
	}
	return deleted(), nil
}

// identity is who acts, in JSON.
type identity struct {
	User       compute.UserID `json:"user"`
	Username   string         `json:"username"`
	Role       compute.Role   `json:"role"`
	Scopes     []auth.Scope   `json:"scopes"`
	Credential auth.Kind      `json:"credential"`
	TokenID    string         `json:"token_id,omitempty"`
	ExpiresAt  string         `json:"expires_at"`
}

func (s *Server) whoami(_ context.Context, c *fiber.Ctx, _ compute.Principal) (answer, error) {
	g := requestOf(c.Context()).grant
	return answer{http.StatusOK, identity{
		User: g.User, Username: g.Username, Role: g.Role, Scopes: append([]auth.Scope{}, g.Scopes...), Credential: g.Kind,
		TokenID: g.TokenID, ExpiresAt: timestamp(g.Expires),
	}}, nil
}
