package compute

import "time"

// Gateway is the credential of a gateway that follows the control plane from a process of its own.
type Gateway struct {
	Name        string // a DNS label, of one credential in force at a time
	Fingerprint string // SHA256:…, of its certificate
	CreatedAt   time.Time
	SeenAt      time.Time // when it was last connected, give or take a minute; zero if never
	RevokedAt   time.Time // zero while it is good
}

// Revoked says whether the credential was revoked.
func (g Gateway) Revoked() bool { return !g.RevokedAt.IsZero() }

// ValidateGatewayName accepts a DNS label of at most 32 characters.
func ValidateGatewayName(s string) error {
	if !username.MatchString(s) {
		return Invalid("name", "A gateway's name is 1 to 32 lowercase letters, digits and hyphens, and begins and ends with a letter or digit.")
	}
	return nil
}
