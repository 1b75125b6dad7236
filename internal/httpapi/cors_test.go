package httpapi

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"berth/internal/compute"
)

// Pages that the operator lists may read what the API answers, errors too, and send what it takes; every other page gets no
// such word, and OPTIONS is then what it is for programs.
func TestPagesOfOtherOrigins(t *testing.T) {
	a := newAPI(t, func(c *Config) {
		c.AllowedOrigins = []string{"https://dashboard.example.com", "https://x." + zone, "http://localhost:5173"}
	})
	from := func(origins ...string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header["Origin"] = origins
			r.Header.Set("Authorization", "Bearer "+a.adaToken)
		}
	}
	preflight := func(origins ...string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header["Origin"] = origins
			r.Header.Set("Access-Control-Request-Method", "PATCH")
			r.Header.Set("Access-Control-Request-Headers", "authorization,content-type,if-match")
		}
	}
	granted := func(what string, h http.Header, origin string) {
		t.Helper()
		if h.Get("Access-Control-Allow-Origin") != origin || h.Get("Access-Control-Allow-Credentials") != "true" ||
			!slices.Contains(strings.Split(strings.ReplaceAll(strings.Join(h.Values("Vary"), ","), " ", ""), ","), "Origin") ||
			!strings.Contains(h.Get("Access-Control-Expose-Headers"), "ETag") {
			t.Errorf("%s: %v", what, h)
		}
	}
	for _, origin := range []string{"https://dashboard.example.com", "http://localhost:5173"} {
		for path, want := range map[string]int{"/compute/containers": 200, "/compute/containers/a1b2c3d4": 404, "/nothing": 404} {
			r := a.send("GET", path, "", from(origin))
			if r.status != want {
				t.Errorf("%s: %d", path, r.status)
			}
			granted(path, r.header, origin)
		}
		r := a.send("GET", "/compute/containers", "", func(r *http.Request) { r.Header.Set("Origin", origin) })
		r.isProblem(t, 401, compute.CodeUnauthenticated, "")
		granted("without a token", r.header, origin)
		a.undescribed = true // it is the browser's, and no operation
		r = a.send("OPTIONS", "/compute/containers/a1b2c3d4", "", preflight(origin))
		a.undescribed = false
		if h := r.header; r.status != 204 || r.body != "" || h.Get("Access-Control-Max-Age") != "600" ||
			!strings.Contains(h.Get("Access-Control-Allow-Methods"), "PATCH") ||
			!strings.Contains(h.Get("Access-Control-Allow-Headers"), "Authorization,Content-Type,If-Match,Idempotency-Key") {
			t.Errorf("%d %v", r.status, h)
		}
		granted("preflight", r.header, origin)
	}
	for _, origins := range [][]string{
		nil,
		{""},
		{"null"},
		{"*"},
		{"https://evil.example.com"},
		{"https://dashboard.example.com.evil.example"},
		{"http://dashboard.example.com"},
		{"https://dashboard.example.com:8443"},
		{"https://x." + zone}, // a container's page
		{"https://dashboard.example.com", "https://dashboard.example.com"},
		{"https://dashboard.example.com https://x.example"},
	} {
		r := a.send("GET", "/compute/containers", "", from(origins...))
		if r.status != 200 {
			t.Errorf("%q: %d", origins, r.status)
		}
		for _, r := range []reply{r, a.send("OPTIONS", "/compute/containers", "", preflight(origins...))} {
			for name := range r.header {
				if strings.HasPrefix(name, "Access-Control-") {
					t.Errorf("%q: %v", origins, r.header)
				}
			}
		}
		a.send("OPTIONS", "/compute/containers", "", preflight(origins...)).isProblem(t, 405, compute.CodeMethod, "")
	}
}

// Where the operator lists none, there are none, the API's own page neither: it needs no such word.
func TestNoPagesOfOtherOrigins(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.PublicURL = "https://api.example.com" })
	r := a.send("GET", "/compute/containers", "", func(r *http.Request) {
		r.Header.Set("Origin", "https://api.example.com")
		r.Header.Set("Authorization", "Bearer "+a.adaToken)
	})
	if r.status != 200 || r.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("%d %v", r.status, r.header)
	}
}
