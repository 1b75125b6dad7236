// Package store keeps Berth's state, desired and observed, in an SQLite file or a PostgreSQL database: users, SSH keys,
// containers, the events that tell of every change, and the tombstones that permit storage to be destroyed.
//
// It implements the Store that control declares. One connection writes, in transactions that wait for each other, in other
// processes too; a pool reads. Limits, unique names and ids that never come back are the schema's constraints, so they hold
// whatever runs at the same time. Both databases understand the same SQL: what differs is in sqlite.go, postgres.go and the
// migrations. No SQL and no driver's error leaves this package: every error is a *compute.Error.
//
// It refuses what is no database, is damaged, belongs to another program or was written by a newer Berth.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"berth/internal/compute"
)

// slotRest is how long a released slot rests: the TTL of the names that pointed at it.
const slotRest = 60 * time.Second

// defaultKeepEvents bounds the event table to some 10 MB.
const defaultKeepEvents = 100_000

// Options adjusts a Store. The zero value is ready to use.
type Options struct {
	Now          func() time.Time           // the clock; nil is time.Now
	NewID        func() compute.ContainerID // proposes ids; nil is compute.NewContainerID
	OnCommit     func()                     // called after every commit that may have added events; must not block
	OnAudit      func()                     // called after every commit that added audit records; must not block
	KeepEvents   int64                      // how many of the newest events are kept at least; 0 is 100,000
	Installation string                     // that a PostgreSQL database must be of; empty takes any, and an empty database
	Log          *slog.Logger               // nil discards
}

func (o Options) withDefaults() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.NewID == nil {
		o.NewID = compute.NewContainerID
	}
	if o.OnCommit == nil {
		o.OnCommit = func() {}
	}
	if o.OnAudit == nil {
		o.OnAudit = func() {}
	}
	if o.KeepEvents <= 0 {
		o.KeepEvents = defaultKeepEvents
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Reader answers what the database says. Its methods may be called concurrently.
type Reader struct {
	db *sql.DB
}

// Store is a Reader that also writes.
type Store struct {
	*Reader
	writer *sql.DB // of one connection
	opt    Options

	// Of PostgreSQL alone.
	lockWriters string // makes a transaction the only one that writes, as BEGIN IMMEDIATE does in SQLite
	notify      string // tells the other processes of a commit, as part of it
	listener    *listener
	leases      *sql.DB      // of one connection: who holds the lease waits for no other writer
	term        atomic.Int64 // the last one that this store has begun; 0 before the first
}

// Open opens the database at source, makes it if there is none, and brings its schema up to date. Source is the path of an
// SQLite file, whose directory must exist, or the URL of a PostgreSQL database, as IsURL tells.
func Open(ctx context.Context, source string, o Options) (*Store, error) {
	s := &Store{opt: o.withDefaults()}
	open := s.openFile
	if IsURL(source) {
		open = s.connect
	}
	if err := open(ctx, source); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close ends the reader once its queries are done.
func (r *Reader) Close() error { return r.db.Close() }

// Close ends the store once its transactions are done; a file then holds everything itself.
func (s *Store) Close() error {
	var errs []error
	if s.listener != nil {
		s.listener.close()
	}
	if s.Reader != nil {
		errs = append(errs, s.Reader.Close())
	}
	if s.leases != nil {
		errs = append(errs, s.leases.Close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.Close()) // SQLite's last connection checkpoints the log and removes it
	}
	return errors.Join(errs...)
}

// write runs f in the one writing transaction there is at a time and commits what it did.
func (s *Store) write(ctx context.Context, op string, f func(*tx) error) error {
	sqlTx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return mapError(ctx, op, err)
	}
	t := &tx{Tx: sqlTx, ctx: ctx, now: s.opt.Now().UnixMilli(), opt: &s.opt}
	if s.lockWriters != "" {
		_, err = t.exec(s.lockWriters)
	}
	if err == nil {
		err = f(t)
	}
	if err == nil {
		err = t.writeAudit()
	}
	if err == nil && s.notify != "" && (t.wrote || len(t.records) > 0) {
		_, err = t.exec(s.notify)
	}
	if err != nil {
		_ = sqlTx.Rollback() // the first error says why; the database may have rolled back itself
		return mapError(ctx, op, err)
	}
	err = sqlTx.Commit()
	if t.wrote {
		s.opt.OnCommit() // also when the commit reports a fault: readers ask the database, not us
	}
	if len(t.records) > 0 {
		s.opt.OnAudit()
	}
	if err == nil && t.act != nil {
		t.act.Committed()
	}
	return mapError(ctx, op, err)
}

// read runs f on one snapshot of the database.
func (r *Reader) read(ctx context.Context, op string, f func(q querier) error) error {
	// SQLite needs no word for it: all its transactions are of one snapshot.
	sqlTx, err := r.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelRepeatableRead})
	if err != nil {
		return mapError(ctx, op, err)
	}
	err = f(sqlTx)
	if rerr := sqlTx.Rollback(); err == nil && !errors.Is(rerr, sql.ErrTxDone) {
		err = rerr
	}
	return mapError(ctx, op, err)
}

// querier is what reads: the pool, or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// tx is a writing transaction, with the one time at which all of it happens.
type tx struct {
	*sql.Tx
	ctx   context.Context // of the call; a transaction lives no longer
	now   int64
	opt   *Options
	wrote bool

	act     *compute.Act // whose record is among these
	records []compute.AuditRecord
}

// exec runs a statement and returns how many rows it changed.
func (t *tx) exec(query string, args ...any) (int64, error) {
	r, err := t.ExecContext(t.ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// one runs a statement that must change exactly one row.
func (t *tx) one(query string, args ...any) error {
	n, err := t.exec(query, args...)
	if err == nil && n != 1 {
		err = fmt.Errorf("%d rows changed instead of 1 by %q", n, query)
	}
	return err
}

// noLimit is more rows than there ever are, where the grammar wants a LIMIT.
const noLimit = "1000000000000"

func fromMillis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// collect reads all rows of a query.
func collect[T any](ctx context.Context, q querier, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	list := []T{}
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

// scanner is a row.
type scanner interface{ Scan(dest ...any) error }
