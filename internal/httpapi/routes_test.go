package httpapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/compute"
)

func TestHealthz(t *testing.T) {
	a := newAPI(t, nil)
	if r := a.do("GET", "/healthz", "", ""); r.status != 200 || r.body != "ok" {
		t.Errorf("%+v", r)
	}
	if r := a.do("HEAD", "/healthz", "", ""); r.status != 200 || r.body != "" {
		t.Errorf("%+v", r)
	}
}

// A container's life, each answer held against the contract's fields.
func TestContainers(t *testing.T) {
	a := newAPI(t, nil)
	if r := a.do("GET", "/compute/containers", a.adaToken, ""); r.body != `{"containers":[]}`+"\n" {
		t.Errorf("an empty list is %q", r.body)
	}
	key := a.addKey(a.adaToken, "laptop")

	r := a.do("POST", "/compute/containers", a.adaToken, fmt.Sprintf(`{
		"name": " dev-box ", "instance_type": "micro", "memory_mb": 1024, "storage_gb": 7,
		"ssh_key_ids": [%d, %[1]d], "ssh_enabled": true, "mount_paths": ["/root", "/var/data"]}`, key))
	var c container
	r.into(t, 201, &c)
	host := string(c.ID) + "." + zone
	want := container{
		ID: c.ID, Name: "dev-box", Status: "pending", Hostname: host, SSHCommand: "ssh root@" + host,
		MemoryMB: 1024, StorageGB: 7, InstanceType: "micro", CreatedAt: c.CreatedAt, SSHEnabled: true,
	}
	if c != want {
		t.Errorf("created %+v, want %+v", c, want)
	}
	if at, err := time.Parse("2006-01-02T15:04:05Z", c.CreatedAt); err != nil || time.Since(at).Abs() > time.Minute {
		t.Errorf("created_at %q", c.CreatedAt)
	}
	if got := r.header.Get("Location"); got != "/compute/containers/"+string(c.ID) {
		t.Errorf("location %q", got)
	}
	stored, err := a.store.Container(t.Context(), a.ada.ID, c.ID)
	if err != nil || !slices.Equal(stored.SSHKeyIDs, []int64{key}) || !slices.Equal(stored.MountPaths, []string{"/root", "/var/data"}) {
		t.Errorf("stored %+v, %v", stored, err)
	}

	running := a.await(a.adaToken, c.ID, compute.StatusRunning)
	if running.MemoryUsedMB != 128 || running.StorageUsedGB != 1.235 {
		t.Errorf("usage %d MB, %v GB", running.MemoryUsedMB, running.StorageUsedGB)
	}
	fields(t, a.do("GET", "/compute/containers/"+string(c.ID), a.adaToken, "").body,
		"id name status hostname ssh_command memory_mb memory_used_mb storage_gb storage_used_gb instance_type created_at ssh_enabled https_enabled")

	// SSH off: no command.
	path := "/compute/containers/" + string(c.ID)
	if r := a.do("PUT", path+"/ssh", a.adaToken, `{"ssh_enabled": false}`); r.status != 200 || r.body != `{"ssh_enabled":false}`+"\n" {
		t.Errorf("%+v", r)
	}
	if r := a.do("GET", path+"/ssh", a.adaToken, ""); r.status != 200 || r.body != `{"ssh_enabled":false}`+"\n" {
		t.Errorf("%+v", r)
	}
	if r := a.do("GET", path, a.adaToken, ""); strings.Contains(r.body, "ssh_command") {
		t.Errorf("a command although SSH is off: %s", r.body)
	}
	var list struct{ Containers []container }
	a.do("GET", "/compute/containers", a.adaToken, "").into(t, 200, &list)
	if len(list.Containers) != 1 || list.Containers[0].ID != c.ID {
		t.Errorf("listed %+v", list)
	}

	// Start and stop answer 200 each time.
	for _, verb := range []string{"start", "stop", "stop", "start", "start"} {
		var v container
		a.do("POST", path+"/"+verb, a.adaToken, "").into(t, 200, &v)
		if v.ID != c.ID {
			t.Errorf("%s answered %+v", verb, v)
		}
		a.await(a.adaToken, c.ID, map[string]compute.Status{"start": compute.StatusRunning, "stop": compute.StatusStopped}[verb])
	}

	if r := a.do("DELETE", path, a.adaToken, ""); r.status != 200 || r.body != `{"status":"ok"}`+"\n" {
		t.Errorf("%+v", r)
	}
	for _, call := range [][2]string{{"GET", path}, {"DELETE", path}, {"POST", path + "/start"}, {"GET", path + "/ssh"}} {
		a.do(call[0], call[1], a.adaToken, "").isProblem(t, 404, compute.CodeNotFound, "")
	}
	a.do("GET", "/compute/containers", a.adaToken, "").into(t, 200, &list)
	if len(list.Containers) != 0 {
		t.Errorf("listed after its delete: %+v", list)
	}
}

