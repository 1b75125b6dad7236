package store

import (
	"sync"
	"testing"
	"time"

	"berth/internal/compute"
)

func TestGateways(t *testing.T) {
	ctx := t.Context()
	c := newClock()
	s := openNew(t, Options{Now: c.now})
	made, err := s.AddGateway(ctx, "edge", "SHA256:one")
	if err != nil || made.Name != "edge" || made.Fingerprint != "SHA256:one" || made.Revoked() || !made.SeenAt.IsZero() {
		t.Fatalf("AddGateway = %+v, %v", made, err)
	}
	_, err = s.AddGateway(ctx, "edge", "SHA256:two")
	wantCode(t, err, compute.CodeConflict)
	_, err = s.AddGateway(ctx, "other", "SHA256:one")
	wantCode(t, err, compute.CodeConflict)
	_, err = s.AddGateway(ctx, "No Name", "SHA256:three")
	wantCode(t, err, compute.CodeInvalid)
	_, err = s.Gateway(ctx, "SHA256:two")
	wantCode(t, err, compute.CodeNotFound)
	_, err = s.RevokeGateway(ctx, "nobody")
	wantCode(t, err, compute.CodeNotFound)

	before, err := s.LastEvent(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c.add(time.Minute)
	if err := s.SeeGateway(ctx, "SHA256:one"); err != nil {
		t.Fatal(err)
	}
	if g, err := s.Gateway(ctx, "SHA256:one"); err != nil || !g.SeenAt.Equal(c.now()) {
		t.Errorf("seen: %+v, %v", g, err)
	}
	if after, err := s.LastEvent(ctx); err != nil || after != before {
		t.Errorf("to be seen is event %d after %d, %v", after, before, err)
	}
	c.add(time.Minute)
	revoked, err := s.RevokeGateway(ctx, "edge")
	if err != nil || !revoked.RevokedAt.Equal(c.now()) {
		t.Fatalf("RevokeGateway = %+v, %v", revoked, err)
	}
	if g, err := s.Gateway(ctx, "SHA256:one"); err != nil || g != revoked {
		t.Errorf("revoked: %+v, %v", g, err)
	}
	_, err = s.RevokeGateway(ctx, "edge")
	wantCode(t, err, compute.CodeNotFound)
	_, err = s.AddGateway(ctx, "edge", "SHA256:one") // a credential does not come back
	wantCode(t, err, compute.CodeConflict)
	if _, err := s.writer.Exec(`UPDATE gateways SET revoked_at = NULL`); err == nil {
		t.Error("a revoked credential is good again")
	}
	if _, err := s.AddGateway(ctx, "edge", "SHA256:two"); err != nil {
		t.Errorf("the name is free again: %v", err)
	}
	list, err := s.Gateways(ctx)
	if err != nil || len(list) != 2 || list[0] != revoked || list[1].Revoked() {
		t.Errorf("Gateways = %+v, %v", list, err)
	}
	events := allEvents(t, s.Reader)
	if len(events) != 3 {
		t.Errorf("events are %+v", events)
	}
	for _, e := range events {
		if e.Kind != compute.EventGatewayChanged || e.Owner != 0 {
			t.Errorf("an event is %+v", e)
		}
	}
}

// Control planes that share a database store the same credential at the same time, and it stays in force.
func TestReplaceGateway(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	if _, err := s.AddGateway(ctx, "edge", "SHA256:one"); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			if err := s.ReplaceGateway(ctx, "edge", "SHA256:two"); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if list, err := s.Gateways(ctx); err != nil || len(list) != 2 || !list[0].Revoked() || list[1].Revoked() || list[1].Fingerprint != "SHA256:two" {
		t.Errorf("Gateways = %+v, %v", list, err)
	}
	if events := allEvents(t, s.Reader); len(events) != 2 {
		t.Errorf("events are %+v", events)
	}
	// What was revoked does not come back.
	if err := s.ReplaceGateway(ctx, "edge", "SHA256:one"); err != nil {
		t.Error(err)
	}
	if g, err := s.Gateway(ctx, "SHA256:one"); err != nil || !g.Revoked() {
		t.Errorf("the revoked one is %+v, %v", g, err)
	}
	wantCode(t, s.ReplaceGateway(ctx, "No Name", "SHA256:three"), compute.CodeInvalid)
}
