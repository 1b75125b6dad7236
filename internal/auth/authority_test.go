package auth

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"berth/internal/compute"
)

func TestIssueVerify(t *testing.T) {
	w := newWorld(t)
	token, rec := w.issue(ScopeContainersRead, ScopeKeysWrite)
	g := wantGrant(t, w.own, token, principal(w.bob))
	if g.Kind != KindToken || g.TokenID != rec.ID || !g.Expires.Equal(w.clock.now().Add(time.Hour)) || g.KeyID != 0 {
		t.Errorf("%+v of %+v", g, rec)
	}
	for scope, want := range map[Scope]bool{
		ScopeContainersRead: true, ScopeKeysWrite: true, ScopeContainersWrite: false, ScopeKeysRead: false, ScopeAll: false, "": false,
	} {
		if got := g.Allows(scope); got != want {
			t.Errorf("allows %q: %v, want %v", scope, got, want)
		}
	}
	again, other := w.issue(ScopeAll)
	g = wantGrant(t, w.own, again, principal(w.bob))
	if !g.Allows(ScopeContainersWrite) || other.ID == rec.ID {
		t.Errorf("with all: %+v; want everything allowed, and an id of its own", g)
	}
	list, err := w.own.Tokens(t.Context(), w.bob.ID)
	if err != nil || len(list) != 2 || list[0].Name != "ci" || !slices.Contains(list[0].Scopes, "keys:write") && !slices.Contains(list[1].Scopes, "keys:write") {
		t.Errorf("listed %+v, %v", list, err)
	}
	if list, err := w.own.Tokens(t.Context(), w.ada.ID); err != nil || len(list) != 0 {
		t.Errorf("listed for another: %+v, %v", list, err)
	}
}

func TestIssueRefuses(t *testing.T) {
	w := newWorld(t)
	good := Request{Name: "ci", Scopes: []Scope{ScopeAll}, TTL: time.Hour}
	for field, edits := range map[string][]func(*Request){
		"ttl": {
			func(r *Request) { r.TTL = 0 },
			func(r *Request) { r.TTL = -time.Hour },
			func(r *Request) { r.TTL = time.Millisecond },
			func(r *Request) { r.TTL = MaxTTL + time.Second },
		},
		"scopes": {
			func(r *Request) { r.Scopes = nil },
			func(r *Request) { r.Scopes = []Scope{""} },
			func(r *Request) { r.Scopes = []Scope{"everything"} },
			func(r *Request) { r.Scopes = []Scope{"keys:read keys:write"} },
			func(r *Request) { r.Scopes = []Scope{ScopeAll, ScopeAll} },
		},
		"name": {
			func(r *Request) { r.Name = "" },
			func(r *Request) { r.Name = "a\nb" },
			func(r *Request) { r.Name = strings.Repeat("x", 65) },
		},
	} {
		for i, edit := range edits {
			r := good
			edit(&r)
			token, _, err := w.own.Issue(t.Context(), w.bob.ID, compute.IssuedByUser, r)
			if e := compute.AsError(err); e == nil || e.Code != compute.CodeInvalid || e.Field != field || token != "" {
				t.Errorf("%s %d: %v", field, i, err)
			}
		}
	}
	if _, _, err := w.own.Issue(t.Context(), w.eve.ID, compute.IssuedByOperator, good); compute.CodeOf(err) != compute.CodeForbidden {
		t.Errorf("for a disabled account: %v", err)
	}
	if list, err := w.store.AllTokens(t.Context(), w.clock.now()); err != nil || len(list) != 0 {
		t.Errorf("a refused token is recorded: %+v, %v", list, err)
	}
}

// What a user has made and what an operator has made for them are counted apart.
func TestLimits(t *testing.T) {
	w := newWorld(t)
	r := Request{Name: "ci", Scopes: []Scope{ScopeAll}, TTL: time.Hour}
	for range MaxUserTokens {
		w.issue(ScopeAll)
	}
	token, rec, err := w.own.Issue(t.Context(), w.bob.ID, compute.IssuedByUser, r)
	if compute.CodeOf(err) != compute.CodeLimit || token != "" || rec.ID != "" {
		t.Errorf("one more: %q, %v", token, err)
	}
	if _, _, err := w.own.Issue(t.Context(), w.bob.ID, compute.IssuedByOperator, r); err != nil {
		t.Error(err)
	}
	w.clock.add(time.Hour)
	w.issue(ScopeAll)
}