// fields checks the names in a JSON object.
func fields(t *testing.T, text, want string) {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	got := slices.Sorted(maps.Keys(m))
	names := strings.Fields(want)
	slices.Sort(names)
	if !slices.Equal(got, names) {
		t.Errorf("fields %v, want %v", got, names)
	}
}

func TestDefaults(t *testing.T) {
	a := newAPI(t, nil)
	key := a.addKey(a.adaToken, "laptop")
	var c container
	a.do("POST", "/compute/containers", a.adaToken,
		fmt.Sprintf(`{"name":"x","ssh_key_ids":[%d],"memory_mb":null,"mount_paths":null,"instance_type":null}`, key)).into(t, 201, &c)
	if c.InstanceType != "nano" || c.MemoryMB != 512 || c.StorageGB != 5 || c.SSHEnabled || c.SSHCommand != "" {
		t.Errorf("%+v", c)
	}
	stored, err := a.store.Container(t.Context(), a.ada.ID, c.ID)
	if err != nil || !slices.Equal(stored.MountPaths, []string{"/root"}) {
		t.Errorf("mount paths %v, %v", stored.MountPaths, err)
	}
}

func TestKeys(t *testing.T) {
	a := newAPI(t, nil)
	if r := a.do("GET", "/compute/ssh-keys", a.adaToken, ""); r.body != `{"ssh_keys":[]}`+"\n" {
		t.Errorf("an empty list is %q", r.body)
	}
	line := newKey(t, "ada@<laptop> & more")
	var k sshKey
	r := a.do("POST", "/compute/ssh-keys", a.adaToken, fmt.Sprintf(`{"public_key":%q}`, line))
	r.into(t, 201, &k)
	fields(t, r.body, "id name public_key created_at")
	if k.Name != "ada@<laptop> & more" || !strings.HasPrefix(line, k.PublicKey) || !strings.HasPrefix(k.PublicKey, "ssh-ed25519 AAAA") {
		t.Errorf("%+v", k)
	}
	if _, err := time.Parse("2006-01-02T15:04:05Z", k.CreatedAt); err != nil {
		t.Error(err)
	}
	a.do("POST", "/compute/ssh-keys", a.adaToken, fmt.Sprintf(`{"name":"again","public_key":%q}`, line)).isProblem(t, 409, compute.CodeConflict, "public_key")
	// The same key under another account is no conflict, and tells nothing.
	a.do("POST", "/compute/ssh-keys", a.bobToken, fmt.Sprintf(`{"name":"his","public_key":%q}`, line)).into(t, 201, &sshKey{})

	var list struct {
		Keys []sshKey `json:"ssh_keys"`
	}
	a.do("GET", "/compute/ssh-keys", a.adaToken, "").into(t, 200, &list)
	if len(list.Keys) != 1 || list.Keys[0] != k {
		t.Errorf("listed %+v", list)
	}
	path := fmt.Sprintf("/compute/ssh-keys/%d", k.ID)
	foreign := a.do("DELETE", path, a.bobToken, "")
	foreign.isProblem(t, 404, compute.CodeNotFound, "")
	if r := a.do("DELETE", path, a.adaToken, ""); r.status != 200 || r.body != `{"status":"ok"}`+"\n" {
		t.Errorf("%+v", r)
	}
	if again := a.do("DELETE", path, a.adaToken, ""); again.body != foreign.body {
		t.Errorf("an absent key says %s, a foreign one %s", again.body, foreign.body)
	}
	for range 10 {
		a.addKey(a.adaToken, "one of ten")
	}
	a.do("POST", "/compute/ssh-keys", a.adaToken, fmt.Sprintf(`{"name":"eleventh","public_key":%q}`, newKey(t, ""))).isProblem(t, 409, compute.CodeLimit, "")
}

