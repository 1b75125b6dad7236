package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	strict "github.com/go-jose/go-jose/v4/json"
	"github.com/golang-jwt/jwt/v5"

	"berth/internal/compute"
)

const (
	// keysFresh is how long keys are used without asking again: so long may one that the issuer withdrew still be good.
	keysFresh = 15 * time.Minute
	// keysStale is how long they are used while the issuer does not answer.
	keysStale = 24 * time.Hour
	// askAgain is the least time between two questions to an issuer for a key that is not there: anybody can make up a token
	// with a name of a key that nobody ever had.
	askAgain = 10 * time.Second
	// retryStale is the least time between two questions while old keys do.
	retryStale = time.Minute
	// maxWaiting is how many requests wait for an issuer at once; one more is told to come again.
	maxWaiting = 32
	// maxKeys bounds what is kept of an issuer's keys.
	maxKeys = 64
	// minRSABits and maxRSABits bound an issuer's RSA key.
	minRSABits, maxRSABits = 2048, 8192
)

// algorithms are those that an issuer's keys may be for. None is symmetric: a public key is no secret.
func algorithms() []string {
	return []string{jwt.SigningMethodRS256.Alg(), jwt.SigningMethodES256.Alg(), jwt.SigningMethodEdDSA.Alg()}
}

// issuerKey is a public key of an issuer's, for one algorithm.
type issuerKey struct {
	kid, alg string
	public   crypto.PublicKey
}

// keySet is an issuer's keys, fetched when they are needed by whoever needs them. Its methods may be called concurrently.
type keySet struct {
	issuer string
	fetch  func(ctx context.Context) ([]issuerKey, error)
	now    func() time.Time

	mu      sync.Mutex // guards what follows; never held while asking
	keys    []issuerKey
	fetched time.Time     // when the keys came; zero: never
	asked   time.Time     // when the last question ended, whatever became of it
	err     error         // why the last question failed; nil when it did not
	asking  chan struct{} // closed when the question that is out has ended; nil when none is
	waiting int
}

func newKeySet(issuer string) *keySet {
	client := newIssuerClient()
	return &keySet{
		issuer: issuer, now: time.Now,
		fetch: func(ctx context.Context) ([]issuerKey, error) { return fetchKeys(ctx, client, issuer) },
	}
}

// find returns the keys of that algorithm and name; more than one only if the issuer gave them the same name. It asks
// the issuer where they are not known or no longer fresh. CodeUnavailable when the issuer has to answer first and does
// not.
func (s *keySet) find(ctx context.Context, alg, kid string) ([]crypto.PublicKey, error) {
	for {
		s.mu.Lock()
		now := s.now()
		found := pick(s.keys, alg, kid)
		age, since := now.Sub(s.fetched), now.Sub(s.asked)
		usable := len(found) > 0 && age < keysStale
		switch {
		case usable && (age < keysFresh || s.asking != nil || since < retryStale):
			s.mu.Unlock()
			return found, nil
		case s.asking != nil:
			if s.waiting >= maxWaiting {
				s.mu.Unlock()
				return nil, s.unavailable(errors.New("too many requests wait for it"))
			}
			if err := s.wait(ctx, s.asking); err != nil { // unlocks
				return nil, s.unavailable(err)
			}
		case since < askAgain:
			err := s.err
			s.mu.Unlock()
			if err != nil {
				return nil, s.unavailable(err)
			}
			return nil, fmt.Errorf("the issuer has no %s key %q", alg, clip(kid))
		default:
			s.ask(ctx) // unlocks
		}
	}
}

// wait waits until a question has ended. s.mu is held, and given up.
func (s *keySet) wait(ctx context.Context, asking <-chan struct{}) error {
	s.waiting++
	s.mu.Unlock()
	var err error
	select {
	case <-asking:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	s.mu.Lock()
	s.waiting--
	s.mu.Unlock()
	return err
}

// ask asks the issuer for its keys. It does not end with the request that needs them, since others wait for the answer too.
// s.mu is held, and given up.
func (s *keySet) ask(ctx context.Context) {
	done := make(chan struct{})
	s.asking = done
	s.mu.Unlock()
	var keys []issuerKey
	err := errors.New("the question did not end")
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.asked, s.err = s.now(), err; err == nil {
			s.keys, s.fetched = keys, s.asked
		}
		s.asking = nil
		close(done)
	}()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
	defer cancel()
	keys, err = s.fetch(ctx)
}

func (s *keySet) unavailable(why error) error {
	return &compute.Error{
		Code:    compute.CodeUnavailable,
		Message: "The service that you signed in with cannot be asked about its keys now; try again in a moment.",
		Cause:   fmt.Errorf("keys of %s: %w", s.issuer, why),
	}
}

// pick returns the keys of an algorithm and name. A token need not name the key where there is only one (OpenID Connect
// Core 1.0, section 10.1).
func pick(keys []issuerKey, alg, kid string) []crypto.PublicKey {
	var found []crypto.PublicKey
	for _, k := range keys {
		if k.alg == alg && (kid == "" || k.kid == kid) {
			found = append(found, k.public)
		}
	}
	if kid == "" && len(found) > 1 {
		return nil
	}
	return found
}

// parseKeys reads a JWK set (RFC 7517, section 5). Keys that are not for verifying signatures by one of the algorithms
// are left out.
func parseKeys(text []byte) ([]issuerKey, error) {
	var set struct {
		Keys []strict.RawMessage `json:"keys"`
	}
	if err := readJSON(text, &set); err != nil {
		return nil, err
	}
	if set.Keys == nil {
		return nil, errors.New("not a set of keys")
	}
	keys := []issuerKey{}
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if err := k.UnmarshalJSON(raw); err != nil || k.Use != "" && k.Use != "sig" || len(keys) == maxKeys {
			continue
		}
		alg, names := algorithmOf(k.Key)
		if alg != "" && (k.Algorithm == "" || slices.Contains(names, k.Algorithm)) {
			keys = append(keys, issuerKey{kid: k.KeyID, alg: alg, public: k.Key})
		}
	}
	return keys, nil
}

// algorithmOf returns the algorithm that a public key is for, and its names in keys; empty for those that are not taken,
// private and symmetric ones first.
func algorithmOf(key any) (alg string, names []string) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n >= minRSABits && n <= maxRSABits {
			return "RS256", []string{"RS256"}
		}
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return "ES256", []string{"ES256"}
		}
	case ed25519.PublicKey:
		return "EdDSA", []string{"EdDSA", "Ed25519"} // RFC 9864 has the second
	}
	return "", nil
}
