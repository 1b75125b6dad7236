package store

import (
	"fmt"
	"slices"
	"testing"

	"berth/internal/compute"
)

const (
	pending      = compute.StatusPending
	initializing = compute.StatusInitializing
	running      = compute.StatusRunning
	stopped      = compute.StatusStopped
	failed       = compute.StatusFailed
)

// statusesAfter returns what the stream said of a container's status after an event, as "status" or "status: message".
func statusesAfter(t *testing.T, s *Store, after int64, id compute.ContainerID) []string {
	t.Helper()
	var list []string
	for _, e := range allEvents(t, s.Reader) {
		if e.Seq <= after || e.Kind != compute.EventContainerStatus || e.Container != id {
			continue
		}
		if e.StatusMessage != "" {
			list = append(list, fmt.Sprintf("%s: %s", e.Status, e.StatusMessage))
		} else {
			list = append(list, string(e.Status))
		}
	}
	return list
}

func TestSetStatusSkipsNothing(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	alice := addUser(t, s, "alice")
	c := addContainer(t, s, alice, addKey(t, s, alice, "one"))
	if got := statusesAfter(t, s, 0, c.ID); !slices.Equal(got, []string{"pending"}) {
		t.Fatalf("after the create: %v", got)
	}
	for _, step := range []struct {
		generation int64
		to         compute.Status
		message    string
		want       []string
	}{
		{1, running, "", []string{"initializing", "running"}},
		{1, running, "", nil},
		{2, stopped, "", nil}, // a generation that is not this row's
		{0, stopped, "", nil},
		{1, running, "slow disk", []string{"running: slow disk"}},
		{1, pending, "It ended.", []string{"pending: It ended."}},
		{1, pending, "", []string{"pending"}},
		{1, initializing, "", []string{"initializing"}},
		{1, running, "", []string{"running"}},
		{1, initializing, "", []string{"pending", "initializing"}},
		{1, failed, "no arm64 node", []string{"failed: no arm64 node"}},
		{1, failed, "no arm64 node", nil},
		{1, running, "", []string{"pending", "initializing", "running"}},
		{1, stopped, "idle", []string{"stopped: idle"}},
		{1, running, "at last", []string{"pending", "initializing", "running: at last"}},
	} {
		before, err := s.LastEvent(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SetStatus(ctx, c.ID, step.generation, step.to, step.message); err != nil {
			t.Fatalf("%+v: %v", step, err)
		}
		if got := statusesAfter(t, s, before, c.ID); !slices.Equal(got, step.want) {
			t.Fatalf("%+v: got %v", step, got)
		}
	}
	got, err := s.Container(ctx, alice, c.ID)
	if err != nil || got.Status != running || got.StatusMessage != "at last" {
		t.Fatalf("%+v %v", got, err)
	}
	wantCode(t, s.SetStatus(ctx, c.ID, 1, "lost", ""), compute.CodeInvalid)
}

func TestSetDesired(t *testing.T) {
	ctx := t.Context()
	const run, stop = compute.DesiredRunning, compute.DesiredStopped
	for _, from := range []struct {
		desired compute.Desired
		status  compute.Status
	}{
		{run, pending},
		{run, initializing},
		{run, running},
		{run, failed},
		{run, stopped},
		{stop, pending},
		{stop, initializing},
		{stop, running},
		{stop, failed},
		{stop, stopped},
	} {
		for _, to := range []compute.Desired{run, stop} {
			t.Run(fmt.Sprintf("%s %s to %s", from.desired, from.status, to), func(t *testing.T) {
				s := openNew(t, Options{})
				alice := addUser(t, s, "alice")
				c := addContainer(t, s, alice, addKey(t, s, alice, "one"))
				if from.desired == stop {
					var err error
					if c, err = s.SetDesired(ctx, alice, c.ID, stop); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.SetStatus(ctx, c.ID, c.Generation, from.status, "because"); err != nil {
					t.Fatal(err)
				}
				before, err := s.LastEvent(ctx)
				if err != nil {
					t.Fatal(err)
				}
				got, err := s.SetDesired(ctx, alice, c.ID, to)
				if err != nil {
					t.Fatal(err)
				}
				after, err := s.LastEvent(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if from.desired == to && (to == stop || from.status != failed) {
					if got.Generation != c.Generation || got.Status != from.status || after != before {
						t.Fatalf("something changed: %+v, %d events", got, after-before)
					}
					return
				}
				if got.Desired != to || got.Generation != c.Generation+1 {
					t.Fatalf("not stored as desired: %+v", got)
				}
				wantStatus, wantMessage := from.status, "because" // a stop leaves it to what is observed
				if to == run {
					wantStatus, wantMessage = pending, ""
				}
				if got.Status != wantStatus || got.StatusMessage != wantMessage {
					t.Fatalf("status %q %q, want %q %q", got.Status, got.StatusMessage, wantStatus, wantMessage)
				}
				stored, err := s.Container(ctx, alice, c.ID)
				if err != nil || stored.Status != got.Status || stored.Generation != got.Generation {
					t.Fatalf("stored %+v, returned %+v, %v", stored, got, err)
				}
				// What was observed of the older generation is no longer applied.
				if err := s.SetStatus(ctx, c.ID, c.Generation, failed, "late"); err != nil {
					t.Fatal(err)
				}
				if last, err := s.LastEvent(ctx); err != nil || last != after {
					t.Fatalf("a late observation was applied: %d events, %v", last-after, err)
				}
			})
		}
	}
	s := openNew(t, Options{})
	alice := addUser(t, s, "alice")
	c := addContainer(t, s, alice, addKey(t, s, alice, "one"))
	_, err := s.SetDesired(ctx, alice, c.ID, "gone")
	wantCode(t, err, compute.CodeInvalid)
}
