package app

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"berth/internal/config"
)

// draining is a berth with an admin address and an edge of the test's own, and what makes it stop.
func draining(t *testing.T, edit func(*config.Config)) (b *berth, tell context.CancelFunc, run func(edges ...edge) chan error) {
	t.Helper()
	b = state(t, func(c *config.Config) {
		c.AdminAddr = "127.0.0.1:0"
		if edit != nil {
			edit(c)
		}
	})
	if err := b.openMonitor(); err != nil {
		t.Fatal(err)
	}
	ctx, tell := context.WithCancel(t.Context())
	t.Cleanup(tell)
	return b, tell, func(edges ...edge) chan error {
		b.edges = edges
		up, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- b.serve(ctx, func(context.Context) error { close(up); return nil }) }()
		<-up
		return ended
	}
}

// blocking is an edge that serves until it is shut down, which takes until release is closed.
func blocking(release <-chan struct{}) (e edge, stopping chan struct{}) {
	stopping, ended := make(chan struct{}), make(chan struct{})
	return edge{
		serve: func() error { <-ended; return nil },
		shutdown: func(ctx context.Context) error {
			close(stopping)
			defer close(ended)
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	}, stopping
}

func (b *berth) readiness(t *testing.T) string {
	t.Helper()
	resp, err := http.Get("http://" + b.adminAddr.String() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
	return strings.TrimSpace(string(text))
}

// All edges are told at once, and the admin address answers, not ready, until they are gone.
func TestDrain(t *testing.T) {
	b, tell, run := draining(t, nil)
	release := make(chan struct{})
	one, oneStops := blocking(release)
	two, twoStops := blocking(release)
	ended := run(one, two)
	if got := b.readiness(t); got != "ok" {
		t.Errorf("it is %q", got)
	}
	tell()
	for _, stops := range []chan struct{}{oneStops, twoStops} {
		select {
		case <-stops:
		case <-time.After(patience):
			t.Fatal("one waits for the other")
		}
	}
	if got := b.readiness(t); got != "It is stopping." {
		t.Errorf("it is %q", got)
	}
	close(release)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// What does not end is cut off when the time is over, and that is said.
func TestDrainIsBounded(t *testing.T) {
	_, tell, run := draining(t, func(c *config.Config) { c.DrainTimeout = time.Second })
	stuck, _ := blocking(nil)
	ended := run(stuck)
	tell()
	select {
	case err := <-ended:
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "drain-timeout") {
			t.Errorf("%v", err)
		}
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
}

// For as long as load balancers need, it serves and says that it stops.
func TestDrainDelay(t *testing.T) {
	b, tell, run := draining(t, func(c *config.Config) { c.DrainDelay = 3 * time.Second })
	release := make(chan struct{})
	close(release)
	e, stops := blocking(release)
	ended := run(e)
	tell()
	for b.readiness(t) != "It is stopping." {
		select {
		case <-stops:
			t.Fatal("it turned people away before it said so")
		default:
		}
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
