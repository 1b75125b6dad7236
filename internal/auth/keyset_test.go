package auth

import (
	"context"
	"crypto/elliptic"
	"encoding/base64"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"

	"berth/internal/compute"
)

// A key that is new at the issuer is found when a token names it; one that is withdrawn is good no longer than keysFresh.
func TestKeysRotate(t *testing.T) {
	w, i := newWorld(t), newIssuer(t)
	old, fresh := newKey(t), ecKey(t, elliptic.P256())
	i.publish(named(old))
	p := w.provider(i, nil)
	byOld, byNew := i.token(w, old, "k1", nil), i.token(w, fresh, "k2", nil)
	who, err := p.Verify(t.Context(), byOld)
	if err != nil {
		t.Fatal(err)
	}
	w.clock.add(askAgain)
	i.publish(named(old, fresh))
	wantGrant(t, p, byNew, who.Principal)
	wantGrant(t, p, byOld, who.Principal)
	if i.asked() != 2 {
		t.Errorf("asked %d times", i.asked())
	}
	w.clock.add(askAgain)
	i.set(func(i *issuer) {
		i.keys = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: fresh.Public(), KeyID: "k2"}}}
	})
	wantGrant(t, p, byOld, who.Principal) // nothing says that it is gone
	w.clock.add(keysFresh)
	wantRefused(t, p, byOld)
	wantGrant(t, p, byNew, who.Principal)

	// A name that is given to another key.
	i.set(func(i *issuer) {
		i.keys = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: ecKey(t, elliptic.P256()).Public(), KeyID: "k2"}}}
	})
	w.clock.add(keysFresh)
	wantRefused(t, p, byNew)
	// None at all: all were withdrawn.
	i.set(func(i *issuer) { i.keys = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}} })
	w.clock.add(keysFresh)
	wantRefused(t, p, byNew)
}

