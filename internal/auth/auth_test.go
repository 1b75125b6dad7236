package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"berth/internal/compute"
)

const zone = "compute.example.com"

// accounts looks users up in memory.
type accounts map[compute.UserID]compute.User

func (a accounts) User(_ context.Context, id compute.UserID) (compute.User, error) {
	if id == 99 {
		return compute.User{}, compute.Internal("read a user", errors.New("disk I/O error"))
	}
	u, ok := a[id]
	if !ok {
		return compute.User{}, compute.NotFound("user")
	}
	return u, nil
}

var people = accounts{
	1: {ID: 1, Username: "ada", Role: compute.RoleAdmin},
	2: {ID: 2, Username: "bob", Role: compute.RoleUser},
	3: {ID: 3, Username: "eve", Role: compute.RoleUser, Disabled: true},
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestIssueVerify(t *testing.T) {
	a := New(newKey(t), zone, people)
	token, err := a.Issue(people[2], time.Hour, ScopeContainersRead, ScopeKeysWrite)
	if err != nil {
		t.Fatal(err)
	}
	g, err := a.Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	if want := (compute.Principal{User: 2, Username: "bob", Role: compute.RoleUser}); g.Principal != want {
		t.Errorf("principal %+v, want %+v", g.Principal, want)
	}
	if left := time.Until(g.Expires); left < 59*time.Minute || left > time.Hour {
		t.Errorf("expires in %v, want an hour", left)
	}
	if g.TokenID == "" {
		t.Error("no token id")
	}
	for scope, want := range map[Scope]bool{
		ScopeContainersRead: true, ScopeKeysWrite: true, ScopeContainersWrite: false, ScopeKeysRead: false, ScopeAll: false, "": false,
	} {
		if got := g.Allows(scope); got != want {
			t.Errorf("allows %q: %v, want %v", scope, got, want)
		}
	}

	again, err := a.Issue(people[2], time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	all, err := a.Verify(t.Context(), again)
	if err != nil {
		t.Fatal(err)
	}
	if !all.Allows(ScopeContainersWrite) || all.TokenID == g.TokenID {
		t.Errorf("without scopes: %+v; want everything allowed, and an id of its own", all)
	}
}

func TestIssueBounds(t *testing.T) {
	a := New(newKey(t), zone, people)
	for _, ttl := range []time.Duration{0, -time.Hour, time.Millisecond, MaxTTL + time.Second} {
		if _, err := a.Issue(people[1], ttl); compute.CodeOf(err) != compute.CodeInvalid {
			t.Errorf("ttl %v: %v, want CodeInvalid", ttl, err)
		}
	}
	for _, scope := range []Scope{"", "a b", `a"b`} {
		if _, err := a.Issue(people[1], time.Hour, scope); compute.CodeOf(err) != compute.CodeInvalid {
			t.Errorf("scope %q: %v, want CodeInvalid", scope, err)
		}
	}
}

// The name and role come from the account as it is now, not from the token.
func TestVerifyReadsTheAccount(t *testing.T) {
	now := accounts{1: people[1]}
	a := New(newKey(t), zone, now)
	token, err := a.Issue(people[1], time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	now[1] = compute.User{ID: 1, Username: "ada-2", Role: compute.RoleUser}
	g, err := a.Verify(t.Context(), token)
	if err != nil || g.Username != "ada-2" || g.Role != compute.RoleUser {
		t.Errorf("%+v, %v; want the account's present name and role", g, err)
	}
	now[1] = compute.User{ID: 1, Username: "ada-2", Disabled: true}
	if _, err := a.Verify(t.Context(), token); compute.CodeOf(err) != compute.CodeUnauthenticated {
		t.Errorf("disabled: %v", err)
	}
	delete(now, 1)
	if _, err := a.Verify(t.Context(), token); compute.CodeOf(err) != compute.CodeUnauthenticated {
		t.Errorf("absent: %v", err)
	}
}

func TestVerifyLookupFails(t *testing.T) {
	a := New(newKey(t), zone, people)
	token, err := a.Issue(compute.User{ID: 99}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Verify(t.Context(), token); compute.CodeOf(err) != compute.CodeInternal {
		t.Errorf("%v; want CodeInternal, since the token may be good", err)
	}
}

func TestExpiryIsExact(t *testing.T) {
	a := New(newKey(t), zone, people)
	token, err := a.Issue(people[1], 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	g, err := a.Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	a.now = func() time.Time { return g.Expires.Add(-time.Nanosecond) }
	if _, err := a.Verify(t.Context(), token); err != nil {
		t.Errorf("just before expiry: %v", err)
	}
	a.now = func() time.Time { return g.Expires }
	_, err = a.Verify(t.Context(), token)
	if compute.CodeOf(err) != compute.CodeUnauthenticated || !strings.Contains(compute.UserMessage(err), "expired") {
		t.Errorf("at expiry: %v, want one that says expired", err)
	}
}

// body returns claims that verify, after edit.
func body(edit func(jwt.MapClaims)) jwt.MapClaims {
	now := time.Now()
	c := jwt.MapClaims{
		"iss": Issuer, "sub": "1", "aud": zone, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "jti": "J", "scope": "all",
	}
	if edit != nil {
		edit(c)
	}
	return c
}

func sign(t testing.TB, m jwt.SigningMethod, key any, typ string, c jwt.Claims) string {
	t.Helper()
	token := jwt.NewWithClaims(m, c)
	token.Header["typ"] = typ
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestVerifyClaims(t *testing.T) {
	key := newKey(t)
	a := New(key, zone, people)
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
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
		"no issuer":                {drop("iss"), false},
		"other issuer":             {set("iss", "https://accounts.example.com"), false},
		"no audience":              {drop("aud"), false},
		"other zone":               {set("aud", "other.example.com"), false},
		"one zone of several":      {set("aud", []string{"other.example.com", zone}), false},
		"zone in capitals":         {set("aud", strings.ToUpper(zone)), false},
		"no jti":                   {drop("jti"), false},
		"long jti":                 {set("jti", strings.Repeat("x", 65)), false},
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
		"user disabled":            {set("sub", "3"), false},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := a.Verify(t.Context(), sign(t, jwt.SigningMethodEdDSA, key, tokenType, body(tc.edit)))
			if tc.ok {
				if err != nil || g.User != 1 {
					t.Errorf("%+v, %v; want user 1", g, err)
				}
				return
			}
			if compute.CodeOf(err) != compute.CodeUnauthenticated {
				t.Errorf("%+v, %v; want CodeUnauthenticated", g, err)
			}
			if g.User != 0 || g.Allows(ScopeAll) {
				t.Errorf("a refused token granted %+v", g)
			}
		})
	}
	g, err := a.Verify(t.Context(), sign(t, jwt.SigningMethodEdDSA, key, tokenType, body(drop("scope"))))
	if err != nil || g.Allows(ScopeContainersRead) {
		t.Errorf("without a scope: %+v, %v; want nothing allowed", g, err)
	}
}

func TestVerifyForged(t *testing.T) {
	key := newKey(t)
	public := key.Public().(ed25519.PublicKey)
	a := New(key, zone, people)
	good := sign(t, jwt.SigningMethodEdDSA, key, tokenType, body(nil))
	if _, err := a.Verify(t.Context(), good); err != nil {
		t.Fatalf("what the forgeries differ from is refused itself: %v", err)
	}
	parts := strings.Split(good, ".")

	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	public64 := []byte(base64.StdEncoding.EncodeToString(public))
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	header := func(h map[string]any) string {
		text, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	// resign signs any header and body with our own key: what is left to refuse is what they say.
	resign := func(head, claims string) string {
		sig, err := key.Sign(nil, []byte(head+"."+claims), crypto.Hash(0))
		if err != nil {
			t.Fatal(err)
		}
		return head + "." + claims + "." + base64.RawURLEncoding.EncodeToString(sig)
	}
	admin := base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"1"}`))
	flip := func(s string, i int) string {
		c := byte('A')
		if s[i] == 'A' {
			c = 'B'
		}
		return s[:i] + string(c) + s[i+1:]
	}
	for name, token := range map[string]string{
		"empty":                     "",
		"not a token":               "hello",
		"two parts":                 parts[0] + "." + parts[1],
		"four parts":                good + ".AAAA",
		"only dots":                 strings.Repeat(".", 4000),
		"no signature":              parts[0] + "." + parts[1] + ".",
		"alg none":                  sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, tokenType, body(nil)),
		"alg None, our signature":   resign(header(map[string]any{"alg": "None", "typ": tokenType}), parts[1]),
		"alg absent, our signature": resign(header(map[string]any{"typ": tokenType}), parts[1]),
		"alg Ed25519 in lower case": resign(header(map[string]any{"alg": "eddsa", "typ": tokenType}), parts[1]),
		"alg is a list":             resign(header(map[string]any{"alg": []string{"EdDSA"}, "typ": tokenType}), parts[1]),
		"HS256, raw public key":     sign(t, jwt.SigningMethodHS256, []byte(public), tokenType, body(nil)),
		"HS256, DER public key":     sign(t, jwt.SigningMethodHS256, der, tokenType, body(nil)),
		"HS256, PEM public key":     sign(t, jwt.SigningMethodHS256, publicPEM, tokenType, body(nil)),
		"HS256, base64 public key":  sign(t, jwt.SigningMethodHS256, public64, tokenType, body(nil)),
		"HS512, empty key":          sign(t, jwt.SigningMethodHS512, []byte{}, tokenType, body(nil)),
		"RS256":                     sign(t, jwt.SigningMethodRS256, rsaKey, tokenType, body(nil)),
		"PS256":                     sign(t, jwt.SigningMethodPS256, rsaKey, tokenType, body(nil)),
		"ES256":                     sign(t, jwt.SigningMethodES256, ecKey, tokenType, body(nil)),
		"EdDSA, another key":        sign(t, jwt.SigningMethodEdDSA, newKey(t), tokenType, body(nil)),
		"a key of its own in jwk": resign(header(map[string]any{
			"alg": "EdDSA", "typ": "JWT", "jwk": map[string]string{"kty": "OKP", "crv": "Ed25519", "x": string(public64)},
		}), parts[1]),
		"not an access token":   sign(t, jwt.SigningMethodEdDSA, key, "JWT", body(nil)),
		"other body":            parts[0] + "." + admin + "." + parts[2],
		"tampered header":       flip(parts[0], 5) + "." + parts[1] + "." + parts[2],
		"tampered body":         parts[0] + "." + flip(parts[1], len(parts[1])/2) + "." + parts[2],
		"tampered signature":    parts[0] + "." + parts[1] + "." + flip(parts[2], 10),
		"signature, unused bit": good[:len(good)-1] + string(good[len(good)-1]+1),
		"padded":                good + "=",
		"newline after":         good + "\n",
		"space before":          " " + good,
		"body is null":          resign(parts[0], base64.RawURLEncoding.EncodeToString([]byte("null"))),
		"body is a list":        resign(parts[0], base64.RawURLEncoding.EncodeToString([]byte("[]"))),
		"body is not JSON":      resign(parts[0], "AAAA"),
		"too long":              sign(t, jwt.SigningMethodEdDSA, key, tokenType, body(func(c jwt.MapClaims) { c["x"] = strings.Repeat("x", maxToken) })),
	} {
		t.Run(name, func(t *testing.T) {
			g, err := a.Verify(t.Context(), token)
			if compute.CodeOf(err) != compute.CodeUnauthenticated || g.User != 0 {
				t.Fatalf("%+v, %v; want CodeUnauthenticated", g, err)
			}
			if said := compute.UserMessage(err); said != refuse(nil).Message {
				t.Errorf("it says %q: more than that the token is not valid", said)
			}
		})
	}
}

func FuzzVerify(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	a := New(key, zone, people)
	// Workers are processes of their own: they agree on the one good token because key and clock stand still.
	a.now = func() time.Time { return time.Unix(1_800_000_000, 0) }
	good := sign(f, jwt.SigningMethodEdDSA, key, tokenType, body(func(c jwt.MapClaims) {
		c["iat"], c["exp"] = 1_800_000_000, 1_800_003_600
	}))
	if _, err := a.Verify(f.Context(), good); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(strings.Replace(good, ".", "..", 1))
	f.Add("e30.e30.")
	f.Add("eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.")
	f.Fuzz(func(t *testing.T, token string) {
		g, err := a.Verify(t.Context(), token)
		if err == nil && token != good {
			t.Fatalf("%q, which was never issued, grants %+v", token, g)
		}
		if err != nil && compute.CodeOf(err) != compute.CodeUnauthenticated {
			t.Fatalf("%q: %v", token, err)
		}
	})
}
