package store

import (
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"berth/internal/compute"
)

// What a gateway sends is there once, however often it sends it, and from however many connections at once; its numbers and its
// records change together.
func TestGatewayAudit(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "berth.db")
	s := openAt(t, path, Options{})
	u := addUser(t, s, "alice")
	for _, name := range []string{"edge", "other"} {
		if _, err := s.AddGateway(ctx, name, "SHA256:"+name); err != nil {
			t.Fatal(err)
		}
	}
	list := func(from, to int) (list []compute.AuditRecord) {
		for n := from; n <= to; n++ {
			list = append(list, compute.AuditRecord{
				Action: compute.ActionLogin, Outcome: compute.OutcomeAllowed, Via: compute.ViaSSH, User: u, Owner: u,
				Gateway: "edge", Session: fmt.Sprint(n),
			})
		}
		return list
	}
	sessions := func() (all []string) {
		t.Helper()
		records, _, err := s.Audit(ctx, compute.AuditQuery{OldestFirst: true, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			all = append(all, r.Session)
		}
		return all
	}
	for _, step := range []struct {
		queue    string
		from, to int
		last     int64
		have     []string
	}{
		{"a", 1, 0, 0, nil}, // it asks
		{"a", 1, 3, 3, []string{"1", "2", "3"}},
		{"a", 1, 3, 3, []string{"1", "2", "3"}},
		{"a", 1, 0, 3, []string{"1", "2", "3"}},
		{"a", 3, 4, 4, []string{"1", "2", "3", "4"}},
		{"a", 7, 7, 7, []string{"1", "2", "3", "4", "7"}}, // what is missing, it does not have
		{"a", 5, 6, 7, []string{"1", "2", "3", "4", "7"}},
		{"b", 1, 0, 0, []string{"1", "2", "3", "4", "7"}},
		{"b", 1, 1, 1, []string{"1", "2", "3", "4", "7", "1"}},
	} {
		last, err := s.AppendGatewayAudit(ctx, "SHA256:edge", step.queue, int64(step.from), list(step.from, step.to))
		if err != nil || last != step.last || !slices.Equal(sessions(), step.have) {
			t.Fatalf("%+v: %d, %v, there are %q", step, last, err, sessions())
		}
	}
	if last, err := s.AppendGatewayAudit(ctx, "SHA256:other", "b", 1, nil); err != nil || last != 0 {
		t.Errorf("the other has %d, %v", last, err)
	}

	stores := []*Store{s, openAt(t, path, Options{})}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := 2; n <= 30; n++ {
				if _, err := stores[i%2].AppendGatewayAudit(ctx, "SHA256:edge", "b", int64(n), list(n, n)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var want []string
	for n := 1; n <= 30; n++ {
		want = append(want, fmt.Sprint(n))
	}
	if got := sessions()[5:]; !slices.Equal(got, want) {
		t.Errorf("there are %q", got)
	}

	nobody := list(31, 31)
	nobody[0].User, nobody[0].Owner = u+1, u+1
	if _, err := s.AppendGatewayAudit(ctx, "SHA256:edge", "b", 31, nobody); err != nil {
		t.Fatal(err)
	}
	newest, _, err := s.Audit(ctx, compute.AuditQuery{Limit: 1})
	if err != nil || newest[0].User != 0 || newest[0].Owner != 0 {
		t.Errorf("it is of an account that is not there: %+v, %v", newest, err)
	}
	if nobody[0].Owner == 0 {
		t.Error("the caller's record is another")
	}

	// A record that the schema refuses takes the others, and the number, with it.
	bad := list(32, 33)
	bad[1].Action = ""
	if _, err := s.AppendGatewayAudit(ctx, "SHA256:edge", "b", 32, bad); err == nil {
		t.Error("a record without an action is stored")
	}
	if last, err := s.AppendGatewayAudit(ctx, "SHA256:edge", "b", 1, nil); err != nil || last != 31 {
		t.Errorf("the last is %d, %v", last, err)
	}
	if _, err := s.RevokeGateway(ctx, "edge"); err != nil {
		t.Fatal(err)
	}
	_, err = s.AppendGatewayAudit(ctx, "SHA256:edge", "b", 32, list(32, 32))
	wantCode(t, err, compute.CodeNotFound)
	_, err = s.AppendGatewayAudit(ctx, "SHA256:nobody", "b", 1, nil)
	wantCode(t, err, compute.CodeNotFound)
}
