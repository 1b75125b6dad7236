package httpapi

import (
	"regexp"
	"slices"
	"strings"

	"github.com/gofiber/fiber/v2"

	"berth/internal/compute"
)

// origins says which web pages may use what a browser sends along by itself. Pages of containers are same-site with the
// API where both are below one domain, so that a same-site cookie alone does not keep them out.
type origins struct {
	own     string   // the API's, as configured; empty: as the request says
	allowed []string // other pages that the operator trusts
	tenants string   // what the host of every container's page ends in
}

// newOrigins reads origins that the settings have checked. One that is malformed matches nothing.
func newOrigins(public string, allowed []string, zone string) origins {
	o := origins{tenants: "." + strings.ToLower(zone)}
	o.own, _, _ = parseOrigin(public)
	for _, text := range allowed {
		if origin, _, ok := parseOrigin(text); ok {
			o.allowed = append(o.allowed, origin)
		}
	}
	return o
}

// originForm is an ASCII-serialized origin (RFC 6454, section 6.2) of a web page.
var originForm = regexp.MustCompile(`^(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?$`)

// parseOrigin returns an origin in the one form in which they are compared, and its host.
func parseOrigin(text string) (origin, host string, ok bool) {
	m := originForm.FindStringSubmatch(lowerASCII(text))
	if m == nil {
		return "", "", false
	}
	scheme, host, port := m[1], strings.TrimSuffix(m[2], "."), m[3]
	if host == "" {
		return "", "", false
	}
	origin = scheme + "://" + host
	if port != "" && port != map[string]string{"http": "80", "https": "443"}[scheme] {
		origin += ":" + port
	}
	return origin, host, true
}

// lowerASCII leaves everything else as it is: in Unicode, other characters fold to ASCII letters.
func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// secure says whether the client reaches the API by HTTPS: as the settings say, or else a proxy before us. A client that
// lies about it fools itself alone, and a page of a browser cannot.
func (s *Server) secure(c *fiber.Ctx) bool {
	if s.origins.own != "" {
		return strings.HasPrefix(s.origins.own, "https:")
	}
	first, _, _ := strings.Cut(string(c.Request().Header.Peek(fiber.HeaderXForwardedProto)), ",") // the client's own end
	return c.Context().IsTLS() || strings.EqualFold(strings.TrimSpace(first), "https")
}

// checkOrigin refuses a request that a page made which may not. One that no page made has no Origin, and is permitted
// where required is false.
func (s *Server) checkOrigin(c *fiber.Ctx, required bool) error {
	values := c.Request().Header.PeekAll(fiber.HeaderOrigin)
	if len(values) == 0 && !required {
		return nil
	}
	own := s.origins.own
	if own == "" {
		scheme := "http://"
		if s.secure(c) {
			scheme = "https://"
		}
		own, _, _ = parseOrigin(scheme + string(c.Request().Header.Host()))
	}
	if len(values) == 1 && s.origins.permits(string(values[0]), own) {
		return nil
	}
	requestOf(c.Context()).badOrigin = true
	if len(values) == 0 {
		return compute.Errorf(compute.CodeForbidden,
			"With a session cookie, the Origin header must say which page asks; programs use a token instead.")
	}
	return compute.Errorf(compute.CodeForbidden, "The page that asks is not one that may use your session here.")
}

// permits says whether a page of that origin may act for the user, given the API's own origin.
func (o origins) permits(text, own string) bool {
	origin, host, ok := parseOrigin(text) // "null" is none
	if !ok || strings.HasSuffix(host, o.tenants) {
		return false
	}
	return origin == own || slices.Contains(o.allowed, origin)
}
