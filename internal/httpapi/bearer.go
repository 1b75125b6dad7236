package httpapi

import (
	"fmt"
	"net/http"
	"strings"

	"berth/internal/compute"
)

// bearer reads the token from the values of Authorization headers (RFC 6750, section 2.1).
func bearer(headers []string) (string, error) {
	bad := func(message string) (string, error) {
		return "", compute.Errorf(compute.CodeUnauthenticated, "%s", message)
	}
	if len(headers) == 0 {
		return bad("Send a token in the header Authorization: Bearer TOKEN.")
	}
	if len(headers) > 1 {
		return bad("Send one Authorization header, not several.")
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	token = strings.TrimLeft(token, " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return bad("The Authorization header is Bearer TOKEN, with one space between.")
	}
	if i := strings.IndexFunc(strings.TrimRight(token, "="), notToken68); i >= 0 {
		return bad(fmt.Sprintf("The token has a character at %d that no token has; was it cut or quoted?", i+1))
	}
	return token, nil
}

// notToken68 is what RFC 7235, section 2.1, leaves out of a token, its padding apart.
func notToken68(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._~+/", r)
}

// challenge is the WWW-Authenticate header (RFC 6750, section 3); empty where another token would not help.
func (s *Server) challenge(r *request, status int) string {
	realm := fmt.Sprintf("Bearer realm=%q", s.zone)
	switch {
	case r.badOrigin:
		return ""
	case status == http.StatusForbidden:
		return realm + `, error="insufficient_scope"`
	case r.badToken:
		return realm + `, error="invalid_token"`
	default:
		return realm
	}
}
