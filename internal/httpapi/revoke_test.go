package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"berth/internal/compute"
)

// behind is gateways that do not answer, until they are asked no more.
type behind struct{ asked chan struct{} }

func (b behind) Unacknowledged(ctx context.Context) []string {
	<-ctx.Done()
	b.asked <- struct{}{}
	return []string{"edge-1", "edge-2"}
}

// Changes that take something from somebody name the gateways that may not know of it; other answers do not ask.
func TestUnacknowledged(t *testing.T) {
	b := behind{make(chan struct{}, 1)}
	a := newAPI(t, func(c *Config) { c.Gateways = b })
	key := a.addKey(a.adaToken, "laptop")
	id := a.create(a.adaToken, "box", key).ID
	a.await(a.adaToken, id, compute.StatusRunning)
	at := "/compute/containers/" + string(id)
	for _, tc := range []struct {
		method, path, body string
		named              bool
	}{
		{"GET", at, "", false},
		{"PUT", at + "/ssh", `{"ssh_enabled": false}`, true},
		{"PUT", at + "/ssh", `{"ssh_enabled": true}`, false},
		{"GET", at + "/ssh-keys", "", false},
		{"PUT", at + "/ssh-keys", fmt.Sprintf(`{"ssh_key_ids": [%d]}`, key), true},
		{"PATCH", at, `{"name": "other"}`, false},
		{"POST", at + "/start", "", false},
		{"POST", at + "/stop", "", true},
		{"DELETE", fmt.Sprintf("/compute/ssh-keys/%d", key), "", true},
		{"DELETE", at, "", true},
	} {
		r := a.do(tc.method, tc.path, a.adaToken, tc.body)
		if r.status != http.StatusOK {
			t.Fatalf("%s %s: %+v", tc.method, tc.path, r)
		}
		want := ""
		if tc.named {
			<-b.asked
			want = "edge-1, edge-2"
		}
		if got := r.header.Get("Berth-Unacknowledged"); got != want {
			t.Errorf("%s %s names %q, want %q", tc.method, tc.path, got, want)
		}
	}
	if r := a.do("DELETE", at, a.adaToken, ""); r.status != http.StatusNotFound || r.header.Get("Berth-Unacknowledged") != "" {
		t.Errorf("a change that failed: %+v", r)
	}
	select {
	case <-b.asked:
		t.Error("gateways were asked for nothing")
	default:
	}
}
