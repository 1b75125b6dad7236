package config_test

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"berth/internal/config"
)

func TestOIDCIssuers(t *testing.T) {
	cleared(t)
	const file = `
oidc:
  - https://id.example.com/realms/x audience=berth admin=groups:berth-admins
  - http://127.0.0.1:8080   audience=https://compute.example.com
`
	want := []config.OIDCIssuer{
		{URL: "https://id.example.com/realms/x", Audience: "berth", AdminClaim: "groups", AdminValue: "berth-admins"},
		{URL: "http://127.0.0.1:8080", Audience: "https://compute.example.com"},
	}
	check := func(what string, c config.Config, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got, err := c.OIDCIssuers(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
	c, err := load(t, file)
	check("file", c, err)
	const first, second = "https://id.example.com/realms/x audience=berth admin=groups:berth-admins", "http://127.0.0.1:8080 audience=https://compute.example.com"
	c, err = load(t, "", "--oidc", first, "--oidc", second)
	check("flags", c, err)
	t.Setenv("BERTH_OIDC", first+","+second)
	c, err = load(t, "")
	check("environment", c, err)
}

func TestSharedSecretSettings(t *testing.T) {
	cleared(t)
	c, err := load(t, "")
	if err != nil || c.HS256Secret != "" || c.ProvisionUsers || len(c.HS256Admins) != 0 || len(c.OIDC) != 0 {
		t.Errorf("by default somebody signs in from elsewhere: %+v, %v", c, err)
	}
	t.Setenv("BERTH_HS256_TYPES", "session,api")
	t.Setenv("BERTH_HS256_ADMINS", "7")
	c, err = load(t, "hs256-secret: /s\nprovision-users: true\nhs256-max-ttl: 1h\n")
	if err != nil || len(c.HS256Types) != 2 || c.HS256Admins[0] != "7" || !c.ProvisionUsers || c.HS256MaxTTL.Hours() != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestBadSignIn(t *testing.T) {
	cleared(t)
	for arg, want := range map[string]string{
		"--oidc=https://id.example.com":                                    "audience",
		"--oidc=audience=berth":                                            "URL",
		"--oidc=id.example.com audience=berth":                             "URL",
		"--oidc=https://id.example.com audience=":                          "audience",
		"--oidc=https://id.example.com audience=a audience=b":              "not understood",
		"--oidc=https://id.example.com audience=a admin=groups":            "CLAIM:VALUE",
		"--oidc=https://id.example.com audience=a admin=:x":                "CLAIM:VALUE",
		"--oidc=https://id.example.com audience=a admin=groups:":           "CLAIM:VALUE",
		"--oidc=https://id.example.com audience=a admins=groups:x":         "not understood",
		"--oidc=https://a.example audience=a,https://a.example audience=b": "twice",
		"--hs256-name=":          "hs256-name",
		"--hs256-name=A b":       "hs256-name",
		"--hs256-max-ttl=1s":     "hs256-max-ttl",
		"--hs256-max-ttl=10000h": "hs256-max-ttl",
	} {
		if _, err := load(t, "", arg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v", arg, err)
		}
	}
	if _, err := load(t, "hs256-secret: /s\nhs256-types: []\n"); err == nil || !strings.Contains(err.Error(), "hs256-types") {
		t.Errorf("tokens of any type: %v", err)
	}
}

func FuzzOIDC(f *testing.F) {
	f.Add("https://id.example.com audience=berth admin=groups:x")
	f.Add("://= audience==")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := config.Config{OIDC: []string{text}}.OIDCIssuers()
		if err != nil {
			return
		}
		if o := list[0]; o.URL == "" || o.Audience == "" || (o.AdminClaim == "") != (o.AdminValue == "") {
			t.Errorf("%q is %+v", text, o)
		}
	})
}

// The examples of the page for operators, which are indented by four, load.
func TestDocumentedSignIn(t *testing.T) {
	cleared(t)
	text, err := os.ReadFile("../../docs/operator/sign-in.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := 0
	for block := range strings.SplitSeq(string(text), "\n\n") {
		if !regexp.MustCompile(`^    [a-z0-9-]+:`).MatchString(block) {
			continue
		}
		examples++
		c, err := load(t, strings.ReplaceAll("\n"+block+"\n", "\n    ", "\n"))
		if issuers, ierr := c.OIDCIssuers(); err != nil || ierr != nil || (c.HS256Secret == "") == (len(issuers) == 0) || !c.ProvisionUsers {
			t.Errorf("%s\nmakes %+v, %v", block, c, err)
		}
	}
	if examples != 2 {
		t.Errorf("there are %d examples", examples)
	}
}
