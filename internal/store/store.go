// Package store keeps Berth's state, desired and observed, in an SQLite file: users, SSH keys, containers, the events that
// tell of every change, and the tombstones that permit storage to be destroyed.
//
// It implements the Store that control declares. One connection writes, in immediate transactions; a pool reads. Limits,
// unique names and ids that never come back are the schema's constraints, so they hold whatever runs at the same time.
// No SQL and no driver's error leaves this package: every error is a *compute.Error.
//
// It refuses files that are not databases, are damaged, belong to another program or were written by a newer Berth.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"berth/internal/compute"
)

// slotRest is how long a released slot rests: the TTL of the names that pointed at it.
const slotRest = 60 * time.Second

// defaultKeepEvents bounds the event table to some 10 MB.
const defaultKeepEvents = 100_000

// Options adjusts a Store. The zero value is ready to use.
type Options struct {
	Now        func() time.Time           // the clock; nil is time.Now
	NewID      func() compute.ContainerID // proposes ids; nil is compute.NewContainerID
	OnCommit   func()                     // called after every commit that may have added events; must not block
	OnAudit    func()                     // called after every commit that added audit records; must not block
	KeepEvents int64                      // how many of the newest events are kept at least; 0 is 100,000
	Log        *slog.Logger               // nil discards
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
}

// Open opens the database at path, makes it if there is none, and brings its schema up to date. The directory must exist.
func Open(ctx context.Context, path string, o Options) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, compute.Internal("open the database", err)
	}
	s := &Store{opt: o.withDefaults()}
	if err := s.open(ctx, path); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// open checks the file before anything writes to it. A lock beside it keeps a second process from making or migrating it
// at the same time.
func (s *Store) open(ctx context.Context, path string) error {
	unlock, err := lock(ctx, path+".lock")
	if err != nil {
		return cannotOpen(path, err)
	}
	defer unlock()
	if err := touch(path); err != nil {
		return cannotOpen(path, err)
	}
	if s.Reader, err = openReader(path); err != nil {
		return err
	}
	if err := inspect(ctx, s.db, path); err != nil {
		return err
	}
	if s.writer, err = openWriter(path); err != nil {
		return err
	}
	return s.migrate(ctx, path)
}

func openWriter(path string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", writerDSN(path))
	if err != nil {
		return nil, cannotOpen(path, err)
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// OpenReadOnly opens the database at path, which must be of this version's schema, to read alone. It may be open elsewhere
// at the same time.
func OpenReadOnly(ctx context.Context, path string) (*Reader, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, compute.Internal("open the database", err)
	}
	if _, err := os.Stat(path); err != nil {
		return nil, cannotOpen(path, err)
	}
	r, err := openReader(path)
	if err != nil {
		return nil, err
	}
	if err := r.checkVersion(ctx, path); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func openReader(path string) (*Reader, error) {
	db, err := sql.Open("sqlite", readerDSN(path))
	if err != nil {
		return nil, cannotOpen(path, err)
	}
	n := max(4, runtime.GOMAXPROCS(0))
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return &Reader{db: db}, nil
}

// Close ends the reader once its queries are done.
func (r *Reader) Close() error { return r.db.Close() }

// Close ends the store once its transactions are done, with everything in the one file.
func (s *Store) Close() error {
	var errs []error
	if s.Reader != nil {
		errs = append(errs, s.Reader.Close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.Close()) // the last connection checkpoints the log and removes it
	}
	return errors.Join(errs...)
}

// dsn returns the URI of a connection. See modernc.org/sqlite, Driver.Open.
func dsn(path string, q url.Values) string {
	q.Set("_busy_timeout", "5000")
	q.Set("_foreign_keys", "1")
	q.Set("_dqs", "0")
	q.Set("_defensive", "1")
	q.Set("_error_rc", "1")
	q.Add("_pragma", "trusted_schema(0)")
	q.Add("_pragma", "cell_size_check(1)")
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

func writerDSN(path string) string {
	return dsn(path, url.Values{
		"_txlock": {"immediate"}, "_journal_mode": {"WAL"}, "_synchronous": {"FULL"},
		"_pragma": {"journal_size_limit(67108864)"},
	})
}

func readerDSN(path string) string {
	return dsn(path, url.Values{"mode": {"ro"}, "_query_only": {"1"}})
}

// touch makes the file when it is not there, and makes it its owner's alone: SQLite gives its companions the same mode. A
// file that is there is not opened: closing it again would drop the locks that SQLite holds on it in this process.
func touch(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return os.Chmod(path, 0o600)
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o600), f.Close())
}

// write runs f in the one writing transaction there is at a time and commits what it did.
func (s *Store) write(ctx context.Context, op string, f func(*tx) error) error {
	sqlTx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return mapError(ctx, op, err)
	}
	t := &tx{Tx: sqlTx, ctx: ctx, now: s.opt.Now().UnixMilli(), opt: &s.opt}
	err = f(t)
	if err == nil {
		err = t.writeAudit()
	}
	if err != nil {
		_ = sqlTx.Rollback() // the first error says why; SQLite may have rolled back itself
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
	sqlTx, err := r.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
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
