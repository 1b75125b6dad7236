package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// MinSecret is the least length of a shared secret, in bytes: that of the hash (RFC 7518, section 3.2).
const MinSecret = 32

// SharedConfig is what a Shared is made of.
type SharedConfig struct {
	Secret    []byte
	Name      string        // of the program that has it too: users are remembered under it
	Zone      string        // the audience of its tokens, where they have one
	Issuer    string        // their issuer claim; empty when they have none
	Types     []string      // values of the claim type that are accepted
	MaxTTL    time.Duration // longest life of a token
	Admins    []string      // values of the claim user_id whose tokens are an administrator's
	Provision bool          // make accounts for those who have none
}

// Shared verifies the tokens of a program that shares a secret with this installation: HS256, and the claims user_id,
// username, type and exp.
type Shared struct {
	c        SharedConfig
	accounts accounts
	now      func() time.Time
}

// NewShared returns the verifier of a shared secret.
func NewShared(c SharedConfig, d Directory) (*Shared, error) {
	if len(c.Secret) < MinSecret {
		return nil, fmt.Errorf("the shared secret has %d bytes; it takes %d at least", len(c.Secret), MinSecret)
	}
	return &Shared{c: c, accounts: accounts{d, c.Provision}, now: time.Now}, nil
}

// Issuer is the issuer claim of the tokens.
func (s *Shared) Issuer() string { return s.c.Issuer }

// identityIssuer is the issuer that users are remembered under. No OpenID Connect issuer has such a name: those are URLs.
func (s *Shared) identityIssuer() string { return "hs256:" + s.c.Name }

// Verify returns what a token of the other program proves.
func (s *Shared) Verify(ctx context.Context, token string) (Grant, error) {
	var b body
	f := form{maxBytes: maxForeign, algs: []string{jwt.SigningMethodHS256.Alg()}, types: []string{"", "jwt"}}
	if err := f.parse(token, func(header) (any, error) { return s.c.Secret, nil }, &b); err != nil {
		return Grant{}, refused(err)
	}
	id, expires, err := s.check(&b)
	if err != nil {
		return Grant{}, refused(err)
	}
	scopes, err := b.foreignScopes()
	if err != nil {
		return Grant{}, refuse(err)
	}
	p, err := s.accounts.find(ctx, id)
	if err != nil {
		return Grant{}, err
	}
	return Grant{Principal: p, Kind: KindShared, Scopes: scopes, TokenID: b.loggedID(), Expires: expires}, nil
}

// check holds the claims against the settings and the clock, and returns whom they name and until when.
func (s *Shared) check(b *body) (id identity, expires time.Time, err error) {
	issuer, _, err := b.text("iss")
	if err != nil || issuer != s.c.Issuer {
		return id, expires, fmt.Errorf("issuer %q, %w", clip(issuer), orElse(err, "not this one"))
	}
	audience, err := b.texts("aud")
	if _, given := b.object["aud"]; err != nil || given && !slices.Contains(audience, s.c.Zone) {
		return id, expires, fmt.Errorf("audience %q, %w", audience, orElse(err, "not this zone"))
	}
	kind, _, err := b.text("type")
	if err != nil || !slices.Contains(s.c.Types, kind) {
		return id, expires, fmt.Errorf("type %q, %w", clip(kind), orElse(err, "not accepted"))
	}
	if expires, err = b.window(s.now(), s.c.MaxTTL); err != nil {
		return id, expires, err
	}
	subject, err := b.userID()
	if err != nil {
		return id, expires, err
	}
	name, given, err := b.text("username")
	if err != nil || !given || name == "" {
		return id, expires, errors.Join(errors.New("no username"), err)
	}
	return identity{
		issuer: s.identityIssuer(), subject: subject, wish: name, admin: slices.Contains(s.c.Admins, subject),
	}, expires, nil
}

// userID reads the claim user_id, a string or a whole number. The number is taken as it is written: as a float,
// neighbours beyond 2^53 would be one person.
func (b *body) userID() (string, error) {
	raw, ok := b.object["user_id"]
	if !ok {
		return "", errors.New("no user_id")
	}
	id, err := "", error(nil)
	if kind(raw) == '"' {
		id, _, err = b.text("user_id")
	} else {
		var n int64
		n, err = strconv.ParseInt(string(raw), 10, 64)
		id = strconv.FormatInt(n, 10)
	}
	if err != nil {
		return "", fmt.Errorf("user_id: %w", err)
	}
	return id, checkSubject(id)
}

// orElse is err, or an error that says why where there is none.
func orElse(err error, why string) error {
	if err != nil {
		return err
	}
	return errors.New(why)
}

// ReadSecret reads a shared secret: the bytes of the file at path, without the end of line that editors put there.
func ReadSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the shared secret: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("open the shared secret: %w", err)
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("the shared secret %s is not a file", path)
	case st.Mode().Perm()&0o007 != 0:
		return nil, fmt.Errorf("the shared secret %s is open to everybody (mode %04o), who could make tokens: "+
			"chmod 600 it, and replace the secret if somebody may have read it", path, st.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the shared secret: %w", err)
	}
	text = bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r"))
	if len(text) < MinSecret || len(text) > maxKeyFile {
		return nil, fmt.Errorf("the shared secret %s has %d bytes; it takes %d to %d: `openssl rand -base64 48` makes one",
			path, len(text), MinSecret, maxKeyFile)
	}
	return text, nil
}