// Ids that are absent, malformed or somebody else's get one answer on every route.
func TestForeignIsAbsent(t *testing.T) {
	a := newAPI(t, nil)
	c := a.create(a.bobToken, "bobs", a.addKey(a.bobToken, "laptop"))
	a.await(a.bobToken, c.ID, compute.StatusRunning)
	a.do("POST", "/compute/containers/"+string(c.ID)+"/ingress", a.bobToken, `{"port":8080}`).into(t, 201, &ingressRule{})
	before, err := a.store.Container(t.Context(), a.bob.ID, c.ID)
	if err != nil {
		t.Fatal(err)
	}
	ids := []string{
		string(c.ID), "00000000", "ffffffff", "x", "a1b2c3d", "a1b2c3d4e", "A1B2C3D4", "a1b2c3dg", "1", "-1", "a1b2c3d4.x", "%00", "..",
		"a1b2c3d%34", "a1b2c3d4%20", "a1b2c3d4%0a", strings.Repeat("a", 4000), "☃", "a1b2c3d4;x",
	}
	for _, route := range []struct{ method, suffix, body string }{
		{"GET", "", ""},
		{"DELETE", "", ""},
		{"POST", "/start", ""},
		{"POST", "/stop", ""},
		{"GET", "/ssh", ""},
		{"PUT", "/ssh", `{"ssh_enabled":true}`},
		{"POST", "/exec", `{"command":["true"]}`},
		{"GET", "/events", ""},
		{"GET", "/logs", ""},
		{"GET", "/ingress", ""},
		{"POST", "/ingress", `{"port":443}`},
		{"DELETE", "/ingress/8080", ""}, // bob's has a rule for it
		{"DELETE", "/ingress/8081", ""},
		{"DELETE", "/ingress/x", ""},
		{"GET", "/mounts", ""},
		{"PUT", "/mounts", `{"mount_paths":["/data"]}`},
		{"PUT", "/mounts", `{"mount_paths":["/link"]}`},
	} {
		want := ""
		for _, id := range ids {
			r := a.do(route.method, "/compute/containers/"+id+route.suffix, a.adaToken, route.body)
			r.isProblem(t, 404, compute.CodeNotFound, "")
			if want == "" {
				want = r.body
			}
			if r.body != want && id != ".." { // a client resolves that one itself
				t.Errorf("%s %s%s says %s, a foreign one %s", route.method, id, route.suffix, r.body, want)
			}
		}
	}
	for _, id := range []string{"0", "-1", "+1", "01", "1.0", "1e0", "9223372036854775807", "9223372036854775808", "18446744073709551617", "x", "%31"} {
		a.do("DELETE", "/compute/ssh-keys/"+id, a.adaToken, "").isProblem(t, 404, compute.CodeNotFound, "")
	}
	after, err := a.store.Container(t.Context(), a.bob.ID, c.ID)
	if err != nil || !reflect.DeepEqual(after, before) {
		t.Errorf("somebody else's requests changed %+v to %+v (%v)", before, after, err)
	}
	if rules, err := a.store.IngressRules(t.Context(), a.bob.ID, c.ID); err != nil || len(rules) != 1 {
		t.Errorf("somebody else's requests left the rules %+v (%v)", rules, err)
	}
}

