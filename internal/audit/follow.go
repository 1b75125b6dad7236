package audit

import (
	"context"
	"log/slog"
	"time"

	"berth/internal/compute"
)

// Store is where records are kept, by number.
type Store interface {
	Audit(ctx context.Context, q compute.AuditQuery) (list []compute.AuditRecord, next int64, err error)
	LastAudit(ctx context.Context) (int64, error)
	PruneAudit(ctx context.Context, keep compute.AuditRetention) (more bool, err error)
}

// Hint wakes a follower: there may be new records. It never waits.
type Hint chan struct{}

// NewHint returns a Hint.
func NewHint() Hint { return make(Hint, 1) }

// Give tells that there may be new records.
func (h Hint) Give() {
	select {
	case h <- struct{}{}:
	default:
	}
}

// lookAgain is how often a follower looks without a hint, after a fault above all.
const lookAgain = 10 * time.Second

// Follow copies the records of s to f as they come, until ctx ends, and then those that are there still. It begins where f
// ends, so that none is missing and none is there twice, whenever either process ended.
func Follow(ctx context.Context, s Store, f *File, hint Hint, log *slog.Logger) error {
	t := time.NewTicker(lookAgain)
	defer t.Stop()
	failed := false
	for {
		err := copyNew(ctx, s, f, log)
		if err != nil && ctx.Err() == nil && !failed {
			log.Error("the audit log's file is behind", "err", err)
		}
		failed = err != nil
		select {
		case <-hint:
		case <-t.C:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
			defer cancel()
			if err := copyNew(last, s, f, log); err != nil {
				log.Error("the audit log's file lacks the last records; they come with the next start", "err", err)
			}
			return nil
		}
	}
}

func copyNew(ctx context.Context, s Store, f *File, log *slog.Logger) error {
	last, err := s.LastAudit(ctx)
	if err != nil {
		return err
	}
	at := f.Last()
	if at > last {
		log.Warn("the audit log's file is ahead of the database, which was restored; numbers come again", "file", at, "database", last)
		f.last = last
	}
	for {
		at = f.Last()
		list, _, err := s.Audit(ctx, compute.AuditQuery{After: at, OldestFirst: true, Limit: maxBatch})
		if err != nil || len(list) == 0 {
			return err
		}
		if missing := list[0].Seq - at - 1; missing > 0 && at > 0 {
			log.Error("audit records were removed before the file had them", "records", missing)
		}
		if err := f.AppendAudit(ctx, list); err != nil {
			return err
		}
	}
}

// pruneEvery is how often old records are removed.
const pruneEvery = time.Minute

// Prune removes what s is to keep no longer, now and then, until ctx ends.
func Prune(ctx context.Context, s Store, keep compute.AuditRetention, log *slog.Logger) error {
	t := time.NewTicker(pruneEvery)
	defer t.Stop()
	for {
		for {
			more, err := s.PruneAudit(ctx, keep)
			if err != nil && ctx.Err() == nil {
				log.Error("old audit records are not removed", "err", err)
			}
			if err != nil || !more || ctx.Err() != nil {
				break
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}
