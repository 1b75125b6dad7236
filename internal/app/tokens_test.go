package app

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"berth/internal/auth"
	"berth/internal/compute"
	"berth/internal/config"
)

// checkTokens has the operator make tokens for an account, list them and end one.
func checkTokens(t *testing.T, o Operator, name string) {
	t.Helper()
	ctx := t.Context()
	for _, r := range []TokenRequest{
		{Username: name, Name: "ci", TTL: time.Hour, Scopes: []string{"containers:read", "keys:read"}},
		{Username: name, Name: "all of it", TTL: 2 * time.Hour},
	} {
		if token, err := o.Token(ctx, r); err != nil || strings.Count(token, ".") != 2 {
			t.Fatalf("token is %q, %v", token, err)
		}
	}
	list, err := o.Tokens(ctx, name)
	if err != nil || len(list) != 2 {
		t.Fatalf("tokens are %+v, %v", list, err)
	}
	for _, k := range list {
		if k.Username != name || k.IssuedBy != compute.IssuedByOperator || !k.LastUsedAt.IsZero() || k.ExpiresAt.Before(time.Now()) {
			t.Errorf("%+v", k)
		}
		if want := map[string]string{"ci": "containers:read keys:read", "all of it": "all"}[k.Name]; strings.Join(k.Scopes, " ") != want {
			t.Errorf("%+v", k)
		}
	}
	everybodys, err := o.Tokens(ctx, "")
	if err != nil || len(everybodys) < 2 {
		t.Errorf("everybody's tokens are %+v, %v", everybodys, err)
	}
	if err := o.RevokeToken(ctx, list[0].ID); err != nil {
		t.Error(err)
	}
	if err := o.RevokeToken(ctx, list[0].ID); compute.CodeOf(err) != compute.CodeNotFound || !strings.Contains(err.Error(), "token ls") {
		t.Errorf("revoked again: %v", err)
	}
	if left, err := o.Tokens(ctx, name); err != nil || len(left) != 1 || left[0].ID != list[1].ID {
		t.Errorf("left are %+v, %v", left, err)
	}
	if err := o.RevokeToken(ctx, list[1].ID); err != nil {
		t.Error(err)
	}
}

