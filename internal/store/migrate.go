package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"berth/internal/compute"
)

//go:embed migrations/*.sql migrations/postgres/*.sql
var migrations embed.FS

// applicationID stands in the header of every database of ours.
const applicationID = 0x42727468 // "Brth"

const versionTable = "schema_migrations"

// inspect refuses a file that is not a healthy database of ours. A new, empty one passes.
func inspect(ctx context.Context, db *sql.DB, path string) error {
	var app, tables int64
	if err := db.QueryRowContext(ctx, `PRAGMA application_id`).Scan(&app); err != nil {
		return cannotOpen(path, err)
	}
	err := db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema WHERE tbl_name NOT IN (?, 'sqlite_sequence')`,
		versionTable).Scan(&tables)
	if err != nil {
		return cannotOpen(path, err)
	}
	if app != applicationID && (app != 0 || tables > 0) {
		return &compute.Error{
			Code:    compute.CodeConflict,
			Message: fmt.Sprintf("%s is another program's database; move it away or choose another data directory.", path),
		}
	}
	var verdict string
	if err := db.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&verdict); err != nil {
		return cannotOpen(path, err)
	}
	if verdict != "ok" {
		return damaged(path, errors.New(verdict))
	}
	return nil
}

// migrate applies the migrations that the database at place lacks, each in its own transaction.
func (s *Store) migrate(ctx context.Context, db *sql.DB, place string, cannot func(error) error) error {
	p, err := migrator(db)
	if err != nil {
		return compute.Internal("read migrations", err)
	}
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return cannot(err)
	}
	if current > target {
		return newerSchema(place, current, target)
	}
	if current == target {
		return nil
	}
	if _, err := p.Up(ctx); err != nil {
		return mapError(ctx, "migrate the database", err)
	}
	s.opt.Log.Info("database schema brought up to date", "database", place, "from", current, "to", target)
	return nil
}

func migrator(db *sql.DB) (*goose.Provider, error) {
	dialect, dir := goose.DialectSQLite3, "migrations"
	if _, ok := db.Driver().(*stdlib.Driver); ok {
		dialect, dir = goose.DialectPostgres, "migrations/postgres"
	}
	files, err := fs.Sub(migrations, dir)
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(dialect, db, files, goose.WithTableName(versionTable),
		goose.WithDisableGlobalRegistry(true), goose.WithSlog(slog.New(slog.DiscardHandler)))
}

// checkVersion refuses a database whose schema is not this version's.
func (r *Reader) checkVersion(ctx context.Context, path string) error {
	if err := inspect(ctx, r.db, path); err != nil {
		return err
	}
	p, err := migrator(r.db)
	if err != nil {
		return compute.Internal("read migrations", err)
	}
	sources := p.ListSources()
	target := sources[len(sources)-1].Version
	current, err := r.version(ctx)
	if err != nil {
		return cannotOpen(path, err)
	}
	switch {
	case current > target:
		return newerSchema(path, current, target)
	case current < target:
		return compute.Errorf(compute.CodeConflict,
			"%s has schema %d and this version of Berth reads %d; start Berth on it once.", path, current, target)
	}
	return nil
}

// version returns the database's schema; 0 for a file that is still empty.
func (r *Reader) version(ctx context.Context) (v int64, err error) {
	var migrated bool
	err = r.db.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = ?)`, versionTable).Scan(&migrated)
	if err != nil || !migrated {
		return 0, err
	}
	err = r.db.QueryRowContext(ctx, `SELECT coalesce(max(version_id), 0) FROM `+versionTable).Scan(&v)
	return v, err
}

func newerSchema(path string, current, target int64) error {
	return compute.Errorf(compute.CodeConflict,
		"%s was written by a newer Berth (schema %d; this one knows %d); run that version, or restore a backup of before.",
		upperFirst(path), current, target)
}

// lock takes the exclusive lock on the file at path, which it makes, and waits for it until ctx ends.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil // a closed file holds no lock
		}
		if err != syscall.EWOULDBLOCK && err != syscall.EINTR {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
