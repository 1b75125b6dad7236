package httpapi

import (
	"fmt"
	"net/http"
	"testing"

	"berth/internal/compute"
)

// sendIf is do with an If-Match header; empty: without.
func (a *api) sendIf(method, path, token, match, body string) reply {
	a.t.Helper()
	return a.send(method, path, body, func(r *http.Request) {
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Content-Type", "application/json")
		if match != "" {
			r.Header.Set("If-Match", match)
		}
	})
}

func TestChangeContainer(t *testing.T) {
	a := newAPI(t, nil)
	made := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	path := "/compute/containers/" + string(made.ID)
	running := a.await(a.adaToken, made.ID, compute.StatusRunning)

	var c container
	a.do("PATCH", path, a.adaToken, `{"name": " build-box ", "memory_mb": 1024, "storage_gb": 8}`).into(t, 200, &c)
	want := running
	want.Name, want.MemoryMB, want.StorageGB = "build-box", 1024, 8
	if c != want {
		t.Errorf("changed to %+v, want %+v", c, want)
	}
	// What is left out, null or the same stays, and is no restart.
	for _, body := range []string{`{}`, `{"name": null, "memory_mb": null, "storage_gb": null}`, `{"storage_gb": 8}`} {
		a.do("PATCH", path, a.adaToken, body).into(t, 200, &c)
		if c != want {
			t.Errorf("%s: %+v, want %+v", body, c, want)
		}
	}
	for _, bad := range []struct{ body, field string }{
		{`{"storage_gb": 7}`, "storage_gb"},
		{`{"storage_gb": 101}`, "storage_gb"},
		{`{"memory_mb": 63}`, "memory_mb"},
		{`{"memory_mb": "1024"}`, "memory_mb"},
		{`{"name": " "}`, "name"},
		{`{"status": "stopped"}`, "status"},
		{`{"name": "x", "storage_gb": 1}`, "storage_gb"},
	} {
		a.do("PATCH", path, a.adaToken, bad.body).isProblem(t, 400, compute.CodeInvalid, bad.field)
	}
	a.do("GET", path, a.adaToken, "").into(t, 200, &c)
	if c != want {
		t.Errorf("after what was refused it is %+v, want %+v", c, want)
	}
	a.do("PATCH", path, a.bobToken, `{"name": "mine"}`).isProblem(t, 404, compute.CodeNotFound, "")
}

func TestIfMatch(t *testing.T) {
	a := newAPI(t, nil)
	first, second := a.addKey(a.adaToken, "laptop"), a.addKey(a.adaToken, "desk")
	made := a.create(a.adaToken, "box", first)
	path := "/compute/containers/" + string(made.ID)
	a.await(a.adaToken, made.ID, compute.StatusRunning)
	tag := func() string { t.Helper(); return a.do("GET", path, a.adaToken, "").header.Get("ETag") }
	was := tag()

	r := a.sendIf("PATCH", path, a.adaToken, `"other", `+was, `{"name": "one"}`)
	if r.status != 200 || r.header.Get("ETag") == was || r.header.Get("ETag") != tag() {
		t.Fatalf("a change under the right condition: %+v, now %s", r, tag())
	}
	for _, match := range []string{was, "W/" + tag(), `"", "a"`} {
		a.sendIf("PATCH", path, a.adaToken, match, `{"name": "two"}`).isProblem(t, 412, compute.CodePrecondition, "")
		a.sendIf("PUT", path+"/ssh-keys", a.adaToken, match, fmt.Sprintf(`{"ssh_key_ids": [%d]}`, second)).
			isProblem(t, 412, compute.CodePrecondition, "")
	}
	for _, match := range []string{"3f2a", `"a" "b"`, `"a`, ","} {
		a.sendIf("PATCH", path, a.adaToken, match, `{"name": "two"}`).isProblem(t, 400, compute.CodeInvalid, "")
	}
	a.sendIf("PATCH", "/compute/containers/00000000", a.adaToken, was, `{}`).isProblem(t, 404, compute.CodeNotFound, "")
	var c container
	a.sendIf("PATCH", path, a.adaToken, "*", `{"name": "two"}`).into(t, 200, &c)
	// What does not take the condition is not done under one.
	for _, r := range []struct{ method, path, body string }{
		{"DELETE", "", ""}, {"POST", "/stop", ""}, {"PUT", "/ssh", `{"ssh_enabled": true}`}, {"PUT", "/mounts", `{"mount_paths": []}`},
	} {
		a.sendIf(r.method, path+r.path, a.adaToken, tag(), r.body).isProblem(t, 400, compute.CodeInvalid, "")
	}

	// Whatever an owner changes is another tag; what is merely observed is none.
	seen := map[string]string{}
	for _, change := range []struct{ method, path, body string }{
		{"PATCH", "", `{"memory_mb": 1024}`},
		{"PATCH", "", `{"storage_gb": 9}`},
		{"PUT", "/ssh", `{"ssh_enabled": true}`},
		{"PUT", "/ssh-keys", fmt.Sprintf(`{"ssh_key_ids": [%d]}`, second)},
		{"PUT", "/mounts", `{"mount_paths": []}`},
		{"POST", "/ingress", `{"port": 443}`},
		{"POST", "/stop", ""},
	} {
		if r := a.do(change.method, path+change.path, a.adaToken, change.body); r.status > 299 {
			t.Fatalf("%+v: %+v", change, r)
		}
		now := tag()
		if before, ok := seen[now]; ok {
			t.Errorf("after %+v the tag is as after %s", change, before)
		}
		seen[now] = change.path + change.body
	}
	a.await(a.adaToken, made.ID, compute.StatusStopped)
	if seen[tag()] != "/stop" {
		t.Error("the status alone is another tag")
	}
}

