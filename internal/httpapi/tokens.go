package httpapi

import (
	"context"
	"net/http"
	"regexp"
	"time"

	"github.com/gofiber/fiber/v2"

	openapi "berth/api"
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

func (s *Server) listTokens(ctx context.Context, _ *fiber.Ctx, p compute.Principal) (answer, error) {
	list, err := s.tokens.Tokens(ctx, p.User)
	if err != nil {
		return answer{}, err
	}
	out := openapi.TokenList{Tokens: make([]openapi.Token, len(list))}
	for i, t := range list {
		out.Tokens[i] = openapi.NewToken(t)
	}
	return answer{http.StatusOK, out}, nil
}

func (s *Server) addToken(ctx context.Context, c *fiber.Ctx, _ compute.Principal) (answer, error) {
	wanted, err := body[openapi.TokenRequest](c)
	if err != nil {
		return answer{}, err
	}
	r, err := wantedToken(wanted)
	if err != nil {
		return answer{}, err
	}
	text, t, err := s.tokens.Delegate(ctx, requestOf(c.Context()).grant, r)
	if err != nil {
		return answer{}, err
	}
	out := openapi.NewToken(t)
	out.Token = text
	return answer{http.StatusCreated, out}, nil
}

// wantedToken reads a token to make. Scopes must be named: one that may do everything is asked for, not left over.
func wantedToken(r openapi.TokenRequest) (auth.Request, error) {
	scopes, err := auth.ParseScopes(r.Scopes)
	if err != nil {
		return auth.Request{}, err
	}
	life := defaultTokenTTL
	if seconds := r.TTLSeconds; seconds != nil {
		if *seconds < 1 || *seconds > int(auth.MaxTTL/time.Second) {
			return auth.Request{}, compute.Invalid("ttl_seconds", "A token lives from 1 to %d seconds, which is %d days.",
				int(auth.MaxTTL/time.Second), int(auth.MaxTTL.Hours()/24))
		}
		life = time.Duration(*seconds) * time.Second
	}
	return auth.Request{Name: r.Name, Scopes: scopes, TTL: life}, nil
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

func (s *Server) whoami(_ context.Context, c *fiber.Ctx, _ compute.Principal) (answer, error) {
	g := requestOf(c.Context()).grant
	scopes := make([]string, len(g.Scopes))
	for i, scope := range g.Scopes {
		scopes[i] = string(scope)
	}
	return answer{http.StatusOK, openapi.Identity{
		User: g.User, Username: g.Username, Role: g.Role, Scopes: scopes, Credential: string(g.Kind),
		TokenID: g.TokenID, ExpiresAt: openapi.Time(g.Expires),
	}}, nil
}
