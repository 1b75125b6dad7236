package store

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"berth/internal/compute"
)

const benchUsers = 100_000

// benchStore makes a database of 100,000 users, each with a key of their own, one that ten share, and three containers.
func benchStore(b *testing.B) *Store {
	b.Helper()
	path := filepath.Join(b.TempDir(), "berth.db")
	s, err := Open(b.Context(), path, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	if err := s.write(b.Context(), "fill", func(t *tx) error { return fillBig(t.Tx) }); err != nil {
		b.Fatal(err)
	}
	return s
}

func fillBig(t *sql.Tx) error {
	for _, query := range []string{
		`INSERT INTO users (id, username, role, created_at)
			WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
			SELECT i, 'user' || i, 'user', 0 FROM n`,
		`INSERT INTO ssh_keys (id, owner, ordinal, quota, name, public_key, fingerprint, created_at)
			SELECT id, id, 0, 10, 'laptop', printf('ssh-ed25519 %068d', id), printf('SHA256:%043d', id), 0 FROM users WHERE ?1`,
		`INSERT INTO ssh_keys (owner, ordinal, quota, name, public_key, fingerprint, created_at)
			SELECT id, 1, 10, 'shared', printf('ssh-ed25519 s%067d', id / 10), printf('SHA256:s%042d', id / 10), 0 FROM users WHERE ?1`,
		`INSERT INTO container_ids (id, owner, created_at)
			SELECT printf('%08x', id + p * ?1), id, 0 FROM users, (SELECT 0 AS p UNION ALL SELECT 1 UNION ALL SELECT 2)`,
		`INSERT INTO containers (id, owner, ordinal, quota, slot, name, instance_type, memory_mb, storage_gb, ssh_enabled,
			mount_paths, created_at, desired, generation, status)
			SELECT printf('%08x', id + p * ?1), id, p, 3, p, 'dev-box', 'nano', 512, 5, 1, '["/root"]', 0, 'running', 1, 'running'
			FROM users, (SELECT 0 AS p UNION ALL SELECT 1 UNION ALL SELECT 2)`,
		`INSERT INTO container_keys (container, key, owner) SELECT c.id, k.id, c.owner
			FROM containers c JOIN ssh_keys k ON k.owner = c.owner WHERE ?1`,
	} {
		if _, err := t.Exec(query, benchUsers); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkLookups measures what a login and a request ask, beside 100,000 users and 300,000 containers.
func BenchmarkLookups(b *testing.B) {
	s := benchStore(b)
	ctx := b.Context()
	owner := func() int64 { return 1 + rand.Int64N(benchUsers) }
	id := func() compute.ContainerID {
		return compute.ContainerID(fmt.Sprintf("%08x", 1+rand.Int64N(3*benchUsers)))
	}
	for _, bench := range []struct {
		name string
		f    func() error
	}{
		{"Target", func() error { _, err := s.Target(ctx, id()); return err }},
		{"Accounts", func() error {
			_, err := s.Accounts(ctx, fmt.Sprintf("SHA256:%043d", owner()))
			return err
		}},
		{"AccountsShared", func() error {
			_, err := s.Accounts(ctx, fmt.Sprintf("SHA256:s%042d", owner()/10))
			return err
		}},
		{"AccountsNone", func() error { _, err := s.Accounts(ctx, "SHA256:none"); return err }},
		{"Containers", func() error { _, err := s.Containers(ctx, compute.UserID(owner())); return err }},
		{"ReconcileState", func() error { _, err := s.ReconcileState(ctx, id()); return err }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			for b.Loop() {
				if err := bench.f(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(bench.name+"Parallel", func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := bench.f(); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
	b.Run("Reconcilable", func(b *testing.B) {
		for b.Loop() {
			if list, err := s.Reconcilable(ctx); err != nil || len(list) != 3*benchUsers {
				b.Fatal(len(list), err)
			}
		}
	})
	b.Run("SetStatus", func(b *testing.B) { // one durable transaction with an event
		n := 0
		for b.Loop() {
			n++
			if err := s.SetStatus(ctx, id(), 1, compute.StatusRunning, fmt.Sprint(n)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("QuickCheck", func(b *testing.B) { // what Open costs at this size
		for b.Loop() {
			if err := inspect(ctx, s.db, "berth.db"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