// Tokens that name keys which nobody has do not make us ask more than once in askAgain, however many come.
func TestUnknownKeysAreAskedForSlowly(t *testing.T) {
	w, i := newWorld(t), newIssuer(t)
	key := newKey(t)
	i.publish(named(key))
	p := w.provider(i, nil)
	good := i.token(w, key, "k1", nil)
	if _, err := p.Verify(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	for n := range 50 {
		wantRefused(t, p, i.token(w, newKey(t), strings.Repeat("x", n+1), nil))
	}
	if i.asked() != 1 {
		t.Errorf("asked %d times", i.asked())
	}
	w.clock.add(askAgain)
	for _, err := range verifyAll(p, i.token(w, newKey(t), "nobody's", nil), 20) {
		if compute.CodeOf(err) != compute.CodeUnauthenticated {
			t.Error(err)
		}
	}
	if i.asked() != 2 {
		t.Errorf("asked %d times", i.asked())
	}
	if _, err := p.Verify(t.Context(), good); err != nil {
		t.Error(err)
	}
}

// An issuer that is away is a fault, not a bad token; its keys that are known go on for a day; others' are not touched.
func TestIssuerAway(t *testing.T) {
	w, i, other := newWorld(t), newIssuer(t), newIssuer(t)
	key := newKey(t)
	i.publish(named(key))
	other.publish(named(key))
	i.set(func(i *issuer) { i.status = 500 })
	p, q := w.provider(i, nil), w.provider(other, nil)
	all, err := NewVerifiers(w.own, NewSSHSigned(zone, w.store), p, q)
	if err != nil {
		t.Fatal(err)
	}
	token := i.token(w, key, "k1", nil)
	for range 10 {
		if _, err := all.Verify(t.Context(), token); compute.CodeOf(err) != compute.CodeUnavailable {
			t.Errorf("%v", err)
		}
	}
	if i.asked() != 1 {
		t.Errorf("asked %d times", i.asked())
	}
	if g, err := all.Verify(t.Context(), other.token(w, key, "k1", nil)); err != nil || g.User == 0 {
		t.Errorf("the other issuer: %+v, %v", g, err)
	}

	i.set(func(i *issuer) { i.status = 0 })
	w.clock.add(askAgain)
	if _, err := p.Verify(t.Context(), token); err != nil {
		t.Errorf("it is back: %v", err)
	}
	i.set(func(i *issuer) { i.status = 503 })
	w.clock.add(keysFresh)
	token = i.token(w, key, "k1", nil)
	before := i.asked()
	for range 10 {
		if _, err := p.Verify(t.Context(), token); err != nil {
			t.Errorf("with keys that are known: %v", err)
		}
	}
	if n := i.asked() - before; n != 1 {
		t.Errorf("asked %d times", n)
	}
	w.clock.add(keysStale)
	if _, err := p.Verify(t.Context(), i.token(w, key, "k1", nil)); compute.CodeOf(err) != compute.CodeUnavailable {
		t.Errorf("a day later: %v", err)
	}
}

// An issuer that hangs holds up few requests, and nobody else's.
func TestIssuerHangs(t *testing.T) {
	w, i := newWorld(t), newIssuer(t)
	key := newKey(t)
	i.publish(named(key))
	release, arrived := make(chan struct{}), make(chan struct{})
	p := w.provider(i, nil)
	fetch := p.keys.fetch
	p.keys.fetch = func(ctx context.Context) ([]issuerKey, error) { // without its deadline: this machine may be slow
		close(arrived)
		<-release
		return fetch(context.WithoutCancel(ctx))
	}
	token := i.token(w, key, "k1", nil)
	first := make(chan error)
	go func() { first <- verifyAll(p, token, 1)[0] }()
	<-arrived
	// While it hangs, as many as may wait do; the next are told to come again, at once.
	var waiters sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for range maxWaiting {
		waiters.Go(func() {
			if _, err := p.Verify(ctx, token); compute.CodeOf(err) != compute.CodeUnavailable || !errors.Is(err, context.Canceled) {
				t.Errorf("a request that was given up: %v", err)
			}
		})
	}
	deadline := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for waiting := 0; waiting < maxWaiting; {
		select {
		case <-tick.C:
			p.keys.mu.Lock()
			waiting = p.keys.waiting
			p.keys.mu.Unlock()
		case <-deadline:
			t.Fatal("they do not wait")
		}
	}
	if _, err := p.Verify(t.Context(), token); compute.CodeOf(err) != compute.CodeUnavailable || !strings.Contains(err.Error(), "too many") {
		t.Errorf("one more: %v", err)
	}
	own, _ := w.issue(ScopeAll)
	wantGrant(t, w.own, own, principal(w.bob))
	cancel()
	waiters.Wait()
	close(release)
	if err := <-first; err != nil {
		t.Errorf("when it answers at last: %v", err)
	}
}

// A question that ends in a panic does not leave everybody waiting.
func TestAskPanics(t *testing.T) {
	w := newWorld(t)
	s := newKeySet("https://id.example.com")
	s.now = w.clock.now
	s.fetch = func(context.Context) ([]issuerKey, error) { panic("bug") }
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		_, _ = s.find(t.Context(), "RS256", "k")
	}()
	if _, err := s.find(t.Context(), "RS256", "k"); compute.CodeOf(err) != compute.CodeUnavailable {
		t.Errorf("%v", err)
	}
}

func TestDiscoveryRefuses(t *testing.T) {
	w := newWorld(t)
	key := newKey(t)
	for name, edit := range map[string]func(i *issuer){
		"another issuer": func(i *issuer) {
			i.doc = map[string]any{"issuer": "https://id.example.com", "jwks_uri": i.url + "/keys"}
		},
		"no issuer":            func(i *issuer) { i.doc = map[string]any{"jwks_uri": i.url + "/keys"} },
		"no keys":              func(i *issuer) { i.doc = map[string]any{"issuer": i.url} },
		"keys not a URL":       func(i *issuer) { i.doc = map[string]any{"issuer": i.url, "jwks_uri": "/keys"} },
		"keys a file":          func(i *issuer) { i.doc = map[string]any{"issuer": i.url, "jwks_uri": "file:///etc/passwd"} },
		"keys plain elsewhere": func(i *issuer) { i.doc = map[string]any{"issuer": i.url, "jwks_uri": "http://192.0.2.1/keys"} },
		"keys a redirect":      func(i *issuer) { i.doc = map[string]any{"issuer": i.url, "jwks_uri": i.url + "/elsewhere"} },
		"not an object":        func(i *issuer) { i.doc = []string{i.url} },
		"too large": func(i *issuer) {
			i.doc = map[string]any{"issuer": i.url, "jwks_uri": i.url + "/keys", "x": strings.Repeat("x", maxDocument)}
		},
		"keys too large": func(i *issuer) { i.keys = map[string]any{"keys": []string{strings.Repeat("x", maxDocument)}} },
		"keys not a set": func(i *issuer) { i.keys = map[string]any{"key": "x"} },
		"keys null":      func(i *issuer) { i.keys = map[string]any{"keys": nil} },
		"keys an error":  func(i *issuer) { i.status = 404 },
	} {
		t.Run(name, func(t *testing.T) {
			i := newIssuer(t)
			i.publish(named(key))
			i.set(edit)
			p := w.provider(i, nil)
			if g, err := p.Verify(t.Context(), i.token(w, key, "k1", nil)); compute.CodeOf(err) != compute.CodeUnavailable {
				t.Errorf("%+v, %v", g, err)
			}
		})
	}
}

