// Package auth turns a bearer token into the principal that it proves, and issues this installation's own tokens.
//
// There is one verifier for each issuer: this installation itself (JWTs signed with Ed25519, recorded, limited to
// scopes), a program that shares a secret with it (HS256), OpenID Connect issuers, and users who sign a token with their
// SSH key. Each has its own algorithms and decides alone; a token that its verifier refuses is tried at no other.
// Nothing that a token says of a user's name or role is believed, unless the operator said so of that issuer: accounts
// are looked up at each verification, by number or by (issuer, subject). The package refuses tokens that live too long,
// and whatever it cannot read in full; it knows neither the surface that takes tokens nor SQL.
package auth

import (
	"context"
	"errors"
	"fmt"

	"berth/internal/compute"
)

// Verifier says what a token proves. The error is CodeUnauthenticated when it proves nothing, with a cause for the log; what
// keeps a verifier from deciding is another code, since the token may be good.
type Verifier interface {
	Verify(ctx context.Context, token string) (Grant, error)
}

// Foreign is the verifier of one issuer other than this installation.
type Foreign interface {
	Verifier
	// Issuer is the issuer claim of its tokens; empty when they have none.
	Issuer() string
}

// Verifiers hands each token to the one verifier that it is for. Its methods may be called concurrently.
type Verifiers struct {
	signed   *SSHSigned
	byIssuer map[string]Verifier
}

// NewVerifiers returns the verifiers of an installation. It fails when two of them are for one issuer.
func NewVerifiers(own *Authority, signed *SSHSigned, foreign ...Foreign) (*Verifiers, error) {
	v := &Verifiers{signed: signed, byIssuer: map[string]Verifier{Issuer: own}}
	for _, f := range foreign {
		if _, taken := v.byIssuer[f.Issuer()]; taken {
			return nil, fmt.Errorf("two ways to sign in have the issuer %q; each needs its own", f.Issuer())
		}
		v.byIssuer[f.Issuer()] = f
	}
	return v, nil
}

// Verify returns what a token proves. The form of the token and the issuer that it claims, unproven so far, choose the
// verifier, and then that one alone decides.
func (v *Verifiers) Verify(ctx context.Context, token string) (Grant, error) {
	if isSSHSigned(token) {
		return v.signed.Verify(ctx, token)
	}
	issuer, err := claimedIssuer(token)
	if err != nil {
		return Grant{}, refuse(err)
	}
	verifier, ok := v.byIssuer[issuer]
	if !ok {
		return Grant{}, refuse(fmt.Errorf("nobody here verifies tokens of issuer %q", clip(issuer)))
	}
	return verifier.Verify(ctx, token)
}

// refuse says the same of every token that proves nothing; why is for the log.
func refuse(why error) *compute.Error {
	return &compute.Error{
		Code: compute.CodeUnauthenticated, Message: "The token is not valid here; get a new one.",
		Cause: fmt.Errorf("token refused: %w", why),
	}
}

// refused is refuse for what a verifier's own code finds wrong, and leaves alone an error that already says more.
func refused(err error) error {
	if err == nil || compute.AsError(err) != nil {
		return err
	}
	return refuse(err)
}

// The refusals that tell the bearer of a token whose signature is good what to do.
func expired(why error) *compute.Error {
	return &compute.Error{
		Code: compute.CodeUnauthenticated, Message: "The token has expired; get a new one.", Cause: why,
	}
}

func disabled(u compute.User) *compute.Error {
	return &compute.Error{
		Code: compute.CodeUnauthenticated, Message: "This account is disabled; ask your operator.",
		Cause: fmt.Errorf("user %d is disabled", u.ID),
	}
}

var errNoAccount = errors.New("there is no account for this identity, and none is made")
