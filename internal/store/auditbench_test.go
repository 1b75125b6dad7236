package store

import (
	"context"
	"fmt"
	"testing"
	"time"

	"berth/internal/compute"
)

// BenchmarkAudit measures writing and reading beside 300,000 records, a third of them of each class and half of all of one
// account.
func BenchmarkAudit(b *testing.B) {
	s := openNew(b, Options{})
	owner := addUser(b, s, "alice")
	p := compute.Principal{User: owner}
	list := make([]compute.AuditRecord, 300_000)
	for i := range list {
		r := compute.AuditRecord{
			At: time.Now(), Action: "setSSHAccess", Outcome: compute.OutcomeAllowed, User: compute.UserID(i % 1000), Owner: compute.UserID(i % 1000),
			Credential: "token", CredentialID: "JBSWY3DPEHPK3PXPJBSWY3DPEH", Source: "192.0.2.1:50000", Via: compute.ViaREST,
			Gateway: "machine-1", Request: "JBSWY3DPEHPK3PXPJBSWY3DPEH", Container: compute.ContainerID(fmt.Sprintf("%08x", i%3000)),
		}
		if i%2 == 0 {
			r.User, r.Owner = owner, owner
		}
		switch i % 3 {
		case 1:
			r.Action, r.Via = compute.ActionLogin, compute.ViaSSH
		case 2:
			r.Outcome, r.Code = compute.OutcomeDenied, compute.CodeNotFound
		}
		list[i] = r
	}
	if err := s.AppendAudit(b.Context(), list); err != nil {
		b.Fatal(err)
	}
	for name, q := range map[string]compute.AuditQuery{
		"newest":                        {Limit: 100},
		"account":                       {Owner: owner, Limit: 100},
		"container":                     {Container: "00000007", Limit: 100},
		"account, nothing matches":      {Owner: owner, Action: "none", Limit: 100},
		"all accounts, nothing matches": {Action: "none", Limit: 100},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, _, err := s.Audit(b.Context(), q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("256 records", func(b *testing.B) {
		for b.Loop() {
			if err := s.AppendAudit(b.Context(), list[:256]); err != nil {
				b.Fatal(err)
			}
		}
	})
	key := addKey(b, s, owner, "one")
	box := addContainer(b, s, owner, key)
	for name, act := range map[string]func(context.Context) context.Context{
		"change":             func(ctx context.Context) context.Context { return ctx },
		"change with record": func(ctx context.Context) context.Context { ctx, _ = acting(ctx, p, "setSSHAccess"); return ctx },
	} {
		b.Run(name, func(b *testing.B) {
			on := false
			for b.Loop() {
				if _, err := s.SetSSH(act(b.Context()), owner, box.ID, on); err != nil {
					b.Fatal(err)
				}
				on = !on
			}
		})
	}
	b.Run("prune", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.PruneAudit(b.Context(), compute.AuditRetention{Age: time.Hour, PerClass: 1 << 40}); err != nil {
				b.Fatal(err)
			}
		}
	})
	var bytes int64
	if err := s.db.QueryRow(`SELECT page_count * page_size FROM pragma_page_count, pragma_page_size`).Scan(&bytes); err != nil {
		b.Fatal(err)
	}
	var n int64
	if err := s.db.QueryRow(`SELECT count(*) FROM audit`).Scan(&n); err != nil {
		b.Fatal(err)
	}
	b.Logf("%d records, %d bytes each", n, bytes/n)
}
