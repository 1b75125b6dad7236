package httpapi

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"berth/internal/compute"
)

func TestPace(t *testing.T) {
	p := newPace(3)
	now := time.Unix(1_800_000_000, 0)
	take := func(u compute.UserID) (error, *fasthttp.ResponseHeader) {
		var h fasthttp.ResponseHeader
		return p.take(u, now, &h), &h
	}
	for i := range 30 {
		err, h := take(1)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		want := fmt.Sprintf(`"account";r=%d;t=%d`, 29-i, (i+3)/3)
		if got := string(h.Peek("RateLimit")); got != want {
			t.Errorf("request %d: %s, want %s", i, got, want)
		}
	}
	err, h := take(1)
	if compute.CodeOf(err) != codeTooMany || string(h.Peek("Retry-After")) != "1" ||
		string(h.Peek("RateLimit-Policy")) != `"account";q=30;w=10` {
		t.Errorf("%v, %s", err, h)
	}
	if err, _ := take(2); err != nil {
		t.Errorf("another account: %v", err)
	}
	now = now.Add(334 * time.Millisecond)
	if err, _ := take(1); err != nil {
		t.Errorf("a third of a second later: %v", err)
	}
	if err, _ := take(1); compute.CodeOf(err) != codeTooMany {
		t.Errorf("and one more: %v", err)
	}
}

// However many accounts there are, only those that asked lately are kept.
func TestPaceForgets(t *testing.T) {
	p := newPace(1)
	now := time.Unix(1_800_000_000, 0)
	for u := range compute.UserID(10 * paceAccounts) {
		if err := p.take(u, now, new(fasthttp.ResponseHeader)); err != nil {
			t.Fatal(err)
		}
		now = now.Add(10 * time.Millisecond) // so a hundred ask before the first one's bucket is full again
	}
	if n := len(p.buckets); n > paceAccounts {
		t.Errorf("%d are kept", n)
	}
}

func TestRateLimit(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.RequestsPerSecond = 1 })
	var last reply
	sent := 0
	for last.status != http.StatusTooManyRequests {
		if sent++; sent > 10_000 {
			t.Fatal("ten thousand requests were answered")
		}
		last = a.do("GET", "/compute/whoami", a.adaToken, "")
	}
	last.isProblem(t, 429, codeTooMany, "")
	if sent <= paceWindow || last.header.Get("Retry-After") == "" || last.header.Get("RateLimit-Policy") != `"account";q=10;w=10` {
		t.Errorf("after %d: %+v", sent, last.header)
	}
	if r := a.do("GET", "/compute/whoami", a.bobToken, ""); r.status != 200 || r.header.Get("RateLimit") != `"account";r=9;t=1` {
		t.Errorf("another account: %+v", r)
	}
	if r := a.do("GET", "/healthz", "", ""); r.status != 200 || r.header.Get("RateLimit") != "" {
		t.Errorf("a probe: %+v", r)
	}
	a.do("GET", "/compute/whoami", "none", "").isProblem(t, 401, compute.CodeUnauthenticated, "")
}
