package store

import (
	"sync/atomic"
	"testing"
	"time"

	"berth/internal/compute"
)

// Old events go, in small steps; the newest stay, so that a reader that was left behind sees a gap.
func TestEventsAreBounded(t *testing.T) {
	ctx := t.Context()
	const keep = 10
	s := openNew(t, Options{KeepEvents: keep})
	hasten(t, s)
	alice := addUser(t, s, "alice")
	c := addContainer(t, s, alice, addKey(t, s, alice, "one"))
	for i := range 3 * pruneEvery {
		if _, err := s.SetSSH(ctx, alice, c.ID, i%2 == 1); err != nil {
			t.Fatal(err)
		}
		var rows int64
		if err := s.db.QueryRow(`SELECT count(*) FROM events`).Scan(&rows); err != nil || rows > keep+pruneEvery {
			t.Fatalf("%d events are kept; %v", rows, err)
		}
	}
	last, err := s.LastEvent(ctx)
	if err != nil || last != 4+3*pruneEvery {
		t.Fatalf("last event %d, %v", last, err)
	}
	list, err := s.Events(ctx, 1, 1)
	if err != nil || len(list) != 1 || list[0].Seq == 2 {
		t.Fatalf("a reader that stands at 1 sees no gap: %+v %v", list, err)
	}
	list, err = s.Events(ctx, last-keep, 2*keep)
	if err != nil || len(list) != keep || list[0].Seq != last-keep+1 {
		t.Fatalf("the newest %d are not all there: %d, %v", keep, len(list), err)
	}
	if list, err := s.Events(ctx, last, 10); err != nil || len(list) != 0 {
		t.Fatalf("after the last: %+v %v", list, err)
	}
}

func TestOnCommit(t *testing.T) {
	ctx := t.Context()
	var calls atomic.Int64
	var s *Store
	s = openNew(t, Options{OnCommit: func() {
		calls.Add(1)
		if _, err := s.LastEvent(ctx); err != nil { // the commit is visible, and nothing is held
			t.Error(err)
		}
	}})
	alice := addUser(t, s, "alice")
	if n := calls.Load(); n != 1 {
		t.Fatalf("%d calls after one commit", n)
	}
	if _, err := s.SetUserDisabled(ctx, alice, false); err != nil { // changes nothing
		t.Fatal(err)
	}
	_, err := s.CreateUser(ctx, "alice", compute.RoleUser) // refused
	wantCode(t, err, compute.CodeConflict)
	if n := calls.Load(); n != 1 {
		t.Fatalf("%d calls, for transactions without events too", n)
	}
}

// The number orders events; the time only tells when, and a clock may be set back.
func TestEventsAreOrderedByNumber(t *testing.T) {
	clk := newClock()
	s := openNew(t, Options{Now: clk.now})
	for _, name := range []string{"alice", "bob", "carol"} {
		addUser(t, s, name)
		clk.add(-time.Hour)
	}
	for i, e := range allEvents(t, s.Reader) {
		if e.Seq != int64(i)+1 || e.Owner != compute.UserID(i+1) {
			t.Fatalf("event %d is %+v", i+1, e)
		}
	}
}
