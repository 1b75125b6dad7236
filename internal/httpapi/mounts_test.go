package httpapi

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"berth/internal/compute"
)

// mounts is the contract's answer of a PUT.
type mounts struct {
	MountPaths []string `json:"mount_paths"`
	Restarted  bool     `json:"restarted"`
}

// The contract's example, word for word, and what follows from it.
func TestMounts(t *testing.T) {
	a := newAPI(t, nil)
	c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	path := "/compute/containers/" + string(c.ID)
	a.await(a.adaToken, c.ID, compute.StatusRunning)
	if r := a.do("GET", path+"/mounts", a.adaToken, ""); r.status != 200 || r.body != `{"mount_paths":["/root"]}`+"\n" {
		t.Errorf("at first: %+v", r)
	}
	generation := func() int64 {
		t.Helper()
		c, err := a.store.Container(t.Context(), a.ada.ID, c.ID)
		if err != nil {
			t.Fatal(err)
		}
		return c.Generation
	}
	put := func(body string) mounts {
		t.Helper()
		r := a.do("PUT", path+"/mounts", a.adaToken, body)
		var m mounts
		r.into(t, 200, &m)
		fields(t, r.body, "mount_paths restarted")
		var now struct {
			MountPaths []string `json:"mount_paths"`
		}
		a.do("GET", path+"/mounts", a.adaToken, "").into(t, 200, &now)
		if !slices.Equal(now.MountPaths, m.MountPaths) {
			t.Errorf("a PUT says %q, and a GET then %q", m.MountPaths, now.MountPaths)
		}
		return m
	}
	example := []string{"/root", "/var/data", "/opt/app"}
	if m := put(`{ "mount_paths": ["/root", "/var/data", "/opt/app"] }`); !m.Restarted || !slices.Equal(m.MountPaths, example) {
		t.Errorf("%+v", m)
	}
	a.await(a.adaToken, c.ID, compute.StatusRunning)
	before := generation()
	for _, same := range []string{
		`{"mount_paths":["/root","/var/data","/opt/app"]}`, `{"mount_paths":["/opt/app/","/root","//var/./data"]}`,
	} {
		if m := put(same); m.Restarted || !slices.Equal(m.MountPaths, example) {
			t.Errorf("%s: %+v", same, m)
		}
	}
	if generation() != before {
		t.Error("unchanged paths are a new generation")
	}
	if m := put(`{"mount_paths":[]}`); !m.Restarted || m.MountPaths == nil || len(m.MountPaths) != 0 {
		t.Errorf("no paths: %+v", m)
	}
	a.await(a.adaToken, c.ID, compute.StatusRunning)

	a.do("POST", path+"/stop", a.adaToken, "").into(t, 200, &container{})
	a.await(a.adaToken, c.ID, compute.StatusStopped)
	if m := put(`{"mount_paths":["/srv"]}`); m.Restarted || !slices.Equal(m.MountPaths, []string{"/srv"}) {
		t.Errorf("stopped: %+v", m)
	}
	var v container
	if a.do("GET", path, a.adaToken, "").into(t, 200, &v); v.Status != compute.StatusStopped {
		t.Errorf("mount paths started it: %s", v.Status)
	}
	if a.do("POST", path+"/start", a.adaToken, "").into(t, 200, &v); v.Status != compute.StatusPending {
		t.Errorf("started: %s", v.Status)
	}
	a.await(a.adaToken, c.ID, compute.StatusRunning)
	a.do("DELETE", path, a.adaToken, "").into(t, 200, &struct{}{})
	a.do("GET", path+"/mounts", a.adaToken, "").isProblem(t, 404, compute.CodeNotFound, "")
	a.do("PUT", path+"/mounts", a.adaToken, `{"mount_paths":["/root"]}`).isProblem(t, 404, compute.CodeNotFound, "")
}

func TestPutMountsRefuses(t *testing.T) {
	a := newAPI(t, nil)
	c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	path := "/compute/containers/" + string(c.ID) + "/mounts"
	a.await(a.adaToken, c.ID, compute.StatusRunning)
	for body, field := range map[string]string{
		`{}`: "mount_paths", `{"mount_paths":null}`: "mount_paths", `{"mount_paths":"/root"}`: "mount_paths",
		`{"mount_paths":{}}`: "mount_paths", `{"mount_paths":[5]}`: "mount_paths", `{"mount_paths":[null]}`: "mount_paths",
		`{"mount_paths":[["/root"]]}`: "mount_paths", `{"mount_path":["/data"]}`: "mount_path",
		`{"mount_paths":["/a"],"mount_paths":["/b"]}`: "mount_paths", `["/root"]`: "", `{"mount_paths":["/root"]`: "",
		`{"mount_paths":[""]}`: "mount_paths", `{"mount_paths":["data"]}`: "mount_paths", `{"mount_paths":["/"]}`: "mount_paths",
		`{"mount_paths":["/proc/1"]}`: "mount_paths", `{"mount_paths":["/.berth"]}`: "mount_paths",
		`{"mount_paths":["/data/../etc"]}`: "mount_paths", `{"mount_paths":["/da\nta"]}`: "mount_paths",
		`{"mount_paths":["/data","/data/"]}`: "mount_paths", `{"mount_paths":["/data","/data/db"]}`: "mount_paths",
		`{"mount_paths":["/data/db","/data"]}`: "mount_paths", `{"mount_paths":["/link"]}`: "mount_paths",
		`{"mount_paths":["/` + strings.Repeat("x", 255) + `"]}`:                                     "mount_paths",
		`{"mount_paths":["/` + strings.Join(strings.Split("abcdefghijklmnopq", ""), `","/`) + `"]}`: "mount_paths",
	} {
		a.do("PUT", path, a.adaToken, body).isProblem(t, 400, compute.CodeInvalid, field)
	}
	a.send("PUT", path, `{"mount_paths":["/data"]}`, func(r *http.Request) {
		r.Header.Set("Authorization", "Bearer "+a.adaToken)
	}).isProblem(t, 415, compute.CodeUnsupportedMedia, "")
	got, err := a.store.Container(t.Context(), a.ada.ID, c.ID)
	if err != nil || got.Generation != 1 || got.Status != compute.StatusRunning || !slices.Equal(got.MountPaths, []string{"/root"}) {
		t.Errorf("what was refused left %+v, %v", got, err)
	}
}
