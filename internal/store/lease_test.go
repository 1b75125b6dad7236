package store

import (
	"errors"
	"testing"
	"time"

	"berth/internal/compute"
	"berth/internal/pgtest"
)

const testTTL = time.Minute

// expire lets the lease's time be over.
func expire(t *testing.T, s *Store) {
	t.Helper()
	if _, err := s.leases.Exec(`UPDATE lease SET expires_at = clock_timestamp() - interval '1 second'`); err != nil {
		t.Fatal(err)
	}
}

// At any time one of several has the lease, and one that lost it without knowing writes nothing for the engine any more.
func TestLease(t *testing.T) {
	ctx := t.Context()
	url := pgtest.NewDatabase(t)
	a, b := openAt(t, url, Options{}), openAt(t, url, Options{})
	alice := addUser(t, a, "alice")
	box := addContainer(t, a, alice)

	first, err := a.TakeLease(ctx, "a", "here", testTTL)
	if err != nil || first != 1 {
		t.Fatalf("%d, %v", first, err)
	}
	_, err = b.TakeLease(ctx, "b", "here", testTTL)
	wantCode(t, err, compute.CodeConflict)
	if err := a.RenewLease(ctx, first, testTTL); err != nil {
		t.Fatal(err)
	}
	if err := a.SetStatus(ctx, box.ID, 1, compute.StatusInitializing, ""); err != nil {
		t.Fatal(err)
	}

	expire(t, a)
	wantCode(t, a.RenewLease(ctx, first, testTTL), compute.CodeConflict) // not even when nobody else has it
	wantCode(t, a.SetStatus(ctx, box.ID, 1, compute.StatusRunning, ""), compute.CodeConflict)
	_, err = b.TakeLease(ctx, "b", "there", testTTL)
	if !errors.Is(err, ErrOtherEngine) {
		t.Fatalf("taken from another place: %v", err)
	}
	second, err := b.TakeLease(ctx, "b", "here", testTTL)
	if err != nil || second != 2 {
		t.Fatalf("%d, %v", second, err)
	}
	for name, err := range map[string]error{
		"set a status":   a.SetStatus(ctx, box.ID, 1, compute.StatusRunning, ""),
		"record storage": a.RecordStorage(ctx, box.ID),
		"purge":          a.Purge(ctx, box.ID),
		"renew":          a.RenewLease(ctx, first, testTTL),
	} {
		if err == nil || compute.CodeOf(err) != compute.CodeConflict {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := a.ReleaseLease(ctx, first); err != nil { // it has nothing to release
		t.Fatal(err)
	}
	if c, err := b.ReconcileState(ctx, box.ID); err != nil || c.Status != compute.StatusInitializing || c.StorageMade {
		t.Fatalf("%+v, %v", c, err)
	}
	// What users ask for is stored by whichever is asked.
	if _, err := a.SetDesired(ctx, alice, box.ID, compute.DesiredStopped); err != nil {
		t.Fatal(err)
	}
	if err := b.SetStatus(ctx, box.ID, 2, compute.StatusStopped, ""); err != nil {
		t.Fatal(err)
	}
	if err := b.ReleaseLease(ctx, second); err != nil {
		t.Fatal(err)
	}
	if third, err := a.TakeLease(ctx, "a", "here", testTTL); err != nil || third != 3 {
		t.Fatalf("%d, %v", third, err)
	}
	wantCode(t, b.SetStatus(ctx, box.ID, 2, compute.StatusStopped, "late"), compute.CodeConflict)
}

// The lease does not change hands in the middle of a write that was permitted under it.
func TestLeaseIsKeptThroughAWrite(t *testing.T) {
	ctx := t.Context()
	url := pgtest.NewDatabase(t)
	a, b := openAt(t, url, Options{}), openAt(t, url, Options{})
	if _, err := a.TakeLease(ctx, "a", "here", testTTL); err != nil {
		t.Fatal(err)
	}
	permitted, goesOn, written := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		written <- a.write(ctx, "test", func(tx *tx) error {
			if err := a.fenced(tx); err != nil {
				return err
			}
			close(permitted)
			<-goesOn
			return tx.event(compute.Event{Kind: compute.EventGatewayChanged})
		})
	}()
	<-permitted
	taken := make(chan error, 1)
	go func() {
		if _, err := b.leases.Exec(`UPDATE lease SET expires_at = '-infinity'`); err != nil {
			taken <- err
			return
		}
		_, err := b.TakeLease(ctx, "b", "here", testTTL)
		taken <- err
	}()
	for { // until it waits for the lock
		var waits bool
		err := a.db.QueryRow(`SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'UPDATE lease%')`).Scan(&waits)
		if err != nil {
			t.Fatal(err)
		}
		if waits {
			break
		}
	}
	select {
	case err := <-taken:
		t.Fatalf("the lease was taken in the middle of a write: %v", err)
	default:
	}
	close(goesOn)
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if err := <-taken; err != nil {
		t.Fatal(err)
	}
}

// Of many that want the lease at once, one gets it.
func TestLeaseAtOnce(t *testing.T) {
	url := pgtest.NewDatabase(t)
	var stores []*Store
	for range 5 {
		stores = append(stores, openAt(t, url, Options{}))
	}
	codes := atOnce(20, func(i int) error {
		_, err := stores[i%5].TakeLease(t.Context(), "one of them", "here", testTTL)
		return err
	})
	if codes[""] != 1 || codes[compute.CodeConflict] != 19 {
		t.Fatalf("%v", codes)
	}
}
