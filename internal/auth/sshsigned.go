package auth

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"berth/internal/compute"
)

const (
	// SSHNamespace is what ssh-keygen -Y sign is told with -n: a signature made for anything else is no token.
	SSHNamespace = "berth-token@v1"
	// MaxSSHTTL is the longest time from now to the expiry of a signed token: nobody keeps a list of them.
	MaxSSHTTL = 24 * time.Hour

	// sshPrefix begins every signed token. A JWT cannot: ~ is not in its alphabet.
	sshPrefix = "berth-ssh~"
	// maxSSHToken fits the signature of a key of the largest size that can be registered, and maxSSHClaims more than
	// claims need.
	maxSSHToken, maxSSHClaims = 8 << 10, 1 << 10
)

// Keys finds the accounts of SSH keys.
type Keys interface {
	// KeyAccounts returns the accounts that are not disabled and have the key of that fingerprint.
	KeyAccounts(ctx context.Context, fingerprint string) ([]compute.KeyAccount, error)
}

// SSHSigned verifies tokens that users sign with their SSH keys: claims in JSON and a signature as ssh-keygen -Y sign
// makes it (PROTOCOL.sshsig of OpenSSH), both in base64url, after a prefix and with a dot between.
type SSHSigned struct {
	zone string
	keys Keys
	now  func() time.Time
}

// NewSSHSigned returns the verifier of signed tokens of a zone.
func NewSSHSigned(zone string, k Keys) *SSHSigned {
	return &SSHSigned{zone: zone, keys: k, now: time.Now}
}

// isSSHSigned says whether a token is for SSHSigned.
func isSSHSigned(token string) bool { return strings.HasPrefix(token, sshPrefix) }

// Verify returns what a signed token proves.
func (s *SSHSigned) Verify(ctx context.Context, token string) (Grant, error) {
	text, sig, err := readSSHSigned(token)
	if err != nil {
		return Grant{}, refuse(err)
	}
	// The signature first, then whose key it is: an answer must not tell, by the time it takes either, which keys are known.
	// Keys are bounded: golang.org/x/crypto/ssh refuses RSA over 16384 bits, which takes 15 ms.
	err = sshsig.Verify(bytes.NewReader(text), sig, sig.PublicKey, sig.HashAlgorithm, SSHNamespace)
	if err != nil {
		return Grant{}, refuse(err)
	}
	fingerprint := ssh.FingerprintSHA256(sig.PublicKey)
	holders, err := s.keys.KeyAccounts(ctx, fingerprint)
	if err != nil {
		return Grant{}, fmt.Errorf("look up the key: %w", err)
	}
	if len(holders) == 0 {
		return Grant{}, refuse(fmt.Errorf("no account has the key %s", fingerprint))
	}
	c, err := s.readClaims(text)
	if err != nil {
		return Grant{}, err
	}
	holder, err := c.choose(holders)
	if err != nil {
		return Grant{}, err
	}
	return Grant{
		Principal: compute.Principal{User: holder.User.ID, Username: holder.User.Username, Role: holder.User.Role},
		Kind:      KindSSH, Scopes: c.scopes, TokenID: c.id, KeyID: holder.Key, Expires: c.expires,
	}, nil
}

// readSSHSigned takes a token apart. Nothing of it is proven.
func readSSHSigned(token string) (claims []byte, sig *sshsig.Signature, err error) {
	rest, ok := strings.CutPrefix(token, sshPrefix)
	if !ok || len(token) > maxSSHToken || strings.ContainsFunc(rest, foreign) {
		return nil, nil, fmt.Errorf("no signed token, or one of %d bytes", len(token))
	}
	first, second, ok := strings.Cut(rest, ".")
	if !ok {
		return nil, nil, errors.New("no signature")
	}
	if claims, err = base64.RawURLEncoding.Strict().DecodeString(first); err != nil {
		return nil, nil, fmt.Errorf("claims: %w", err)
	}
	if len(claims) > maxSSHClaims {
		return nil, nil, fmt.Errorf("claims of %d bytes", len(claims))
	}
	blob, err := base64.RawURLEncoding.Strict().DecodeString(second)
	if err != nil {
		return nil, nil, fmt.Errorf("signature: %w", err)
	}
	if sig, err = sshsig.ParseSignature(blob); err != nil {
		return nil, nil, fmt.Errorf("signature: %w", err)
	}
	if !slices.Contains(compute.SupportedKeyTypes(), sig.PublicKey.Type()) { // no certificates: nobody registered those
		return nil, nil, fmt.Errorf("signed by a key of type %q", clip(sig.PublicKey.Type()))
	}
	return claims, sig, nil
}

// sshClaims is what a signed token says.
type sshClaims struct {
	id, account string
	scopes      []Scope
	expires     time.Time
}

// sshFields are all the claims that there are: another one would be a mistake, or a limit that is not heeded.
var sshFields = []string{"account", "aud", "exp", "jti", "scope"}

// readClaims reads claims whose signature is good. People write them by hand, so each mistake is explained.
func (s *SSHSigned) readClaims(text []byte) (c sshClaims, err error) {
	bad := func(format string, args ...any) error {
		return &compute.Error{
			Code: compute.CodeUnauthenticated, Message: "The signed token " + fmt.Sprintf(format, args...) + ".",
			Cause: errors.New("claims of a signed token"),
		}
	}
	var o object
	if err := o.UnmarshalJSON(text); err != nil {
		return c, bad("is not a JSON object with each name once")
	}
	for _, name := range slices.Sorted(maps.Keys(o)) {
		if !slices.Contains(sshFields, name) {
			return c, bad("has a claim %q; the claims are %s", clip(name), strings.Join(sshFields, ", "))
		}
	}
	if audience, _, err := o.text("aud"); err != nil || audience != s.zone {
		return c, bad("is not for this zone; its aud is to be %q", s.zone)
	}
	if c.id, _, err = o.text("jti"); err != nil || len(c.id) < 8 || !isID(c.id) {
		return c, bad("needs a jti of 8 to 64 letters, digits and . _ -, another one each time")
	}
	var given bool
	if c.account, given, err = o.text("account"); err != nil || given && c.account == "" {
		return c, bad("has an account that is not a username")
	}
	if c.expires, _, err = o.time("exp"); err != nil || c.expires.IsZero() {
		return c, bad("needs an exp, in seconds since 1970")
	}
	now := s.now()
	if !now.Before(c.expires) {
		return c, bad("has expired; sign a new one")
	}
	if c.expires.Sub(now) > MaxSSHTTL+leeway {
		return c, bad("expires more than %d hours from now; sign one for a shorter time", int(MaxSSHTTL.Hours()))
	}
	words, _, err := o.text("scope")
	if err == nil {
		c.scopes, err = ParseScopes(strings.Fields(words))
	}
	if err != nil {
		return c, bad("needs a scope: one or more of %s, with spaces between", join(Scopes(), ", "))
	}
	return c, nil
}

// choose returns the one account that the key and the claims name together.
func (c sshClaims) choose(holders []compute.KeyAccount) (compute.KeyAccount, error) {
	if c.account == "" {
		if len(holders) > 1 {
			return compute.KeyAccount{}, &compute.Error{
				Code: compute.CodeUnauthenticated, Cause: errors.New("several accounts"),
				Message: "Several accounts have this key; name yours in the claim account.",
			}
		}
		return holders[0], nil
	}
	i := slices.IndexFunc(holders, func(h compute.KeyAccount) bool { return h.User.Username == c.account })
	if i < 0 {
		return compute.KeyAccount{}, refuse(fmt.Errorf("account %q has not this key", clip(c.account)))
	}
	return holders[i], nil
}
