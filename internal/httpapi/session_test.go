package httpapi

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"berth/internal/auth"
	"berth/internal/compute"
)

// cookieOf returns the one cookie that an answer sets.
func cookieOf(t *testing.T, r reply) *http.Cookie {
	t.Helper()
	cookies := (&http.Response{Header: r.header}).Cookies()
	if len(cookies) != 1 {
		t.Fatalf("%d cookies: %+v", len(cookies), r)
	}
	return cookies[0]
}

// A bearer token becomes a cookie with all that keeps it from other pages, and the cookie then does what the token does.
func TestSession(t *testing.T) {
	for name, tc := range map[string]struct {
		public, proto string
		secure        bool
	}{
		"plain":            {"", "", false},
		"behind TLS":       {"", "https", true},
		"configured":       {"https://" + zone, "", true},
		"configured plain": {"http://127.0.0.1", "https", false},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, func(c *Config) { c.PublicURL = tc.public })
			send := func(method, path string, h http.Header) reply {
				return a.send(method, path, "", func(r *http.Request) {
					r.Header = h
					if tc.proto != "" {
						r.Header.Set("X-Forwarded-Proto", tc.proto)
					}
				})
			}
			r := send("POST", "/compute/session", http.Header{"Authorization": {"Bearer " + a.adaToken}})
			var who struct {
				User      compute.UserID
				Username  string
				Role      string
				ExpiresAt time.Time `json:"expires_at"`
			}
			r.into(t, 200, &who)
			fields(t, r.body, "user username role expires_at")
			if who.User != a.ada.ID || who.Username != "ada" || who.Role != "user" || time.Until(who.ExpiresAt) > time.Hour || time.Until(who.ExpiresAt) < 59*time.Minute {
				t.Errorf("%+v", who)
			}
			c := cookieOf(t, r)
			want := "berth"
			if tc.secure {
				want = "__Host-berth"
			}
			if c.Name != want || c.Secure != tc.secure || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" ||
				!c.Expires.Equal(who.ExpiresAt) || c.Value != a.adaToken {
				t.Errorf("%s", c.Raw)
			}
			header := http.Header{"Cookie": {c.Name + "=" + c.Value}}
			if r := send("GET", "/compute/containers", header.Clone()); r.status != 200 {
				t.Errorf("by the cookie: %+v", r)
			}
			// The name of the other scheme is nobody's: over HTTPS any page of the domain could have set it.
			other := map[string]string{"berth": "__Host-berth", "__Host-berth": "berth"}[c.Name]
			send("GET", "/compute/containers", http.Header{"Cookie": {other + "=" + c.Value}}).isProblem(t, 401, compute.CodeUnauthenticated, "")

			origin := tc.public
			if origin == "" {
				origin = strings.Replace(a.url, "http", map[bool]string{true: "https", false: "http"}[tc.secure], 1)
			}
			header.Set("Origin", origin)
			r = send("DELETE", "/compute/session", header.Clone())
			r.into(t, 200, &struct{}{})
			if c := cookieOf(t, r); c.Name != want || c.Value != "" || c.MaxAge >= 0 || c.Path != "/" || c.Secure != tc.secure {
				t.Errorf("%s", c.Raw)
			}
		})
	}
}

func TestSessionRefuses(t *testing.T) {
	a := newAPI(t, nil)
	// A cookie is no way to a cookie, and neither is the query.
	for _, h := range []http.Header{
		{}, {"Cookie": {"berth=" + a.adaToken}, "Origin": {a.url}}, {"Authorization": {"Bearer x"}}, {"Authorization": {"Basic eA=="}},
	} {
		r := a.send("POST", "/compute/session?token="+a.adaToken, "", func(r *http.Request) { r.Header = h })
		r.isProblem(t, 401, compute.CodeUnauthenticated, "")
		if r.header.Get("Set-Cookie") != "" {
			t.Errorf("%v: it sets a cookie", h)
		}
	}
	// Whoever has lost the session can still drop what is left of it.
	for _, value := range []string{"", "x", "expired.or.so"} {
		r := a.send("DELETE", "/compute/session", "", func(r *http.Request) { r.Header = http.Header{"Cookie": {"berth=" + value}, "Origin": {a.url}} })
		r.into(t, 200, &struct{}{})
		cookieOf(t, r)
	}
	a.do("DELETE", "/compute/session", "", "").into(t, 200, &struct{}{})
	get := func(cookie string) reply {
		return a.send("GET", "/compute/containers", "", func(r *http.Request) { r.Header.Set("Cookie", cookie) })
	}
	for _, cookie := range []string{
		"berth=x", "berth=", "berth", "Berth=" + a.adaToken, "berth=" + a.adaToken + "x", "berth=Bearer " + a.adaToken,
		"berth=" + a.adaToken + "; berth=" + a.bobToken, "berth=" + a.adaToken + "; berth=" + a.adaToken, // whose is whose?
	} {
		get(cookie).isProblem(t, 401, compute.CodeUnauthenticated, "")
	}
	if r := get("theme=dark; berth=" + a.adaToken + "; x=y"); r.status != 200 {
		t.Errorf("among others: %+v", r)
	}
	// The cookie is worth no more than its token.
	keys, err := a.tokens.Issue(a.ada, time.Hour, auth.ScopeKeysRead)
	if err != nil {
		t.Fatal(err)
	}
	a.do("POST", "/compute/session", keys, "").into(t, 200, &struct{}{})
	get("berth="+keys).isProblem(t, 403, compute.CodeForbidden, "")
	if _, err := a.store.SetUserDisabled(t.Context(), a.ada.ID, true); err != nil {
		t.Fatal(err)
	}
	get("berth="+a.adaToken).isProblem(t, 401, compute.CodeUnauthenticated, "")
}

// A token that browsers would not keep is refused, rather than lost.
func TestSessionOfALongToken(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.Verifier = &generous{c.Verifier} })
	a.undescribed = true // it lets in nobody with no role
	a.do("POST", "/compute/session", strings.Repeat("x", maxCookie-len("berth")), "").into(t, 200, &struct{}{})
	a.do("POST", "/compute/session", strings.Repeat("x", maxCookie-len("berth")+1), "").isProblem(t, 413, compute.CodeTooLarge, "")
}
