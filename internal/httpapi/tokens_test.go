package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"berth/internal/auth"
	"berth/internal/compute"
)

// makeToken makes a token and returns it with what is said of it.
func (a *api) makeToken(with, body string) (out token) {
	a.t.Helper()
	a.do("POST", "/compute/tokens", with, body).into(a.t, 201, &out)
	return out
}

func (a *api) listTokens(with string) (list []token) {
	a.t.Helper()
	var out struct{ Tokens []token }
	a.do("GET", "/compute/tokens", with, "").into(a.t, 200, &out)
	return out.Tokens
}

func TestTokens(t *testing.T) {
	a := newAPI(t, nil)
	before := time.Now().Truncate(time.Second)
	made := a.makeToken(a.adaToken, `{"name":"ci","scopes":["containers:read","tokens:read"],"ttl_seconds":3600}`)
	created, err := time.Parse(time.RFC3339, made.CreatedAt)
	if err != nil || created.Before(before) {
		t.Errorf("created %s", made.CreatedAt)
	}
	if expires, err := time.Parse(time.RFC3339, made.ExpiresAt); err != nil || expires.Sub(created) != time.Hour {
		t.Errorf("created %s, expires %s", made.CreatedAt, made.ExpiresAt)
	}
	if made.Name != "ci" || strings.Join(made.Scopes, " ") != "containers:read tokens:read" || made.IssuedBy != "user" || made.LastUsedAt != "" {
		t.Errorf("%+v", made)
	}
	if r := a.do("GET", "/compute/containers", made.Token, ""); r.status != 200 {
		t.Errorf("it does not work: %+v", r)
	}
	a.do("GET", "/compute/ssh-keys", made.Token, "").isProblem(t, 403, compute.CodeForbidden, "")

	want := made
	want.Token = ""
	list := a.listTokens(made.Token) // the operator's is the first
	if len(list) != 2 || fmt.Sprint(list[1]) != fmt.Sprint(want) || list[0].IssuedBy != "operator" {
		t.Errorf("listed %+v, want %+v", list, want)
	}
	if r := a.do("GET", "/compute/tokens", a.adaToken, ""); strings.Contains(r.body, made.Token) || strings.Contains(r.body, `"token"`) {
		t.Errorf("the list has the token: %s", r.body)
	}
	if list := a.listTokens(a.bobToken); len(list) != 1 {
		t.Errorf("bob sees %+v", list)
	}

	path := "/compute/tokens/" + made.ID
	foreign := a.do("DELETE", path, a.bobToken, "")
	foreign.isProblem(t, 404, compute.CodeNotFound, "")
	if r := a.do("DELETE", path, a.adaToken, ""); r.status != 200 || r.body != `{"status":"ok"}`+"\n" {
		t.Errorf("%+v", r)
	}
	if said := a.do("GET", "/compute/containers", made.Token, "").isProblem(t, 401, compute.CodeUnauthenticated, ""); !strings.Contains(said, "revoked") {
		t.Errorf("it says %q", said)
	}
	for _, id := range []string{made.ID, "none", strings.Repeat("A", 65), "a%20b", "a-b", "☃"} {
		if r := a.do("DELETE", "/compute/tokens/"+id, a.adaToken, ""); r.body != foreign.body {
			t.Errorf("%s says %s, a foreign one %s", id, r.body, foreign.body)
		}
	}
	if list := a.listTokens(a.adaToken); len(list) != 1 {
		t.Errorf("listed %+v", list)
	}
	// Whoever follows the events learns of it.
	last, err := a.store.LastEvent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	events, err := a.store.Events(t.Context(), last-1, 10)
	if err != nil || len(events) != 1 || events[0].Kind != compute.EventTokenRevoked || events[0].Token != made.ID || events[0].Owner != a.ada.ID {
		t.Errorf("%+v, %v", events, err)
	}
	if log := a.log.String(); strings.Contains(log, made.Token) || strings.Contains(log, strings.Split(made.Token, ".")[2]) || !strings.Contains(log, made.ID) {
		t.Error("the log has the token, or lacks its id")
	}
}

// A token may end itself.
func TestRevokeOwnToken(t *testing.T) {
	a := newAPI(t, nil)
	made := a.makeToken(a.adaToken, `{"name":"once","scopes":["tokens:write"]}`)
	if r := a.do("DELETE", "/compute/tokens/"+made.ID, made.Token, ""); r.status != 200 {
		t.Errorf("%+v", r)
	}
	a.do("DELETE", "/compute/tokens/"+made.ID, made.Token, "").isProblem(t, 401, compute.CodeUnauthenticated, "")
}

