package sshproxy

import (
	"crypto/rand"
	"errors"
	"slices"
	"sync"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"berth/internal/compute"
)

// record is what is known of everything that happens on the connection. It has nothing of what a client types but the
// container that it names: in the place of a user name, people have typed passwords.
func (c *conn) record(action string, id identity) compute.AuditRecord {
	r := compute.AuditRecord{
		Action: action, Outcome: compute.OutcomeAllowed, User: id.owner, Owner: id.owner,
		Source: c.nc.RemoteAddr().String(), Via: compute.ViaSSH,
	}
	if id.key != "" {
		r.Credential, r.CredentialID = compute.CredentialSSHKey, id.key
	}
	switch login, err := c.login(id); {
	case err != nil:
		r.Container = c.jump
	case login.Lobby():
		r.Target = "lobby"
	default:
		r.Container = login.Container
	}
	return r
}

func (c *conn) recordLogin(id identity) { c.g.o.Record(c.record(compute.ActionLogin, id)) }

// recordRefusal records a client that tried to log in, and did not. Who it was, nobody knows: a key that was offered is public.
// A client whose first keys are refused and a later one is not, as that of everybody with several, has logged in.
func (c *conn) recordRefusal() {
	if _, _, in := c.loggedInAs(); in || c.pre == nil {
		return // before that, it was no attempt: a scan of ports, or a check of host keys
	}
	id := c.refused
	if id.key == "" {
		id.user = c.pre.User()
	}
	r := c.record(compute.ActionLogin, id)
	r.Outcome, r.Code = compute.OutcomeDenied, compute.CodeUnauthenticated
	c.g.o.Record(r)
}

// ownerOf returns whose key of those that is.
func ownerOf(keys []compute.SSHKey, fingerprint string) compute.UserID {
	i := slices.IndexFunc(keys, func(k compute.SSHKey) bool { return k.Fingerprint == fingerprint })
	if i < 0 {
		return 0
	}
	return keys[i].Owner
}

// sessionRecord records the opening and the end of one session.
type sessionRecord struct {
	g *Gateway

	mu    sync.Mutex
	r     compute.AuditRecord // what both have in common; guarded by mu, as what follows
	since time.Time           // zero: it was not opened
}

// begin says whose the session is. Nothing is recorded until it is known what becomes of it.
func (s *sessionRecord) begin(c *conn, id identity) {
	s.g, s.r = c.g, c.record(compute.ActionSessionOpen, id)
	s.r.Session = rand.Text()
}

// refused records that the session does not come to be, unless the client does not wait for that.
func (s *sessionRecord) refused(why error) {
	if errors.Is(why, errGone) {
		return
	}
	s.mu.Lock()
	r := s.r
	s.mu.Unlock()
	switch {
	case compute.AsError(why) != nil:
		r.Outcome, r.Code = compute.OutcomeOf(why), compute.CodeOf(why)
	case errors.Is(why, errRevoked), errors.Is(why, errStranger):
		r.Outcome, r.Code = compute.OutcomeDenied, compute.CodeForbidden
	default:
		r.Outcome, r.Code = compute.OutcomeFailed, compute.CodeUnavailable
	}
	s.g.o.Record(r)
}

// opened records what the session is for: a shell, a command, or a subsystem, and not which.
func (s *sessionRecord) opened(kind string) {
	s.mu.Lock()
	if !s.since.IsZero() {
		s.mu.Unlock()
		return // a client may ask for more in one channel; the container decides about that
	}
	s.since, s.r.SessionKind = time.Now(), kind
	r := s.r
	s.mu.Unlock()
	s.g.o.Record(r)
}

// end records the end of a session that was opened.
func (s *sessionRecord) end() {
	s.mu.Lock()
	since := s.since
	r := s.r
	s.mu.Unlock()
	if since.IsZero() {
		return
	}
	r.Action, r.Duration = compute.ActionSessionEnd, max(time.Since(since), time.Millisecond) // none would be no session
	s.g.o.Record(r)
}

// kindOf names what a client asks a session for.
func kindOf(r *gossh.Request) string {
	if r.Type != "subsystem" {
		return r.Type
	}
	var m struct{ Name string }
	if err := gossh.Unmarshal(r.Payload, &m); err == nil && m.Name == "sftp" {
		return m.Name
	}
	return r.Type
}
