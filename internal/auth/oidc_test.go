package auth

import (
	"crypto/elliptic"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"berth/internal/compute"
)

func TestOIDC(t *testing.T) {
	w, i := newWorld(t), newIssuer(t)
	rs, es, ed := rsaKey(t, 2048), ecKey(t, elliptic.P256()), newKey(t)
	i.publish(named(rs, es, ed))
	p := w.provider(i, nil)
	var carol compute.Principal
	for n, token := range []string{
		i.token(w, rs, "k1", nil), i.token(w, es, "k2", nil), i.token(w, ed, "k3", nil),
		i.token(w, ed, "", nil), // the only key of its algorithm
		i.token(w, ed, "k3", func(c jwt.MapClaims) { c["aud"] = []string{"another", "berth-here"} }),
		i.token(w, ed, "k3", func(c jwt.MapClaims) { c["preferred_username"] = "mallory" }), // only a wish, at the first time
		signWith(t, jwt.SigningMethodEdDSA, ed, map[string]any{"typ": "at+jwt", "kid": "k3"}, i.claims(w, nil)),
		signWith(t, jwt.SigningMethodEdDSA, ed, map[string]any{"typ": "application/at+JWT", "kid": "k3"}, i.claims(w, nil)),
		signWith(t, jwt.SigningMethodEdDSA, ed, map[string]any{"kid": "k3"}, i.claims(w, nil)),
	} {
		g, err := p.Verify(t.Context(), token)
		if err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		if n == 0 {
			carol = g.Principal
		}
		if g.Principal != carol || g.Username != "carol" || g.Role != compute.RoleUser || g.Kind != KindOIDC ||
			!g.Allows(ScopeContainersWrite) || g.Expires.Unix() != w.clock.in(time.Hour) {
			t.Errorf("%d: %+v", n, g)
		}
	}
	if i.asked() != 1 {
		t.Errorf("the keys were asked for %d times", i.asked())
	}
	if carol.User == w.ada.ID || carol.User == w.bob.ID {
		t.Errorf("the account is %+v", carol)
	}
	if _, err := w.store.SetUserDisabled(t.Context(), carol.User, true); err != nil {
		t.Fatal(err)
	}
	if said := wantRefused(t, p, i.token(w, ed, "k3", nil)); !strings.Contains(said, "disabled") {
		t.Errorf("it says %q", said)
	}
}

func TestOIDCClaims(t *testing.T) {
	w, i := newWorld(t), newIssuer(t)
	key := newKey(t)
	i.publish(named(key))
	p := w.provider(i, nil)
	set := func(name string, value any) func(jwt.MapClaims) { return func(c jwt.MapClaims) { c[name] = value } }
	drop := func(name string) func(jwt.MapClaims) { return func(c jwt.MapClaims) { delete(c, name) } }
	for name, tc := range map[string]struct {
		edit func(jwt.MapClaims)
		ok   bool
	}{
		"as issued":             {nil, true},
		"no iat":                {drop("iat"), true},
		"no name":               {drop("preferred_username"), true},
		"times with a fraction": {set("exp", float64(w.clock.in(time.Hour))+0.5), true},
		"clock a little ahead":  {set("iat", w.clock.in(leeway/2)), true},
		"no sub":                {drop("sub"), false},
		"sub empty":             {set("sub", ""), false},
		"sub a number":          {set("sub", 1), false},
		"sub null":              {set("sub", nil), false},
		"sub a list":            {set("sub", []string{"person-1"}), false},
		"sub of 256":            {set("sub", strings.Repeat("x", 256)), false},
		"sub with a newline":    {set("sub", "a\nb"), false},
		"sub with NUL":          {set("sub", "person-1\x00"), false},
		"sub not text":          {set("sub", "\ufffd"), false}, // what broken UTF-8 is read as, whichever it was
		"no aud":                {drop("aud"), false},
		"aud of another":        {set("aud", "another"), false},
		"aud in capitals":       {set("aud", "BERTH-HERE"), false},
		"aud a prefix":          {set("aud", "berth-here.example.com"), false},
		"aud a list of another": {set("aud", []string{"another"}), false},
		"aud of lists":          {set("aud", [][]string{{"berth-here"}}), false},
		"aud a number":          {set("aud", 5), false},
		"no iss":                {drop("iss"), false},
		"iss with a slash":      {set("iss", i.url+"/"), false},
		"iss is ours":           {set("iss", Issuer), false},
		"no exp":                {drop("exp"), false},
		"exp null":              {set("exp", nil), false},
		"exp text":              {set("exp", "1900000000"), false},
		"exp in milliseconds":   {set("exp", w.clock.in(time.Hour)*1000), false},
		"exp negative":          {set("exp", -1), false},
		"expired":               {set("exp", w.clock.in(0)), false},
		"lives too long":        {set("exp", w.clock.in(MaxTTL+time.Hour)), false},
		"lived too long":        {set("iat", w.clock.in(-MaxTTL)), false},
		"issued in the future":  {set("iat", w.clock.in(time.Hour)), false},
		"not valid yet":         {set("nbf", w.clock.in(time.Hour)), false},
		"nbf text":              {set("nbf", "now"), false},
		"name a number":         {set("preferred_username", 5), false},
		"scope a list":          {set("scope", []string{"keys:read"}), false},
	} {
		t.Run(name, func(t *testing.T) {
			token := i.token(w, key, "k1", tc.edit)
			if !tc.ok {
				wantRefused(t, p, token)
			} else if g, err := p.Verify(t.Context(), token); err != nil || g.User == 0 {
				t.Errorf("%+v, %v", g, err)
			}
		})
	}
}

