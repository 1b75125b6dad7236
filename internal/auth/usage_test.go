package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"berth/internal/compute"
)

// counted is a ledger that counts what is written of use.
type counted struct {
	Ledger
	writes, rows int
	err          error
}

func (c *counted) UseTokens(ctx context.Context, used map[string]time.Time) error {
	if c.err != nil {
		return c.err
	}
	c.writes++
	c.rows += len(used)
	return c.Ledger.UseTokens(ctx, used)
}

// However often a token is used, the minute of its last use is written once.
func TestUsageIsCoarse(t *testing.T) {
	w := newWorld(t)
	ledger := &counted{Ledger: w.store}
	w.own.ledger = ledger
	token, rec := w.issue(ScopeAll)
	idle, _ := w.issue(ScopeAll)
	use := func(n int) {
		t.Helper()
		for range n {
			wantGrant(t, w.own, token, principal(w.bob))
		}
		if err := w.own.writeUsage(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	used := func() time.Time {
		t.Helper()
		got, _, err := w.store.Token(t.Context(), rec.ID)
		if err != nil {
			t.Fatal(err)
		}
		return got.LastUsedAt
	}
	use(0)
	if !used().IsZero() || ledger.writes != 0 {
		t.Errorf("before any use: %v, %d writes", used(), ledger.writes)
	}
	first := w.clock.now().UTC().Truncate(time.Minute)
	for range 5 {
		use(20)
	}
	if !used().Equal(first) || ledger.rows != 1 {
		t.Errorf("used in %v: %v, %d rows written", first, used(), ledger.rows)
	}
	w.clock.add(usedEvery)
	use(20)
	if !used().Equal(first.Add(time.Minute)) || ledger.rows != 2 {
		t.Errorf("a minute later: %v, %d rows written", used(), ledger.rows)
	}

	// What could not be written is written later.
	w.clock.add(usedEvery)
	wantGrant(t, w.own, token, principal(w.bob))
	ledger.err = errors.New("disk full")
	if err := w.own.writeUsage(t.Context()); !errors.Is(err, ledger.err) {
		t.Errorf("%v", err)
	}
	ledger.err = nil
	wantGrant(t, w.own, idle, principal(w.bob))
	use(0)
	if !used().Equal(first.Add(2*time.Minute)) || ledger.rows != 4 {
		t.Errorf("after a fault: %v, %d rows written", used(), ledger.rows)
	}
}

// A refused token is not used.
func TestRefusedIsNotUsed(t *testing.T) {
	w := newWorld(t)
	token, rec := w.issue(ScopeAll)
	if err := w.own.Revoke(t.Context(), w.bob.ID, rec.ID); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, w.own, token)
	if used := w.own.usage.take(); len(used) != 0 {
		t.Errorf("%v", used)
	}
}

func TestUsageIsBounded(t *testing.T) {
	var u usage
	now := time.Unix(1_800_000_000, 0)
	for i := range maxUsed + 100 {
		u.mark(compute.Token{ID: fmt.Sprint(i)}, now)
	}
	u.mark(compute.Token{ID: "0"}, now.Add(time.Hour)) // known ones go on
	used := u.take()
	if len(used) != maxUsed || !used["0"].After(now) {
		t.Errorf("%d are remembered, %v", len(used), used["0"])
	}
}

// Run writes what is left when it ends, in as many transactions as it takes, and removes what has expired.
func TestRun(t *testing.T) {
	w := newWorld(t)
	ledger := &counted{Ledger: w.store}
	w.own.ledger = ledger
	w.issue(ScopeAll)
	w.clock.add(2 * time.Hour)
	token, rec := w.issue(ScopeAll)
	wantGrant(t, w.own, token, principal(w.bob))
	for i := range useBatch {
		w.own.usage.mark(compute.Token{ID: fmt.Sprint("gone", i)}, w.clock.now())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.own.Run(ctx, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	got, _, err := w.store.Token(t.Context(), rec.ID)
	if err != nil || got.LastUsedAt.IsZero() || ledger.writes != 2 {
		t.Errorf("%+v, %v, %d writes", got, err, ledger.writes)
	}

	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	w.clock.add(2 * time.Hour)
	pruned := make(chan struct{})
	w.own.ledger = pruning{w.store, pruned}
	ran := make(chan error)
	go func() { ran <- w.own.Run(ctx, slog.New(slog.DiscardHandler)) }()
	select {
	case <-pruned:
	case <-time.After(patience):
		t.Error("nothing is removed")
	}
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	if _, _, err := w.store.Token(t.Context(), rec.ID); compute.CodeOf(err) != compute.CodeNotFound {
		t.Errorf("an expired token is still recorded: %v", err)
	}
}

// pruning tells when the ledger was pruned.
type pruning struct {
	Ledger
	done chan struct{}
}

func (p pruning) PruneTokens(ctx context.Context) (bool, error) {
	defer close(p.done)
	return p.Ledger.PruneTokens(ctx)
}
