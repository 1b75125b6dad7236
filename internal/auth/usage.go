package auth

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"berth/internal/compute"
)

const (
	// usedEvery is how precise the time of last use is, and how often it is written.
	usedEvery = time.Minute
	// pruneEvery is how often expired tokens are removed: they are refused all the same.
	pruneEvery = time.Hour
	// maxUsed bounds how many used tokens are remembered between two writes, and useBatch how many one transaction writes.
	maxUsed, useBatch = 1 << 16, 256
	// tidyTimeout bounds the last write, when the process ends.
	tidyTimeout = 5 * time.Second
)

// usage remembers in which minute tokens were last used until that is written, so that a request never waits for it.
type usage struct {
	mu sync.Mutex // guards used
	// used is by id, and holds only minutes that are not recorded yet.
	used map[string]time.Time
}

func (u *usage) mark(t compute.Token, now time.Time) {
	minute := now.UTC().Truncate(usedEvery)
	if !t.LastUsedAt.Before(minute) {
		return
	}
	u.put(map[string]time.Time{t.ID: minute})
}

// put remembers what is not known to be later.
func (u *usage) put(used map[string]time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.used == nil {
		u.used = make(map[string]time.Time)
	}
	for id, at := range used {
		if before, known := u.used[id]; at.After(before) && (known || len(u.used) < maxUsed) {
			u.used[id] = at
		}
	}
}

// take returns all that is remembered, and forgets it.
func (u *usage) take() map[string]time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	used := u.used
	u.used = nil
	return used
}

// Run keeps the ledger: it writes when tokens were used, and removes those that have expired. It ends with ctx, after a last
// write. Faults are logged: a figure that is late or a row too many harms nobody.
func (a *Authority) Run(ctx context.Context, log *slog.Logger) error {
	use, prune := time.NewTicker(usedEvery), time.NewTicker(pruneEvery)
	defer use.Stop()
	defer prune.Stop()
	report := func(what string, err error) {
		if err != nil && ctx.Err() == nil {
			log.Warn(what, "err", err)
		}
	}
	report("remove expired tokens", a.pruneExpired(ctx))
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTimeout)
			defer cancel()
			if err := a.writeUsage(last); err != nil {
				log.Warn("record the use of tokens", "err", err)
			}
			return nil
		case <-use.C:
			report("record the use of tokens", a.writeUsage(ctx))
		case <-prune.C:
			report("remove expired tokens", a.pruneExpired(ctx))
		}
	}
}

// writeUsage records what is remembered; what cannot be written is remembered on.
func (a *Authority) writeUsage(ctx context.Context) error {
	used := a.usage.take()
	for len(used) > 0 {
		batch := make(map[string]time.Time, min(useBatch, len(used)))
		for id, at := range used {
			if batch[id] = at; len(batch) == useBatch {
				break
			}
		}
		if err := a.ledger.UseTokens(ctx, batch); err != nil {
			a.usage.put(used)
			return err
		}
		maps.DeleteFunc(used, func(id string, _ time.Time) bool { _, written := batch[id]; return written })
	}
	return nil
}

func (a *Authority) pruneExpired(ctx context.Context) error {
	for {
		more, err := a.ledger.PruneTokens(ctx)
		if err != nil || !more {
			return err
		}
	}
}