// A credential gives no more than it has.
func TestDelegate(t *testing.T) {
	w := newWorld(t)
	all, some := []Scope{ScopeAll}, []Scope{ScopeTokensWrite, ScopeContainersRead}
	for _, tc := range []struct {
		user compute.User
		has  []Scope
		asks []Scope
		code compute.Code
	}{
		{w.bob, all, []Scope{ScopeAll}, ""},
		{w.bob, all, []Scope{ScopeKeysRead, ScopeKeysWrite}, ""},
		{w.bob, some, []Scope{ScopeContainersRead}, ""},
		{w.bob, some, some, ""},
		{w.bob, some, []Scope{ScopeAll}, compute.CodeForbidden},
		{w.bob, some, []Scope{ScopeContainersRead, ScopeContainersWrite}, compute.CodeForbidden},
		{w.bob, nil, []Scope{ScopeContainersRead}, compute.CodeForbidden},
		{w.bob, some, []Scope{"containers:*"}, compute.CodeInvalid},
		{w.bob, all, nil, compute.CodeInvalid},
		{w.bob, all, []Scope{ScopeAdmin}, compute.CodeForbidden},
		{w.ada, all, []Scope{ScopeAdmin}, ""},
		{w.ada, some, []Scope{ScopeAdmin}, compute.CodeForbidden},
	} {
		g := Grant{Principal: principal(tc.user), Scopes: tc.has}
		token, rec, err := w.own.Delegate(t.Context(), g, Request{Name: "ci", Scopes: tc.asks, TTL: time.Hour})
		if tc.code != "" {
			if compute.CodeOf(err) != tc.code || token != "" {
				t.Errorf("%v asks for %v: %v, want %s", tc.has, tc.asks, err, tc.code)
			}
			continue
		}
		if err != nil {
			t.Errorf("%v asks for %v: %v", tc.has, tc.asks, err)
			continue
		}
		got := wantGrant(t, w.own, token, principal(tc.user))
		if !slices.Equal(got.Scopes, tc.asks) || rec.IssuedBy != compute.IssuedByUser {
			t.Errorf("%v asks for %v and gets %+v", tc.has, tc.asks, got)
		}
	}
}

// A revoked token is refused from then on, and a token that is not recorded always was.
func TestRevoke(t *testing.T) {
	w := newWorld(t)
	token, rec := w.issue(ScopeAll)
	other, _ := w.issue(ScopeAll)
	if err := w.own.Revoke(t.Context(), w.ada.ID, rec.ID); compute.CodeOf(err) != compute.CodeNotFound {
		t.Errorf("another's token: %v", err)
	}
	wantGrant(t, w.own, token, principal(w.bob))
	if err := w.own.Revoke(t.Context(), w.bob.ID, rec.ID); err != nil {
		t.Fatal(err)
	}
	if said := wantRefused(t, w.own, token); !strings.Contains(said, "revoked") {
		t.Errorf("it says %q", said)
	}
	wantGrant(t, w.own, other, principal(w.bob))

	unrecorded := sign(t, jwt.SigningMethodEdDSA, w.key, tokenType, w.body(nil))
	if said := wantRefused(t, w.own, unrecorded); said != refuse(nil).Message {
		t.Errorf("it says %q", said)
	}
	w.record()
	wantGrant(t, w.own, unrecorded, principal(w.ada))
	// Recorded, but as somebody else's: a number that a restored database gave away again.
	wantRefused(t, w.own, sign(t, jwt.SigningMethodEdDSA, w.key, tokenType, w.body(func(c jwt.MapClaims) { c["sub"] = "2" })))
}

// The name and role come from the account as it is now, not from the token.
func TestVerifyReadsTheAccount(t *testing.T) {
	w := newWorld(t)
	token, _ := w.issue(ScopeAll)
	if _, err := w.store.SetUserDisabled(t.Context(), w.bob.ID, true); err != nil {
		t.Fatal(err)
	}
	if said := wantRefused(t, w.own, token); !strings.Contains(said, "disabled") {
		t.Errorf("it says %q", said)
	}
	if _, err := w.store.SetUserDisabled(t.Context(), w.bob.ID, false); err != nil {
		t.Fatal(err)
	}
	wantGrant(t, w.own, token, principal(w.bob))
}

// A database that is away says nothing about a token: its bearer must not throw it away.
func TestVerifyLookupFails(t *testing.T) {
	w := newWorld(t)
	token, _ := w.issue(ScopeAll)
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	if g, err := w.own.Verify(t.Context(), token); compute.CodeOf(err) != compute.CodeUnavailable || g.User != 0 {
		t.Errorf("%+v, %v", g, err)
	}
}

