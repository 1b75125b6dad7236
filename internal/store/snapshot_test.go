package store

import (
	"maps"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"berth/internal/compute"
)

// shown is the statuses of an owner's containers, as a list or the events up to a number tell them.
type shown map[compute.ContainerID]compute.Status

// replay is what the owner's events up to the number seq make.
func replay(events []compute.Event, owner compute.UserID, seq int64) shown {
	at := shown{}
	for _, e := range events {
		if e.Seq > seq || e.Owner != owner {
			continue
		}
		switch e.Kind {
		case compute.EventContainerStatus:
			at[e.Container] = e.Status
		case compute.EventContainerDeleted:
			delete(at, e.Container)
		}
	}
	return at
}

// A list with a number shows exactly the events up to it, whatever commits meanwhile.
func TestContainersAt(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")
	keys := map[compute.UserID]int64{alice: addKey(t, s, alice, "one"), bob: addKey(t, s, bob, "two")}
	type snapshot struct {
		seq int64
		at  shown
	}
	var (
		g         errgroup.Group
		mu        sync.Mutex
		snapshots []snapshot
		written   = make(chan struct{})
	)
	for range 2 {
		g.Go(func() error {
			for {
				list, seq, err := s.ContainersAt(ctx, alice)
				if err != nil {
					return err
				}
				at := shown{}
				for _, c := range list {
					at[c.ID] = c.Status
				}
				mu.Lock()
				snapshots = append(snapshots, snapshot{seq, at})
				mu.Unlock()
				select {
				case <-written:
					return nil
				default:
				}
			}
		})
	}
	var writers errgroup.Group
	for owner, key := range keys {
		writers.Go(func() error {
			for range 6 {
				c, err := s.CreateContainer(ctx, boxOf(owner, key), 3)
				if err != nil {
					return err
				}
				for _, status := range []compute.Status{compute.StatusRunning, compute.StatusStopped, compute.StatusInitializing} {
					if err := s.SetStatus(ctx, c.ID, c.Generation, status, ""); err != nil {
						return err
					}
				}
				if _, err := s.SetDesired(ctx, owner, c.ID, compute.DesiredDeleted); err != nil {
					return err
				}
				if err := s.Purge(ctx, c.ID); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := writers.Wait()
	close(written)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	events := allEvents(t, s.Reader)
	for _, got := range snapshots {
		if want := replay(events, alice, got.seq); !maps.Equal(got.at, want) {
			t.Fatalf("at event %d the list shows %v, the events %v", got.seq, got.at, want)
		}
	}
	if list, seq, err := s.ContainersAt(ctx, 4242); err != nil || list == nil || len(list) != 0 || seq != events[len(events)-1].Seq {
		t.Errorf("of nobody: %v, %d, %v", list, seq, err)
	}
}
