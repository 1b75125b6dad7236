package audit

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"berth/internal/compute"
	"berth/internal/store"
)

// follower runs Follow, and stops it when it is told to.
func follower(t *testing.T, s *store.Store, path string, hint Hint) (stop func()) {
	t.Helper()
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Follow(ctx, s, f, hint, slog.New(slog.DiscardHandler)) }()
	return func() {
		cancel()
		if err := errors.Join(<-done, f.Close()); err != nil {
			t.Error(err)
		}
	}
}

// The file has every record once, across ends of the process.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	hint := NewHint()
	s, err := store.Open(t.Context(), filepath.Join(dir, "berth.db"), store.Options{OnAudit: hint.Give})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	path := filepath.Join(dir, "audit.jsonl")
	for range 5 {
		stop := follower(t, s, path, hint)
		for range 3 {
			if err := s.AppendAudit(t.Context(), numbered(1, 100)); err != nil {
				t.Fatal(err)
			}
		}
		stop()
		if err := s.AppendAudit(t.Context(), numbered(1, 10)); err != nil { // nobody copies it now
			t.Fatal(err)
		}
	}
	follower(t, s, path, hint)()
	list := lines(t, path)
	if len(list) != 5*310 {
		t.Fatalf("%d lines", len(list))
	}
	for i, r := range list {
		if int(r["seq"].(float64)) != i+1 {
			t.Fatalf("line %d has the number %v", i+1, r["seq"])
		}
	}

	// A database of before: what is new there is not passed over because its numbers are low.
	old, err := store.Open(t.Context(), filepath.Join(dir, "old.db"), store.Options{OnAudit: hint.Give})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := old.AppendAudit(t.Context(), numbered(1, 4)); err != nil {
		t.Fatal(err)
	}
	follower(t, old, path, hint)()
	stop := follower(t, old, path, hint)
	if err := old.AppendAudit(t.Context(), numbered(1, 2)); err != nil {
		t.Fatal(err)
	}
	stop()
	if list := lines(t, path); len(list) < 5*310+2 || list[len(list)-1]["seq"] != 6.0 {
		t.Errorf("%d lines, the last %v", len(list), list[len(list)-1])
	}
}

// Prune removes all that is too old at once, however much it is.
func TestPrune(t *testing.T) {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "berth.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.AppendAudit(t.Context(), numbered(1, 2500)); err != nil {
		t.Fatal(err)
	}
	fresh := login("192.0.2.1:1")
	if err := s.AppendAudit(t.Context(), []compute.AuditRecord{fresh}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	watched := &pruned{Store: s, done: make(chan struct{}, 1)}
	ended := make(chan error, 1)
	go func() {
		ended <- Prune(ctx, watched, compute.AuditRetention{Age: time.Hour, PerClass: 1000}, slog.New(slog.DiscardHandler))
	}()
	<-watched.done
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	list, _, err := s.Audit(t.Context(), compute.AuditQuery{Limit: 10})
	if err != nil || len(list) != 1 || list[0].Seq != 2501 {
		t.Errorf("%+v %v", list, err)
	}
}

// pruned tells when there is nothing more to prune.
type pruned struct {
	Store
	done chan struct{}
}

func (p *pruned) PruneAudit(ctx context.Context, keep compute.AuditRetention) (bool, error) {
	more, err := p.Store.PruneAudit(ctx, keep)
	if err == nil && !more {
		select {
		case p.done <- struct{}{}:
		default:
		}
	}
	return more, err
}
