package auth

import (
	"context"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"berth/internal/compute"
)

// bench is an installation with every way to sign in, and what a forger may have: public keys, and tokens that are good
// somewhere.
type bench struct {
	*world
	issuer *issuer
	idKey  ed25519.PrivateKey // the issuer's, named k1
	all    *Verifiers
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{world: newWorld(t), issuer: newIssuer(t), idKey: newKey(t)}
	b.record()
	b.issuer.publish(named(b.idKey))
	var err error
	b.all, err = NewVerifiers(b.own, b.sshSigned(), b.shared(nil), b.provider(b.issuer, nil))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Each way to sign in leads to its own verifier, and to one user each.
func TestEachVerifierHasItsTokens(t *testing.T) {
	b := newBench(t)
	k := signer(t, newKey(t))
	b.register(b.bob, k.PublicKey())
	seen := map[compute.UserID]bool{}
	for kind, token := range map[Kind]string{
		KindToken:  sign(t, jwt.SigningMethodEdDSA, b.key, tokenType, b.body(nil)),
		KindShared: b.session(nil),
		KindOIDC:   b.issuer.token(b.world, b.idKey, "k1", nil),
		KindSSH:    sshSign(t, k, SSHNamespace, b.signedClaims()),
	} {
		g, err := b.all.Verify(t.Context(), token)
		if err != nil || g.Kind != kind || seen[g.User] {
			t.Errorf("%s: %+v, %v", kind, g, err)
		}
		seen[g.User] = true
	}
}

func TestNewVerifiersRefusesTwoOfOneIssuer(t *testing.T) {
	w := newWorld(t)
	i := newIssuer(t)
	for name, list := range map[string][]Foreign{
		"ours":        {w.shared(func(c *SharedConfig) { c.Issuer = Issuer })},
		"a shared":    {w.provider(i, nil), w.shared(func(c *SharedConfig) { c.Issuer = i.url })},
		"an issuer":   {w.provider(i, nil), w.provider(i, func(c *OIDCConfig) { c.Audience = "another" })},
		"two secrets": {w.shared(nil), w.shared(nil)},
	} {
		if _, err := NewVerifiers(w.own, w.sshSigned(), list...); err == nil {
			t.Errorf("%s is taken twice", name)
		}
	}
}

// The matrix: every algorithm with every key that a forger can have, in the name of every issuer.
func TestForgedAlgorithms(t *testing.T) {
	b := newBench(t)
	secrets := map[string][]byte{"empty": {}, "guess": []byte("secret")}
	for name, public := range map[string]ed25519.PublicKey{
		"ours": b.key.Public().(ed25519.PublicKey), "theirs": b.idKey.Public().(ed25519.PublicKey),
	} {
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		jwk, err := json.Marshal(map[string]string{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(public)})
		if err != nil {
			t.Fatal(err)
		}
		secrets[name+" raw"], secrets[name+" DER"], secrets[name+" JWK"] = public, der, jwk
		secrets[name+" PEM"] = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
		secrets[name+" base64"] = []byte(base64.StdEncoding.EncodeToString(public))
	}
	keys := []keyed{
		{jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType},
		{jwt.SigningMethodEdDSA, newKey(t)},
		{jwt.SigningMethodES256, ecKey(t, elliptic.P256())},
		{jwt.SigningMethodES384, ecKey(t, elliptic.P384())},
		{jwt.SigningMethodES512, ecKey(t, elliptic.P521())},
	}
	rs := rsaKey(t, 2048)
	for _, m := range []jwt.SigningMethod{
		jwt.SigningMethodRS256, jwt.SigningMethodRS384, jwt.SigningMethodRS512, jwt.SigningMethodPS256, jwt.SigningMethodPS512,
	} {
		keys = append(keys, keyed{m, rs})
	}
	for _, m := range []jwt.SigningMethod{jwt.SigningMethodHS256, jwt.SigningMethodHS384, jwt.SigningMethodHS512} {
		for _, secret := range secrets {
			keys = append(keys, keyed{m, secret})
		}
	}
	issuers := map[string]keyed{
		"ours": {jwt.SigningMethodEdDSA, b.key}, "theirs": {jwt.SigningMethodEdDSA, b.idKey}, "shared": {jwt.SigningMethodHS256, sharedSecret},
	}
	for issuer, claims := range b.everyBody() {
		try := keys
		for other, k := range issuers { // the keys of one issuer do nothing for another
			if other != issuer {
				try = append(try[:len(try):len(try)], k)
			}
		}
		for _, k := range try {
			for _, headers := range []map[string]any{
				{}, {"typ": "JWT"}, {"typ": tokenType}, {"typ": "JWT", "kid": "k1"}, {"typ": tokenType, "kid": "k1"},
			} {
				wantRefused(t, b.all, signWith(t, k.method, k.key, headers, claims))
			}
		}
	}
}

// keyed is an algorithm with a key for it.
type keyed struct {
	method jwt.SigningMethod
	key    any
}

// everyBody is claims that are good at each issuer.
func (b *bench) everyBody() map[string]jwt.MapClaims {
	return map[string]jwt.MapClaims{
		"ours":   b.body(nil),
		"theirs": b.issuer.claims(b.world, nil),
		"shared": {"user_id": 7, "username": "ada", "type": "session", "exp": b.clock.in(time.Hour)},
	}
}

// The tricks with headers: where a key may be found, what must be understood, names twice.
func TestForgedHeaders(t *testing.T) {
	b := newBench(t)
	mine := newKey(t) // the forger's
	public := base64.RawURLEncoding.EncodeToString(mine.Public().(ed25519.PublicKey))
	jwk := map[string]string{"kty": "OKP", "crv": "Ed25519", "x": public, "kid": "k1"}
	for issuer, claims := range b.everyBody() {
		if issuer == "shared" {
			continue
		}
		typ := map[string]string{"ours": tokenType, "theirs": "JWT"}[issuer]
		for name, headers := range map[string]map[string]any{
			"jwk":            {"jwk": jwk},
			"jwk and kid":    {"jwk": jwk, "kid": "k1"},
			"jku":            {"jku": b.issuer.url + "/keys", "kid": "k1"},
			"jku elsewhere":  {"jku": "https://evil.example.com/keys", "kid": "k1"},
			"x5u":            {"x5u": "https://evil.example.com/cert", "kid": "k1"},
			"x5c":            {"x5c": []string{"MIIB"}, "kid": "k1"},
			"kid a path":     {"kid": "../../../../dev/null"},
			"kid SQL":        {"kid": "k1' UNION SELECT 'x"},
			"kid a command":  {"kid": "k1|/bin/id"},
			"kid a URL":      {"kid": "https://evil.example.com/keys"},
			"kid a number":   {"kid": 1},
			"kid a list":     {"kid": []string{"k1"}},
			"kid empty":      {"kid": ""},
			"kid huge":       {"kid": strings.Repeat("k", 3000)},
			"kid not UTF-8":  {"kid": "k1\x00"},
			"cty a JWT":      {"cty": "JWT", "kid": "k1"},
			"b64 false":      {"b64": false, "kid": "k1"},
			"another typ":    {"typ": "logout+jwt", "kid": "k1"},
			"typ a number":   {"typ": 5, "kid": "k1"},
			"typ null":       {"typ": nil, "kid": "k1"},
			"zip":            {"zip": "DEF", "kid": "k1"},
			"alg lower case": {"alg": "eddsa", "kid": "k1"},
		} {
			if _, given := headers["typ"]; !given {
				headers["typ"] = typ
			}
			t.Run(issuer+" "+name, func(t *testing.T) {
				wantRefused(t, b.all, signWith(t, jwt.SigningMethodEdDSA, mine, headers, claims))
			})
		}
	}
	if n := b.issuer.asked(); n > 1 {
		t.Errorf("the issuer was asked %d times", n)
	}
	// With the issuers' own keys: what is left to refuse is what the header says.
	text := func(c jwt.MapClaims) string { return encode(t, c) }
	for _, tc := range []struct {
		key  ed25519.PrivateKey
		typ  string
		body string
	}{{b.key, tokenType, text(b.body(nil))}, {b.idKey, "JWT", text(b.issuer.claims(b.world, nil))}} {
		good := signRaw(t, tc.key, encode(t, fmt.Sprintf(`{"alg":"EdDSA","typ":%q,"kid":"k1"}`, tc.typ)), tc.body)
		if _, err := b.all.Verify(t.Context(), good); err != nil {
			t.Fatalf("what the others differ from is refused itself: %v", err)
		}
		ignored := signRaw(t, tc.key, encode(t, fmt.Sprintf(`{"alg":"EdDSA","typ":%q,"kid":"k1","jku":"https://evil.example.com"}`, tc.typ)), tc.body)
		if _, err := b.all.Verify(t.Context(), ignored); err != nil {
			t.Errorf("a header that is ignored: %v", err)
		}
		for _, head := range []string{
			`{"alg":"EdDSA","typ":TYP,"kid":"k1","crit":["exp"]}`, `{"alg":"EdDSA","typ":TYP,"kid":"k1","crit":[]}`,
			`{"alg":"EdDSA","typ":TYP,"kid":"k1","b64":false,"crit":["b64"]}`,
			`{"alg":"none","alg":"EdDSA","typ":TYP,"kid":"k1"}`, `{"alg":"EdDSA","alg":"none","typ":TYP,"kid":"k1"}`,
			`{"alg":"EdDSA","\u0061lg":"none","typ":TYP,"kid":"k1"}`, `{"alg":"EdDSA","typ":TYP,"kid":"k2","kid":"k1"}`,
			`{"Alg":"EdDSA","typ":TYP,"kid":"k1"}`, `{"alg":["EdDSA"],"typ":TYP,"kid":"k1"}`, `{"alg":"eddsa","typ":TYP,"kid":"k1"}`,
			`{"alg":"None","typ":TYP}`, `{"alg":"","typ":TYP}`, `{"typ":TYP}`, `{"alg":null,"typ":TYP}`, `{"alg":"Ed448","typ":TYP}`,
			`{"alg":"EdDSA","typ":TYP,"kid":"k1"}{}`, `["EdDSA"]`, `"EdDSA"`, `null`, ``, `{`, "{\"alg\":\"EdDSA\",\"typ\":TYP,\"x\":\"\xff\"}",
			`{"alg":"EdDSA","typ":"JWE","kid":"k1"}`, `{"alg":"EdDSA","typ":"secevent+jwt","kid":"k1"}`,
		} {
			head = strings.ReplaceAll(head, "TYP", fmt.Sprintf("%q", tc.typ))
			if said := wantRefused(t, b.all, signRaw(t, tc.key, encode(t, head), tc.body)); said != refuse(nil).Message {
				t.Errorf("%s: it says %q", head, said)
			}
		}
	}
	// Ours say that they are access tokens; another issuer's word for that does not make one ours.
	wantRefused(t, b.all, sign(t, jwt.SigningMethodEdDSA, b.key, "JWT", b.body(nil)))
	wantRefused(t, b.all, sign(t, jwt.SigningMethodEdDSA, b.key, "", b.body(nil)))
	wantRefused(t, b.all, sign(t, jwt.SigningMethodHS256, sharedSecret, tokenType, b.everyBody()["shared"]))
}

// Bodies signed with the issuers' own keys that two readers could read in two ways.
func TestForgedBodies(t *testing.T) {
	b := newBench(t)
	exp := b.clock.in(time.Hour)
	head := func(typ string) string { return encode(t, fmt.Sprintf(`{"alg":"EdDSA","typ":%q,"kid":"k1"}`, typ)) }
	for _, issuer := range []struct {
		id, escaped, rest string // the name of the claim that names the user, and good claims beside it
		sign              func(body string) string
	}{
		{
			"sub", `\u0073ub`, fmt.Sprintf(`"iss":"berth","aud":%q,"iat":%d,"exp":%d,"jti":"J"`, zone, b.clock.in(0), exp),
			func(body string) string { return signRaw(t, b.key, head(tokenType), encode(t, body)) },
		},
		{
			"sub", `s\u0075b`, fmt.Sprintf(`"iss":%q,"aud":"berth-here","exp":%d`, b.issuer.url, exp),
			func(body string) string { return signRaw(t, b.idKey, head("JWT"), encode(t, body)) },
		},
		{
			"user_id", `user\u005fid`, fmt.Sprintf(`"type":"session","exp":%d,"username":"carol"`, exp),
			func(body string) string { return signHS(t, body) },
		},
	} {
		fill := strings.NewReplacer("REST", issuer.rest, "ID", issuer.id, "ESCAPED", issuer.escaped, "CAPITALS", strings.ToUpper(issuer.id))
		if g, err := b.all.Verify(t.Context(), issuer.sign(fill.Replace(`{REST,"ID":"1"}`))); err != nil || g.User == 0 {
			t.Fatalf("what the others differ from is refused itself: %v", err)
		}
		for _, text := range []string{
			`{REST,"ID":"2","ID":"1"}`, `{REST,"ID":"1","ID":"2"}`, `{REST,"ID":"1","ESCAPED":"1"}`, `{REST,"ID":"1","exp":99999999999}`,
			`{"exp":1,REST,"ID":"1"}`, `{REST,"CAPITALS":"1"}`, `{REST,"ID":"1"} {}`, `{REST,"ID":"1"`, "{REST,\"ID\":\"1\",\"x\":\"\xff\"}",
			`[{REST,"ID":"1"}]`,
		} {
			wantRefused(t, b.all, issuer.sign(fill.Replace(text)))
		}
	}
	for _, text := range []string{"null", "[]", "", "{}", `"x"`, strings.Repeat("[", 2000) + strings.Repeat("]", 2000)} {
		wantRefused(t, b.all, signRaw(t, b.key, head(tokenType), encode(t, text)))
		wantRefused(t, b.all, signRaw(t, b.idKey, head("JWT"), encode(t, text)))
		wantRefused(t, b.all, signHS(t, text))
	}
}

// A token that is good at one installation is worth nothing at another, also where both have the same key or secret.
func TestReplayElsewhere(t *testing.T) {
	b := newBench(t)
	k := signer(t, newKey(t))
	b.register(b.bob, k.PublicKey())
	const elsewhere = "other.example.com"
	there := New(b.key, elsewhere, b.store)
	there.now = b.clock.now
	signed := NewSSHSigned(elsewhere, b.store)
	signed.now = b.clock.now
	all, err := NewVerifiers(there, signed, b.shared(func(c *SharedConfig) { c.Zone = elsewhere }),
		b.provider(b.issuer, func(c *OIDCConfig) { c.Audience = "berth-there" }))
	if err != nil {
		t.Fatal(err)
	}
	own, _ := b.issue(ScopeAll)
	for name, token := range map[string]string{
		"own": own, "signed": sshSign(t, k, SSHNamespace, b.signedClaims()), "oidc": b.issuer.token(b.world, b.idKey, "k1", nil),
		"shared": b.session(func(c jwt.MapClaims) { c["aud"] = zone }),
	} {
		if _, err := b.all.Verify(t.Context(), token); err != nil {
			t.Errorf("%s, here: %v", name, err)
		}
		wantRefused(t, all, token)
	}
}

// Text that is no token, and tokens that were changed.
func TestForgedText(t *testing.T) {
	b := newBench(t)
	flip := func(s string, i int) string {
		c := byte('A')
		if s[i] == 'A' {
			c = 'B'
		}
		return s[:i] + string(c) + s[i+1:]
	}
	for _, good := range []string{
		sign(t, jwt.SigningMethodEdDSA, b.key, tokenType, b.body(nil)), b.session(nil), b.issuer.token(b.world, b.idKey, "k1", nil),
	} {
		if _, err := b.all.Verify(t.Context(), good); err != nil {
			t.Fatalf("what the others differ from is refused itself: %v", err)
		}
		parts := strings.Split(good, ".")
		for name, token := range map[string]string{
			"two parts":             parts[0] + "." + parts[1],
			"four parts":            good + ".AAAA",
			"no signature":          parts[0] + "." + parts[1] + ".",
			"other body":            parts[0] + "." + encode(t, `{"sub":"1"}`) + "." + parts[2],
			"tampered header":       flip(parts[0], 5) + "." + parts[1] + "." + parts[2],
			"tampered body":         parts[0] + "." + flip(parts[1], len(parts[1])/2) + "." + parts[2],
			"tampered signature":    parts[0] + "." + parts[1] + "." + flip(parts[2], 10),
			"signature, unused bit": good[:len(good)-1] + string(good[len(good)-1]+1),
			"padded":                good + "=",
			"newline after":         good + "\n",
			"newline within":        parts[0] + "." + parts[1] + ".\n" + parts[2],
			"space before":          " " + good,
			"our prefix":            sshPrefix + good,
			"as a list":             good + "," + good,
		} {
			if said := wantRefused(t, b.all, token); said != refuse(nil).Message {
				t.Errorf("%s: it says %q", name, said)
			}
		}
	}
	for _, token := range []string{
		"", "hello", ".", "..", "...", strings.Repeat(".", 4000), strings.Repeat("A", 1<<20), "berth-ssh~", "\x00", "é.é.é",
		"eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.", "eyJhbGciOiJub25lIn0.eyJpc3MiOiJiZXJ0aCIsInN1YiI6IjEifQ.",
	} {
		wantRefused(t, b.all, token)
	}
	long := func(n int) func(jwt.MapClaims) { return func(c jwt.MapClaims) { c["x"] = strings.Repeat("x", n) } }
	wantRefused(t, b.all, sign(t, jwt.SigningMethodEdDSA, b.key, tokenType, b.body(long(maxToken))))
	wantRefused(t, b.all, b.session(long(maxForeign)))
	wantRefused(t, b.all, b.issuer.token(b.world, b.idKey, "k1", long(maxForeign)))
	if _, err := b.all.Verify(t.Context(), b.issuer.token(b.world, b.idKey, "k1", long(maxForeign/2))); err != nil {
		t.Errorf("a token with many groups: %v", err)
	}
}

// An expired or early token of any issuer is refused at the instant.
func TestTimesOfEveryIssuer(t *testing.T) {
	b := newBench(t)
	k := signer(t, newKey(t))
	b.register(b.bob, k.PublicKey())
	tokens := []string{
		sign(t, jwt.SigningMethodEdDSA, b.key, tokenType, b.body(nil)), b.session(nil), b.issuer.token(b.world, b.idKey, "k1", nil),
		sshSign(t, k, SSHNamespace, b.signedClaims()),
	}
	b.clock.add(time.Hour - time.Nanosecond)
	for _, token := range tokens {
		if _, err := b.all.Verify(t.Context(), token); err != nil {
			t.Errorf("just before: %v", err)
		}
	}
	b.clock.add(time.Nanosecond)
	for _, token := range tokens {
		if said := wantRefused(t, b.all, token); !strings.Contains(said, "expired") {
			t.Errorf("it says %q", said)
		}
	}
}

// nobody is a directory with an account for whoever has an identity, so that a forgery is not refused for want of one.
type nobody struct{}

func (nobody) UserByIdentity(context.Context, string, string) (compute.User, error) {
	return compute.User{ID: 9, Username: "nobody", Role: compute.RoleUser}, nil
}

func (nobody) Provision(context.Context, string, string, []string) (compute.User, error) {
	return compute.User{}, compute.Internal("provision", nil)
}

// No text that was not issued grants anything, whichever verifier it leads to.
func FuzzVerify(f *testing.F) {
	w := newWorld(f)
	w.record()
	// Workers are processes of their own: they agree on the good tokens because keys and clock stand still.
	k := signer(f, w.key)
	w.register(w.bob, k.PublicKey())
	shared := w.shared(nil)
	shared.accounts.dir = nobody{}
	const id = "https://id.example.com"
	provider, err := NewProvider(OIDCConfig{Issuer: id, Audience: "berth-here"}, nobody{})
	if err != nil {
		f.Fatal(err)
	}
	idKey := ed25519.NewKeyFromSeed([]byte(strings.Repeat("i", ed25519.SeedSize)))
	provider.now, provider.keys.now = w.clock.now, w.clock.now
	provider.keys.fetch = func(context.Context) ([]issuerKey, error) {
		return []issuerKey{{kid: "k1", alg: "EdDSA", public: idKey.Public()}}, nil
	}
	all, err := NewVerifiers(w.own, w.sshSigned(), shared, provider)
	if err != nil {
		f.Fatal(err)
	}
	good := []string{
		sign(f, jwt.SigningMethodEdDSA, w.key, tokenType, w.body(nil)),
		w.session(nil),
		signWith(f, jwt.SigningMethodEdDSA, idKey, map[string]any{"kid": "k1"}, jwt.MapClaims{
			"iss": id, "aud": "berth-here", "sub": "x", "exp": w.clock.in(time.Hour),
		}),
		sshSign(f, k, SSHNamespace, w.signedClaims()),
	}
	for _, token := range good {
		if _, err := all.Verify(f.Context(), token); err != nil {
			f.Fatal(err)
		}
		f.Add(token)
		f.Add(strings.Replace(token, ".", "..", 1))
	}
	f.Add("e30.e30.")
	f.Add("eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.")
	f.Fuzz(func(t *testing.T, token string) {
		g, err := all.Verify(t.Context(), token)
		issued := false
		for _, s := range good {
			issued = issued || s == token
		}
		if err == nil && !issued {
			t.Fatalf("%q, which was never issued, grants %+v", token, g)
		}
		if err != nil && compute.CodeOf(err) != compute.CodeUnauthenticated {
			t.Fatalf("%q: %v", token, err)
		}
	})
}

// Headers and bodies as they are read before anything is proven.
func FuzzSplit(f *testing.F) {
	f.Add([]byte(`{"alg":"EdDSA","typ":"at+jwt","kid":"k1"}`), []byte(`{"iss":"berth","exp":1e9,"aud":["x"]}`))
	f.Add([]byte(`{"alg":null}`), []byte(`{"iss":null,"exp":null,"aud":[null]}`))
	f.Add([]byte(`{"crit":[]}`), []byte(`[]`))
	f.Fuzz(func(t *testing.T, head, text []byte) {
		token := encode(t, string(head)) + "." + encode(t, string(text)) + ".AAAA"
		_, back, err := split(token, maxForeign)
		if err == nil && string(back) != string(text) {
			t.Fatalf("%q is read as %q", text, back)
		}
		issuer, err := claimedIssuer(token)
		if err != nil && issuer != "" {
			t.Fatalf("%q, %v", issuer, err)
		}
		var b body
		if b.UnmarshalJSON(text) != nil {
			return
		}
		now := time.Unix(1_800_000_000, 0)
		if ends, err := b.window(now, time.Hour); err == nil && (!ends.After(now) || ends.After(now.Add(time.Hour+leeway))) {
			t.Fatalf("%q is good until %v", text, ends)
		}
		for name := range b.object {
			_, _ = b.texts(name)
		}
		if id, err := b.userID(); err == nil && checkSubject(id) != nil {
			t.Fatalf("%q has the user %q", text, id)
		}
		if scopes, err := b.foreignScopes(); err == nil && len(scopes) == 0 {
			t.Fatalf("%q has no scopes", text)
		}
	})
}