func TestPathsAndMethods(t *testing.T) {
	a := newAPI(t, nil)
	for _, path := range []string{
		"/", "/compute", "/compute/", "/compute/containers/", "/Compute/containers", "/compute/Containers", "/compute/CONTAINERS",
		"/compute//containers", "//compute/containers", "/compute/containersx", "/compute/ssh-keys/", "/compute/containers/a1b2c3d4/",
		"/compute/containers/a1b2c3d4/Start", "/compute/containers/a1b2c3d4/start/", "/compute/containers/a1b2c3d4/x", "/healthz/",
		"/Healthz", "/%63ompute/containers", "/compute/./containers", "/compute/x/../containers", "/compute/containers/a1b2c3d4/ssh/x",
		"/compute/containers/a1b2c3d4/Ingress", "/compute/containers/a1b2c3d4/ingress/", "/compute/containers/a1b2c3d4/ingress/80/x",
		"/compute/containers/a1b2c3d4/mounts/", "/compute/containers/a1b2c3d4/mounts/root", "/compute/containers/a1b2c3d4/mount",
		"/compute\\containers", "/compute/containers;x", "/compute/containers%2f", "/index.html", "/robots.txt", "/%00", "/%ff",
	} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			r, err := raw(a.addr, method+" "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer "+a.adaToken+"\r\n\r\n")
			if err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			r.isProblem(t, 404, compute.CodeNotFound, "")
		}
	}
	for _, tc := range []struct{ method, path, allow string }{
		{"PUT", "/compute/containers", "GET, HEAD, POST"},
		{"DELETE", "/compute/containers", "GET, HEAD, POST"},
		{"PATCH", "/compute/containers", "GET, HEAD, POST"},
		{"OPTIONS", "/compute/containers", "GET, HEAD, POST"},
		{"POST", "/compute/containers/a1b2c3d4", "GET, HEAD, DELETE, PATCH"},
		{"PUT", "/compute/containers/a1b2c3d4", "GET, HEAD, DELETE, PATCH"},
		{"GET", "/compute/containers/a1b2c3d4/start", "POST"},
		{"PUT", "/compute/containers/a1b2c3d4/stop", "POST"},
		{"POST", "/compute/containers/a1b2c3d4/ssh", "GET, HEAD, PUT"},
		{"PUT", "/compute/containers/a1b2c3d4/ingress", "GET, HEAD, POST"},
		{"DELETE", "/compute/containers/a1b2c3d4/ingress", "GET, HEAD, POST"},
		{"GET", "/compute/containers/a1b2c3d4/ingress/80", "DELETE"},
		{"PUT", "/compute/containers/a1b2c3d4/ingress/80", "DELETE"},
		{"POST", "/compute/containers/a1b2c3d4/ssh-keys", "GET, HEAD, PUT"},
		{"POST", "/compute/instance-types", "GET, HEAD"},
		{"POST", "/compute/containers/a1b2c3d4/mounts", "GET, HEAD, PUT"},
		{"DELETE", "/compute/containers/a1b2c3d4/mounts", "GET, HEAD, PUT"},
		{"PATCH", "/compute/containers/a1b2c3d4/mounts", "GET, HEAD, PUT"},
		{"PUT", "/compute/ssh-keys", "GET, HEAD, POST"},
		{"GET", "/compute/ssh-keys/1", "DELETE"},
		{"DELETE", "/compute/admin/users", "GET, HEAD, POST"},
		{"DELETE", "/compute/admin/users/1", "GET, HEAD, PATCH"},
		{"POST", "/compute/admin/containers", "GET, HEAD"},
		{"GET", "/compute/admin/containers/a1b2c3d4/stop", "POST"},
		{"DELETE", "/compute/admin/storage", "GET, HEAD"},
		{"GET", "/compute/admin/storage/compute-1-a1b2c3d4", "DELETE"},
		{"POST", "/healthz", "GET, HEAD"},
		{"TRACE", "/healthz", "GET, HEAD"},
	} {
		r := a.do(tc.method, tc.path, a.adaToken, "")
		r.isProblem(t, 405, compute.CodeMethod, "")
		if got := r.header.Get("Allow"); got != tc.allow {
			t.Errorf("%s %s allows %q, want %q", tc.method, tc.path, got, tc.allow)
		}
	}
	a.do("BREW", "/compute/containers", a.adaToken, "").isProblem(t, 501, codeUnknownMethod, "")
	a.do("get", "/compute/containers", a.adaToken, "").isProblem(t, 501, codeUnknownMethod, "")
	if r := a.do("HEAD", "/compute/containers", a.adaToken, ""); r.status != 200 || r.body != "" || r.header.Get("Content-Length") == "0" {
		t.Errorf("HEAD: %+v", r)
	}
	// None of these routes takes a query; above all no token is taken from it.
	a.do("GET", "/compute/containers?x=1&x=2", a.adaToken, "").isProblem(t, 400, compute.CodeInvalid, "x")
	a.do("GET", "/compute/containers?token="+a.adaToken, "", "").isProblem(t, 401, compute.CodeUnauthenticated, "")
	// Other ways to say a path: an absolute URI (RFC 9112, section 3.2.2).
	if r, err := raw(a.addr, "GET http://elsewhere.example/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil || r.status != 200 {
		t.Errorf("absolute form: %+v, %v", r, err)
	}
}

