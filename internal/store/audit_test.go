package store

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"berth/internal/compute"
)

// acting returns a context in which somebody does something, and the act.
func acting(ctx context.Context, p compute.Principal, action string) (context.Context, *compute.Act) {
	act := &compute.Act{Record: compute.AuditRecord{
		Action: action, Source: "192.0.2.1:5000", Via: compute.ViaREST, Gateway: "g", Request: "R1",
	}}
	act.By(p, "token", "T1")
	return compute.WithAct(ctx, act), act
}

func records(t testing.TB, r *Reader, q compute.AuditQuery) []compute.AuditRecord {
	t.Helper()
	if q.Limit == 0 {
		q.Limit = 10_000
	}
	list, _, err := r.Audit(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// A change and its record are one transaction, whatever kind of change.
func TestChangesAreRecorded(t *testing.T) {
	clk := newClock()
	var audited atomic.Int64
	s := openNew(t, Options{Now: clk.now, OnAudit: func() { audited.Add(1) }})
	alice := addUser(t, s, "alice")
	p := compute.Principal{User: alice, Username: "alice", Role: compute.RoleUser}
	key := addKey(t, s, alice, "one")
	box := addContainer(t, s, alice, key)
	if n := len(records(t, s.Reader, compute.AuditQuery{})); n != 0 || s.listener == nil && audited.Load() != 0 {
		t.Fatalf("%d records of what nobody is known to have done", n)
	}
	for i, step := range []struct {
		action string
		do     func(ctx context.Context) error
		target string
		box    compute.ContainerID
	}{
		{"addSSHKey", func(ctx context.Context) error {
			_, err := s.AddKey(ctx, keyNamed(alice, "two"), 10)
			return err
		}, "ssh_key:2", ""},
		{"setSSHAccess", func(ctx context.Context) error {
			_, err := s.SetSSH(ctx, alice, box.ID, false)
			return err
		}, "", box.ID},
		{"setMountPaths", func(ctx context.Context) error {
			_, _, err := s.SetMountPaths(ctx, alice, box.ID, []string{"/srv"})
			return err
		}, "", box.ID},
		{"addIngressRule", func(ctx context.Context) error {
			_, err := s.AddIngressRule(ctx, alice, box.ID, compute.IngressRule{Port: 443, TargetPort: 443}, 10)
			return err
		}, "", box.ID},
		{"removeIngressRule", func(ctx context.Context) error { return s.DeleteIngressRule(ctx, alice, box.ID, 443) }, "", box.ID},
		{"stopContainer", func(ctx context.Context) error {
			_, err := s.SetDesired(ctx, alice, box.ID, compute.DesiredStopped)
			return err
		}, "", box.ID},
		{"addToken", func(ctx context.Context) error { return s.AddToken(ctx, tokenOf(alice, "A1", clk.now()), 3) }, "token:A1", ""},
		{"revokeToken", func(ctx context.Context) error { return s.RevokeToken(ctx, alice, "A1") }, "token:A1", ""},
		{"deleteSSHKey", func(ctx context.Context) error { return s.DeleteKey(ctx, alice, key) }, "ssh_key:1", ""},
		{"deleteContainer", func(ctx context.Context) error {
			_, err := s.SetDesired(ctx, alice, box.ID, compute.DesiredDeleted)
			return err
		}, "", box.ID},
	} {
		ctx, act := acting(t.Context(), p, step.action)
		if err := step.do(ctx); err != nil {
			t.Fatalf("%s: %v", step.action, err)
		}
		if _, still := act.Ended(nil); still {
			t.Errorf("%s does not count as recorded", step.action)
		}
		list := records(t, s.Reader, compute.AuditQuery{})
		want := compute.AuditRecord{
			Seq: int64(i) + 1, At: clk.now(), Action: step.action, Outcome: compute.OutcomeAllowed, User: alice, Username: "alice",
			Owner: alice, OwnerName: "alice", Credential: "token", CredentialID: "T1", Source: "192.0.2.1:5000", Via: "rest",
			Gateway: "g", Request: "R1", Container: step.box, Target: step.target, Count: 1,
		}
		if len(list) != i+1 || !reflect.DeepEqual(list[0], want) {
			t.Fatalf("%s left %d records, the newest %+v; want %+v", step.action, len(list), list[0], want)
		}
	}
	if n := audited.Load(); n < 10 || s.listener == nil && n > 10 { // a listener tells of them once more
		t.Errorf("told of %d commits with records", n)
	}
}

// What is rolled back leaves no record, and what changes nothing leaves it to its caller to record that.
func TestRefusedChangesAreNotRecorded(t *testing.T) {
	s := openNew(t, Options{})
	alice := addUser(t, s, "alice")
	p := compute.Principal{User: alice}
	addKey(t, s, alice, "one")
	ctx, act := acting(t.Context(), p, "addSSHKey")
	_, err := s.AddKey(ctx, keyNamed(alice, "one"), 10)
	wantCode(t, err, compute.CodeConflict)
	r, still := act.Ended(err)
	if !still || r.Outcome != compute.OutcomeFailed || r.Code != compute.CodeConflict || r.User != alice {
		t.Errorf("%+v %v", r, still)
	}
	ctx, act = acting(t.Context(), p, "enableUser")
	if _, err := s.SetUserDisabled(ctx, alice, false); err != nil {
		t.Fatal(err)
	}
	if r, still := act.Ended(nil); !still || r.Outcome != compute.OutcomeAllowed {
		t.Errorf("%+v %v", r, still)
	}
	if list := records(t, s.Reader, compute.AuditQuery{}); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	if last, err := s.LastAudit(t.Context()); err != nil || last != 0 {
		t.Errorf("the counter is at %d, %v", last, err)
	}
}

// An account that is made at a sign-in is recorded as that, not as what was asked for with it.
func TestProvisioningIsRecorded(t *testing.T) {
	s := openNew(t, Options{})
	act := &compute.Act{Record: compute.AuditRecord{Action: "listContainers", Source: "192.0.2.1:5000", Via: compute.ViaREST}}
	u, err := s.Provision(compute.WithAct(t.Context(), act), "https://issuer", "subject", []string{"carol"})
	if err != nil {
		t.Fatal(err)
	}
	list := records(t, s.Reader, compute.AuditQuery{})
	if len(list) != 1 || list[0].Action != compute.ActionProvisionUser || list[0].Owner != u.ID || list[0].Username != "carol" ||
		list[0].Source != "192.0.2.1:5000" || list[0].Target != "user:carol" {
		t.Errorf("%+v", list)
	}
	if _, still := act.Ended(nil); !still {
		t.Error("the request counts as recorded")
	}
	if _, err := s.Provision(t.Context(), "https://issuer", "subject", []string{"carol"}); err != nil {
		t.Fatal(err)
	}
	if n := len(records(t, s.Reader, compute.AuditQuery{})); n != 1 {
		t.Errorf("a second sign-in left %d records", n)
	}
}

func refusalOf(owner compute.UserID, container compute.ContainerID, at time.Time) compute.AuditRecord {
	return compute.AuditRecord{
		At: at, Action: compute.ActionLogin, Outcome: compute.OutcomeDenied, Code: compute.CodeUnauthenticated, Owner: owner,
		Via: compute.ViaSSH, Container: container,
	}
}

func numbers(list []compute.AuditRecord) string {
	var out []string
	for _, r := range list {
		out = append(out, fmt.Sprint(r.Seq))
	}
	return strings.Join(out, " ")
}

func TestAuditQueries(t *testing.T) {
	clk := newClock()
	s := openNew(t, Options{Now: clk.now})
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")
	at := func(minute int) time.Time { return clk.now().Add(time.Duration(minute) * time.Minute) }
	session := compute.AuditRecord{
		At: at(3), Action: compute.ActionSessionEnd, Outcome: compute.OutcomeAllowed, User: bob, Owner: bob, Via: compute.ViaSSH,
		Container: "a1b2c3d4", Session: "S", SessionKind: "exec", Duration: 1500 * time.Millisecond,
	}
	many := refusalOf(0, "", at(4))
	many.Count, many.Until = 7, at(5)
	if err := s.AppendAudit(t.Context(), []compute.AuditRecord{
		refusalOf(alice, "", at(1)), refusalOf(bob, "a1b2c3d4", at(2)), session, many,
	}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		q    compute.AuditQuery
		want string
	}{
		"all":         {compute.AuditQuery{}, "4 3 2 1"},
		"onwards":     {compute.AuditQuery{OldestFirst: true}, "1 2 3 4"},
		"limit":       {compute.AuditQuery{Limit: 2}, "4 3"},
		"older":       {compute.AuditQuery{Before: 3}, "2 1"},
		"newer":       {compute.AuditQuery{After: 1, OldestFirst: true, Limit: 2}, "2 3"},
		"owner":       {compute.AuditQuery{Owner: bob}, "3 2"},
		"container":   {compute.AuditQuery{Container: "a1b2c3d4"}, "3 2"},
		"action":      {compute.AuditQuery{Action: compute.ActionLogin}, "4 2 1"},
		"outcome":     {compute.AuditQuery{Outcome: compute.OutcomeAllowed}, "3"},
		"since":       {compute.AuditQuery{Since: at(2)}, "4 3 2"},
		"until":       {compute.AuditQuery{Until: at(2)}, "1"},
		"all of them": {compute.AuditQuery{Owner: bob, Container: "a1b2c3d4", Action: compute.ActionLogin, Since: at(1), Until: at(3)}, "2"},
		"none":        {compute.AuditQuery{Owner: alice, Container: "a1b2c3d4"}, ""},
	} {
		if got := numbers(records(t, s.Reader, c.q)); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
	list := records(t, s.Reader, compute.AuditQuery{})
	session.Seq, session.Count, session.Username, session.OwnerName = 3, 1, "bob", "bob"
	if !reflect.DeepEqual(list[1], session) {
		t.Errorf("got %+v, want %+v", list[1], session)
	}
	if list[0].Count != 7 || !list[0].Until.Equal(at(5)) {
		t.Errorf("%+v", list[0])
	}
}

// Pages go on from one another, miss nothing and repeat nothing, however few records a question looks at.
func TestAuditPagesAreComplete(t *testing.T) {
	s := openNew(t, Options{})
	rapid.Check(t, func(rt *rapid.T) {
		if err := s.write(t.Context(), "empty", func(tx *tx) error {
			_, err := tx.exec(`DELETE FROM audit`)
			return err
		}); err != nil {
			rt.Fatal(err)
		}
		var list []compute.AuditRecord
		for range rapid.IntRange(0, 40).Draw(rt, "records") {
			list = append(list, compute.AuditRecord{
				At: time.UnixMilli(rapid.Int64Range(1, 9).Draw(rt, "at")), Action: rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "action"),
				Outcome:   rapid.SampledFrom([]compute.Outcome{compute.OutcomeAllowed, compute.OutcomeDenied}).Draw(rt, "outcome"),
				Owner:     compute.UserID(rapid.IntRange(0, 2).Draw(rt, "owner")),
				Container: rapid.SampledFrom([]compute.ContainerID{"", "a1b2c3d4"}).Draw(rt, "container"),
			})
		}
		if err := s.AppendAudit(t.Context(), list); err != nil {
			rt.Fatal(err)
		}
		q := compute.AuditQuery{
			Owner: compute.UserID(rapid.IntRange(0, 2).Draw(rt, "of owner")), OldestFirst: rapid.Bool().Draw(rt, "oldest first"),
			Container: rapid.SampledFrom([]compute.ContainerID{"", "a1b2c3d4"}).Draw(rt, "of container"),
			Action:    rapid.SampledFrom([]string{"", "a"}).Draw(rt, "of action"),
			Outcome:   rapid.SampledFrom([]compute.Outcome{"", compute.OutcomeDenied}).Draw(rt, "of outcome"),
			Limit:     rapid.IntRange(1, 10).Draw(rt, "limit"),
		}
		if at := rapid.Int64Range(0, 9).Draw(rt, "since"); at > 0 {
			q.Since = time.UnixMilli(at)
		}
		if at := rapid.Int64Range(0, 9).Draw(rt, "until"); at > 0 {
			q.Until = time.UnixMilli(at)
		}
		window := rapid.IntRange(1, 50).Draw(rt, "window")
		want := map[int64]bool{}
		all, _, err := s.Audit(t.Context(), compute.AuditQuery{Limit: 100})
		if err != nil {
			rt.Fatal(err)
		}
		for _, r := range all {
			if (q.Owner == 0 || r.Owner == q.Owner) && (q.Container == "" || r.Container == q.Container) &&
				(q.Action == "" || r.Action == q.Action) && (q.Outcome == "" || r.Outcome == q.Outcome) &&
				(q.Since.IsZero() || !r.At.Before(q.Since)) && (q.Until.IsZero() || r.At.Before(q.Until)) {
				want[r.Seq] = true
			}
		}
		last := int64(0)
		for pages := 0; ; pages++ {
			page, next, err := s.auditWithin(t.Context(), q, window)
			if err != nil || len(page) > q.Limit || pages > 100 {
				rt.Fatalf("page %d: %d records, %v", pages, len(page), err)
			}
			for _, r := range page {
				if !want[r.Seq] || last != 0 && (r.Seq > last) != q.OldestFirst {
					rt.Fatalf("record %d after %d does not belong there", r.Seq, last)
				}
				delete(want, r.Seq)
				last = r.Seq
			}
			if next == 0 {
				break
			}
			if q.Before = next; q.OldestFirst {
				q.Before, q.After = 0, next
			}
		}
		if len(want) != 0 {
			rt.Fatalf("the pages of %+v lack %v", q, want)
		}
	})
}

// A record's texts are bounded, at whole characters.
func TestAuditRecordsAreBounded(t *testing.T) {
	s := openNew(t, Options{})
	r := refusalOf(0, compute.ContainerID(strings.Repeat("a", 1000)), time.Time{})
	r.CredentialID, r.Target, r.Source = strings.Repeat("é", 1000), strings.Repeat("x", 1<<20), strings.Repeat("y", 1<<20)
	if err := s.AppendAudit(t.Context(), []compute.AuditRecord{r}); err != nil {
		t.Fatal(err)
	}
	got := records(t, s.Reader, compute.AuditQuery{})[0]
	if got.CredentialID != strings.Repeat("é", 64) || len(got.Target) != 128 || len(got.Source) != 128 || len(got.Container) != 16 || got.At.IsZero() {
		t.Errorf("%+v", got)
	}
}

func prune(t testing.TB, s *Store, keep compute.AuditRetention) (passes int) {
	t.Helper()
	for {
		more, err := s.PruneAudit(t.Context(), keep)
		if err != nil {
			t.Fatal(err)
		}
		if passes++; !more {
			return passes
		}
	}
}

func TestOldAuditRecordsGo(t *testing.T) {
	clk := newClock()
	s := openNew(t, Options{Now: clk.now})
	var list []compute.AuditRecord
	for i := range auditBatch + 10 {
		list = append(list, refusalOf(compute.UserID(i%3), "", clk.now()))
	}
	if err := s.AppendAudit(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	keep := compute.AuditRetention{Age: time.Hour, PerClass: 1 << 40}
	clk.add(time.Hour)
	if err := s.AppendAudit(t.Context(), list[:1:1]); err != nil { // late news, as old as the others
		t.Fatal(err)
	}
	if err := s.AppendAudit(t.Context(), []compute.AuditRecord{refusalOf(0, "", clk.now())}); err != nil {
		t.Fatal(err)
	}
	if prune(t, s, keep) != 1 || len(records(t, s.Reader, compute.AuditQuery{})) != auditBatch+12 {
		t.Error("records go before their time")
	}
	clk.add(time.Millisecond)
	if n := prune(t, s, keep); n != 2 {
		t.Errorf("%d passes", n)
	}
	if got := numbers(records(t, s.Reader, compute.AuditQuery{})); got != fmt.Sprint(auditBatch+12) {
		t.Errorf("left are %s", got)
	}
	if last, err := s.LastAudit(t.Context()); err != nil || last != auditBatch+12 {
		t.Errorf("the counter is at %d, %v", last, err)
	}
}

// Who makes many records pushes out their own alone, and only those of the same class.
func TestTooManyAuditRecords(t *testing.T) {
	clk := newClock()
	s := openNew(t, Options{Now: clk.now})
	loud, quiet := compute.UserID(7), compute.UserID(8)
	session := func(owner compute.UserID) compute.AuditRecord {
		return compute.AuditRecord{
			Action: compute.ActionSessionOpen, Outcome: compute.OutcomeAllowed, User: owner, Owner: owner, Via: compute.ViaSSH,
		}
	}
	change := compute.AuditRecord{Action: "deleteContainer", Outcome: compute.OutcomeAllowed, User: loud, Owner: loud, Via: compute.ViaREST}
	list := []compute.AuditRecord{session(quiet), session(quiet), change, refusalOf(0, "", clk.now())}
	for range 2*auditBatch + 500 {
		list = append(list, session(loud))
	}
	if err := s.AppendAudit(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	if n := prune(t, s, compute.AuditRetention{Age: time.Hour, PerClass: 100}); n != 3 {
		t.Errorf("%d passes", n)
	}
	left := records(t, s.Reader, compute.AuditQuery{OldestFirst: true})
	if len(left) != 4+98 || numbers(left[:4]) != "1 2 3 4" || left[4].Seq != int64(len(list))-97 {
		t.Errorf("%d are left: %s", len(left), numbers(left))
	}
}

// The level is as the words say: found by trying, in another way.
func TestWaterLevel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		counts := rapid.SliceOfN(rapid.Int64Range(0, 30), 1, 8).Draw(t, "counts")
		limit := rapid.Int64Range(0, 100).Draw(t, "limit")
		cut := func(level int64) (sum int64) {
			for _, n := range counts {
				sum += min(n, level)
			}
			return sum
		}
		got := waterLevel(counts, limit)
		most := int64(0)
		for _, n := range counts {
			most = max(most, n)
		}
		if cut(got) > limit || got < most && cut(got+1) <= limit {
			t.Fatalf("level %d of %v within %d", got, counts, limit)
		}
	})
}
