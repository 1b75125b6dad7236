package store

import (
	"fmt"
	"slices"
	"testing"

	"berth/internal/compute"
)

// Other paths are a new generation; they show as pending where the container is to run, and change nothing else.
func TestSetMountPaths(t *testing.T) {
	ctx := t.Context()
	for _, desired := range []compute.Desired{compute.DesiredRunning, compute.DesiredStopped} {
		for _, status := range []compute.Status{pending, initializing, running, stopped, failed} {
			t.Run(fmt.Sprintf("%s %s", desired, status), func(t *testing.T) {
				s := openNew(t, Options{})
				alice := addUser(t, s, "alice")
				c := addContainer(t, s, alice, addKey(t, s, alice, "one"))
				if _, err := s.SetDesired(ctx, alice, c.ID, desired); err != nil {
					t.Fatal(err)
				}
				c, err := s.Container(ctx, alice, c.ID)
				if err != nil {
					t.Fatal(err)
				}
				if err := s.SetStatus(ctx, c.ID, c.Generation, status, "because"); err != nil {
					t.Fatal(err)
				}
				before, err := s.LastEvent(ctx)
				if err != nil {
					t.Fatal(err)
				}
				for _, same := range [][]string{{"/root", "/var/data"}, {"/var/data", "/root"}} {
					got, changed, err := s.SetMountPaths(ctx, alice, c.ID, same)
					if err != nil || changed || got.Generation != c.Generation || !slices.Equal(got.MountPaths, c.MountPaths) {
						t.Fatalf("the same paths: %+v, %v, %v", got, changed, err)
					}
				}
				if last, err := s.LastEvent(ctx); err != nil || last != before {
					t.Fatalf("the same paths are %d events, %v", last-before, err)
				}

				got, changed, err := s.SetMountPaths(ctx, alice, c.ID, []string{"/srv"})
				if err != nil || !changed || got.Generation != c.Generation+1 || got.Desired != desired ||
					!slices.Equal(got.MountPaths, []string{"/srv"}) {
					t.Fatalf("other paths: %+v, %v, %v", got, changed, err)
				}
				wantStatus, wantMessage := status, "because"
				if desired == compute.DesiredRunning {
					wantStatus, wantMessage = pending, ""
				}
				stored, err := s.Container(ctx, alice, c.ID)
				if err != nil || stored.Status != wantStatus || stored.StatusMessage != wantMessage ||
					stored.Generation != got.Generation || !slices.Equal(stored.MountPaths, got.MountPaths) {
					t.Fatalf("stored %+v, %v", stored, err)
				}
				// What was observed of the run before is no longer applied.
				if err := s.SetStatus(ctx, c.ID, c.Generation, failed, "late"); err != nil {
					t.Fatal(err)
				}
				if again, err := s.Container(ctx, alice, c.ID); err != nil || again.Status != wantStatus {
					t.Fatalf("a late observation was applied: %+v, %v", again, err)
				}
			})
		}
	}
}

func TestSetMountPathsOfOthers(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")
	c := addContainer(t, s, alice, addKey(t, s, alice, "one"))
	for as, id := range map[compute.UserID]compute.ContainerID{bob: c.ID, alice: "ffffffff"} {
		_, changed, err := s.SetMountPaths(ctx, as, id, []string{"/srv"})
		wantCode(t, err, compute.CodeNotFound)
		if changed {
			t.Error("it says that something changed")
		}
	}
	got, changed, err := s.SetMountPaths(ctx, alice, c.ID, nil)
	if err != nil || !changed || got.MountPaths == nil || len(got.MountPaths) != 0 {
		t.Fatalf("no paths: %+v, %v, %v", got, changed, err)
	}
	if _, err := s.SetDesired(ctx, alice, c.ID, compute.DesiredDeleted); err != nil {
		t.Fatal(err)
	}
	_, _, err = s.SetMountPaths(ctx, alice, c.ID, []string{"/srv"})
	wantCode(t, err, compute.CodeNotFound)
}