func TestTokenRefuses(t *testing.T) {
	a := newAPI(t, nil)
	for body, field := range map[string]string{
		`{"scopes":["all"]}`:                                               "name",
		`{"name":"","scopes":["all"]}`:                                     "name",
		`{"name":"a\u0007","scopes":["all"]}`:                              "name",
		`{"name":5,"scopes":["all"]}`:                                      "name",
		`{"name":"` + strings.Repeat("x", 65) + `","scopes":["all"]}`:      "name",
		`{"name":"x"}`:                                                     "scopes",
		`{"name":"x","scopes":[]}`:                                         "scopes",
		`{"name":"x","scopes":null}`:                                       "scopes",
		`{"name":"x","scopes":"all"}`:                                      "scopes",
		`{"name":"x","scopes":["everything"]}`:                             "scopes",
		`{"name":"x","scopes":["all","all"]}`:                              "scopes",
		`{"name":"x","scopes":["keys:read keys:write"]}`:                   "scopes",
		`{"name":"x","scopes":["` + strings.Repeat("x", 5000) + `"]}`:      "scopes",
		`{"name":"x","scopes":["all"],"ttl_seconds":0}`:                    "ttl_seconds",
		`{"name":"x","scopes":["all"],"ttl_seconds":-1}`:                   "ttl_seconds",
		`{"name":"x","scopes":["all"],"ttl_seconds":2592001}`:              "ttl_seconds",
		`{"name":"x","scopes":["all"],"ttl_seconds":9223372036854775807}`:  "ttl_seconds",
		`{"name":"x","scopes":["all"],"ttl_seconds":18446744073709551617}`: "ttl_seconds",
		`{"name":"x","scopes":["all"],"ttl_seconds":"3600"}`:               "ttl_seconds",
		`{"name":"x","scopes":["all"],"ttl_seconds":3600.5}`:               "ttl_seconds",
		`{"name":"x","scopes":["all"],"ttl":3600}`:                         "ttl",
		`{"name":"x","scopes":["all"],"user":1}`:                           "user",
	} {
		a.do("POST", "/compute/tokens", a.adaToken, body).isProblem(t, 400, compute.CodeInvalid, field)
	}
	narrow := a.makeToken(a.adaToken, `{"name":"x","scopes":["tokens:write","keys:read"]}`).Token
	for _, scopes := range []string{`["all"]`, `["keys:write"]`, `["keys:read","admin"]`} {
		a.do("POST", "/compute/tokens", narrow, `{"name":"more","scopes":`+scopes+`}`).isProblem(t, 403, compute.CodeForbidden, "")
	}
	a.do("POST", "/compute/tokens", a.adaToken, `{"name":"x","scopes":["admin"]}`).isProblem(t, 403, compute.CodeForbidden, "")
	a.makeToken(narrow, `{"name":"less","scopes":["keys:read"]}`)
	if list := a.listTokens(a.adaToken); len(list) != 3 {
		t.Errorf("refused requests left %+v", list)
	}
	for range auth.MaxUserTokens - 2 {
		a.makeToken(a.adaToken, `{"name":"x","scopes":["all"]}`)
	}
	a.do("POST", "/compute/tokens", a.adaToken, `{"name":"x","scopes":["all"]}`).isProblem(t, 409, compute.CodeLimit, "")
}

