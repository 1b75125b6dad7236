package auth

import (
	"slices"
	"strings"
	"time"

	"berth/internal/compute"
)

// Scope is one thing that a token permits, within what its user may do.
type Scope string

// The scopes. None implies another, but ScopeAll implies them all.
const (
	ScopeAll             Scope = "all"
	ScopeContainersRead  Scope = "containers:read"
	ScopeContainersWrite Scope = "containers:write"
	ScopeContainersExec  Scope = "containers:exec" // run commands in them: worth a login
	ScopeKeysRead        Scope = "keys:read"
	ScopeKeysWrite       Scope = "keys:write"
	ScopeTokensRead      Scope = "tokens:read"
	ScopeTokensWrite     Scope = "tokens:write"
	ScopeAuditRead       Scope = "audit:read" // of one's own account, and of all for an administrator
	ScopeAdmin           Scope = "admin"      // worth nothing unless the user is an administrator
)

// Scopes lists every scope.
func Scopes() []Scope {
	return []Scope{
		ScopeAll, ScopeContainersRead, ScopeContainersWrite, ScopeContainersExec, ScopeKeysRead, ScopeKeysWrite, ScopeTokensRead,
		ScopeTokensWrite, ScopeAuditRead, ScopeAdmin,
	}
}

// ParseScopes returns words as scopes, or CodeInvalid for one that there is not, is there twice, or when there are none.
func ParseScopes(words []string) ([]Scope, error) {
	all := Scopes()
	var list []Scope
	for _, w := range words {
		s := Scope(w)
		switch {
		case !slices.Contains(all, s):
			return nil, compute.Invalid("scopes", "There is no scope %q; the scopes are %s.", clip(w), join(all, ", "))
		case slices.Contains(list, s):
			return nil, compute.Invalid("scopes", "The scope %q is there twice.", w)
		}
		list = append(list, s)
	}
	if len(list) == 0 {
		return nil, compute.Invalid("scopes", "Name at least one scope; the scopes are %s.", join(all, ", "))
	}
	return list, nil
}

func join(scopes []Scope, sep string) string {
	words := make([]string, len(scopes))
	for i, s := range scopes {
		words[i] = string(s)
	}
	return strings.Join(words, sep)
}

// Kind is the kind of credential that proved who acts.
type Kind string

// The kinds.
const (
	KindToken  Kind = "token"         // a token of this installation
	KindShared Kind = "shared_secret" // signed with a secret that another program shares with this installation
	KindOIDC   Kind = "oidc"          // of an OpenID Connect issuer
	KindSSH    Kind = "ssh_signature" // signed by the user's SSH key
)

// Grant is what a verified token proves: who acts, what for, and until when.
type Grant struct {
	compute.Principal
	Kind    Kind
	Scopes  []Scope
	TokenID string // the token's unique id (jti), for logs: it is no credential. Empty where a foreign token has none.
	KeyID   int64  // the SSH key that signed it; 0 for other kinds. The grant ends with the key.
	Expires time.Time
}

// Allows says whether the token permits s.
func (g Grant) Allows(s Scope) bool {
	return slices.Contains(g.Scopes, s) || slices.Contains(g.Scopes, ScopeAll)
}

// clip bounds what of a foreign text goes into a message.
func clip(s string) string {
	const longest = 64
	if len(s) > longest {
		return s[:longest] + "…"
	}
	return s
}
