package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"berth/internal/compute"
	"berth/internal/config"
	"berth/internal/store"
)

const (
	// stagingDir holds what is being restored, until all of it is checked.
	stagingDir = ".restoring"
	// replacedDirs begins the names of the directories that hold what restores took the place of.
	replacedDirs = "before-restore-"
)

// Restore puts the state in a backup in the place of the data directory's. No Berth may run there. Nothing is destroyed: what
// it replaces is moved aside, and volumes are not touched. It begins a new epoch, and ends all tokens.
func Restore(ctx context.Context, c config.Config, file string, out io.Writer) (err error) {
	if known, err := readElsewhere(c.DataDir); err != nil {
		return err
	} else if known != (elsewhere{}) {
		return fmt.Errorf("the state of %s is in a PostgreSQL database: put that back with pg_restore, and then give --database and no file", c.DataDir)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, name := range []string{gatewayLockFile, dataLockFile} {
		lock, lerr := takeLock(c.DataDir, name)
		var busy busyError
		if errors.As(lerr, &busy) {
			return fmt.Errorf("berth runs in %s (pid %d), and a restore replaces what it works with; stop it first (SIGTERM)", busy.dir, busy.pid)
		}
		if lerr != nil {
			return lerr
		}
		defer func() { err = errors.Join(err, lock.release()) }()
	}
	r := restore{dir: c.DataDir, staging: filepath.Join(c.DataDir, stagingDir), out: out}
	if err := os.RemoveAll(r.staging); err != nil { // of one that was killed
		return err
	}
	if err := os.Mkdir(r.staging, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.staging)) }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if r.manifest, err = readArchive(f, st.Size(), r.staging); err != nil {
		return err
	}
	return r.run(ctx)
}

// restore is one under way.
type restore struct {
	dir, staging string
	manifest     manifest
	out          io.Writer

	aside string // made when something has to go there
}

func (r *restore) run(ctx context.Context) error {
	database, staged := filepath.Join(r.dir, databaseFile), filepath.Join(r.staging, databaseFile)
	now, damaged, err := r.present(ctx, database)
	if err != nil {
		return err
	}
	// Milliseconds since 1970, so that epochs grow also where nobody knows any more what came after the backup.
	id, err := store.Renew(ctx, staged, max(now.Epoch+1, time.Now().UnixMilli()), now)
	if err != nil {
		return err
	}
	switch {
	case id.Installation != r.manifest.Installation:
		return notBackup("its database is another's")
	case now.Installation != "" && now.Installation != id.Installation:
		return compute.Errorf(compute.CodeConflict,
			"%s holds another installation, whose containers the backup does not know; restore into an empty --data-dir.", r.dir)
	}
	if err := r.replaceKeys(); err != nil {
		return fmt.Errorf("restore the keys: %w", err)
	}
	if err := r.replaceDatabase(database, staged, damaged); err != nil {
		return fmt.Errorf("restore the database: %w", err)
	}
	r.say("Restored the state of %s. All tokens have ended.", r.manifest.CreatedAt.Local().Format("2006-01-02 15:04:05"))
	if r.aside != "" {
		r.say("What was there before is in %s; remove that once you do not need it.", r.aside)
	}
	r.say("Users, keys and switches are as they were then: disable and remove again what was since. `berth up` goes on.")
	return nil
}

func (r *restore) say(format string, args ...any) { fmt.Fprintf(r.out, format+"\n", args...) }

// present looks at the database that is there, if any, and folds its log into it. A damaged one is what restores are for.
func (r *restore) present(ctx context.Context, database string) (id store.Identity, damaged bool, err error) {
	if st, err := os.Lstat(database); errors.Is(err, fs.ErrNotExist) || err == nil && st.Size() == 0 {
		return id, false, nil
	}
	if id, err = store.Identify(ctx, database); err == nil {
		err = store.Settle(ctx, database)
	}
	switch {
	case err == nil:
		return id, false, nil
	case ctx.Err() != nil || compute.CodeOf(err) == compute.CodeConflict: // another program's
		return id, false, err
	}
	r.say("The database that is there cannot be read (%s); it is moved aside.", compute.UserMessage(err))
	return id, true, nil
}

// replaceKeys moves the tokens' key aside, and puts the backup's host keys in place.
func (r *restore) replaceKeys() error {
	if err := r.moveAside(tokenKey); err != nil {
		return err
	}
	for _, file := range r.manifest.Files {
		if file.Name == databaseFile {
			continue
		}
		from := filepath.Join(r.staging, file.Name)
		staged, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		path := filepath.Join(r.dir, file.Name)
		if there, err := os.ReadFile(path); err == nil && bytes.Equal(there, staged) {
			continue
		}
		if err := r.moveAside(file.Name); err != nil {
			return err
		}
		if err := syncPath(from); err != nil { // the file itself, before it has its name
			return err
		}
		if err := os.Rename(from, path); err != nil {
			return err
		}
	}
	return syncPath(r.dir)
}

// replaceDatabase keeps the one that is there under another name and then renames over it, so that at no instant there is
// none: the next start would begin anew.
func (r *restore) replaceDatabase(database, staged string, damaged bool) error {
	if damaged { // SQLite would play these into the restored one
		for _, suffix := range []string{"-wal", "-shm"} {
			if err := r.moveAside(databaseFile + suffix); err != nil {
				return err
			}
		}
	}
	if exists(database) {
		if err := r.openAside(); err != nil {
			return err
		}
		if err := os.Link(database, filepath.Join(r.aside, databaseFile)); err != nil {
			return err
		}
	}
	for _, suffix := range []string{"-wal", "-shm", "-journal"} { // of a database that somebody took away by hand
		if err := r.moveAside(databaseFile + suffix); err != nil {
			return err
		}
	}
	if err := os.Rename(staged, database); err != nil {
		return err
	}
	return syncPath(r.dir)
}

// moveAside keeps a file of the data directory, if it is there, where the next start does not see it.
func (r *restore) moveAside(name string) error {
	path := filepath.Join(r.dir, name)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := r.openAside(); err != nil {
		return err
	}
	return os.Rename(path, filepath.Join(r.aside, name))
}

func (r *restore) openAside() (err error) {
	if r.aside == "" {
		prefix := replacedDirs + time.Now().UTC().Format("20060102-150405-")
		r.aside, err = os.MkdirTemp(r.dir, prefix)
	}
	return err
}