// Only public keys for signatures by our algorithms are taken; others beside them do no harm.
func TestKeysRefused(t *testing.T) {
	w := newWorld(t)
	rs, es, ed := rsaKey(t, 2048), ecKey(t, elliptic.P256()), newKey(t)
	for name, k := range map[string]jose.JSONWebKey{
		"for encryption":     {Key: rs.Public(), Use: "enc"},
		"for PS256":          {Key: rs.Public(), Algorithm: "PS256"},
		"for RS512":          {Key: rs.Public(), Algorithm: "RS512"},
		"for HS256":          {Key: rs.Public(), Algorithm: "HS256"},
		"of another kind":    {Key: es.Public(), Algorithm: "RS256"},
		"RSA of 1024 bits":   {Key: rsaKey(t, 1024).Public()},
		"P-384":              {Key: ecKey(t, elliptic.P384()).Public()},
		"a secret":           {Key: []byte(strings.Repeat("x", 64))},
		"a private key":      {Key: ed},
		"a private RSA key":  {Key: rs},
		"a secret for EdDSA": {Key: []byte(strings.Repeat("x", 64)), Algorithm: "EdDSA"},
	} {
		i := newIssuer(t)
		k.KeyID = "odd"
		i.set(func(i *issuer) {
			i.keys = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{k, {Key: ed.Public(), KeyID: "good", Algorithm: "Ed25519"}}}
		})
		p := w.provider(i, nil)
		if _, err := p.Verify(t.Context(), i.token(w, ed, "good", nil)); err != nil {
			t.Errorf("%s beside it: %v", name, err)
		}
		if n := len(p.keys.keys); n != 1 {
			t.Errorf("%s: %d keys are taken", name, n)
		}
	}
	// Two keys of one algorithm: a token must say which.
	i := newIssuer(t)
	i.publish(named(ed, newKey(t)))
	p := w.provider(i, nil)
	if _, err := p.Verify(t.Context(), i.token(w, ed, "k1", nil)); err != nil {
		t.Error(err)
	}
	wantRefused(t, p, i.token(w, ed, "", nil))
	wantRefused(t, p, i.token(w, ed, "k2", nil))
}

func FuzzParseKeys(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"a"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AAAA"},{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"},{"kty":"RSA","n":"AQAB","e":"AQAB"},null,5]}`))
	f.Add([]byte(`{"keys":null}`))
	f.Add([]byte(`{"keys":[],"keys":[{}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := parseKeys(text)
		if err != nil && keys != nil || len(keys) > maxKeys {
			t.Fatalf("%d keys, %v", len(keys), err)
		}
		for _, k := range keys {
			if alg, _ := algorithmOf(k.public); alg != k.alg || alg == "" {
				t.Fatalf("%+v", k)
			}
			// Whatever the key is, it verifies nothing that it did not sign, and breaks nothing.
			set := jwt.VerificationKeySet{Keys: []jwt.VerificationKey{k.public}}
			form{maxForeign, algorithms(), []string{""}}.parse("eyJhbGciOiJFZERTQSJ9.e30."+base64.RawURLEncoding.EncodeToString(make([]byte, 64)),
				func(header) (any, error) { return set, nil }, &body{})
		}
	})
}

func FuzzDiscovery(f *testing.F) {
	f.Add([]byte(`{"issuer":"https://id.example.com","jwks_uri":"https://keys.example.com/x"}`), "https://id.example.com")
	f.Add([]byte(`{"issuer":"http://127.0.0.1:1","jwks_uri":"http://localhost/x"}`), "http://127.0.0.1:1")
	f.Add([]byte(`{"issuer":"https://id.example.com","jwks_uri":"http://localhost/x"}`), "https://id.example.com")
	f.Fuzz(func(t *testing.T, text []byte, issuer string) {
		address, err := readDiscovery(text, issuer)
		if err != nil || CheckIssuerURL(issuer) != nil {
			return
		}
		if !strings.HasPrefix(strings.ToLower(address), "https://") && !strings.HasPrefix(issuer, "http://") {
			t.Fatalf("%q leads to %q", text, address)
		}
	})
}
