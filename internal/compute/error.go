package compute

import (
	"errors"
	"fmt"
)

// Code is a stable, machine-readable reason that clients may match on. Each edge maps it to its own statuses.
type Code string

// The codes. Adding one is compatible; changing what one means is not.
const (
	CodeInvalid          Code = "invalid"           // a value is malformed or out of range
	CodeUnauthenticated  Code = "unauthenticated"   // no credential, or one that does not verify
	CodeForbidden        Code = "forbidden"         // known, and not allowed
	CodeNotFound         Code = "not_found"         // absent, or not for this principal to see
	CodeConflict         Code = "conflict"          // clashes with what exists
	CodeLimit            Code = "limit_reached"     // one more would exceed a limit of the account
	CodePrecondition     Code = "precondition_failed"
	CodeUnsupportedMedia Code = "unsupported_media" // a body that is not JSON
	CodeTooLarge         Code = "too_large"         // a body over the limit
	CodeMethod           Code = "method_not_allowed"
	CodeCapacity         Code = "no_capacity"     // this installation has no room now
	CodeUnavailable      Code = "unavailable"     // try again: something needed is down
	CodeNotRunning       Code = "not_running"     // the container does not run
	CodeSSHDisabled      Code = "ssh_disabled"    // SSH is off for the container
	CodeStorageMissing   Code = "storage_missing" // recorded storage is not there; never made anew
	CodeInternal         Code = "internal"        // a fault of ours: logged, never explained to the client
)

// Error is the one error that crosses package boundaries: a code for programs, a message that is safe to show to the
// user and says what to do, and a cause for the log alone.
type Error struct {
	Code    Code
	Field   string // the request's field at fault, where there is one
	Message string // for the user: one sentence, no internals
	Cause   error  // for the log; may be nil
}

func (e *Error) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("%s: %v", e.Message, e.Cause)
	}
	return e.Message
}

func (e *Error) Unwrap() error { return e.Cause }

// Errorf returns an Error without a cause.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Invalid returns a CodeInvalid Error about one field of a request.
func Invalid(field, format string, args ...any) *Error {
	return &Error{Code: CodeInvalid, Field: field, Message: fmt.Sprintf(format, args...)}
}

// NotFound returns what is said of anything absent or not visible: always the same words for one kind of thing.
func NotFound(what string) *Error {
	return Errorf(CodeNotFound, "There is no such %s.", what)
}

// Internal wraps a fault of ours; the user sees only that there was one.
func Internal(op string, cause error) *Error {
	return &Error{
		Code: CodeInternal, Message: "Something went wrong on our side. Try again; if it stays, tell your operator.",
		Cause: fmt.Errorf("%s: %w", op, cause),
	}
}

// CodeOf returns the code of the first Error in err's chain; any other error is CodeInternal.
func CodeOf(err error) Code {
	if e := AsError(err); e != nil {
		return e.Code
	}
	return CodeInternal
}

// AsError returns the first Error in err's chain, or nil.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// UserMessage returns what a user may read of err.
func UserMessage(err error) string {
	if e := AsError(err); e != nil {
		return e.Message
	}
	return Internal("", err).Message
}
