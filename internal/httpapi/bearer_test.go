package httpapi

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"berth/internal/auth"
	"berth/internal/compute"
)

// routes lists every route that needs a token, with the scope that it needs.
var routes = []struct {
	method, path, body string
	scope              auth.Scope
}{
	{"GET", "/compute/containers", "", auth.ScopeContainersRead},
	{"HEAD", "/compute/containers", "", auth.ScopeContainersRead},
	{"POST", "/compute/containers", `{"name":"x"}`, auth.ScopeContainersWrite},
	{"GET", "/compute/containers/00000000", "", auth.ScopeContainersRead},
	{"PATCH", "/compute/containers/00000000", `{"name":"x"}`, auth.ScopeContainersWrite},
	{"DELETE", "/compute/containers/00000000", "", auth.ScopeContainersWrite},
	{"POST", "/compute/containers/00000000/start", "", auth.ScopeContainersWrite},
	{"POST", "/compute/containers/00000000/stop", "", auth.ScopeContainersWrite},
	{"GET", "/compute/containers/00000000/ssh", "", auth.ScopeContainersRead},
	{"PUT", "/compute/containers/00000000/ssh", `{"ssh_enabled":true}`, auth.ScopeContainersWrite},
	{"GET", "/compute/containers/00000000/ssh-keys", "", auth.ScopeContainersRead},
	{"PUT", "/compute/containers/00000000/ssh-keys", `{"ssh_key_ids":[1]}`, auth.ScopeContainersWrite},
	{"GET", "/compute/containers/00000000/events", "", auth.ScopeContainersRead},
	{"GET", "/compute/containers/00000000/ingress", "", auth.ScopeContainersRead},
	{"HEAD", "/compute/containers/00000000/ingress", "", auth.ScopeContainersRead},
	{"POST", "/compute/containers/00000000/ingress", `{"port":443}`, auth.ScopeContainersWrite},
	{"DELETE", "/compute/containers/00000000/ingress/443", "", auth.ScopeContainersWrite},
	{"GET", "/compute/containers/00000000/mounts", "", auth.ScopeContainersRead},
	{"HEAD", "/compute/containers/00000000/mounts", "", auth.ScopeContainersRead},
	{"PUT", "/compute/containers/00000000/mounts", `{"mount_paths":["/data"]}`, auth.ScopeContainersWrite},
	{"POST", "/compute/containers/00000000/exec", `{"command":["true"]}`, auth.ScopeContainersExec},
	{"GET", "/compute/instance-types", "", auth.ScopeContainersRead},
	{"GET", "/compute/ssh-keys", "", auth.ScopeKeysRead},
	{"POST", "/compute/ssh-keys", `{"name":"x"}`, auth.ScopeKeysWrite},
	{"DELETE", "/compute/ssh-keys/1", "", auth.ScopeKeysWrite},
	{"GET", "/compute/tokens", "", auth.ScopeTokensRead},
	{"POST", "/compute/tokens", `{"name":"x"}`, auth.ScopeTokensWrite},
	{"DELETE", "/compute/tokens/none", "", auth.ScopeTokensWrite},
	{"GET", "/compute/whoami", "", anyScope},
	{"GET", "/compute/audit", "", auth.ScopeAuditRead},
	{"GET", "/compute/admin/users", "", auth.ScopeAdmin},
	{"POST", "/compute/admin/users", `{"username":"x"}`, auth.ScopeAdmin},
	{"GET", "/compute/admin/users/1", "", auth.ScopeAdmin},
	{"PATCH", "/compute/admin/users/1", `{"disabled":true}`, auth.ScopeAdmin},
	{"GET", "/compute/admin/containers", "", auth.ScopeAdmin},
	{"POST", "/compute/admin/containers/00000000/stop", "", auth.ScopeAdmin},
	{"GET", "/compute/admin/storage", "", auth.ScopeAdmin},
	{"DELETE", "/compute/admin/storage/compute-1-00000000", "", auth.ScopeAdmin},
}

