package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"berth/internal/compute"
)

// Identity is what tells one database from another, and one life of it from the next.
type Identity struct {
	Installation string
	Epoch        int64
	Schema       int64
	LastAudit    int64 // the number of the newest audit record
}

// schemaOfAudit is the first schema that has audit records.
const schemaOfAudit = 5

// Identify looks at the database at path, of whatever schema, and changes nothing in it.
func Identify(ctx context.Context, path string) (Identity, error) {
	r, err := openToCopy(ctx, path)
	if err != nil {
		return Identity{}, err
	}
	id, err := r.identity(ctx, path)
	return id, errors.Join(err, r.Close())
}

// Backup writes the database at path, of whatever schema, into a new file at copyTo: its state of one moment, while others go
// on to read and write it.
func Backup(ctx context.Context, path, copyTo string) (Identity, error) {
	r, err := openToCopy(ctx, path)
	if err != nil {
		return Identity{}, err
	}
	err = r.copyTo(ctx, copyTo)
	if err = errors.Join(err, r.Close()); err != nil {
		return Identity{}, err
	}
	return Identify(ctx, copyTo) // which also checks the copy
}

func openToCopy(ctx context.Context, path string) (*Reader, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, compute.Internal("open the database", err)
	}
	if _, err := os.Stat(path); err != nil {
		return nil, cannotOpen(path, err)
	}
	db, err := sql.Open("sqlite", dsn(path, url.Values{"mode": {"ro"}})) // VACUUM INTO fails where all is query_only
	if err != nil {
		return nil, cannotOpen(path, err)
	}
	r := &Reader{db: db}
	if err := inspect(ctx, r.db, path); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *Reader) identity(ctx context.Context, path string) (id Identity, err error) {
	if id.Schema, err = r.version(ctx); err != nil {
		return id, cannotOpen(path, err)
	}
	if id.Schema == 0 {
		return id, compute.Errorf(compute.CodeConflict, "%s is empty: no Berth has started on it.", path)
	}
	err = r.db.QueryRowContext(ctx, `SELECT id, epoch FROM installation`).Scan(&id.Installation, &id.Epoch)
	if err == nil && id.Schema >= schemaOfAudit {
		err = r.db.QueryRowContext(ctx, queryLastAudit).Scan(&id.LastAudit)
	}
	if err != nil {
		return id, cannotOpen(path, err)
	}
	return id, nil
}

// copyTo makes the file first, so that nobody else can ever read it: SQLite takes an empty one.
func (r *Reader) copyTo(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make the copy: %w", err)
	}
	if err := f.Close(); err != nil { // before SQLite opens it: see touch
		return fmt.Errorf("make the copy: %w", err)
	}
	if _, err := r.db.ExecContext(ctx, `VACUUM INTO ?`, path); err != nil {
		return mapError(ctx, "copy the database", err)
	}
	return syncFile(path)
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Renew makes a copy of a database ready to take the place of one that is as now says: it brings its schema up to date, and
// begins an epoch that is over the copy's and at least least, so that numbers of events from before the copy is used compare
// with none after. Numbers of audit records go on after those that were given, since whoever follows them knows no epochs. All
// tokens end.
func Renew(ctx context.Context, path string, least int64, now Identity) (id Identity, err error) {
	if _, err := Identify(ctx, path); err != nil { // Open would take an empty file, and make a new database of it
		return Identity{}, err
	}
	s, err := Open(ctx, path, Options{})
	if err != nil {
		return Identity{}, err
	}
	id, err = s.BeginEpoch(ctx, least, now.LastAudit)
	return id, errors.Join(err, s.Close(), syncFile(path)) // whoever closes last leaves nothing beside the file
}

// BeginEpoch begins an epoch that is over the last one and at least least: this is an older state that was put back. Numbers of
// audit records go on after lastAudit, and all tokens end.
func (s *Store) BeginEpoch(ctx context.Context, least, lastAudit int64) (id Identity, err error) {
	err = s.write(ctx, "begin an epoch", func(t *tx) error {
		// Gateways may know of what came after the copy, and admit by it: as if each had been here just now.
		if _, err := t.exec(`UPDATE gateways SET seen_at = ? WHERE revoked_at IS NULL`, t.now); err != nil {
			return err
		}
		if _, err := t.exec(`UPDATE tokens SET revoked_at = ?, ordinal = NULL WHERE revoked_at IS NULL`, t.now); err != nil {
			return err
		}
		if err := t.one(`UPDATE audit_counter SET seq = CASE WHEN seq < ?1 THEN ?1 ELSE seq END`, lastAudit); err != nil {
			return err
		}
		return t.one(`UPDATE installation SET epoch = CASE WHEN epoch < ?1 THEN ?1 ELSE epoch + 1 END`, least)
	})
	if err != nil {
		return Identity{}, err
	}
	return s.Identity(ctx)
}

// Identity is what tells this database from others.
func (r *Reader) Identity(ctx context.Context) (id Identity, err error) {
	err = r.db.QueryRowContext(ctx, `SELECT id, epoch, (SELECT max(version_id) FROM `+versionTable+`), (`+queryLastAudit+`)
		FROM installation`).Scan(&id.Installation, &id.Epoch, &id.Schema, &id.LastAudit)
	return id, mapError(ctx, "read the installation's identity", err)
}

// Settle folds what a database's log holds into its one file. Nobody else may have it open. It changes neither content nor
// schema.
func Settle(ctx context.Context, path string) error {
	s := &Store{opt: Options{}.withDefaults()}
	var err error
	if s.Reader, err = openToCopy(ctx, path); err != nil {
		return err
	}
	if s.writer, err = openWriter(path); err == nil {
		_, err = s.writer.ExecContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`)
	}
	return errors.Join(mapError(ctx, "fold the log in", err), s.Close())
}
