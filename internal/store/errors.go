package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"berth/internal/compute"
)

// fault is what went wrong in a database, in words that hold for both.
type fault int

const (
	faultOther fault = iota
	faultUnique
	faultForeignKey
	faultCheck // a CHECK constraint
	faultRange // another value than its column takes
	faultInterrupted
	faultBusy
	faultFull
	faultDisk
	faultReadOnly
	faultDamaged
	faultAway // the server, or the connection to it
)

// faultOf finds the database's word in err's chain.
func faultOf(err error) fault {
	if code := sqliteCode(err); code != 0 {
		return sqliteFault(code)
	}
	if code := postgresCode(err); code != "" {
		return postgresFault(code)
	}
	var network net.Error
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, driver.ErrBadConn) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, pgconn.ErrConnClosed) {
		return faultAway
	}
	return faultOther
}

// sqliteCode returns the extended result code of SQLite in err's chain, or 0.
func sqliteCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

func sqliteFault(code int) fault {
	switch code {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
		return faultUnique
	case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
		return faultForeignKey
	case sqlite3.SQLITE_CONSTRAINT_CHECK:
		return faultCheck
	case sqlite3.SQLITE_CONSTRAINT_NOTNULL, sqlite3.SQLITE_CONSTRAINT_DATATYPE:
		return faultRange
	case sqlite3.SQLITE_IOERR_SHMSIZE:
		return faultFull
	}
	switch code & 0xff {
	case sqlite3.SQLITE_INTERRUPT:
		return faultInterrupted
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return faultBusy
	case sqlite3.SQLITE_FULL:
		return faultFull
	case sqlite3.SQLITE_IOERR:
		return faultDisk
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return faultReadOnly
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return faultDamaged
	}
	return faultOther
}

// postgresCode returns the SQLSTATE of PostgreSQL in err's chain, or nothing.
func postgresCode(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// postgresFault goes by https://www.postgresql.org/docs/15/errcodes-appendix.html.
func postgresFault(code string) fault {
	switch code {
	case "23505":
		return faultUnique
	case "23503":
		return faultForeignKey
	case "23514":
		return faultCheck
	case "23502":
		return faultRange
	case "57014":
		return faultInterrupted
	case "55P03", "40001", "40P01":
		return faultBusy
	case "53100":
		return faultFull
	case "58030":
		return faultDisk
	case "25006", "42501":
		return faultReadOnly
	case "XX001", "XX002":
		return faultDamaged
	case "25P03":
		return faultAway
	}
	switch code[:2] {
	case "22":
		return faultRange
	case "08", "53", "57": // no connection, no room for one, shut down
		return faultAway
	}
	return faultOther
}

func isUnique(err error) bool { return faultOf(err) == faultUnique }

func isForeignKey(err error) bool { return faultOf(err) == faultForeignKey }

// violates says whether err is the failure of the named CHECK constraint. SQLite tells the name in words alone.
func violates(err error, constraint string) bool {
	return faultOf(err) == faultCheck && strings.Contains(err.Error(), constraint)
}

// mapError makes a *compute.Error of whatever a database operation returned. Errors that are one already stay.
func mapError(ctx context.Context, op string, err error) error {
	if err == nil || compute.AsError(err) != nil {
		return err
	}
	fail := func(code compute.Code, message string) error {
		return &compute.Error{Code: code, Message: message, Cause: fmt.Errorf("%s: %w", op, err)}
	}
	what := faultOf(err)
	if ctx.Err() != nil &&
		(errors.Is(err, ctx.Err()) || errors.Is(err, sql.ErrTxDone) || what == faultInterrupted || what == faultAway) {
		err = errors.Join(ctx.Err(), context.Cause(ctx))
		return fail(compute.CodeUnavailable, "The request was given up before it was done; nothing changed.")
	}
	if errors.Is(err, sql.ErrConnDone) || err.Error() == "sql: database is closed" {
		return fail(compute.CodeUnavailable, "Berth is stopping; try again in a moment.")
	}
	switch what {
	case faultUnique:
		return fail(compute.CodeConflict, "That exists already.")
	case faultForeignKey:
		return fail(compute.CodeNotFound, "Something that this refers to is not there.")
	case faultCheck, faultRange:
		return fail(compute.CodeInvalid, "A value is out of its range.")
	case faultBusy, faultInterrupted:
		return fail(compute.CodeUnavailable, "The database is busy; try again in a moment.")
	case faultFull:
		return fail(compute.CodeCapacity, "The disk that holds Berth's database is full; nothing changed. Tell your operator to make room.")
	case faultDisk:
		return fail(compute.CodeUnavailable, "The disk that holds Berth's database reports errors. Tell your operator.")
	case faultReadOnly:
		return fail(compute.CodeUnavailable, "Berth's database cannot be written. Tell your operator.")
	case faultDamaged:
		return fail(compute.CodeInternal, "Berth's database is damaged. Tell your operator to restore a backup.")
	case faultAway:
		return fail(compute.CodeUnavailable, "Berth's database does not answer; try again in a moment.")
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