func TestEveryRouteNeedsAToken(t *testing.T) {
	a := newAPI(t, nil)
	listed := 0
	for _, route := range a.server.app.GetRoutes(true) {
		switch route.Path {
		case "/healthz", "/readyz", "/openapi.json", "/docs": // for everybody
		case "/compute/ws", "/compute/session", "/compute/ws-ticket": // these have tests of their own
		default:
			listed++
		}
	}
	want := 0
	for _, r := range routes {
		switch r.method {
		case "GET":
			want += 2 // and its HEAD, which is in the list above for some
		case "HEAD":
		default:
			want++
		}
	}
	if listed != want {
		t.Errorf("%d routes are registered, %d are known to this test", listed, want)
	}
	for _, r := range routes {
		got := a.do(r.method, r.path, "", r.body)
		if r.method != "HEAD" {
			got.isProblem(t, 401, compute.CodeUnauthenticated, "")
		}
		if h := got.header.Get("WWW-Authenticate"); got.status != 401 || h != `Bearer realm="compute.example.com"` {
			t.Errorf("%s %s: %d, challenge %q", r.method, r.path, got.status, h)
		}
	}
}

// A token opens what its scopes name, and nothing else.
func TestScopes(t *testing.T) {
	a := newAPI(t, nil)
	for _, scope := range auth.Scopes() {
		if scope == auth.ScopeAll {
			continue
		}
		token, err := a.tokens.Issue(a.ada, time.Hour, scope)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			got := a.do(r.method, r.path, token, r.body)
			if r.scope == auth.ScopeAdmin { // worth nothing to ada, who is no administrator: see admin_test.go
				if got.status != 404 {
					t.Errorf("%s %s with scope %s: %d", r.method, r.path, scope, got.status)
				}
				continue
			}
			if allowed := got.status != 403; allowed != (r.scope == scope || r.scope == anyScope) {
				t.Errorf("%s %s with scope %s: %d", r.method, r.path, scope, got.status)
			}
			if got.status == 403 && r.method != "HEAD" {
				if said := got.isProblem(t, 403, compute.CodeForbidden, ""); !strings.Contains(said, string(r.scope)) {
					t.Errorf("it says %q", said)
				}
				if h := got.header.Get("WWW-Authenticate"); !strings.HasSuffix(h, `error="insufficient_scope"`) {
					t.Errorf("challenge %q", h)
				}
			}
		}
	}
}

func TestTokensRefused(t *testing.T) {
	a := newAPI(t, nil)
	public := a.key.Public().(ed25519.PublicKey)
	err := a.store.AddToken(t.Context(), compute.Token{
		ID: "J", Owner: a.ada.ID, IssuedBy: compute.IssuedByUser, Name: "J", CreatedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour),
	}, 10)
	if err != nil {
		t.Fatal(err)
	}
	claims := func(edit func(jwt.MapClaims)) jwt.MapClaims {
		now := time.Now()
		c := jwt.MapClaims{
			"iss": auth.Issuer, "sub": "1", "aud": zone, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "jti": "J", "scope": "all",
		}
		if edit != nil {
			edit(c)
		}
		return c
	}
	sign := func(m jwt.SigningMethod, key any, edit func(jwt.MapClaims)) string {
		token := jwt.NewWithClaims(m, claims(edit))
		token.Header["typ"] = "at+jwt"
		text, err := token.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	set := func(name string, v any) func(jwt.MapClaims) { return func(c jwt.MapClaims) { c[name] = v } }
	if r := a.do("GET", "/compute/containers", sign(jwt.SigningMethodEdDSA, a.key, nil), ""); r.status != 200 {
		t.Fatalf("what the others differ from is refused itself: %+v", r)
	}
	parts := strings.Split(a.adaToken, ".")
	for name, token := range map[string]string{
		"garbage":        "hello",
		"alg none":       sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil),
		"HS256":          sign(jwt.SigningMethodHS256, []byte(public), nil),
		"expired":        sign(jwt.SigningMethodEdDSA, a.key, set("exp", time.Now().Add(-time.Second).Unix())),
		"not yet valid":  sign(jwt.SigningMethodEdDSA, a.key, set("nbf", time.Now().Add(time.Hour).Unix())),
		"other zone":     sign(jwt.SigningMethodEdDSA, a.key, set("aud", "other.example.com")),
		"other issuer":   sign(jwt.SigningMethodEdDSA, a.key, set("iss", "https://accounts.example.com")),
		"too long-lived": sign(jwt.SigningMethodEdDSA, a.key, set("exp", time.Now().Add(auth.MaxTTL+time.Hour).Unix())),
		"nobody":         sign(jwt.SigningMethodEdDSA, a.key, set("sub", "4242")),
		"tampered":       parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])),
		"another's body": parts[0] + "." + strings.Split(a.bobToken, ".")[1] + "." + parts[2],
	} {
		r := a.do("DELETE", "/compute/containers/00000000", token, "")
		r.isProblem(t, 401, compute.CodeUnauthenticated, "")
		if h := r.header.Get("WWW-Authenticate"); h != `Bearer realm="compute.example.com", error="invalid_token"` {
			t.Errorf("%s: challenge %q", name, h)
		}
		if strings.Contains(a.log.String(), token) && len(token) > 10 {
			t.Errorf("%s: the token is in the log", name)
		}
	}
	if _, err := a.store.SetUserDisabled(t.Context(), a.ada.ID, true); err != nil {
		t.Fatal(err)
	}
	if said := a.do("GET", "/compute/containers", a.adaToken, "").isProblem(t, 401, compute.CodeUnauthenticated, ""); !strings.Contains(said, "disabled") {
		t.Errorf("a disabled account is told %q", said)
	}
	if _, err := a.store.SetUserDisabled(t.Context(), a.ada.ID, false); err != nil {
		t.Fatal(err)
	}
	if r := a.do("GET", "/compute/containers", a.adaToken, ""); r.status != 200 {
		t.Errorf("enabled again: %+v", r)
	}
	if log := a.log.String(); strings.Contains(log, a.adaToken) || strings.Contains(log, parts[2]) {
		t.Error("a good token is in the log")
	}
}

