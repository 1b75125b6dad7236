package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"time"

	"berth/internal/compute"
)

const (
	queryOnce = `SELECT request, status, coalesce(location, ''), body FROM idempotency_keys
		WHERE owner = ? AND key = ?`
	insertOnce = `INSERT INTO idempotency_keys (owner, key, request, created_at) VALUES (?, ?, ?, ?)`
	finishOnce = `UPDATE idempotency_keys SET status = ?, location = ?, body = ? WHERE owner = ? AND key = ? AND status IS NULL`
	forgetOnce = `DELETE FROM idempotency_keys WHERE owner = ? AND key = ? AND status IS NULL`
	pruneOnce  = `DELETE FROM idempotency_keys WHERE (owner, key) IN
		(SELECT owner, key FROM idempotency_keys WHERE created_at <= ? ORDER BY created_at LIMIT ?)`
	boundOnce = `DELETE FROM idempotency_keys WHERE (owner, key) IN
		(SELECT owner, key FROM idempotency_keys WHERE owner = ? ORDER BY created_at DESC LIMIT ` + noLimit + ` OFFSET ?)`
)

const (
	keepOnce       = 24 * time.Hour // how long a key is remembered
	keepOnceNumber = 1000           // how many of an owner's are
)

// BeginOnce remembers that the owner's request with key is about to be carried out. When it was already, it returns what was
// answered. CodeConflict when the key is another request's, or one's of which the end is not known.
func (s *Store) BeginOnce(
	ctx context.Context, owner compute.UserID, key string, request [32]byte,
) (saved *compute.SavedAnswer, err error) {
	err = s.write(ctx, "begin a request that is to be carried out once", func(t *tx) error {
		if _, err := t.exec(pruneOnce, t.now-keepOnce.Milliseconds(), pruneBatch); err != nil {
			return err
		}
		var was []byte
		var status sql.NullInt64
		var a compute.SavedAnswer
		err := t.QueryRowContext(ctx, queryOnce, owner, key).Scan(&was, &status, &a.Location, &a.Body)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			if _, err := t.exec(insertOnce, owner, key, request[:], t.now); err != nil {
				return err
			}
			_, err := t.exec(boundOnce, owner, keepOnceNumber)
			return err
		case err != nil:
			return err
		case !bytes.Equal(was, request[:]):
			return compute.Errorf(compute.CodeConflict, "That Idempotency-Key was used for another request; take a new one for each.")
		case !status.Valid:
			return compute.Errorf(compute.CodeConflict,
				"A request with that Idempotency-Key is under way, or was cut off; look whether it was carried out before you try anew.")
		}
		a.Status = int(status.Int64)
		saved = &a
		return nil
	})
	return saved, err
}

// FinishOnce remembers what the request with key was answered with.
func (s *Store) FinishOnce(ctx context.Context, owner compute.UserID, key string, a compute.SavedAnswer) error {
	return s.write(ctx, "remember an answer", func(t *tx) error {
		_, err := t.exec(finishOnce, a.Status, a.Location, a.Body, owner, key)
		return err
	})
}

// ForgetOnce forgets a request that was refused: it has changed nothing, and may come again.
func (s *Store) ForgetOnce(ctx context.Context, owner compute.UserID, key string) error {
	return s.write(ctx, "forget a request", func(t *tx) error {
		_, err := t.exec(forgetOnce, owner, key)
		return err
	})
}
