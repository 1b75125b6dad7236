package httpapi

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"berth/internal/compute"
)

func (a *api) sendOnce(path, token, key, body string) reply {
	a.t.Helper()
	return a.send("POST", path, body, keyed(token, key))
}

func keyed(token, key string) func(*http.Request) {
	return func(r *http.Request) {
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Idempotency-Key", key)
	}
}

func TestIdempotencyKey(t *testing.T) {
	a := newAPI(t, nil)
	public := newKey(t, "laptop")
	body := string(encode(map[string]string{"name": "laptop", "public_key": public}))
	first := a.sendOnce("/compute/ssh-keys", a.adaToken, "one", body)
	var key struct{ ID int64 }
	first.into(t, 201, &key)
	again := a.sendOnce("/compute/ssh-keys", a.adaToken, "one", body)
	if again.status != 201 || again.body != first.body || again.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("again: %+v, first %+v", again, first)
	}
	if first.header.Get("Idempotency-Replayed") != "" {
		t.Error("the first one is said to be replayed")
	}
	// Without, or with another key, it is another request.
	a.do("POST", "/compute/ssh-keys", a.adaToken, body).isProblem(t, 409, compute.CodeConflict, "public_key")
	a.sendOnce("/compute/ssh-keys", a.adaToken, "two", body).isProblem(t, 409, compute.CodeConflict, "public_key")

	box := func(name string) string { return fmt.Sprintf(`{"name": %q, "ssh_key_ids": [%d]}`, name, key.ID) }
	made := a.sendOnce("/compute/containers", a.adaToken, "box", box("box"))
	replayed := a.sendOnce("/compute/containers", a.adaToken, "box", box("box"))
	if made.status != 201 || replayed.body != made.body || replayed.header.Get("Location") != made.header.Get("Location") {
		t.Errorf("%+v, then %+v", made, replayed)
	}
	a.sendOnce("/compute/containers", a.adaToken, "box", box("other")).isProblem(t, 409, compute.CodeConflict, "")
	a.sendOnce("/compute/containers", a.bobToken, "box", box("box")).isProblem(t, 400, compute.CodeInvalid, "ssh_key_ids")

	// What is refused may be put right and sent again with its key.
	a.sendOnce("/compute/containers", a.adaToken, "fix", `{"name": "", "ssh_key_ids": [1]}`).isProblem(t, 400, compute.CodeInvalid, "name")
	if r := a.sendOnce("/compute/containers", a.adaToken, "fix", box("fixed")); r.status != 201 {
		t.Errorf("%+v", r)
	}
	if r := a.sendOnce("/compute/containers", a.adaToken, `"box"`, box("box")); r.body != made.body {
		t.Errorf("the same key as a structured field's string: %+v", r)
	}
	long := strings.Repeat("x", 255)
	for _, key := range []string{`"` + long + `"`, long} {
		if r := a.sendOnce("/compute/containers", a.adaToken, key, box("long")); r.status != 201 {
			t.Errorf("the longest key: %+v", r)
		}
	}
	for _, bad := range []string{"", "a b", `a"b`, `"a`, `a"`, `""`, long + "x", "é"} {
		a.sendOnce("/compute/containers", a.adaToken, bad, box("never")).isProblem(t, 400, compute.CodeInvalid, "")
	}
	ingress := made.header.Get("Location") + "/ingress"
	for range 2 {
		if r := a.sendOnce(ingress, a.adaToken, "port", `{"port": 443}`); r.status != 201 {
			t.Errorf("%+v", r)
		}
	}
}

// Of many at once, one is carried out.
func TestIdempotencyKeyAtOnce(t *testing.T) {
	a := newAPI(t, nil)
	body := fmt.Sprintf(`{"name": "box", "ssh_key_ids": [%d]}`, a.addKey(a.adaToken, "laptop"))
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			r, err := a.try("POST", "/compute/containers", body, keyed(a.adaToken, "box"))
			if err == nil && r.status != 201 && r.status != 409 {
				err = fmt.Errorf("%+v", r)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if list, err := a.store.Containers(t.Context(), a.ada.ID); err != nil || len(list) != 1 {
		t.Errorf("%d were made, %v", len(list), err)
	}
}
