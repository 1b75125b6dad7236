package httpapi

import (
	"context"
	"time"

	"github.com/gofiber/fiber/v2"

	"berth/internal/auth"
	"berth/internal/compute"
)

// credential is what a request has proven.
type credential struct {
	auth.Grant
	token string // the proof itself, to be verified again later; it goes into no log and no answer
}

// places is where a request may have its token.
type places int

const (
	headerAlone    places = iota // in the Authorization header
	headerOrCookie               // or in the session cookie
	handshake                    // or in the query: browsers let a page set no header for a WebSocket
)

// admit returns who acts and what they may do. The token must allow scope; anyScope asks for no more than a valid
// token.
func (s *Server) admit(ctx context.Context, c *fiber.Ctx, scope auth.Scope, where places) (credential, error) {
	r := requestOf(c.Context())
	token, err := s.findToken(c, where)
	if err != nil {
		return credential{}, err
	}
	g, err := s.verifier.Verify(ctx, token)
	if err != nil {
		r.badToken = true
		return credential{}, err
	}
	r.grant, r.user, r.tokenID = g, g.User, g.TokenID
	actsBy(ctx, g)
	if err := s.pace.take(g.User, time.Now(), &c.Response().Header); err != nil {
		return credential{}, err
	}
	if scope != anyScope && !g.Allows(scope) {
		err := compute.Errorf(compute.CodeForbidden, "This token is not for that; it needs the scope %s.", scope)
		return credential{}, err
	}
	return credential{g, token}, nil
}

// findToken returns the one token of a request: that of its Authorization header, of its query where that may have one, or
// else that of its cookie. A browser sends the cookie by itself, so whatever else there is goes before it; and it counts
// only where the page that made the request is known to be ours.
func (s *Server) findToken(c *fiber.Ctx, where places) (string, error) {
	var headers []string
	for _, h := range c.Request().Header.PeekAll(fiber.HeaderAuthorization) {
		headers = append(headers, string(h))
	}
	var tokens, ticketTexts []string
	if where == handshake {
		tokens, ticketTexts = query(c, "token"), query(c, "ticket")
	}
	var cookies []string
	if where != headerAlone {
		cookies = s.sessionCookies(c)
	}
	switch {
	case len(headers) > 0 && len(tokens)+len(ticketTexts) > 0, len(tokens)+len(ticketTexts) > 1:
		return "", compute.Errorf(compute.CodeUnauthenticated, "Send one token or one ticket, not several.")
	case len(headers)+len(tokens)+len(ticketTexts) > 0 && where == handshake:
		if err := s.checkOrigin(c, false); err != nil {
			return "", err
		}
		return s.explicit(c, headers, tokens, ticketTexts)
	case len(headers) > 0 || len(cookies) == 0:
		return bearer(headers)
	case len(cookies) > 1: // another page of the domain may have set one (RFC 6265, section 8.6)
		return "", compute.Errorf(compute.CodeUnauthenticated, "There are several session cookies; remove them and sign in again.")
	default:
		if where == handshake || !safe(c.Method()) {
			if err := s.checkOrigin(c, true); err != nil {
				return "", err
			}
		}
		return bearer([]string{"Bearer " + cookies[0]})
	}
}

// explicit returns the token that a handshake brings by itself.
func (s *Server) explicit(c *fiber.Ctx, headers, tokens, ticketTexts []string) (string, error) {
	switch {
	case len(tokens) > 0:
		return bearer([]string{"Bearer " + tokens[0]})
	case len(ticketTexts) > 0:
		token, err := s.tickets.redeem(ticketTexts[0])
		requestOf(c.Context()).badToken = err != nil
		return token, err
	default:
		return bearer(headers)
	}
}

// query returns the values of one name in the query.
func query(c *fiber.Ctx, name string) []string {
	var values []string
	for _, v := range c.Context().QueryArgs().PeekMulti(name) {
		values = append(values, string(v))
	}
	return values
}

// safe says whether a method changes nothing (RFC 9110, section 9.2.1).
func safe(method string) bool { return method == fiber.MethodGet || method == fiber.MethodHead }
