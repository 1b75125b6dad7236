package link

import (
	"net/netip"
	"regexp"
	"strings"
	"time"

	"berth/internal/compute"
)

// wireRecord is an audit record as a gateway tells it: of logins and sessions, and of records that it lost. It has no field
// for what a gateway may not say: its own name, another way in than SSH, an operation of the API.
type wireRecord struct {
	At        int64  `cbor:"1,keyasint"` // unix milliseconds, as Until
	Action    string `cbor:"2,keyasint"`
	Outcome   string `cbor:"3,keyasint"`
	Code      string `cbor:"4,keyasint,omitempty"`
	User      int64  `cbor:"5,keyasint,omitempty"` // who acted, on an account of their own
	Key       string `cbor:"6,keyasint,omitempty"` // its fingerprint
	Source    string `cbor:"7,keyasint,omitempty"`
	Container string `cbor:"8,keyasint,omitempty"`
	Target    string `cbor:"9,keyasint,omitempty"`
	Session   string `cbor:"10,keyasint,omitempty"`
	Kind      string `cbor:"11,keyasint,omitempty"`
	Duration  int64  `cbor:"12,keyasint,omitempty"` // milliseconds
	Count     int64  `cbor:"13,keyasint"`
	Until     int64  `cbor:"14,keyasint,omitempty"`
}

func toWireRecord(r compute.AuditRecord) wireRecord {
	r = r.Bounded()
	w := wireRecord{
		At: r.At.UnixMilli(), Action: r.Action, Outcome: string(r.Outcome), Code: string(r.Code), User: int64(r.User),
		Source: r.Source, Container: string(r.Container), Target: r.Target, Session: r.Session, Kind: r.SessionKind,
		Duration: r.Duration.Milliseconds(), Count: r.Count,
	}
	if r.Credential == compute.CredentialSSHKey {
		w.Key = r.CredentialID
	}
	if !r.Until.IsZero() {
		w.Until = r.Until.UnixMilli()
	}
	return w
}

// What a gateway may say at most. A count is of what one process can have met, and a session may last years.
const (
	mostCounted    = 1 << 40
	longestSession = 100 * 365 * 24 * time.Hour
)

var (
	keyFingerprint = regexp.MustCompile(`^SHA256:[A-Za-z0-9+/]{43}$`)
	errorCode      = regexp.MustCompile(`^[a-z_]{1,32}$`)
	sessionID      = regexp.MustCompile(`^[A-Z2-7]{26}$`)
)

// record returns what g says, as of g: whatever it claims, the name is that of its credential, and the time none before that
// credential was made and none to come. Not ok is what no gateway has to say.
func (w wireRecord) record(g compute.Gateway, now time.Time) (r compute.AuditRecord, ok bool) {
	at := clampTime(w.At, g.CreatedAt, now)
	r = compute.AuditRecord{
		At: at, Action: w.Action, Outcome: compute.Outcome(w.Outcome), Code: compute.Code(w.Code), Via: compute.ViaSSH,
		Gateway: g.Name, User: compute.UserID(w.User), Owner: compute.UserID(w.User), Source: w.Source,
		Container: compute.ContainerID(w.Container), Target: w.Target, Session: w.Session, SessionKind: w.Kind,
		Duration: time.Duration(min(max(w.Duration, 0), longestSession.Milliseconds())) * time.Millisecond,
		Count:    min(max(w.Count, 1), mostCounted),
	}
	if w.Key != "" {
		r.Credential, r.CredentialID = compute.CredentialSSHKey, w.Key
	}
	if w.Until != 0 {
		r.Until = clampTime(w.Until, at, now)
	}
	if w.Action == compute.ActionAuditLost {
		return lostRecord(g, at, r.Count), true
	}
	return r, w.sane()
}

// sane says whether every text is one that a gateway of ours writes.
func (w wireRecord) sane() bool {
	switch w.Action {
	case compute.ActionLogin, compute.ActionSessionOpen, compute.ActionSessionEnd:
	default:
		return false
	}
	switch compute.Outcome(w.Outcome) {
	case compute.OutcomeAllowed:
		if w.Code != "" {
			return false
		}
	case compute.OutcomeDenied, compute.OutcomeFailed:
		if !errorCode.MatchString(w.Code) {
			return false
		}
	default:
		return false
	}
	switch w.Kind {
	case "", "shell", "exec", "sftp", "subsystem", "lobby":
	default:
		return false
	}
	if w.Container != "" {
		if _, err := compute.ParseContainerID(w.Container); err != nil {
			return false
		}
	}
	return w.User >= 0 &&
		(w.Key == "" || keyFingerprint.MatchString(w.Key)) &&
		(w.Source == "" || isAddress(w.Source)) &&
		(w.Target == "" || w.Target == "lobby") &&
		(w.Session == "" || sessionID.MatchString(w.Session))
}

func isAddress(s string) bool {
	a, err := netip.ParseAddrPort(s)
	return err == nil && len(s) <= 64 && !strings.ContainsFunc(a.Addr().Zone(), func(r rune) bool { return r < '!' || r > '~' })
}

func clampTime(millis int64, first, last time.Time) time.Time {
	at := time.UnixMilli(millis)
	switch {
	case at.Before(first):
		return first
	case at.After(last):
		return last
	}
	return at
}

// lostRecord says that n of a gateway's records are missing.
func lostRecord(g compute.Gateway, at time.Time, n int64) compute.AuditRecord {
	return compute.AuditRecord{
		At: at, Action: compute.ActionAuditLost, Outcome: compute.OutcomeFailed, Code: compute.CodeUnavailable,
		Via: compute.ViaItself, Gateway: g.Name, Count: n,
	}
}