func TestExpiryIsExact(t *testing.T) {
	w := newWorld(t)
	token, rec := w.issue(ScopeAll)
	w.clock.set(rec.ExpiresAt.Add(-time.Nanosecond))
	wantGrant(t, w.own, token, principal(w.bob))
	w.clock.set(rec.ExpiresAt)
	if said := wantRefused(t, w.own, token); !strings.Contains(said, "expired") {
		t.Errorf("it says %q", said)
	}
}

func TestVerifyClaims(t *testing.T) {
	w := newWorld(t)
	w.record()
	in := w.clock.in
	set := func(name string, value any) func(jwt.MapClaims) {
		return func(c jwt.MapClaims) { c[name] = value }
	}
	drop := func(name string) func(jwt.MapClaims) { return func(c jwt.MapClaims) { delete(c, name) } }
	for name, tc := range map[string]struct {
		edit func(jwt.MapClaims)
		ok   bool
	}{
		"as issued":                {nil, true},
		"audience in a list":       {set("aud", []string{zone}), true},
		"clock a little ahead":     {set("iat", in(leeway/2)), true},
		"nbf passed":               {set("nbf", in(-time.Minute)), true},
		"no scope":                 {drop("scope"), true}, // and so allowed nothing
		"expired":                  {func(c jwt.MapClaims) { c["iat"], c["exp"] = in(-2*time.Hour), in(-time.Hour) }, false},
		"expired a second ago":     {set("exp", in(-time.Second)), false},
		"not valid yet (nbf)":      {set("nbf", in(time.Hour)), false},
		"issued in the future":     {set("iat", in(10*time.Minute)), false},
		"lives too long":           {set("exp", in(MaxTTL+time.Hour)), false},
		"lives for ever":           {set("exp", 1e18), false},
		"no exp":                   {drop("exp"), false},
		"no iat":                   {drop("iat"), false},
		"exp is text":              {set("exp", "tomorrow"), false},
		"exp in capitals":          {func(c jwt.MapClaims) { c["EXP"] = c["exp"]; delete(c, "exp") }, false},
		"no issuer":                {drop("iss"), false},
		"other issuer":             {set("iss", "https://accounts.example.com"), false},
		"no audience":              {drop("aud"), false},
		"other zone":               {set("aud", "other.example.com"), false},
		"one zone of several":      {set("aud", []string{"other.example.com", zone}), false},
		"zone in capitals":         {set("aud", strings.ToUpper(zone)), false},
		"no jti":                   {drop("jti"), false},
		"long jti":                 {set("jti", strings.Repeat("x", 65)), false},
		"another jti":              {set("jti", "K"), false},
		"no subject":               {drop("sub"), false},
		"subject is a name":        {set("sub", "ada"), false},
		"subject with plus":        {set("sub", "+1"), false},
		"subject with zeros":       {set("sub", "01"), false},
		"subject with space":       {set("sub", " 1"), false},
		"subject zero":             {set("sub", "0"), false},
		"subject negative":         {set("sub", "-1"), false},
		"subject out of int64":     {set("sub", "9223372036854775808"), false},
		"subject wraps to a user":  {set("sub", "18446744073709551617"), false},
		"subject is a JSON number": {set("sub", 1), false},
		"user absent":              {set("sub", "4"), false},
		"another user":             {set("sub", "2"), false},
	} {
		t.Run(name, func(t *testing.T) {
			token := sign(t, jwt.SigningMethodEdDSA, w.key, tokenType, w.body(tc.edit))
			if !tc.ok {
				wantRefused(t, w.own, token)
				return
			}
			wantGrant(t, w.own, token, principal(w.ada))
		})
	}
	g, err := w.own.Verify(t.Context(), sign(t, jwt.SigningMethodEdDSA, w.key, tokenType, w.body(drop("scope"))))
	if err != nil || g.Allows(ScopeContainersRead) {
		t.Errorf("without a scope: %+v, %v; want nothing allowed", g, err)
	}
}

func TestParseScopes(t *testing.T) {
	for _, s := range Scopes() {
		if list, err := ParseScopes([]string{string(s)}); err != nil || len(list) != 1 || list[0] != s {
			t.Errorf("%s: %v, %v", s, list, err)
		}
	}
	for _, bad := range []string{"", "ALL", "containers", "containers:read keys:read", strings.Repeat("x", 10_000)} {
		_, err := ParseScopes([]string{bad})
		if said := compute.UserMessage(err); compute.CodeOf(err) != compute.CodeInvalid || !strings.Contains(said, "containers:read") || len(said) > 500 {
			t.Errorf("%.20q: %v", bad, fmt.Sprint(err))
		}
	}
}
