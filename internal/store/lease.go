package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"berth/internal/compute"
)

// The lease of PostgreSQL says which of several control planes drives the containers. It is one row, with a term that counts
// its holders, and with the database's clock. What a holder writes for its term is refused once the term is over, in the same
// transaction, so that one that was stopped for a while and does not know it yet changes nothing.

const (
	// takeLease has no effect while the lease is held, or where the containers are in another place.
	takeLease = `UPDATE lease SET term = term + 1, holder = ?1, engine = ?2,
		expires_at = clock_timestamp() + ?3 * interval '1 millisecond'
		WHERE expires_at <= clock_timestamp() AND engine IN ('', ?2) RETURNING term`
	queryLease = `SELECT holder, engine, expires_at > clock_timestamp() FROM lease`
	renewLease = `UPDATE lease SET expires_at = clock_timestamp() + ?2 * interval '1 millisecond'
		WHERE term = ?1 AND expires_at > clock_timestamp()`
	releaseLease = `UPDATE lease SET expires_at = '-infinity' WHERE term = ?`
	// queryTerm keeps the lease from changing hands until the transaction ends.
	queryTerm    = queryTermNow + ` FOR SHARE`
	queryTermNow = `SELECT 1 FROM lease WHERE term = ? AND expires_at > clock_timestamp()`
)

// ErrOtherEngine is in the chain of TakeLease's error where the containers are in another place.
var ErrOtherEngine = errors.New("the containers are in another place")

// TakeLease begins a term in which the holder drives the containers, which are in the place that engine names, for ttl and as
// long as it is renewed. CodeConflict while another holds the lease, and where the containers are in another place. What the
// store then writes for the containers' engine is of that term.
func (s *Store) TakeLease(ctx context.Context, holder, engine string, ttl time.Duration) (term int64, err error) {
	err = s.leases.QueryRowContext(ctx, takeLease, holder, engine, ttl.Milliseconds()).Scan(&term)
	switch {
	case err == nil:
		s.term.Store(term)
		return term, nil
	case !errors.Is(err, sql.ErrNoRows):
		return 0, mapError(ctx, "take the lease", err)
	}
	var by, at string
	var held bool
	if err := s.leases.QueryRowContext(ctx, queryLease).Scan(&by, &at, &held); err != nil {
		return 0, mapError(ctx, "read the lease", err)
	}
	if at != "" && at != engine {
		return 0, &compute.Error{
			Code: compute.CodeConflict, Cause: ErrOtherEngine,
			Message: "The containers of this installation are in another engine directory, that of " + by + ".",
		}
	}
	return 0, compute.Errorf(compute.CodeConflict, "%s drives the containers.", by)
}

// RenewLease prolongs a term. CodeConflict when it is over.
func (s *Store) RenewLease(ctx context.Context, term int64, ttl time.Duration) error {
	r, err := s.leases.ExecContext(ctx, renewLease, term, ttl.Milliseconds())
	if err != nil {
		return mapError(ctx, "renew the lease", err)
	}
	n, err := r.RowsAffected()
	if err == nil && n == 0 {
		return termOver()
	}
	return mapError(ctx, "renew the lease", err)
}

// ReleaseLease ends a term before its time. It does nothing when it is over.
func (s *Store) ReleaseLease(ctx context.Context, term int64) error {
	_, err := s.leases.ExecContext(ctx, releaseLease, term)
	return mapError(ctx, "release the lease", err)
}

// CheckTerm returns nil while the term that this store has begun lasts; CodeConflict when it is over.
func (s *Store) CheckTerm(ctx context.Context) error {
	var one int
	err := s.leases.QueryRowContext(ctx, queryTermNow, s.term.Load()).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return termOver()
	}
	return mapError(ctx, "read the lease", err)
}

func termOver() error {
	return compute.Errorf(compute.CodeConflict, "Another control plane drives the containers now.")
}

// fenced refuses a transaction for a term that is over. A store that never took the lease is that of SQLite, which one process
// has, or of a test.
func (s *Store) fenced(t *tx) error {
	term := s.term.Load()
	if term == 0 {
		return nil
	}
	var one int
	err := t.QueryRowContext(t.ctx, queryTerm, term).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return termOver()
	}
	return err
}