func TestContainerKeys(t *testing.T) {
	a := newAPI(t, nil)
	first, second, bobs := a.addKey(a.adaToken, "laptop"), a.addKey(a.adaToken, "desk"), a.addKey(a.bobToken, "his")
	made := a.create(a.adaToken, "box", first)
	path := "/compute/containers/" + string(made.ID) + "/ssh-keys"
	is := func(r reply, ids ...int64) {
		t.Helper()
		var got struct {
			IDs []int64 `json:"ssh_key_ids"`
		}
		r.into(t, 200, &got)
		if fmt.Sprint(got.IDs) != fmt.Sprint(ids) {
			t.Errorf("keys %v, want %v", got.IDs, ids)
		}
	}
	is(a.do("GET", path, a.adaToken, ""), first)
	is(a.do("PUT", path, a.adaToken, fmt.Sprintf(`{"ssh_key_ids": [%d, %d, %[1]d]}`, second, first)), first, second)
	is(a.do("PUT", path, a.adaToken, fmt.Sprintf(`{"ssh_key_ids": [%d]}`, second)), second)
	for _, body := range []string{`{"ssh_key_ids": []}`, `{}`, fmt.Sprintf(`{"ssh_key_ids": [%d, %d]}`, first, bobs), `{"ssh_key_ids": [0]}`} {
		a.do("PUT", path, a.adaToken, body).isProblem(t, 400, compute.CodeInvalid, "ssh_key_ids")
	}
	is(a.do("GET", path, a.adaToken, ""), second)
	a.do("GET", path, a.bobToken, "").isProblem(t, 404, compute.CodeNotFound, "")
	a.do("PUT", path, a.bobToken, fmt.Sprintf(`{"ssh_key_ids": [%d]}`, bobs)).isProblem(t, 404, compute.CodeNotFound, "")

	// Those that open it are what a gateway reads.
	target, err := a.store.Target(t.Context(), made.ID)
	if err != nil || len(target.Keys) != 1 || target.Keys[0].ID != second {
		t.Errorf("target %+v, %v", target, err)
	}
}

func TestInstanceTypes(t *testing.T) {
	a := newAPI(t, nil)
	var got struct {
		Types []struct {
			Name         string  `json:"name"`
			Architecture string  `json:"architecture"`
			CPUs         float64 `json:"cpus"`
		} `json:"instance_types"`
	}
	a.do("GET", "/compute/instance-types", a.adaToken, "").into(t, 200, &got)
	if s := fmt.Sprint(got.Types); s != "[{nano arm64 0.5} {micro arm64 1} {mini arm64 2} {tiny amd64 1} {small amd64 2} {medium amd64 4}]" {
		t.Error(s)
	}
}