func TestHeaders(t *testing.T) {
	a := newAPI(t, nil)
	for _, r := range []reply{
		a.do("GET", "/healthz", "", ""),
		a.do("GET", "/compute/containers", a.adaToken, ""),
		a.do("GET", "/compute/containers", "", ""),
		a.do("GET", "/nowhere", "", ""),
		a.do("PUT", "/healthz", "", ""),
		a.do("BREW", "/healthz", "", ""),
		a.do("POST", "/compute/containers", a.adaToken, "{"),
	} {
		if !regexp.MustCompile(`^[A-Z0-9]{26}$`).MatchString(r.header.Get("X-Request-Id")) {
			t.Errorf("request id %q", r.header.Get("X-Request-Id"))
		}
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Server": "",
			"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
		} {
			if got := r.header.Get(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if _, err := http.ParseTime(r.header.Get("Date")); err != nil {
			t.Error(err)
		}
	}
}

func TestRequestID(t *testing.T) {
	a := newAPI(t, nil)
	for id, taken := range map[string]bool{
		"abc-1.2_3": true, strings.Repeat("a", 64): true, strings.Repeat("a", 65): false, "a b": false, `a"b`: false, "é": false, "": false,
	} {
		r := a.send("GET", "/healthz", "", func(r *http.Request) { r.Header.Set("X-Request-Id", id) })
		if got := r.header.Get("X-Request-Id"); (got == id) != taken || got == "" {
			t.Errorf("sent %q, got %q", id, got)
		}
	}
	a.send("GET", "/compute/containers", "", func(r *http.Request) {
		r.Header.Set("X-Request-Id", "find-me")
		r.Header.Set("Authorization", "Bearer "+a.adaToken)
	})
	if log := a.log.String(); !strings.Contains(log, `"id":"find-me"`) || !strings.Contains(log, fmt.Sprintf(`"user":%d`, a.ada.ID)) {
		t.Errorf("the log lacks the request: %s", log)
	}
}

// The database holds the limit, whatever arrives at once; and what one request sent never shows up in another's.
func TestAtOnce(t *testing.T) {
	a := newAPI(t, nil)
	key := a.addKey(a.adaToken, "laptop")
	var wg sync.WaitGroup
	var mu sync.Mutex
	statuses, names := map[int]int{}, map[compute.ContainerID]string{}
	for i := range 500 {
		wg.Go(func() {
			name := strings.Repeat(string(rune('a'+i%26)), 1+i%64)
			r, err := a.try("POST", "/compute/containers", fmt.Sprintf(`{"name":%q,"ssh_key_ids":[%d]}`, name, key), func(r *http.Request) {
				r.Header.Set("Authorization", "Bearer "+a.adaToken)
				r.Header.Set("Content-Type", "application/json")
			})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			statuses[r.status]++
			if r.status == 201 {
				var c container
				r.into(t, 201, &c)
				if names[c.ID] = name; c.Name != name {
					t.Errorf("sent %q, got %q", name, c.Name)
				}
				return
			}
			r.isProblem(t, 409, compute.CodeLimit, "")
		})
	}
	wg.Wait()
	if statuses[201] != 3 || statuses[409] != 497 {
		t.Errorf("statuses %v, want three 201 and the rest 409", statuses)
	}
	var list struct{ Containers []container }
	a.do("GET", "/compute/containers", a.adaToken, "").into(t, 200, &list)
	if len(list.Containers) != 3 {
		t.Errorf("listed %+v", list)
	}
	for _, c := range list.Containers {
		if names[c.ID] != c.Name {
			t.Errorf("%s is named %q, created as %q", c.ID, c.Name, names[c.ID])
		}
	}
}