// state opens the state of a new data directory.
func state(t *testing.T, edit func(*config.Config)) *berth {
	t.Helper()
	cfg := config.Default()
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	if edit != nil {
		edit(&cfg)
	}
	b, err := openState(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// The token file's token is kept while it is good for long enough, and replaced when it is not, whatever the reason.
func TestTokenFile(t *testing.T) {
	b := state(t, nil)
	ctx := t.Context()
	first, err := b.operator.AddUser(ctx, "ada", true, nil)
	if err != nil {
		t.Fatal(err)
	}
	write := func() string {
		t.Helper()
		if err := b.writeToken(ctx, first.ID); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(b.files.path("token"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	token := write()
	g, err := b.authority.Verify(ctx, token)
	if err != nil || g.User != first.ID || !g.Allows(auth.ScopeContainersWrite) || time.Until(g.Expires) < 23*time.Hour {
		t.Fatalf("%+v, %v", g, err)
	}
	for range 3 { // restarts
		if write() != token {
			t.Fatal("a good token was replaced")
		}
	}
	list, err := b.operator.Tokens(ctx, "ada")
	if err != nil || len(list) != 1 || list[0].Name != "token file" {
		t.Errorf("%+v, %v", list, err)
	}
	put := func(r TokenRequest) {
		t.Helper()
		other, err := b.operator.Token(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.files.writeToken(other); err != nil {
			t.Fatal(err)
		}
		token = other
	}
	if _, err := b.operator.AddUser(ctx, "bob", false, nil); err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func(){
		"revoked": func() {
			if err := b.operator.RevokeToken(ctx, g.TokenID); err != nil {
				t.Fatal(err)
			}
		},
		"absent": func() {
			if err := os.Remove(b.files.path("token")); err != nil {
				t.Fatal(err)
			}
		},
		"garbage": func() {
			if err := b.files.writeToken("hello"); err != nil {
				t.Fatal(err)
			}
		},
		"half over":        func() { put(TokenRequest{Name: "x", TTL: 12 * time.Hour}) },
		"longer than told": func() { put(TokenRequest{Name: "x", TTL: 48 * time.Hour}) },
		"another's":        func() { put(TokenRequest{Username: "bob", Name: "x", TTL: 24 * time.Hour}) },
		"narrow":           func() { put(TokenRequest{Name: "x", TTL: 24 * time.Hour, Scopes: []string{"keys:read"}}) },
	} {
		token = write()
		if g, err = b.authority.Verify(ctx, token); err != nil {
			t.Fatal(err)
		}
		spoil()
		if write() == token {
			t.Errorf("%s: it was kept", what)
		}
	}
}

// A way to sign in that is set up wrongly stops the start, with one line that says what to do.
func TestOpenVerifiers(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	short, good := file("short", "too short\n"), file("good", strings.Repeat("s", 40)+"\n")
	for name, tc := range map[string]struct {
		edit func(*config.Config)
		says []string // nothing: it starts
	}{
		"nothing":        {func(*config.Config) {}, nil},
		"a secret":       {func(c *config.Config) { c.HS256Secret = good }, nil},
		"an issuer":      {func(c *config.Config) { c.OIDC = []string{"https://id.example.com audience=berth"} }, nil},
		"a short secret": {func(c *config.Config) { c.HS256Secret = short }, []string{"--hs256-secret: ", short, "9 bytes", "32"}},
		"no secret":      {func(c *config.Config) { c.HS256Secret = filepath.Join(dir, "none") }, []string{"--hs256-secret: ", "no such file"}},
		"plain HTTP":     {func(c *config.Config) { c.OIDC = []string{"http://id.example.com audience=berth"} }, []string{"--oidc: ", "https"}},
		"our name":       {func(c *config.Config) { c.HS256Secret, c.HS256Issuer = good, "berth" }, []string{"issuer", `"berth"`}},
	} {
		t.Run(name, func(t *testing.T) {
			b := state(t, tc.edit)
			err := b.openVerifiers()
			if (err == nil) != (tc.says == nil) {
				t.Fatalf("error is %v", err)
			}
			for _, say := range tc.says {
				if !strings.Contains(err.Error(), say) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%q does not say %q in one line", err, say)
				}
			}
		})
	}
}

// The settings reach the verifiers, and what keeps the ledger runs beside the servers.
func TestVerifiersAreAsSet(t *testing.T) {
	secret := strings.Repeat("s", 40)
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := state(t, func(c *config.Config) {
		c.HS256Secret, c.HS256Issuer, c.HS256Types, c.HS256Admins, c.ProvisionUsers = path, "dash", []string{"login"}, []string{"7"}, true
		c.HS256Name, c.HS256MaxTTL = "dashboard", time.Hour
	})
	if err := b.openVerifiers(); err != nil {
		t.Fatal(err)
	}
	session := func(edit func(jwt.MapClaims)) string {
		c := jwt.MapClaims{"iss": "dash", "type": "login", "user_id": 7, "username": "carol", "exp": time.Now().Add(time.Minute).Unix(), "aud": b.cfg.Zone}
		if edit != nil {
			edit(c)
		}
		text, err := jwt.NewWithClaims(jwt.SigningMethodHS256, c).SignedString([]byte(secret))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	g, err := b.verifiers.Verify(t.Context(), session(nil))
	if err != nil || g.Username != "carol" || g.Role != compute.RoleAdmin {
		t.Errorf("%+v, %v", g, err)
	}
	if u, err := b.store.UserByIdentity(t.Context(), "hs256:dashboard", "7"); err != nil || u.ID != g.User || u.Role != compute.RoleUser {
		t.Errorf("%+v, %v", u, err)
	}
	if g, err := b.verifiers.Verify(t.Context(), session(func(c jwt.MapClaims) { c["user_id"] = 8 })); err != nil || g.Role != compute.RoleUser {
		t.Errorf("%+v, %v", g, err)
	}
	for what, edit := range map[string]func(jwt.MapClaims){
		"type": func(c jwt.MapClaims) { c["type"] = "session" }, "issuer": func(c jwt.MapClaims) { delete(c, "iss") },
		"life": func(c jwt.MapClaims) { c["exp"] = time.Now().Add(2 * time.Hour).Unix() }, "zone": func(c jwt.MapClaims) { c["aud"] = "x" },
	} {
		if g, err := b.verifiers.Verify(t.Context(), session(edit)); compute.CodeOf(err) != compute.CodeUnauthenticated {
			t.Errorf("another %s: %+v, %v", what, g, err)
		}
	}

	token, rec, err := b.authority.Issue(t.Context(), g.User, compute.IssuedByUser, auth.Request{
		Name: "x", Scopes: []auth.Scope{auth.ScopeAll}, TTL: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.verifiers.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, run := range b.inner {
		if err := run(ctx); err != nil {
			t.Error(err)
		}
	}
	if got, _, err := b.store.Token(t.Context(), rec.ID); err != nil || got.LastUsedAt.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
}
