package store

import (
	"testing"

	"berth/internal/compute"
)

// A container's history is its own, in order, and says when a part of it is gone.
func TestContainerHistory(t *testing.T) {
	s := openNew(t, Options{KeepEvents: 10})
	ctx := t.Context()
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")
	c := addContainer(t, s, alice, addKey(t, s, alice, "one"))
	statuses := func(after int64, limit int) (list []compute.Status, h compute.History) {
		t.Helper()
		h, err := s.ContainerHistory(ctx, alice, c.ID, after, limit)
		if err != nil {
			t.Fatal(err)
		}
		last := after
		for _, e := range h.Events {
			if e.Seq <= last || e.Container != c.ID || e.Kind != compute.EventContainerStatus {
				t.Errorf("%+v after %d", e, last)
			}
			last = e.Seq
			list = append(list, e.Status)
		}
		return list, h
	}
	if list, h := statuses(0, 100); len(list) != 1 || list[0] != compute.StatusPending || h.Missed || h.Container.ID != c.ID {
		t.Errorf("%v, %+v", list, h)
	}
	if err := s.SetStatus(ctx, c.ID, 1, compute.StatusRunning, ""); err != nil {
		t.Fatal(err)
	}
	list, h := statuses(0, 100)
	if len(list) != 3 || list[2] != compute.StatusRunning || h.Container.Status != compute.StatusRunning {
		t.Errorf("%v, %+v", list, h)
	}
	if list, _ := statuses(h.Events[0].Seq, 1); len(list) != 1 || list[0] != compute.StatusInitializing {
		t.Errorf("%v", list)
	}
	if list, again := statuses(h.Seq, 100); len(list) != 0 || again.Missed || again.Seq != h.Seq {
		t.Errorf("%v, %+v", list, again)
	}
	if _, h := statuses(h.Seq+1, 100); !h.Missed {
		t.Error("what is to come is known")
	}
	for i := range 2 * pruneEvery {
		if err := s.SetStatus(ctx, c.ID, 1, compute.StatusFailed, string(rune('a'+i%26))); err != nil {
			t.Fatal(err)
		}
	}
	if _, h := statuses(1, 100); !h.Missed {
		t.Error("nothing is missed of what was removed")
	}
	if _, err := s.ContainerHistory(ctx, bob, c.ID, 0, 1); compute.CodeOf(err) != compute.CodeNotFound {
		t.Errorf("another's: %v", err)
	}
	if _, err := s.SetDesired(ctx, alice, c.ID, compute.DesiredDeleted); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ContainerHistory(ctx, alice, c.ID, 0, 1); compute.CodeOf(err) != compute.CodeNotFound {
		t.Errorf("deleted: %v", err)
	}
}
