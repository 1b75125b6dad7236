package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"berth/internal/compute"
)

// Directory finds the accounts of people whom other issuers know. Names never lead to one.
type Directory interface {
	// UserByIdentity returns the account of whom issuer calls subject; CodeNotFound when there is none.
	UserByIdentity(ctx context.Context, issuer, subject string) (compute.User, error)
	// Provision makes it, under the first of the names that is valid and free, or returns it if it is there by now.
	Provision(ctx context.Context, issuer, subject string, names []string) (compute.User, error)
}

// identity is whom a foreign token names, and what it says of them.
type identity struct {
	issuer, subject string // for ever
	wish            string // for a username; nothing is decided by it
	admin           bool   // by the operator's word about this issuer
}

// accounts turns identities into principals.
type accounts struct {
	dir       Directory
	provision bool // make an account for somebody new
}

// find returns the principal of an identity. Its role is the token's, never that of the account: a foreign token makes an
// administrator only where the operator mapped one.
func (a accounts) find(ctx context.Context, id identity) (compute.Principal, error) {
	u, err := a.dir.UserByIdentity(ctx, id.issuer, id.subject)
	if compute.CodeOf(err) == compute.CodeNotFound {
		if !a.provision {
			return compute.Principal{}, &compute.Error{
				Code: compute.CodeUnauthenticated, Cause: errNoAccount,
				Message: "You have no account here; ask your operator for one.",
			}
		}
		names := compute.UsernameCandidates(id.wish, id.issuer+"\x00"+id.subject)
		u, err = a.dir.Provision(ctx, id.issuer, id.subject, names)
	}
	if err != nil {
		return compute.Principal{}, fmt.Errorf("look up the bearer: %w", err)
	}
	if u.Disabled {
		return compute.Principal{}, disabled(u)
	}
	p := compute.Principal{User: u.ID, Username: u.Username, Role: compute.RoleUser}
	if id.admin {
		p.Role = compute.RoleAdmin
	}
	return p, nil
}

// maxSubject bounds what is stored of a subject (OpenID Connect Core 1.0, section 2, allows 255 characters).
const maxSubject = 255

// checkSubject refuses what cannot be told from something else once it is stored or printed.
func checkSubject(s string) error {
	odd := func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }
	if s == "" || len(s) > maxSubject || strings.ContainsFunc(s, odd) {
		return fmt.Errorf("subject %q", clip(s))
	}
	return nil
}

// window is when a foreign token is good, at most maxTTL from now on.
func (b *body) window(now time.Time, maxTTL time.Duration) (ends time.Time, err error) {
	exp, ok, err := b.time("exp")
	if err != nil || !ok {
		return ends, errors.Join(errors.New("no time of expiry"), err)
	}
	for _, name := range []string{"iat", "nbf"} {
		at, ok, err := b.time(name)
		switch {
		case err != nil:
			return ends, err
		case ok && at.After(now.Add(leeway)):
			return ends, fmt.Errorf("%s is to come: %v", name, at)
		case ok && name == "iat" && exp.Sub(at) > maxTTL:
			return ends, fmt.Errorf("lives from %v to %v", at, exp)
		}
	}
	if !now.Before(exp) {
		return ends, expired(fmt.Errorf("expired at %v", exp))
	}
	if exp.Sub(now) > maxTTL+leeway {
		return ends, fmt.Errorf("lives until %v", exp)
	}
	return exp, nil
}

// foreignScopes are the scopes of a foreign token: those of ours that its claim names, else all. Issuers put words of
// their own there, which say nothing of what is permitted here.
func (b *body) foreignScopes() ([]Scope, error) {
	text, _, err := b.text("scope")
	if err != nil {
		return nil, err
	}
	var ours []Scope
	for _, w := range strings.Fields(text) {
		if slices.Contains(Scopes(), Scope(w)) {
			ours = append(ours, Scope(w))
		}
	}
	if len(ours) == 0 {
		return []Scope{ScopeAll}, nil
	}
	return ours, nil
}

// loggedID is the token's id where it is one that a log can hold; only for logs.
func (b *body) loggedID() string {
	id, _, err := b.text("jti")
	if err != nil || !isID(id) {
		return ""
	}
	return id
}

// isID says whether s is 1 to 64 letters, digits and . _ -.
func isID(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, foreign)
}
