package config

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// OIDCIssuer is an OpenID Connect issuer whose tokens are accepted.
type OIDCIssuer struct {
	URL      string
	Audience string // what this installation is called there
	// AdminClaim and AdminValue say which of its tokens are an administrator's; empty: none.
	AdminClaim, AdminValue string
}

// OIDCIssuers reads the setting oidc.
func (c Config) OIDCIssuers() ([]OIDCIssuer, error) {
	var list []OIDCIssuer
	for _, text := range c.OIDC {
		issuer, err := parseOIDC(text)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(list, func(o OIDCIssuer) bool { return o.URL == issuer.URL }) {
			return nil, fmt.Errorf("%s is there twice", issuer.URL)
		}
		list = append(list, issuer)
	}
	return list, nil
}

func parseOIDC(text string) (o OIDCIssuer, err error) {
	const form = "an issuer is written URL audience=NAME, and admin=CLAIM:VALUE after it where some are administrators"
	words := strings.Fields(text)
	if len(words) == 0 {
		return o, fmt.Errorf("an entry is empty; %s", form)
	}
	o.URL = words[0]
	for _, w := range words[1:] {
		name, value, _ := strings.Cut(w, "=")
		switch {
		case name == "audience" && value != "" && o.Audience == "":
			o.Audience = value
		case name == "admin" && o.AdminClaim == "":
			o.AdminClaim, o.AdminValue, _ = strings.Cut(value, ":")
			if o.AdminClaim == "" || o.AdminValue == "" {
				return o, fmt.Errorf("%q is not admin=CLAIM:VALUE; %s", w, form)
			}
		default:
			return o, fmt.Errorf("%q is not understood; %s", w, form)
		}
	}
	if !strings.Contains(o.URL, "://") || o.Audience == "" {
		return o, fmt.Errorf("%q lacks its URL or its audience; %s", text, form)
	}
	return o, nil
}

var programName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// checkSignIn validates how people sign in from elsewhere.
func (c Config) checkSignIn(bad func(setting, format string, args ...any)) {
	if _, err := c.OIDCIssuers(); err != nil {
		bad("oidc", "%v", err)
	}
	if !programName.MatchString(c.HS256Name) {
		bad("hs256-name", "%q is not 1 to 64 lowercase letters, digits and . _ -", c.HS256Name)
	}
	if c.HS256MaxTTL < time.Minute || c.HS256MaxTTL > 30*24*time.Hour {
		bad("hs256-max-ttl", "choose from 1m to 720h")
	}
	if c.HS256Secret != "" && (len(c.HS256Types) == 0 || slices.Contains(c.HS256Types, "")) {
		bad("hs256-types", "name the types that are accepted: the program may make tokens that are not for signing in")
	}
}