// A foreign token limits itself where it speaks our words; words of the issuer's own say nothing.
func TestForeignScopes(t *testing.T) {
	w, i := newWorld(t), newIssuer(t)
	key := newKey(t)
	i.publish(named(key))
	p := w.provider(i, nil)
	for scope, want := range map[string]string{
		"": "all", "openid profile": "all", "openid containers:read": "containers:read", "keys:read keys:write x": "keys:read keys:write",
	} {
		g, err := p.Verify(t.Context(), i.token(w, key, "k1", func(c jwt.MapClaims) { c["scope"] = scope }))
		if err != nil || join(g.Scopes, " ") != want {
			t.Errorf("%q: %v, %v; want %s", scope, g.Scopes, err, want)
		}
	}
}

// A foreign token is an administrator's only where the operator said which, whatever else it or the account says.
func TestOIDCAdmin(t *testing.T) {
	w, i := newWorld(t), newIssuer(t)
	key := newKey(t)
	i.publish(named(key))
	plain := w.provider(i, nil)
	mapped := w.provider(i, func(c *OIDCConfig) { c.AdminClaim, c.AdminValue = "groups", "berth-admins" })
	role := func(p *Provider, edit func(jwt.MapClaims)) compute.Role {
		t.Helper()
		g, err := p.Verify(t.Context(), i.token(w, key, "k1", edit))
		if err != nil {
			t.Fatal(err)
		}
		return g.Role
	}
	for _, groups := range []any{"berth-admins", []string{"staff", "berth-admins"}} {
		edit := func(c jwt.MapClaims) { c["groups"], c["role"], c["admin"] = groups, "admin", true }
		if got := role(plain, edit); got != compute.RoleUser {
			t.Errorf("not mapped, groups %v: %s", groups, got)
		}
		if got := role(mapped, edit); got != compute.RoleAdmin {
			t.Errorf("mapped, groups %v: %s", groups, got)
		}
	}
	for _, groups := range []any{"berth-admin", "staff", "", []string{}, []string{"staff", "BERTH-ADMINS"}, []string{"berth-admins "}} {
		if got := role(mapped, func(c jwt.MapClaims) { c["groups"] = groups }); got != compute.RoleUser {
			t.Errorf("groups %v: %s", groups, got)
		}
	}
	if got := role(mapped, nil); got != compute.RoleUser {
		t.Errorf("no groups: %s", got)
	}
	for _, groups := range []any{5, nil, map[string]bool{"berth-admins": true}, []any{"berth-admins", 5}, []any{nil}} {
		wantRefused(t, mapped, i.token(w, key, "k1", func(c jwt.MapClaims) { c["groups"] = groups }))
	}
	// The account's own role is what an operator gave it for its own keys and tokens.
	if _, err := w.store.Provision(t.Context(), i.url, "boss", []string{"boss"}); err != nil {
		t.Fatal(err)
	}
	if got := role(plain, func(c jwt.MapClaims) { c["sub"], c["preferred_username"] = "boss", "ada" }); got != compute.RoleUser {
		t.Errorf("boss: %s", got)
	}
}

// Nobody gets an account who is not to have one; whoever has one keeps it.
func TestProvisioningIsAllowed(t *testing.T) {
	w, i := newWorld(t), newIssuer(t)
	key := newKey(t)
	i.publish(named(key))
	closed := w.provider(i, func(c *OIDCConfig) { c.Provision = false })
	token := i.token(w, key, "k1", func(c jwt.MapClaims) { c["preferred_username"] = "ada" })
	if said := wantRefused(t, closed, token); !strings.Contains(said, "no account") {
		t.Errorf("it says %q", said)
	}
	before, err := w.store.Users(t.Context())
	if err != nil || len(before) != 3 {
		t.Fatalf("%+v, %v", before, err)
	}
	made, err := w.provider(i, nil).Verify(t.Context(), token)
	if err != nil || made.User == w.ada.ID || !strings.HasPrefix(made.Username, "ada-") {
		t.Fatalf("%+v, %v", made, err)
	}
	wantGrant(t, closed, token, made.Principal)
}

func TestNewProviderRefuses(t *testing.T) {
	for _, c := range []OIDCConfig{
		{Issuer: "https://id.example.com"},
		{Audience: "x"},
		{Issuer: "http://id.example.com", Audience: "x"},
		{Issuer: "http://127.0.0.1.example.com", Audience: "x"},
		{Issuer: "ftp://127.0.0.1", Audience: "x"},
		{Issuer: "https://user@id.example.com", Audience: "x"},
		{Issuer: "https://id.example.com?x", Audience: "x"},
		{Issuer: "https://id.example.com#x", Audience: "x"},
		{Issuer: "https://" + strings.Repeat("x", 300), Audience: "x"},
		{Issuer: "id.example.com", Audience: "x"},
		{Issuer: "https:///x", Audience: "x"},
	} {
		if _, err := NewProvider(c, nil); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
	for _, url := range []string{"https://id.example.com/realms/x", "http://localhost:8080", "http://[::1]:1/x", "http://127.0.0.2"} {
		if _, err := NewProvider(OIDCConfig{Issuer: url, Audience: "x"}, nil); err != nil {
			t.Error(err)
		}
	}
}
