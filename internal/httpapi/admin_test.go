package httpapi

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	wire "github.com/fasthttp/websocket"

	openapi "berth/api"
	"berth/internal/auth"
	"berth/internal/compute"
)

// admin makes an administrator, and a token for all that they may do.
func (a *api) admin(name string) (compute.User, string) {
	a.t.Helper()
	u, err := a.store.CreateUser(a.t.Context(), name, compute.RoleAdmin)
	if err != nil {
		a.t.Fatal(err)
	}
	token, err := a.tokens.Issue(u, time.Hour)
	if err != nil {
		a.t.Fatal(err)
	}
	return u, token
}

// What is for administrators is absent for everybody else, as what there never was.
func TestAdminIsAbsentForOthers(t *testing.T) {
	a := newAPI(t, nil)
	root, rootToken := a.admin("root")
	c := a.create(a.bobToken, "box", a.addKey(a.bobToken, "laptop"))
	lesser, err := a.tokens.Issue(root, time.Hour, auth.ScopeContainersRead, auth.ScopeContainersWrite)
	if err != nil {
		t.Fatal(err)
	}
	scoped, err := a.tokens.Issue(root, time.Hour, auth.ScopeAdmin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.store.ChangeUser(t.Context(), a.bob.ID, compute.UserChange{Role: role(compute.RoleAdmin)}); err != nil {
		t.Fatal(err)
	}
	nowhere := a.do("GET", "/compute/admin/nowhere", a.adaToken, "")
	nowhere.isProblem(t, 404, compute.CodeNotFound, "")
	for _, r := range routes {
		if r.scope != auth.ScopeAdmin {
			continue
		}
		path := strings.Replace(r.path, "00000000", string(c.ID), 1)
		for name, token := range map[string]string{"a user": a.adaToken, "an admin without the scope": lesser} {
			if got := a.do(r.method, path+"?nonsense=1", token, "{"); got.status != 404 || got.body != nowhere.body {
				t.Errorf("%s %s for %s: %+v", r.method, path, name, got)
			}
		}
		for name, token := range map[string]string{"all": rootToken, "admin": scoped, "one who became an admin": a.bobToken} {
			if r.method == "GET" {
				if got := a.do(r.method, path, token, ""); got.status != 200 {
					t.Errorf("%s %s with %s: %+v", r.method, path, name, got)
				}
			}
		}
	}
	if v := a.await(a.bobToken, c.ID, compute.StatusRunning); v.Status != compute.StatusRunning {
		t.Errorf("%+v", v)
	}
	// Who is an admin no more is none at the next request.
	if _, err := a.store.ChangeUser(t.Context(), a.bob.ID, compute.UserChange{Role: role(compute.RoleUser)}); err != nil {
		t.Fatal(err)
	}
	a.do("GET", "/compute/admin/users", a.bobToken, "").isProblem(t, 404, compute.CodeNotFound, "")
}

func TestAdminUsers(t *testing.T) {
	a := newAPI(t, nil)
	root, token := a.admin("root")
	line := newKey(t, "alice@laptop")
	r := a.do("POST", "/compute/admin/users", token, fmt.Sprintf(`{"username":"alice","public_keys":[%q]}`, line))
	var u openapi.User
	r.into(t, 201, &u)
	fields(t, r.body, "id username role disabled created_at limits")
	path := fmt.Sprintf("/compute/admin/users/%d", u.ID)
	if u.Username != "alice" || u.Role != compute.RoleUser || u.Disabled || u.Limits.Containers != nil || u.Limits.Keys != nil ||
		r.header.Get("Location") != path {
		t.Errorf("%+v, %v", u, r.header)
	}
	if keys, err := a.store.Keys(t.Context(), u.ID); err != nil || len(keys) != 1 || keys[0].Name != "alice@laptop" {
		t.Errorf("keys %+v, %v", keys, err)
	}
	if got := a.do("GET", path, token, ""); got.body != r.body {
		t.Errorf("%s, made as %s", got.body, r.body)
	}
	for body, field := range map[string]string{
		`{}`:                                 "username",
		`{"username":"Alice"}`:               "username",
		`{"username":"carol","role":"root"}`: "role",
		`{"username":"carol","role":""}`:     "role",
		`{"username":"carol","public_keys":["ssh-rsa"]}`: "public_key",
		`{"username":"carol","disabled":true}`:           "disabled",
	} {
		a.do("POST", "/compute/admin/users", token, body).isProblem(t, 400, compute.CodeInvalid, field)
	}
	a.do("POST", "/compute/admin/users", token, `{"username":"alice"}`).isProblem(t, 409, compute.CodeConflict, "username")
	a.do("POST", "/compute/admin/users", token, `{"username":"eve","role":"admin","public_keys":[]}`).into(t, 201, &u)
	if u.Role != compute.RoleAdmin {
		t.Errorf("%+v", u)
	}

	var list openapi.UserList
	a.do("GET", "/compute/admin/users", token, "").into(t, 200, &list)
	var names []string
	for _, u := range list.Users {
		names = append(names, u.Username)
	}
	if got := strings.Join(names, " "); got != "ada bob root alice eve" || list.Next != "" {
		t.Errorf("users %s, next %q", got, list.Next)
	}

	// What is left out stays; null is the installation's.
	change := func(body string) string {
		t.Helper()
		r := a.do("PATCH", path, token, body)
		if again := a.do("GET", path, token, ""); r.status != 200 || again.body != r.body {
			t.Errorf("%s: %+v, then %s", body, r, again.body)
		}
		_, limits, _ := strings.Cut(strings.TrimSpace(r.body), `"limits":`)
		return strings.TrimSuffix(limits, "}")
	}
	for _, step := range []struct{ body, limits string }{
		{`{}`, `{"containers":null,"keys":null}`},
		{`{"limits":{"containers":5}}`, `{"containers":5,"keys":null}`},
		{`{"limits":{"keys":0}}`, `{"containers":5,"keys":0}`},
		{`{"limits":{},"role":null,"disabled":null}`, `{"containers":5,"keys":0}`},
		{`{"limits":{"containers":null}}`, `{"containers":null,"keys":0}`},
	} {
		if got := change(step.body); got != step.limits {
			t.Errorf("%s: limits %s, want %s", step.body, got, step.limits)
		}
	}
	before := a.do("GET", path, token, "").body
	for body, field := range map[string]string{
		`{"limits":null}`:                           "limits",
		`{"limits":{"containers":-1}}`:              "limits.containers",
		`{"limits":{"keys":1001}}`:                  "limits.keys",
		`{"limits":{"keys":"1"}}`:                   "limits.keys",
		`{"limits":{"rules":1}}`:                    "limits.rules",
		`{"role":"root"}`:                           "role",
		`{"disabled":true,"limits":{"keys":-1}}`:    "limits.keys",
		`{"username":"other"}`:                      "username",
		`{"disabled":1}`:                            "disabled",
		`{"limits":{"containers":10000000000000}}`:  "limits.containers",
		`{"limits":{"containers":1.0,"keys":null}}`: "limits.containers",
	} {
		a.do("PATCH", path, token, body).isProblem(t, 400, compute.CodeInvalid, field)
	}
	if after := a.do("GET", path, token, "").body; after != before {
		t.Errorf("what was refused changed %s to %s", before, after)
	}
	for _, id := range []string{"0", "-1", "99", "01", "x", "9223372036854775808", "alice"} {
		a.do("GET", "/compute/admin/users/"+id, token, "").isProblem(t, 404, compute.CodeNotFound, "")
		a.do("PATCH", "/compute/admin/users/"+id, token, `{"disabled":true}`).isProblem(t, 404, compute.CodeNotFound, "")
	}

	// The last administrator stays one.
	a.do("PATCH", fmt.Sprintf("/compute/admin/users/%d", u.ID), token, `{"disabled":true}`).into(t, 200, &u)
	self := fmt.Sprintf("/compute/admin/users/%d", root.ID)
	for _, body := range []string{`{"disabled":true}`, `{"role":"user"}`, `{"role":"user","disabled":true}`} {
		said := a.do("PATCH", self, token, body).isProblem(t, 409, compute.CodeConflict, "")
		if !strings.Contains(said, "make another one") {
			t.Errorf("%s: it says %q", body, said)
		}
	}
	a.do("GET", self, token, "").into(t, 200, &u)
	if u.Disabled || u.Role != compute.RoleAdmin {
		t.Errorf("the last administrator is %+v", u)
	}
}

// Own limits are what requests are held to.
func TestAdminLimits(t *testing.T) {
	a := newAPI(t, nil)
	_, token := a.admin("root")
	path := fmt.Sprintf("/compute/admin/users/%d", a.ada.ID)
	key := a.addKey(a.adaToken, "laptop")
	var u openapi.User
	a.do("PATCH", path, token, `{"limits":{"containers":1,"keys":1}}`).into(t, 200, &u)
	body := fmt.Sprintf(`{"name":"x","ssh_key_ids":[%d]}`, key)
	if got := a.atOnce(10, func(int) (string, string, string) { return "POST", "/compute/containers", body }); got[201] != 1 || got[409] != 9 {
		t.Errorf("10 creates within 1: %v", got)
	}
	a.do("POST", "/compute/ssh-keys", a.adaToken, fmt.Sprintf(`{"name":"y","public_key":%q}`, newKey(t, ""))).
		isProblem(t, 409, compute.CodeLimit, "")
	a.do("PATCH", path, token, `{"limits":{"containers":4,"keys":null}}`).into(t, 200, &u)
	if got := a.atOnce(10, func(int) (string, string, string) { return "POST", "/compute/containers", body }); got[201] != 3 || got[409] != 7 {
		t.Errorf("10 creates within 4, of which 1 is there: %v", got)
	}
	a.addKey(a.adaToken, "second")
}

// A disabled account is out at once, and gateways that may not know it are named.
func TestAdminDisables(t *testing.T) {
	b := behind{make(chan struct{}, 1)}
	a := newAPI(t, func(c *Config) { c.Gateways = b })
	_, token := a.admin("root")
	path := fmt.Sprintf("/compute/admin/users/%d", a.ada.ID)
	for _, body := range []string{`{"limits":{"containers":1}}`, `{"role":"admin"}`, `{"role":"user"}`} {
		if r := a.do("PATCH", path, token, body); r.status != 200 || r.header.Get("Berth-Unacknowledged") != "" {
			t.Errorf("%s: %+v", body, r)
		}
	}
	w := a.watch(a.adaToken)
	w.list()
	r := a.do("PATCH", path, token, `{"disabled":true}`)
	<-b.asked
	if r.status != 200 || r.header.Get("Berth-Unacknowledged") != "edge-1, edge-2" {
		t.Errorf("%+v", r)
	}
	w.mustEnd(wire.ClosePolicyViolation, "disabled")
	a.do("GET", "/compute/containers", a.adaToken, "").isProblem(t, 401, compute.CodeUnauthenticated, "")
	if r := a.do("PATCH", path, token, `{"disabled":false}`); r.status != 200 || r.header.Get("Berth-Unacknowledged") != "" {
		t.Errorf("%+v", r)
	}
	if r := a.do("GET", "/compute/containers", a.adaToken, ""); r.status != 200 {
		t.Errorf("enabled again: %+v", r)
	}
}

func TestAdminContainers(t *testing.T) {
	a := newAPI(t, nil)
	_, token := a.admin("root")
	adas, bobs := a.addKey(a.adaToken, "laptop"), a.addKey(a.bobToken, "laptop")
	var ids []compute.ContainerID
	for range 2 {
		ids = append(ids, a.create(a.adaToken, "adas", adas).ID, a.create(a.bobToken, "bobs", bobs).ID)
	}
	for i, id := range ids {
		a.await([]string{a.adaToken, a.bobToken}[i%2], id, compute.StatusRunning)
	}
	get := func(query string) (list openapi.OwnedContainerList) {
		t.Helper()
		a.do("GET", "/compute/admin/containers"+query, token, "").into(t, 200, &list)
		return list
	}
	all := get("")
	if len(all.Containers) != 4 || all.Next != "" {
		t.Fatalf("%+v", all)
	}
	for i, c := range all.Containers {
		want := openapi.OwnedContainer{
			ID: ids[i], User: a.ada.ID, Username: "ada", Name: "adas", Status: "running", Hostname: string(ids[i]) + "." + zone,
			MemoryMB: 512, StorageGB: 5, InstanceType: "nano", CreatedAt: c.CreatedAt, SSHEnabled: c.SSHEnabled,
		}
		if i%2 == 1 {
			want.User, want.Username, want.Name = a.bob.ID, "bob", "bobs"
		}
		if c != want {
			t.Errorf("%+v, want %+v", c, want)
		}
	}
	var paged []compute.ContainerID
	for query := "?limit=3"; query != ""; {
		list := get(query)
		for _, c := range list.Containers {
			paged = append(paged, c.ID)
		}
		if query = ""; list.Next != "" {
			query = "?limit=3&after=" + list.Next
		}
	}
	if fmt.Sprint(paged) != fmt.Sprint(ids) {
		t.Errorf("by pages %v, want %v", paged, ids)
	}

	var c openapi.OwnedContainer
	a.do("POST", "/compute/admin/containers/"+string(ids[1])+"/stop", token, "").into(t, 200, &c)
	if c.ID != ids[1] || c.Username != "bob" {
		t.Errorf("stopped %+v", c)
	}
	a.await(a.bobToken, ids[1], compute.StatusStopped)
	for query, want := range map[string][]compute.ContainerID{
		"?status=stopped":                                {ids[1]},
		fmt.Sprintf("?user=%d", a.bob.ID):                {ids[1], ids[3]},
		fmt.Sprintf("?user=%d&status=running", a.bob.ID): {ids[3]},
		fmt.Sprintf("?user=%d&status=stopped", a.ada.ID): {},
		fmt.Sprintf("?user=%d&limit=1&after=", a.bob.ID): {ids[1]},
		"?user=4242":               {},
		"?user=bob&status=running": {ids[3]},
		"?limit=1000&after=" + newCursor("containers", 1<<40): {},
	} {
		got := []compute.ContainerID{}
		for _, c := range get(query).Containers {
			got = append(got, c.ID)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", query, got, want)
		}
	}
	for query, field := range map[string]string{
		"?status=asleep": "status", "?status=": "status", "?user=nobody": "user", "?user=Ada": "user", "?user=02": "user", "?user=0": "user", "?user=-1": "user", "?user=": "user",
		"?limit=0": "limit", "?limit=1001": "limit", "?limit=-1": "limit", "?limit=x": "limit", "?limit=": "limit", "?limit=99999999999999999999": "limit",
		"?limit=1&limit=2": "limit", "?page=2": "page", "?after=x": "after", "?after=" + newCursor("users", 1): "after",
		"?after=" + newCursor("containers", 0): "after", "?after=" + newCursor("containers", 1) + "=": "after",
		"?after=" + base64.RawURLEncoding.EncodeToString([]byte("containers:01")): "after", "?after=%ff": "after",
	} {
		a.do("GET", "/compute/admin/containers"+query, token, "").isProblem(t, 400, compute.CodeInvalid, field)
	}

	// Deleted is absent, here too; so is what never was.
	a.do("DELETE", "/compute/containers/"+string(ids[0]), a.adaToken, "").into(t, 200, &openapi.Deleted{})
	if list := get(""); len(list.Containers) != 3 {
		t.Errorf("%+v", list)
	}
	for _, id := range []string{string(ids[0]), "00000000", "x"} {
		a.do("POST", "/compute/admin/containers/"+id+"/stop", token, "").isProblem(t, 404, compute.CodeNotFound, "")
	}
}

// What the engine has and the database does not know is listed, and goes when an administrator says so; nothing else does.
func TestAdminStorage(t *testing.T) {
	a := newAPI(t, nil)
	_, token := a.admin("root")
	known := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	a.await(a.adaToken, known.ID, compute.StatusRunning)
	lost, foreign := compute.Ref{Owner: a.ada.ID, ID: "0badf00d"}, compute.Ref{Owner: 4242, ID: known.ID}
	a.engine.mu.Lock()
	a.engine.running[lost], a.engine.running[foreign] = true, false
	a.engine.mu.Unlock()

	var list openapi.StorageList
	a.do("GET", "/compute/admin/storage", token, "").into(t, 200, &list)
	want := []openapi.Storage{
		{Ref: lost.String(), Container: lost.ID, User: lost.Owner, SizeGB: 1.5, WrittenAt: "2026-01-15T10:30:00Z", Running: true},
		{Ref: foreign.String(), Container: foreign.ID, User: 4242, SizeGB: 1.5, WrittenAt: "2026-01-15T10:30:00Z", Foreign: true},
	}
	if fmt.Sprint(list.Storage) != fmt.Sprint(want) {
		t.Errorf("%+v, want %+v", list.Storage, want)
	}
	at := "/compute/admin/storage/"
	own := compute.Ref{Owner: a.ada.ID, ID: known.ID}
	a.do("DELETE", at+own.String(), token, "").isProblem(t, 409, compute.CodeConflict, "")
	for _, ref := range []string{"compute-1-00000000", "compute-01-0badf00d", "0badf00d", "x", "..%2fx"} {
		a.do("DELETE", at+ref, token, "").isProblem(t, 404, compute.CodeNotFound, "")
	}
	for _, r := range []compute.Ref{lost, foreign} {
		if got := a.do("DELETE", at+r.String(), token, ""); got.status != 200 || got.body != `{"status":"ok"}`+"\n" {
			t.Errorf("%+v", got)
		}
		a.do("DELETE", at+r.String(), token, "").isProblem(t, 404, compute.CodeNotFound, "")
	}
	if r := a.do("GET", "/compute/admin/storage", token, ""); r.body != `{"storage":[]}`+"\n" {
		t.Errorf("%+v", r)
	}
	if v := a.await(a.adaToken, known.ID, compute.StatusRunning); v.ID != known.ID {
		t.Errorf("%+v", v)
	}
	if !strings.Contains(a.do("GET", "/compute/containers", a.adaToken, "").body, string(known.ID)) {
		t.Error("the container that is known is gone")
	}
}

func TestAdminAddsOnce(t *testing.T) {
	a := newAPI(t, nil)
	_, token := a.admin("root")
	first := a.sendOnce("/compute/admin/users", token, "k", `{"username":"alice"}`)
	again := a.sendOnce("/compute/admin/users", token, "k", `{"username":"alice"}`)
	if first.status != http.StatusCreated || again.body != first.body || again.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%+v, then %+v", first, again)
	}
}

func FuzzCursor(f *testing.F) {
	for _, s := range []string{newCursor("users", 1), newCursor("users", 1<<62), newCursor("containers", 7), "", "x", "dXNlcnM6", "dXNlcnM6LTE"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := readCursor("users", text)
		if err == nil && (n < 1 || newCursor("users", n) != text) {
			t.Fatalf("%q is %d", text, n)
		}
		if err != nil && compute.CodeOf(err) != compute.CodeInvalid {
			t.Fatalf("%q: %v", text, err)
		}
	})
}

func role(r compute.Role) *compute.Role { return &r }