func TestAuthorizationHeaders(t *testing.T) {
	a := newAPI(t, nil)
	get := func(values ...string) reply {
		return a.send("GET", "/compute/containers", "", func(r *http.Request) { r.Header["Authorization"] = values })
	}
	for _, h := range []string{"Bearer ", "bearer ", "BEARER ", "Bearer   "} {
		if r := get(h + a.adaToken); r.status != 200 {
			t.Errorf("%q: %+v", h, r)
		}
	}
	for _, h := range []string{
		"", " ", "Bearer", "Bearer ", a.adaToken, "Basic " + a.adaToken, "Token " + a.adaToken, "Bearer:" + a.adaToken, "Bearer\t" + a.adaToken,
		"Bearer " + a.adaToken + " x", `Bearer "` + a.adaToken + `"`, "Bearer " + a.adaToken + "," + a.adaToken, "Bearer Bearer " + a.adaToken,
		"Bearer " + strings.Repeat("a", 12<<10), "Bearer é", "Bearer ====",
	} {
		get(h).isProblem(t, 401, compute.CodeUnauthenticated, "")
	}
	get("Bearer "+a.adaToken, "Bearer "+a.adaToken).isProblem(t, 401, compute.CodeUnauthenticated, "")
	get("Bearer "+a.adaToken, "Bearer x").isProblem(t, 401, compute.CodeUnauthenticated, "")
	a.send("GET", "/compute/containers", "", func(r *http.Request) {
		r.Header.Set("Cookie", "token="+a.adaToken)
		r.Header.Set("X-Access-Token", a.adaToken)
	}).isProblem(t, 401, compute.CodeUnauthenticated, "")
}

// failing is a Verifier whose database is away.
type failing struct{}

func (failing) Verify(context.Context, string) (auth.Grant, error) {
	return auth.Grant{}, compute.Internal("read a user", errors.New("disk I/O error at /srv/secret"))
}

// A token that could not be looked up is a fault of ours: a client must not throw it away.
func TestLookupFails(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.Verifier = failing{} })
	r := a.do("GET", "/compute/containers", a.adaToken, "")
	r.isProblem(t, 500, compute.CodeInternal, "")
	if strings.Contains(r.body, "srv") || r.header.Get("WWW-Authenticate") != "" {
		t.Errorf("%+v", r)
	}
	if !strings.Contains(a.log.String(), "disk I/O error") {
		t.Error("the log does not say why")
	}
}

func FuzzBearer(f *testing.F) {
	for _, s := range []string{"Bearer abc.def-_~+/==", "bearer x", "Basic eA==", "Bearer", "Bearer  x", "Bearer a=b", "", " Bearer x", "Bearer x\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		token, err := bearer([]string{header})
		if err != nil {
			if compute.CodeOf(err) != compute.CodeUnauthenticated || token != "" {
				t.Fatalf("%q: %q, %v", header, token, err)
			}
			return
		}
		if token == "" || !strings.HasSuffix(header, token) || !strings.EqualFold(header[:7], "Bearer ") {
			t.Fatalf("%q gives %q", header, token)
		}
		for _, c := range []byte(token) {
			if c <= ' ' || c >= 0x7f || c == '"' || c == ',' {
				t.Fatalf("%q gives %q", header, token)
			}
		}
	})
}
