package auth

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"berth/internal/compute"
)

var sharedSecret = []byte("0123456789abcdef0123456789abcdef")

// shared returns the verifier of a dashboard that exists already, at w's time.
func (w *world) shared(edit func(*SharedConfig)) *Shared {
	w.t.Helper()
	c := SharedConfig{
		Secret: sharedSecret, Name: "dashboard", Zone: zone, Types: []string{"session"}, MaxTTL: 24 * time.Hour, Provision: true,
	}
	if edit != nil {
		edit(&c)
	}
	s, err := NewShared(c, w.store)
	if err != nil {
		w.t.Fatal(err)
	}
	s.now = w.clock.now
	return s
}

// session returns a token as the dashboard makes them, after edit.
func (w *world) session(edit func(jwt.MapClaims)) string {
	w.t.Helper()
	c := jwt.MapClaims{"user_id": 7, "username": "carol", "type": "session", "exp": w.clock.in(time.Hour)}
	if edit != nil {
		edit(c)
	}
	return sign(w.t, jwt.SigningMethodHS256, sharedSecret, "JWT", c)
}

func TestShared(t *testing.T) {
	w := newWorld(t)
	s := w.shared(nil)
	g, err := s.Verify(t.Context(), w.session(nil))
	if err != nil || g.Username != "carol" || g.Role != compute.RoleUser || g.Kind != KindShared || !g.Allows(ScopeContainersWrite) ||
		g.Expires.Unix() != w.clock.in(time.Hour) || g.TokenID != "" {
		t.Fatalf("%+v, %v", g, err)
	}
	carol := g.Principal
	for _, edit := range []func(jwt.MapClaims){
		func(c jwt.MapClaims) { c["user_id"] = "7" }, // the same as a string
		func(c jwt.MapClaims) { c["username"] = "mallory" },
		func(c jwt.MapClaims) { c["aud"] = zone },
		func(c jwt.MapClaims) { c["aud"] = []string{"other.example.com", zone} },
		func(c jwt.MapClaims) { c["iat"] = w.clock.in(-time.Minute) },
		func(c jwt.MapClaims) { c["anything"] = "else" },
	} {
		wantGrant(t, s, w.session(edit), carol)
	}
	g, err = s.Verify(t.Context(), w.session(func(c jwt.MapClaims) { c["jti"], c["scope"] = "abc-1", "keys:read" }))
	if err != nil || g.TokenID != "abc-1" || g.Allows(ScopeContainersRead) || !g.Allows(ScopeKeysRead) {
		t.Errorf("%+v, %v", g, err)
	}
	if g, err := s.Verify(t.Context(), w.session(func(c jwt.MapClaims) { c["jti"] = "a\nb" })); err != nil || g.TokenID != "" {
		t.Errorf("an id that no log can hold: %+v, %v", g, err)
	}
}

func TestSharedClaims(t *testing.T) {
	w := newWorld(t)
	s := w.shared(nil)
	set := func(name string, value any) func(jwt.MapClaims) { return func(c jwt.MapClaims) { c[name] = value } }
	drop := func(name string) func(jwt.MapClaims) { return func(c jwt.MapClaims) { delete(c, name) } }
	for name, edit := range map[string]func(jwt.MapClaims){
		"no user_id":          drop("user_id"),
		"user_id null":        set("user_id", nil),
		"user_id empty":       set("user_id", ""),
		"user_id a list":      set("user_id", []int{7}),
		"user_id true":        set("user_id", true),
		"user_id a fraction":  set("user_id", 7.5),
		"user_id huge":        set("user_id", 1e30),
		"user_id a newline":   set("user_id", "7\n"),
		"user_id too long":    set("user_id", strings.Repeat("7", 256)),
		"USER_ID":             func(c jwt.MapClaims) { c["USER_ID"] = 7; delete(c, "user_id") },
		"no username":         drop("username"),
		"username empty":      set("username", ""),
		"username a number":   set("username", 5),
		"no type":             drop("type"),
		"another type":        set("type", "refresh"),
		"type in capitals":    set("type", "Session"),
		"type a list":         set("type", []string{"session"}),
		"no exp":              drop("exp"),
		"exp text":            set("exp", "1900000000"),
		"exp zero":            set("exp", 0),
		"expired":             set("exp", w.clock.in(0)),
		"lives too long":      set("exp", w.clock.in(24*time.Hour+time.Minute)),
		"lived too long":      set("iat", w.clock.in(-24*time.Hour)),
		"not valid yet":       set("nbf", w.clock.in(time.Hour)),
		"issued in an hour":   set("iat", w.clock.in(time.Hour)),
		"another zone":        set("aud", "other.example.com"),
		"no zone":             set("aud", []string{}),
		"aud null":            set("aud", nil),
		"an issuer":           set("iss", "dashboard"),
		"our issuer":          set("iss", Issuer),
		"issuer null":         set("iss", nil),
		"scope a list":        set("scope", []string{"keys:read"}),
		"username of control": set("type", "session\x00"),
	} {
		t.Run(name, func(t *testing.T) { wantRefused(t, s, w.session(edit)) })
	}
}

