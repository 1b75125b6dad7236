package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

// issuer is an OpenID Connect issuer on this machine: its documents, and keys that change.
type issuer struct {
	srv *httptest.Server
	url string

	mu     sync.Mutex
	keys   any // what is served as its keys, in JSON
	doc    any // what is served as its discovery document
	status int // of the keys; 0 is 200
	hits   int // how often the keys were asked for
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{keys: jose.JSONWebKeySet{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		doc := i.doc
		i.mu.Unlock()
		_ = json.NewEncoder(w).Encode(doc)
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		i.hits++
		keys, status := i.keys, i.status
		i.mu.Unlock()
		if status != 0 {
			w.WriteHeader(status)
		}
		_ = json.NewEncoder(w).Encode(keys)
	})
	mux.HandleFunc("/elsewhere", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/keys", http.StatusFound) })
	i.srv = httptest.NewServer(mux)
	t.Cleanup(i.srv.Close)
	i.url = i.srv.URL
	i.doc = map[string]any{"issuer": i.url, "jwks_uri": i.url + "/keys", "response_types_supported": []string{"code"}}
	return i
}

func (i *issuer) set(edit func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	edit(i)
}

func (i *issuer) asked() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.hits
}

// publish serves these keys by their names from now on.
func (i *issuer) publish(keys map[string]crypto.Signer) {
	var set jose.JSONWebKeySet
	for kid, k := range keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.Public(), KeyID: kid, Use: "sig"})
	}
	i.set(func(i *issuer) { i.keys = set })
}

// provider returns the verifier of the issuer, at w's time.
func (w *world) provider(i *issuer, edit func(*OIDCConfig)) *Provider {
	w.t.Helper()
	c := OIDCConfig{Issuer: i.url, Audience: "berth-here", Provision: true}
	if edit != nil {
		edit(&c)
	}
	p, err := NewProvider(c, w.store)
	if err != nil {
		w.t.Fatal(err)
	}
	p.now, p.keys.now = w.clock.now, w.clock.now
	return p
}

// claims returns claims of the issuer's that verify, after edit.
func (i *issuer) claims(w *world, edit func(jwt.MapClaims)) jwt.MapClaims {
	c := jwt.MapClaims{
		"iss": i.url, "sub": "person-1", "aud": "berth-here", "iat": w.clock.in(0), "exp": w.clock.in(time.Hour),
		"preferred_username": "carol",
	}
	if edit != nil {
		edit(c)
	}
	return c
}

// token signs claims with a key of the kind that its method is for.
func (i *issuer) token(w *world, key crypto.Signer, kid string, edit func(jwt.MapClaims)) string {
	w.t.Helper()
	var m jwt.SigningMethod = jwt.SigningMethodEdDSA
	switch key.(type) {
	case *rsa.PrivateKey:
		m = jwt.SigningMethodRS256
	case *ecdsa.PrivateKey:
		m = jwt.SigningMethodES256
	}
	headers := map[string]any{"typ": "JWT"}
	if kid != "" {
		headers["kid"] = kid
	}
	return signWith(w.t, m, key, headers, i.claims(w, edit))
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// verifyAll verifies a token n times at once and returns what came of each.
func verifyAll(v Verifier, token string, n int) []error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = v.Verify(context.Background(), token) })
	}
	wg.Wait()
	return errs
}

func named(keys ...crypto.Signer) map[string]crypto.Signer {
	m := map[string]crypto.Signer{}
	for i, k := range keys {
		m[fmt.Sprint("k", i+1)] = k
	}
	return m
}
