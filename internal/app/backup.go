package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth/internal/config"
	"berth/internal/store"
)

// Backup writes the state of the data directory into a new file that is the caller's alone: the database as of one moment,
// and the host keys. Berth may run meanwhile, of whatever version. Volumes are not in it.
func Backup(ctx context.Context, c config.Config, file string, out io.Writer) error {
	if known, err := readElsewhere(c.DataDir); err != nil {
		return err
	} else if known != (elsewhere{}) {
		return fmt.Errorf("the state of %s is in a PostgreSQL database: back that up with pg_dump, and keep the host keys", c.DataDir)
	}
	database := filepath.Join(c.DataDir, databaseFile)
	if !exists(database) {
		return fmt.Errorf("there is no berth in %s; give its --data-dir", c.DataDir)
	}
	if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return err
		}
		return fmt.Errorf("%s is there already; choose another name, or move it away", file)
	}
	// Beside the file, since that is where there must be room.
	work, err := os.MkdirTemp(filepath.Dir(file), ".berth-backup-")
	if err != nil {
		return fmt.Errorf("make the backup: %w", err)
	}
	defer os.RemoveAll(work)
	m, err := gather(ctx, c.DataDir, work)
	if err != nil {
		return err
	}
	made := filepath.Join(work, "backup.tar")
	if err := writeNew(made, func(w io.Writer) error { return writeArchive(w, m, work) }); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	if err := renameNew(made, file); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	size := int64(0)
	for _, f := range m.Files {
		size += f.Size
	}
	_, err = fmt.Fprintf(out, "Wrote %s: the database (schema %d) and %d host keys, %d kB. Volumes are not in it.\n",
		file, m.Schema, len(m.Files)-1, size>>10)
	return err
}

// gather copies what belongs into a backup into dir.
func gather(ctx context.Context, dataDir, dir string) (manifest, error) {
	id, err := store.Backup(ctx, filepath.Join(dataDir, databaseFile), filepath.Join(dir, databaseFile))
	if err != nil {
		return manifest{}, err
	}
	names := []string{databaseFile}
	for _, name := range archivedKeys {
		err := writeNew(filepath.Join(dir, name), func(w io.Writer) error { return copyFile(w, filepath.Join(dataDir, name)) })
		switch {
		case errors.Is(err, fs.ErrNotExist): // no gateway ever served here
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return manifest{}, err
			}
		case err != nil:
			return manifest{}, fmt.Errorf("copy a host key: %w", err)
		default:
			names = append(names, name)
		}
	}
	m, err := newManifest(dir, names)
	m.Installation, m.Epoch, m.Schema = id.Installation, id.Epoch, id.Schema
	return m, err
}

// writeNew makes a file that is its owner's alone, and is on the disk when it returns.
func writeNew(path string, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Sync(), f.Close())
}

// renameNew gives a file its name, unless there is one of that name, and has the disk remember it.
func renameNew(from, to string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return syncPath(filepath.Dir(to))
}

// syncPath has what a file or a directory holds on the disk when it returns.
func syncPath(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
