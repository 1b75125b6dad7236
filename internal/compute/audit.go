package compute

import (
	"context"
	"fmt"
	"time"
	"unicode/utf8"
)

// Outcome is what became of what somebody wanted to do.
type Outcome string

// The outcomes.
const (
	OutcomeAllowed Outcome = "allowed" // it was done
	OutcomeDenied  Outcome = "denied"  // who asked may not, or looked for what is not there for them
	OutcomeFailed  Outcome = "failed"  // who asked may, and it could not be done
)

// OutcomeOf is the outcome of an attempt that ended with err.
func OutcomeOf(err error) Outcome {
	if err == nil {
		return OutcomeAllowed
	}
	switch CodeOf(err) {
	case CodeUnauthenticated, CodeForbidden, CodeNotFound, CodeSSHDisabled:
		return OutcomeDenied
	}
	return OutcomeFailed
}

// Actions that are no operations of the API. An operation's name is the action of whoever did it by another way, too.
const (
	ActionLogin         = "login" // of an SSH client
	ActionSessionOpen   = "openSSHSession"
	ActionSessionEnd    = "endSSHSession"
	ActionAuthenticate  = "authenticate"     // a token was refused, whatever it was for
	ActionProvisionUser = "provisionUser"    // an account was made at its first sign-in from elsewhere
	ActionAuditLost     = "loseAuditRecords" // this installation's own: Count records are not here
)

// OtherActions are the actions that are no operations of the API.
func OtherActions() []string {
	return []string{ActionLogin, ActionSessionOpen, ActionSessionEnd, ActionAuthenticate, ActionProvisionUser, ActionAuditLost}
}

// Operations of the API that operators do by other ways too.
const (
	ActionAddUser     = "addUser"
	ActionChangeUser  = "changeUser"
	ActionAddToken    = "addToken"
	ActionRevokeToken = "revokeToken"
)

// The ways by which somebody acts.
const (
	ViaREST     = "rest"
	ViaSSH      = "ssh"
	ViaOperator = "operator" // berth's commands on the machine itself
	ViaItself   = "berth"
)

// CredentialSSHKey is the kind of credential of who came by SSH; auth has the others.
const CredentialSSHKey = "ssh_key"

// RecordsLost is the error of who keeps audit records, that so many of them found no room. The others are kept.
type RecordsLost int64

func (n RecordsLost) Error() string {
	return fmt.Sprintf("there is no room for %d audit records", int64(n))
}

// AuditRecord says who did what to what, from where, with which credential, through which gateway, and whether it was allowed.
// It holds nothing of what went over a session, no command and no environment, and no credential itself.
type AuditRecord struct {
	Seq     int64 // in commit order, without gaps until old ones are removed; 0 until it is stored
	At      time.Time
	Action  string // the API's operation, or one of the actions above
	Outcome Outcome
	Code    Code // why it was not allowed

	User      UserID // who acted; 0: unknown, or nobody with an account
	Username  string // filled in by the store
	Owner     UserID // the account that it concerns, and that may read of it; 0: none
	OwnerName string // filled in by the store

	Credential   string // its kind: see auth.Kind, and CredentialSSHKey
	CredentialID string // a token's id, a key's fingerprint, the name of an operator: never the credential itself

	Source  string // address and port of the client
	Via     string
	Gateway string // the name of the process that the client reached
	Request string // the request's id, as in the log

	Container ContainerID
	Target    string // what else it was done to, as kind:id

	Session     string        // links the opening of a session to its end
	SessionKind string        // shell, exec, sftp, subsystem or lobby
	Duration    time.Duration // of a session that ended

	Count int64     // how many times: more than 1 where refusals alike were put together
	Until time.Time // the last of them
}

// AuditClass groups records that are kept for as long as one another: so many of one cannot push out the others.
type AuditClass string

// The classes.
const (
	AuditChange  AuditClass = "change"  // something is other than before
	AuditAccess  AuditClass = "access"  // logins and sessions
	AuditRefusal AuditClass = "refusal" // whatever was not allowed
)

// Class is the record's class.
func (r AuditRecord) Class() AuditClass {
	switch {
	case r.Outcome != OutcomeAllowed:
		return AuditRefusal
	case r.Via == ViaSSH && (r.Action == ActionLogin || r.Action == ActionSessionOpen || r.Action == ActionSessionEnd),
		r.Action == "openSession", r.Action == "closeSession", r.Action == "execCommand":
		return AuditAccess
	}
	return AuditChange
}

// Bounded returns the record with its texts cut to what one may take, so that nobody fills a disk with one name.
func (r AuditRecord) Bounded() AuditRecord {
	for _, s := range []*string{
		&r.Action, &r.Credential, &r.CredentialID, &r.Source, &r.Via, &r.Gateway, &r.Request, &r.Target, &r.Session, &r.SessionKind,
	} {
		*s = cut(*s, 128)
	}
	r.Container = ContainerID(cut(string(r.Container), 16))
	r.Code = Code(cut(string(r.Code), 64))
	r.Count = max(r.Count, 1)
	return r
}

// cut bounds a text at a whole character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// AuditQuery selects records. What is zero selects nothing.
type AuditQuery struct {
	Owner        UserID
	Container    ContainerID
	Action       string
	Outcome      Outcome
	Since, Until time.Time // from the one on, and before the other
	After        int64     // those that are newer than this one
	Before       int64     // those that are older than this one
	OldestFirst  bool
	Limit        int
}

// AuditRetention is how long records are kept: until they are too old, or until there are too many of their class.
type AuditRetention struct {
	Age      time.Duration
	PerClass int64
}

// Act is what somebody is about to do, as it will be recorded. A context carries it to the store, which records it in the
// transaction of the change itself. It is for one goroutine.
type Act struct {
	Record   AuditRecord
	ready    bool // it is known who acts
	recorded bool
}

type actKey struct{}

// WithAct returns a context that carries a. What changes the store under it is recorded as a, once a is ready.
func WithAct(ctx context.Context, a *Act) context.Context { return context.WithValue(ctx, actKey{}, a) }

// ActOf returns what ctx carries, or nil.
func ActOf(ctx context.Context) *Act {
	a, _ := ctx.Value(actKey{}).(*Act)
	return a
}

// By tells who acts, with which credential. Until then, what the store does is part of finding that out.
func (a *Act) By(p Principal, credential, id string) {
	r := &a.Record
	r.User, r.Owner, r.Credential, r.CredentialID = p.User, p.User, credential, id
	a.ready = true
}

// Ready says whether it is known who acts, and the act is not recorded yet.
func (a *Act) Ready() bool { return a != nil && a.ready && !a.recorded }

// Committed tells that the act is recorded.
func (a *Act) Committed() { a.recorded = true }

// Ended returns the record of the act, which ended with err, and whether it is still to be stored.
func (a *Act) Ended(err error) (AuditRecord, bool) {
	r := a.Record
	if r.Outcome = OutcomeOf(err); err != nil {
		r.Code = CodeOf(err)
	}
	return r, err != nil || !a.recorded
}
