package auth

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/hiddeco/sshsig"
	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"berth/internal/compute"
	"berth/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	zone     = "compute.example.com"
	patience = 20 * time.Second // for what should take milliseconds
)

// clock is a time that tests set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = t
}

// in is the time so much from now, as claims have it.
func (c *clock) in(d time.Duration) int64 { return c.now().Add(d).Unix() }

// world is an installation's accounts in a real database, with the verifier of its own tokens, at a time that stands still.
type world struct {
	t     testing.TB
	store *store.Store
	clock *clock
	key   ed25519.PrivateKey
	own   *Authority
	// ada is an admin, eve is disabled.
	ada, bob, eve compute.User
}

// newWorld returns one in which every number and key is the same each time.
func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, clock: &clock{t: time.Unix(1_800_000_000, 0)}, key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))}
	ctx := context.Background()
	var err error
	w.store, err = store.Open(ctx, filepath.Join(t.TempDir(), "berth.db"), store.Options{Now: w.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, p := range []struct {
		into *compute.User
		name string
		role compute.Role
	}{{&w.ada, "ada", compute.RoleAdmin}, {&w.bob, "bob", compute.RoleUser}, {&w.eve, "eve", compute.RoleUser}} {
		if *p.into, err = w.store.CreateUser(ctx, p.name, p.role); err != nil {
			t.Fatal(err)
		}
	}
	if w.eve, err = w.store.SetUserDisabled(ctx, w.eve.ID, true); err != nil {
		t.Fatal(err)
	}
	w.own = New(w.key, zone, w.store)
	w.own.now = w.clock.now
	return w
}

// issue returns a token of bob's.
func (w *world) issue(scopes ...Scope) (string, compute.Token) {
	w.t.Helper()
	token, rec, err := w.own.Issue(w.t.Context(), w.bob.ID, compute.IssuedByUser, Request{Name: "ci", Scopes: scopes, TTL: time.Hour})
	if err != nil {
		w.t.Fatal(err)
	}
	return token, rec
}

// record puts a token of ada's with the id J into the database, so that tests can sign it as they like.
func (w *world) record() {
	w.t.Helper()
	err := w.store.AddToken(context.Background(), compute.Token{
		ID: "J", Owner: w.ada.ID, IssuedBy: compute.IssuedByUser, Name: "J", Scopes: []string{"all"},
		CreatedAt: w.clock.now(), ExpiresAt: w.clock.now().Add(MaxTTL),
	}, MaxUserTokens)
	if err != nil {
		w.t.Fatal(err)
	}
}

// body returns claims of the token J that verify, after edit.
func (w *world) body(edit func(jwt.MapClaims)) jwt.MapClaims {
	c := jwt.MapClaims{
		"iss": Issuer, "sub": "1", "aud": zone, "iat": w.clock.in(0), "exp": w.clock.in(time.Hour), "jti": "J", "scope": "all",
	}
	if edit != nil {
		edit(c)
	}
	return c
}

// sign makes a JWT with a type, or without one.
func sign(t testing.TB, m jwt.SigningMethod, key any, typ string, c jwt.Claims) string {
	t.Helper()
	headers := map[string]any{}
	if typ != "" {
		headers["typ"] = typ
	}
	return signWith(t, m, key, headers, c)
}

// signWith makes a JWT with these headers beside its algorithm.
func signWith(t testing.TB, m jwt.SigningMethod, key any, headers map[string]any, c jwt.Claims) string {
	t.Helper()
	token := jwt.NewWithClaims(m, c)
	delete(token.Header, "typ")
	for name, v := range headers {
		token.Header[name] = v
	}
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// encode is base64url of v, as JSON where it is no text.
func encode(t testing.TB, v any) string {
	t.Helper()
	text, ok := v.(string)
	if !ok {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		text = string(b)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(text))
}

// signRaw signs any header and body with an Ed25519 key.
func signRaw(t testing.TB, key crypto.Signer, head, body string) string {
	t.Helper()
	sig, err := key.Sign(nil, []byte(head+"."+body), crypto.Hash(0))
	if err != nil {
		t.Fatal(err)
	}
	return head + "." + body + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// register adds a public key to an account, and returns its id.
func (w *world) register(u compute.User, k ssh.PublicKey) int64 {
	w.t.Helper()
	line, fingerprint, _, err := compute.ParsePublicKey(string(ssh.MarshalAuthorizedKey(k)), compute.DefaultLimits())
	if err != nil {
		w.t.Fatal(err)
	}
	added, err := w.store.AddKey(context.Background(), compute.SSHKey{
		Owner: u.ID, Name: "key", PublicKey: line, Fingerprint: fingerprint,
	}, 10)
	if err != nil {
		w.t.Fatal(err)
	}
	return added.ID
}

func signer(t testing.TB, key any) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sshSign makes a signed token of a text of claims.
func sshSign(t testing.TB, s ssh.Signer, namespace, claims string) string {
	t.Helper()
	sig, err := sshsig.Sign(strings.NewReader(claims), s, sshsig.HashSHA512, namespace)
	if err != nil {
		t.Fatal(err)
	}
	return sshPrefix + encode(t, claims) + "." + base64.RawURLEncoding.EncodeToString(sig.Marshal())
}

// wantGrant checks whom a verifier takes a token for.
func wantGrant(t testing.TB, v Verifier, token string, want compute.Principal) Grant {
	t.Helper()
	g, err := v.Verify(context.Background(), token)
	if err != nil || g.Principal != want {
		t.Errorf("%+v, %v; want %+v", g, err, want)
	}
	return g
}

// wantRefused checks that a token proves nothing, and returns what its bearer is told.
func wantRefused(t testing.TB, v Verifier, token string) string {
	t.Helper()
	g, err := v.Verify(context.Background(), token)
	if compute.CodeOf(err) != compute.CodeUnauthenticated {
		t.Errorf("%+v, %v; want CodeUnauthenticated", g, err)
	}
	if g.User != 0 || g.Role != "" || len(g.Scopes) > 0 {
		t.Errorf("a refused token granted %+v", g)
	}
	if err != nil && len(token) > 40 && strings.Contains(err.Error(), token[len(token)-40:]) {
		t.Errorf("the error quotes the token: %v", err)
	}
	return compute.UserMessage(err)
}

func principal(u compute.User) compute.Principal {
	return compute.Principal{User: u.ID, Username: u.Username, Role: u.Role}
}
