package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/gofiber/fiber/v2"

	openapi "berth/api"
	"berth/internal/compute"
)

// maxCookie is what browsers keep of a cookie, name and value (RFC 6265, section 6.1).
const maxCookie = 4096

// cookieName is the session cookie's. A browser takes the prefix from nobody but this very host, over HTTPS: no other page of
// the domain can set it (RFC 6265bis, section 4.1.3.2).
func (s *Server) cookieName(c *fiber.Ctx) string {
	if s.secure(c) {
		return "__Host-berth"
	}
	return "berth"
}

// sessionCookies returns the values of the session cookie; more than one where somebody else has set one too.
func (s *Server) sessionCookies(c *fiber.Ctx) []string {
	var values []string
	name := s.cookieName(c)
	c.Request().Header.VisitAllCookie(func(key, value []byte) {
		if string(key) == name {
			values = append(values, string(value))
		}
	})
	return values
}

// setCookie gives the browser its session, or takes it away when the token is empty.
func (s *Server) setCookie(c *fiber.Ctx, token string, expires time.Time) error {
	cookie := http.Cookie{
		Name: s.cookieName(c), Value: token, Path: "/", Expires: expires,
		Secure: s.secure(c), HttpOnly: true, SameSite: http.SameSiteStrictMode,
	}
	if token == "" {
		cookie.MaxAge, cookie.Expires = -1, time.Unix(0, 0)
	}
	if len(cookie.Name)+len(cookie.Value) > maxCookie {
		return compute.Errorf(compute.CodeTooLarge, "The token is too long for a cookie; use one of at most %d characters.",
			maxCookie-len(cookie.Name))
	}
	c.Response().Header.Add(fiber.HeaderSetCookie, cookie.String())
	return nil
}

// openSession puts the bearer's token into a cookie, which is all there is of a session. It takes the token from the
// header alone, which a page of somebody else's cannot set: nobody is signed in as another by visiting a page.
func (s *Server) openSession(ctx context.Context, c *fiber.Ctx, described operation) (answer, error) {
	cred, err := s.admit(ctx, c, anyScope, headerAlone)
	if err != nil {
		return answer{}, err
	}
	if err := described.check(c); err != nil {
		return answer{}, err
	}
	if err := s.setCookie(c, cred.token, cred.Expires); err != nil {
		return answer{}, err
	}
	return answer{http.StatusOK, openapi.Session{
		User: cred.User, Username: cred.Username, Role: cred.Role, ExpiresAt: openapi.Time(cred.Expires),
	}}, nil
}

// closeSession takes the cookie away, one too whose token is no longer valid. Other pages may not do that for the user.
func (s *Server) closeSession(_ context.Context, c *fiber.Ctx, described operation) (answer, error) {
	if len(c.Request().Header.PeekAll(fiber.HeaderAuthorization)) == 0 {
		if err := s.checkOrigin(c, len(s.sessionCookies(c)) > 0); err != nil {
			return answer{}, err
		}
	}
	if err := described.check(c); err != nil {
		return answer{}, err
	}
	if err := s.setCookie(c, "", time.Time{}); err != nil {
		return answer{}, err
	}
	return deleted(), nil
}
