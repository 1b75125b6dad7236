package store

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"berth/internal/compute"
)

// openFile opens the SQLite file at path. It checks the file before anything writes to it. A lock beside it keeps a second
// process from making or migrating it at the same time.
func (s *Store) openFile(ctx context.Context, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return compute.Internal("open the database", err)
	}
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
	return s.migrate(ctx, s.writer, path, func(err error) error { return cannotOpen(path, err) })
}

func openWriter(path string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", writerDSN(path))
	if err != nil {
		return nil, cannotOpen(path, err)
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// OpenReadOnly opens the SQLite file at path, which must be of this version's schema, to read alone. It may be open elsewhere
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
