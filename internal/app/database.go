package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"berth/internal/audit"
	"berth/internal/config"
	"berth/internal/store"
)

const (
	// elsewhereFile is in data directories whose state is in PostgreSQL.
	elsewhereFile = "database.json"
	// migratedFile is the database that was there before.
	migratedFile = "berth.db.migrated"
)

// elsewhere is what a data directory knows of the state that is not in it: so that it is never begun anew here, and no other
// installation's state is taken for its own.
type elsewhere struct {
	Installation string `json:"installation"`
}

// readElsewhere returns the zero value where the state is in the directory itself, or nowhere yet.
func readElsewhere(dir string) (e elsewhere, err error) {
	text, err := os.ReadFile(filepath.Join(dir, elsewhereFile))
	if errors.Is(err, fs.ErrNotExist) {
		return elsewhere{}, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &e)
	}
	if err == nil && e.Installation == "" {
		err = errors.New("it names no installation")
	}
	if err != nil {
		return elsewhere{}, fmt.Errorf("read %s: %w", filepath.Join(dir, elsewhereFile), err)
	}
	return e, nil
}

// rememberElsewhere has the directory know that its state is the installation's, in PostgreSQL.
func rememberElsewhere(dir, installation string) error {
	text, err := json.Marshal(elsewhere{Installation: installation})
	if err != nil {
		return err
	}
	made := filepath.Join(dir, elsewhereFile+".new")
	if err := removeQuietly(made); err != nil { // of one that was killed
		return err
	}
	err = writeNew(made, func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	})
	if err == nil {
		err = renameNew(made, filepath.Join(dir, elsewhereFile))
	}
	return err
}

// openStore opens the database that the settings name, unless the data directory knows better.
func (b *berth) openStore(ctx context.Context) error {
	options := store.Options{OnCommit: b.committed, OnAudit: b.audit.hint.Give, Log: b.log}
	known, err := readElsewhere(b.cfg.DataDir)
	if err != nil {
		return err
	}
	file := b.files.path(databaseFile)
	if b.cfg.Database == "" {
		if known != (elsewhere{}) {
			return fmt.Errorf("the state of %s is in a PostgreSQL database; give its address with --database", b.cfg.DataDir)
		}
		b.store, err = store.Open(ctx, file, options)
		return err
	}
	if exists(file) {
		return fmt.Errorf("%s has its state in %s, and --database names another; move it there with `berth migrate`, "+
			"or move the file away if it has been", b.cfg.DataDir, databaseFile)
	}
	options.Installation = known.Installation
	if b.store, err = store.Open(ctx, b.cfg.Database, options); err != nil || known != (elsewhere{}) {
		return err
	}
	installation, err := b.store.InstallationID(ctx)
	if err == nil {
		err = rememberElsewhere(b.cfg.DataDir, installation)
	}
	if err != nil {
		err = errors.Join(err, b.store.Close())
	}
	return err
}

// Migration is what Migrate did.
type Migration struct {
	Installation string         `json:"installation"`
	Epoch        int64          `json:"epoch"`
	Tables       []store.Copied `json:"tables"`
	Kept         string         `json:"kept"` // the file that the state was in
}

// Migrate copies the state of the data directory, which is in an SQLite file, into the PostgreSQL database of the settings, and
// has the directory know that it is there. No Berth may run there; containers may. What fails before the copy is complete and
// found equal changes nothing.
func Migrate(ctx context.Context, c config.Config, out io.Writer) (m Migration, err error) {
	if c.Database == "" {
		return m, errors.New("give the address of an empty PostgreSQL database with --database")
	}
	file := filepath.Join(c.DataDir, databaseFile)
	if !exists(file) {
		return m, fmt.Errorf("there is no %s in %s; give its --data-dir", databaseFile, c.DataDir)
	}
	m.Kept = filepath.Join(c.DataDir, migratedFile)
	if exists(m.Kept) {
		return m, fmt.Errorf("%s is there from before; move it away", m.Kept)
	}
	lock, err := takeLock(c.DataDir, dataLockFile)
	var busy busyError
	if errors.As(err, &busy) {
		return m, fmt.Errorf("berth runs in %s (pid %d), and what it changes meanwhile would be lost; stop it first (SIGTERM)", busy.dir, busy.pid)
	}
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, lock.release()) }()
	id, tables, err := store.CopyToPostgres(ctx, file, c.Database, time.Now().UnixMilli(), func(t store.Copied) {
		fmt.Fprintf(out, "  %-17s %9d rows, equal\n", t.Table, t.Rows)
	})
	if err != nil {
		return m, err
	}
	m.Installation, m.Epoch, m.Tables = id.Installation, id.Epoch, tables
	if err := rememberElsewhere(c.DataDir, id.Installation); err != nil {
		return m, fmt.Errorf("all is copied; remember that in the data directory: %w", err)
	}
	if err := store.Settle(ctx, file); err != nil { // so that nothing of it is in another file
		return m, err
	}
	return m, renameNew(file, m.Kept)
}

// BeginEpoch makes the PostgreSQL database of the settings, which other means than Berth's have put back, ready to go on: it
// begins an epoch, and ends all tokens. No Berth may run on it.
func BeginEpoch(ctx context.Context, c config.Config, out io.Writer) (err error) {
	if c.Database == "" {
		return errors.New("give the backup's file; or --database, to go on with a PostgreSQL database that was put back")
	}
	b, err := openState(ctx, c, newLogger(c, out))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	f, err := audit.OpenFile(b.files.path(auditFile)) // it knows what was numbered after the copy was made
	if err != nil {
		return err
	}
	b.onClose(f.Close)
	id, err := b.store.BeginEpoch(ctx, time.Now().UnixMilli(), f.Last())
	if err != nil {
		return err
	}
	r := restore{dir: c.DataDir, out: out}
	if err := r.moveAside(tokenKey); err != nil {
		return err
	}
	r.say("Began the epoch %d. All tokens have ended.", id.Epoch)
	r.say("Users, keys and switches are as they were then: disable and remove again what was since. `berth up` goes on.")
	return nil
}