func TestWhoami(t *testing.T) {
	a := newAPI(t, nil)
	made := a.makeToken(a.bobToken, `{"name":"x","scopes":["keys:read"]}`)
	var got map[string]any
	a.do("GET", "/compute/whoami", made.Token, "").into(t, 200, &got)
	want := map[string]any{
		"user": float64(a.bob.ID), "username": "bob", "role": "user", "scopes": []any{"keys:read"}, "credential": "token",
		"token_id": made.ID, "expires_at": made.ExpiresAt,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// shell runs a block of a documentation page as a person would who follows it, and returns what it prints.
func (a *api) shell(page, heading, home, token string) string {
	a.t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		a.t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(text), heading)
	_, block, ok2 := strings.Cut(after, "```bash\n")
	block, _, ok3 := strings.Cut(block, "```\n")
	if !ok || !ok2 || !ok3 {
		a.t.Fatalf("%s has no block after %q", page, heading)
	}
	cmd := exec.CommandContext(a.t.Context(), "bash", "-euo", "pipefail", "-c", strings.ReplaceAll(block, "compute.localhost", zone))
	cmd.Env = append(os.Environ(), "HOME="+home, "API="+a.url, "TOKEN="+token)
	out, err := cmd.CombinedOutput()
	if err != nil {
		a.t.Fatalf("%v: %s\n%s", err, block, out)
	}
	return string(out)
}

// What the page says of signing works with the stock programs, to the letter, and ends with the key.
func TestSigningAsDocumented(t *testing.T) {
	a := newAPI(t, nil)
	home := t.TempDir()
	key := filepath.Join(home, ".ssh", "id_ed25519")
	if err := os.Mkdir(filepath.Dir(key), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	line, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	const page, heading = "../../docs/api/authentication.md", "## Sign a token"
	if out := a.shell(page, heading, home, ""); !strings.Contains(out, `"code":"unauthenticated"`) {
		t.Errorf("with a key that nobody has: %s", out)
	}
	body, err := json.Marshal(map[string]string{"name": "laptop", "public_key": string(line)})
	if err != nil {
		t.Fatal(err)
	}
	var k sshKey
	a.do("POST", "/compute/ssh-keys", a.bobToken, string(body)).into(t, 201, &k)
	if out := a.shell(page, heading, home, ""); out != `{"containers":[]}`+"\n" {
		t.Errorf("it prints %s", out)
	}
	if log := a.log.String(); strings.Contains(log, "berth-ssh~") {
		t.Error("a signed token is in the log")
	}
	a.do("DELETE", fmt.Sprintf("/compute/ssh-keys/%d", k.ID), a.bobToken, "")
	if out := a.shell(page, heading, home, ""); !strings.Contains(out, `"code":"unauthenticated"`) {
		t.Errorf("without the key: %s", out)
	}
}

func TestMakingTokensAsDocumented(t *testing.T) {
	a := newAPI(t, nil)
	out := a.shell("../../docs/api/tokens.md", "# Tokens", t.TempDir(), a.adaToken)
	var made token
	if err := json.Unmarshal([]byte(out), &made); err != nil || made.Name != "ci" || len(made.Scopes) != 2 {
		t.Fatalf("%v: %s", err, out)
	}
	if r := a.do("GET", "/compute/containers", made.Token, ""); r.status != 200 {
		t.Errorf("%+v", r)
	}
}

// A token of another issuer makes an account and acts for it; what it made goes on without it.
func TestForeignTokens(t *testing.T) {
	var all *auth.Verifiers
	a := newAPI(t, func(c *Config) { c.Verifier = later{&all} })
	secret := []byte(strings.Repeat("s", auth.MinSecret))
	shared, err := auth.NewShared(auth.SharedConfig{
		Secret: secret, Name: "dashboard", Zone: zone, Types: []string{"session"}, MaxTTL: time.Hour, Provision: true,
	}, a.store)
	if err != nil {
		t.Fatal(err)
	}
	if all, err = auth.NewVerifiers(a.tokens.Authority, auth.NewSSHSigned(zone, a.store), shared); err != nil {
		t.Fatal(err)
	}
	session := func(kind string) string {
		text, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
			"user_id": 7, "username": "ada", "type": kind, "exp": time.Now().Add(time.Minute).Unix(),
		}).SignedString(secret)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	a.do("GET", "/compute/whoami", session("refresh"), "").isProblem(t, 401, compute.CodeUnauthenticated, "")
	var who identity
	a.do("GET", "/compute/whoami", session("session"), "").into(t, 200, &who)
	if who.User == a.ada.ID || who.Username == "ada" || who.Role != compute.RoleUser || who.Credential != string(auth.KindShared) || who.TokenID != "" {
		t.Errorf("%+v", who)
	}
	made := a.makeToken(session("session"), `{"name":"ci","scopes":["containers:read"]}`)
	var again identity
	a.do("GET", "/compute/whoami", made.Token, "").into(t, 200, &again)
	if again.User != who.User || again.Credential != string(auth.KindToken) {
		t.Errorf("%+v", again)
	}
	if strings.Contains(a.log.String(), session("session")) {
		t.Error("a token is in the log")
	}
}

// later is a Verifier that is made after the server.
type later struct{ v **auth.Verifiers }

func (l later) Verify(ctx context.Context, token string) (auth.Grant, error) {
	return (*l.v).Verify(ctx, token)
}
