package httpapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"berth/internal/compute"
)

func TestReadyz(t *testing.T) {
	var broken atomic.Bool
	a := newAPI(t, func(c *Config) {
		c.Ready = func(context.Context) error {
			if broken.Load() {
				return &compute.Error{Code: compute.CodeUnavailable, Message: "It is not ready: x.", Cause: errors.New("secret")}
			}
			return nil
		}
	})
	for _, method := range []string{"GET", "HEAD"} {
		if r := a.do(method, "/readyz", "", ""); r.status != 200 || r.body != map[string]string{"GET": "ok"}[method] {
			t.Errorf("%+v", r)
		}
	}
	broken.Store(true)
	r := a.do("GET", "/readyz", "", "")
	r.isProblem(t, 503, compute.CodeUnavailable, "")
	if !strings.Contains(r.body, "It is not ready: x.") || strings.Contains(r.body, "secret") || r.header.Get("Retry-After") == "" {
		t.Errorf("%+v", r)
	}
	if r := a.do("GET", "/healthz", "", ""); r.status != 200 {
		t.Errorf("%+v", r)
	}
	if log := a.log.String(); strings.Contains(log, "level=WARN") {
		t.Errorf("a probe is no news: %s", log)
	}
	a.do("POST", "/readyz", "", "").isProblem(t, 405, compute.CodeMethod, "")
}

// What is observed names routes and methods as they were registered, whatever clients send.
func TestObservationsAreBounded(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	a := newAPI(t, func(c *Config) {
		c.Observe = func(o Observation) {
			mu.Lock()
			defer mu.Unlock()
			if o.Took < 0 {
				t.Errorf("%+v", o)
			}
			seen[fmt.Sprintf("%s %s %d", o.Method, o.Route, o.Status)]++
		}
	})
	const many = 40
	for i := range many {
		id := fmt.Sprintf("%08x", i+1)
		a.do("GET", "/compute/containers/"+id, a.adaToken, "")
		a.do("GET", "/compute/containers/"+id, "", "")
		a.do("GET", "/compute/"+id, a.adaToken, "")
		a.do("PATCH", "/compute/containers", a.adaToken, "")
		if _, err := raw(a.addr, "BREW"+strings.ToUpper(id)+" /x"+id+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := raw(a.addr, "GET /"+id+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	a.do("GET", "/compute/containers", a.adaToken, "")
	a.do("HEAD", "/healthz", "", "")
	mu.Lock()
	defer mu.Unlock()
	want := map[string]int{
		"GET /compute/containers/:id 404": many, "GET /compute/containers/:id 401": many, "GET none 404": many,
		"PATCH none 405": many, "other none 501": many, "GET none 400": many,
		"GET /compute/containers 200": 1, "HEAD /healthz 200": 1,
	}
	for what, n := range want {
		if seen[what] != n {
			t.Errorf("%s was seen %d times, not %d", what, seen[what], n)
		}
		delete(seen, what)
	}
	if len(seen) != 0 {
		t.Errorf("and these: %v", seen)
	}
}
