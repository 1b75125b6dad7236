package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"berth/internal/compute"
)

// sqliteCode returns the extended result code of SQLite in err's chain, or 0.
func sqliteCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

func isUnique(err error) bool {
	c := sqliteCode(err)
	return c == sqlite3.SQLITE_CONSTRAINT_UNIQUE || c == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
}

func isForeignKey(err error) bool { return sqliteCode(err) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY }

// violates says whether err is the failure of the named CHECK constraint. SQLite tells the name in words alone.
func violates(err error, constraint string) bool {
	return sqliteCode(err) == sqlite3.SQLITE_CONSTRAINT_CHECK && strings.Contains(err.Error(), constraint)
}

// mapError makes a *compute.Error of whatever a database operation returned. Errors that are one already stay.
func mapError(ctx context.Context, op string, err error) error {
	if err == nil || compute.AsError(err) != nil {
		return err
	}
	fail := func(code compute.Code, message string) error {
		return &compute.Error{Code: code, Message: message, Cause: fmt.Errorf("%s: %w", op, err)}
	}
	if ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, sql.ErrTxDone) || sqliteCode(err) == sqlite3.SQLITE_INTERRUPT) {
		err = errors.Join(ctx.Err(), context.Cause(ctx))
		return fail(compute.CodeUnavailable, "The request was given up before it was done; nothing changed.")
	}
	if errors.Is(err, sql.ErrConnDone) || err.Error() == "sql: database is closed" {
		return fail(compute.CodeUnavailable, "Berth is stopping; try again in a moment.")
	}
	switch code := sqliteCode(err); code & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return fail(compute.CodeUnavailable, "The database is busy; try again in a moment.")
	case sqlite3.SQLITE_FULL:
		return fail(compute.CodeCapacity, "The disk that holds Berth's database is full; nothing changed. Tell your operator to make room.")
	case sqlite3.SQLITE_IOERR:
		if code == sqlite3.SQLITE_IOERR_SHMSIZE {
			return fail(compute.CodeCapacity, "The disk that holds Berth's database is full; nothing changed. Tell your operator to make room.")
		}
		return fail(compute.CodeUnavailable, "The disk that holds Berth's database reports errors. Tell your operator.")
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return fail(compute.CodeUnavailable, "Berth's database cannot be written. Tell your operator.")
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fail(compute.CodeInternal, "Berth's database is damaged. Tell your operator to restore a backup.")
	case sqlite3.SQLITE_CONSTRAINT:
		return mapConstraint(code, fail, op, err)
	}
	return compute.Internal(op, err)
}

// mapConstraint says what is left to say of a violation that the operation itself did not explain.
func mapConstraint(code int, fail func(compute.Code, string) error, op string, err error) error {
	switch code {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
		return fail(compute.CodeConflict, "That exists already.")
	case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
		return fail(compute.CodeNotFound, "Something that this refers to is not there.")
	case sqlite3.SQLITE_CONSTRAINT_CHECK, sqlite3.SQLITE_CONSTRAINT_NOTNULL, sqlite3.SQLITE_CONSTRAINT_DATATYPE:
		return fail(compute.CodeInvalid, "A value is out of its range.")
	}
	return compute.Internal(op, err)
}

// cannotOpen explains to an operator why the database at path did not open.
func cannotOpen(path string, err error) error {
	if compute.AsError(err) != nil {
		return err
	}
	fail := func(code compute.Code, format string, args ...any) error {
		return &compute.Error{Code: code, Message: fmt.Sprintf(format, args...), Cause: err}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fail(compute.CodeNotFound, "There is no database at %s.", path)
	case errors.Is(err, fs.ErrPermission):
		return fail(compute.CodeForbidden, "The database at %s may not be opened by this user.", path)
	case errors.Is(err, syscall.ENOSPC):
		return fail(compute.CodeCapacity, "The disk of %s is full; make room and start again.", path)
	}
	switch sqliteCode(err) & 0xff {
	case sqlite3.SQLITE_NOTADB:
		return fail(compute.CodeInternal, "%s is not a database; move it away or restore a backup.", path)
	case sqlite3.SQLITE_CORRUPT:
		return damaged(path, err)
	case sqlite3.SQLITE_FULL:
		return fail(compute.CodeCapacity, "The disk of %s is full; make room and start again.", path)
	case sqlite3.SQLITE_BUSY:
		return fail(compute.CodeUnavailable, "The database at %s is busy in another process; try again.", path)
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY:
		return fail(compute.CodeUnavailable, "The database at %s cannot be opened: check its permissions and its directory's.", path)
	}
	return fail(compute.CodeUnavailable, "The database at %s cannot be opened: %v.", path, err)
}

func damaged(path string, cause error) error {
	return &compute.Error{
		Code: compute.CodeInternal, Cause: cause,
		Message: fmt.Sprintf("The database at %s is damaged; restore a backup, and keep this file for whoever looks into it.", path),
	}
}
