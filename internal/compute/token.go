package compute

import "time"

// TokenIssuer is who had a token made. Each has a limit of its own, so that neither uses up the other's.
type TokenIssuer string

// The issuers.
const (
	IssuedByUser     TokenIssuer = "user"     // its owner, by another credential
	IssuedByOperator TokenIssuer = "operator" // whoever runs the installation
)

// Token is a bearer token of this installation as it is recorded: all that is known of it, and not the token itself.
type Token struct {
	ID         string // unique (jti); in logs and URLs, since it is no credential
	Owner      UserID
	IssuedBy   TokenIssuer
	Name       string
	Scopes     []string
	CreatedAt  time.Time
	ExpiresAt  time.Time
	LastUsedAt time.Time // a minute in which it was used; zero: never
	RevokedAt  time.Time // zero: it was not
}

// KeyAccount is an account that has a certain SSH key, with the key's id there.
type KeyAccount struct {
	User User
	Key  int64
}
