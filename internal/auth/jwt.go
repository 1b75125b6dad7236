package auth

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	strict "github.com/go-jose/go-jose/v4/json"
	"github.com/golang-jwt/jwt/v5"

	"berth/internal/compute"
)

// maxForeign bounds a token of another issuer: some put a user's every group into it. A request's headers are 16 kB.
const maxForeign = 12 << 10

// readJSON is json.Unmarshal, but names are exact, none is there twice, and the text is UTF-8: what another reader of
// the same token sees is what is seen here (RFC 8725, section 2.4 and RFC 8259, section 4).
func readJSON(text []byte, into any) error {
	if !utf8.Valid(text) {
		return errors.New("not UTF-8")
	}
	return strict.Unmarshal(text, into)
}

// form is what a verifier wants its JWTs to look like.
type form struct {
	maxBytes int
	algs     []string // those of its issuer, and no other
	types    []string // of the header, in lower case; "" where it may be absent
}

// header is what counts of a token's header. What else may be there to lead to a key (jwk, jku, x5c, x5u) is never
// looked at.
type header struct{ alg, typ, kid string }

// parse checks form and signature, with the key that belongs to the header, and reads the body into c. What c says is
// unchecked. An error of key that is a *compute.Error is returned as it is.
func (f form) parse(token string, key func(header) (any, error), c jwt.Claims) error {
	h, _, err := split(token, f.maxBytes)
	switch {
	case err != nil:
		return err
	case !slices.Contains(f.algs, h.alg):
		return fmt.Errorf("algorithm %q", clip(h.alg))
	case !slices.Contains(f.types, strings.TrimPrefix(strings.ToLower(h.typ), "application/")): // RFC 7515, section 4.1.9
		return fmt.Errorf("type %q", clip(h.typ))
	}
	// Strict decoding leaves each token a single spelling: the bits that base64 does not use must be zero. The claims are
	// checked by the verifier, each one that it needs: the library's checks let absent ones pass.
	p := jwt.NewParser(jwt.WithValidMethods(f.algs), jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation())
	_, err = p.ParseWithClaims(token, c, func(*jwt.Token) (any, error) { return key(h) })
	if e := compute.AsError(err); e != nil {
		return e
	}
	return err
}

// split takes a token apart and reads its header, strictly. Nothing of it is proven.
func split(token string, maxBytes int) (h header, body []byte, err error) {
	if len(token) > maxBytes {
		return h, nil, fmt.Errorf("%d bytes long", len(token))
	}
	if strings.ContainsFunc(token, foreign) { // Go's base64 skips line ends, even when strict
		return h, nil, errors.New("characters that no token has")
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return h, nil, fmt.Errorf("%d parts", len(parts))
	}
	text, err := base64.RawURLEncoding.Strict().DecodeString(parts[0])
	if err != nil {
		return h, nil, fmt.Errorf("header: %w", err)
	}
	if body, err = base64.RawURLEncoding.Strict().DecodeString(parts[1]); err != nil {
		return h, nil, fmt.Errorf("body: %w", err)
	}
	var o object
	if err := o.UnmarshalJSON(text); err != nil {
		return h, nil, fmt.Errorf("header: %w", err)
	}
	if _, critical := o["crit"]; critical { // RFC 7515, section 4.1.11: we understand no extension
		return h, nil, errors.New("critical extensions")
	}
	for name, into := range map[string]*string{"alg": &h.alg, "typ": &h.typ, "kid": &h.kid} {
		if *into, _, err = o.text(name); err != nil {
			return h, nil, fmt.Errorf("header: %w", err)
		}
	}
	return h, body, nil
}

// claimedIssuer returns what a JWT says is its issuer; empty when it says nothing.
func claimedIssuer(token string) (string, error) {
	_, body, err := split(token, maxForeign)
	if err != nil {
		return "", err
	}
	var o object
	if err := o.UnmarshalJSON(body); err != nil {
		return "", fmt.Errorf("body: %w", err)
	}
	issuer, _, err := o.text("iss")
	return issuer, err
}

// foreign says whether r is outside base64url and the dots between.
func foreign(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
}

// object is a JSON object of a foreign token, whose fields are read one by one. A null is not a value of any type.
type object map[string]strict.RawMessage

// UnmarshalJSON reads an object alone.
func (o *object) UnmarshalJSON(text []byte) error {
	var fields map[string]strict.RawMessage
	if err := readJSON(text, &fields); err != nil {
		return err
	}
	if fields == nil {
		return errors.New("not an object")
	}
	*o = fields
	return nil
}

// kind is the byte that a value begins with, which tells its type.
func kind(raw strict.RawMessage) byte {
	if len(raw) == 0 {
		return 'n'
	}
	return raw[0]
}

// text returns a string field, and whether it is there.
func (o object) text(name string) (string, bool, error) {
	raw, ok := o[name]
	if !ok {
		return "", false, nil
	}
	var s string
	if kind(raw) != '"' {
		return "", true, fmt.Errorf("%s is not a string", name)
	}
	if err := strict.Unmarshal(raw, &s); err != nil {
		return "", true, fmt.Errorf("%s: %w", name, err)
	}
	return s, true, nil
}

// texts returns a field that is a string or an array of strings.
func (o object) texts(name string) ([]string, error) {
	raw, ok := o[name]
	if !ok {
		return nil, nil
	}
	if kind(raw) == '"' {
		s, _, err := o.text(name)
		return []string{s}, err
	}
	var list []strict.RawMessage
	if err := strict.Unmarshal(raw, &list); err != nil || kind(raw) != '[' {
		return nil, fmt.Errorf("%s is not strings", name)
	}
	out := make([]string, len(list))
	for i, e := range list {
		s, ok, err := object{name: e}.text(name)
		if err != nil || !ok {
			return nil, fmt.Errorf("%s is not strings", name)
		}
		out[i] = s
	}
	return out, nil
}

// time returns a field that is a time (RFC 7519, section 2, NumericDate), and whether it is there.
func (o object) time(name string) (time.Time, bool, error) {
	raw, ok := o[name]
	if !ok {
		return time.Time{}, false, nil
	}
	seconds, err := strconv.ParseFloat(string(raw), 64)
	const beyond = 1e11 // the year 5138: what is later is a mistake, such as milliseconds
	if err != nil || !(seconds > 0 && seconds < beyond) {
		return time.Time{}, true, fmt.Errorf("%s is not a time in seconds", name)
	}
	return time.Unix(int64(seconds), 0), true, nil
}

// body is the claims of a foreign token. The library asks for the methods of the embedded type, and has them from an
// empty one.
type body struct {
	jwt.RegisteredClaims
	object
}

func (b *body) UnmarshalJSON(text []byte) error { return b.object.UnmarshalJSON(text) }
