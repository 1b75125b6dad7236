package api

import (
	"math"
	"time"

	"berth/internal/compute"
)

// NewContainer returns a container of the domain as it is shown, at hostname and with what it uses.
func NewContainer(c compute.Container, used compute.Usage, hostname string) Container {
	shown := Container{
		ID: c.ID, Name: c.Name, Status: c.Status, StatusMessage: c.StatusMessage, Hostname: hostname,
		MemoryMB: c.MemoryMB, MemoryUsedMB: used.MemoryMB,
		StorageGB: c.StorageGB, StorageUsedGB: roundGB(used.StorageGB),
		InstanceType: c.InstanceType, CreatedAt: Time(c.CreatedAt),
		SSHEnabled: c.SSHEnabled, HTTPSEnabled: c.HTTPSEnabled,
	}
	if c.SSHEnabled {
		shown.SSHCommand = "ssh root@" + hostname
	}
	return shown
}

// NewSSHKey returns a key of the domain as it is shown.
func NewSSHKey(k compute.SSHKey) SSHKey {
	return SSHKey{ID: k.ID, Name: k.Name, PublicKey: k.PublicKey, CreatedAt: Time(k.CreatedAt)}
}

// NewIngressRule returns a rule of the domain as it is shown. Its time is in Unix seconds, unlike all others.
func NewIngressRule(r compute.IngressRule) IngressRule {
	return IngressRule{ID: r.ID, Port: r.Port, TargetPort: r.TargetPort, CreatedAt: r.CreatedAt.Unix()}
}

// NewToken returns what is known of a token, as it is shown.
func NewToken(t compute.Token) Token {
	shown := Token{
		ID: t.ID, Name: t.Name, Scopes: t.Scopes, IssuedBy: t.IssuedBy, CreatedAt: Time(t.CreatedAt), ExpiresAt: Time(t.ExpiresAt),
	}
	if !t.LastUsedAt.IsZero() {
		shown.LastUsedAt = Time(t.LastUsedAt)
	}
	return shown
}

// roundGB keeps three digits, about a megabyte: fewer would show an almost empty disk as empty, more would be noise.
func roundGB(gb float64) float64 { return math.Round(gb*1000) / 1000 }

// Time writes a time in RFC 3339 in UTC, to the second. A time.Time would write what is below it too.
func Time(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// NewAuditRecord returns an audit record as it is shown, in answers and in files alike.
func NewAuditRecord(r compute.AuditRecord) AuditRecord {
	shown := AuditRecord{
		Seq: r.Seq, Time: precise(r.At), Action: r.Action, Outcome: r.Outcome, Code: r.Code,
		User: r.User, Username: r.Username, Owner: r.Owner, OwnerName: r.OwnerName,
		Credential: r.Credential, CredentialID: r.CredentialID,
		Source: r.Source, Via: r.Via, Gateway: r.Gateway, RequestID: r.Request, Container: r.Container, Target: r.Target,
		Session: r.Session, SessionKind: r.SessionKind, DurationMs: r.Duration.Milliseconds(),
	}
	if r.Count > 1 {
		shown.Count = r.Count
	}
	if !r.Until.IsZero() {
		shown.Until = precise(r.Until)
	}
	return shown
}

// precise writes a time as Time does, to the millisecond: order matters to who reads what happened.
func precise(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z07:00") }