// Numbers that a float cannot tell apart are different people.
func TestSharedUserIDsAreExact(t *testing.T) {
	w := newWorld(t)
	s := w.shared(nil)
	seen := map[compute.UserID]string{}
	for _, id := range []string{"9007199254740992", "9007199254740993", "-1", "0", `"x"`, `"X"`, `"x "`} {
		g, err := s.Verify(t.Context(), signHS(t, fmt.Sprintf(
			`{"user_id":%s,"username":"carol","type":"session","exp":%d}`, id, w.clock.in(time.Hour))))
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		if seen[g.User] != "" {
			t.Errorf("%s and %s are one account", id, seen[g.User])
		}
		seen[g.User] = id
	}
}

// signHS signs any body with the shared secret.
func signHS(t testing.TB, body string) string {
	t.Helper()
	text := encode(t, map[string]string{"alg": "HS256", "typ": "JWT"}) + "." + encode(t, body)
	sig, err := jwt.SigningMethodHS256.Sign(text, sharedSecret)
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + encode(t, string(sig))
}

// The administrators are whom the operator listed by user_id; the name of one does nothing.
func TestSharedAdmins(t *testing.T) {
	w := newWorld(t)
	s := w.shared(func(c *SharedConfig) { c.Admins = []string{"7", "root"} })
	for id, want := range map[any]compute.Role{
		7: compute.RoleAdmin, "7": compute.RoleAdmin, "root": compute.RoleAdmin, 8: compute.RoleUser, "ROOT": compute.RoleUser, 1: compute.RoleUser,
	} {
		g, err := s.Verify(t.Context(), w.session(func(c jwt.MapClaims) {
			c["user_id"], c["username"], c["role"], c["admin"] = id, "ada", "admin", true
		}))
		if err != nil || g.Role != want || g.User == w.ada.ID || g.Username == "ada" {
			t.Errorf("user_id %v: %+v, %v", id, g, err)
		}
	}
}

// Tokens of a dashboard with a name of its own have it as their issuer.
func TestSharedIssuer(t *testing.T) {
	w := newWorld(t)
	s := w.shared(func(c *SharedConfig) { c.Issuer = "cloud-auth" })
	wantRefused(t, s, w.session(nil))
	if g, err := s.Verify(t.Context(), w.session(func(c jwt.MapClaims) { c["iss"] = "cloud-auth" })); err != nil || g.User == 0 {
		t.Errorf("%+v, %v", g, err)
	}
	// Another program's users are others, whatever their numbers.
	a, err := s.Verify(t.Context(), w.session(func(c jwt.MapClaims) { c["iss"] = "cloud-auth" }))
	if err != nil {
		t.Fatal(err)
	}
	b, err := w.shared(func(c *SharedConfig) { c.Name = "another" }).Verify(t.Context(), w.session(nil))
	if err != nil || a.User == b.User {
		t.Errorf("%+v and %+v, %v", a, b, err)
	}
}

func TestReadSecret(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
		return path
	}
	long := strings.Repeat("s", MinSecret)
	for name, text := range map[string]string{"bare": long, "line": long + "\n", "dos": long + "\r\n"} {
		got, err := ReadSecret(write(name, text, 0o640))
		if err != nil || string(got) != long {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for name, path := range map[string]string{
		"32 bytes":     write("short", long[1:], 0o600),
		"0 bytes":      write("empty", "", 0o600),
		"31 bytes":     write("line of 31", long[1:]+"\n", 0o600),
		"4097 bytes":   write("huge", strings.Repeat("s", 5000), 0o600),
		"chmod 600":    write("open", long, 0o644),
		"not a file":   dir,
		"no such file": filepath.Join(dir, "absent"),
	} {
		got, err := ReadSecret(path)
		if err == nil || got != nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if err != nil && !strings.Contains(err.Error(), name) && name != "32 bytes" {
			t.Errorf("%v; want one that says %q", err, name)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q is more than a line", err)
		}
	}
	if _, err := NewShared(SharedConfig{Secret: []byte(long[1:])}, nil); err == nil {
		t.Error("a short secret is taken")
	}
}
