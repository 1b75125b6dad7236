package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"berth/internal/auth"
	"berth/internal/compute"
	"berth/internal/store"
)

// perUser is how many containers each account has: as many as it may.
const perUser = 3

// spread makes numbers look as random ids do, which are all over an index: it is odd, so no two numbers become one.
const spread = 2654435761

// containerOf is the id of an account's container.
func containerOf(user, which int) string {
	return fmt.Sprintf("%08x", uint32((user*perUser+which)*spread))
}

// fingerprintOf is that of an account's own key; it has another one, which ten accounts share.
func fingerprintOf(user int) string {
	return fmt.Sprintf("SHA256:%08x%035d", uint32(user*spread), user)
}

// filling makes the accounts from ?1 to ?2 with all that is theirs. The containers are stopped and have no storage yet: this
// machine could not run them, and there is nothing to do about them.
var filling = []string{
	`INSERT INTO users (id, username, role, created_at)
		WITH RECURSIVE n (i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM n WHERE i < ?2)
		SELECT i, 'user' || i, 'user', ?3 FROM n`,
	`INSERT INTO ssh_keys (owner, ordinal, quota, name, public_key, fingerprint, created_at)
		SELECT id, 0, 10, 'laptop', printf('ssh-ed25519 %068d', id),
			printf('SHA256:%08x%035d', (id * ?4) & 4294967295, id), ?3
		FROM users WHERE id BETWEEN ?1 AND ?2`,
	`INSERT INTO ssh_keys (owner, ordinal, quota, name, public_key, fingerprint, created_at)
		SELECT id, 1, 10, 'shared', printf('ssh-ed25519 s%067d', id / 10),
			printf('SHA256:%08xs%034d', (id / 10 * ?4) & 4294967295, id / 10), ?3
		FROM users WHERE id BETWEEN ?1 AND ?2`,
	`INSERT INTO container_ids (id, owner, created_at)
		SELECT printf('%08x', ((u.id * ?5 + o.value) * ?4) & 4294967295), u.id, ?3
		FROM users u, json_each('[0, 1, 2]') o WHERE u.id BETWEEN ?1 AND ?2`,
	`INSERT INTO containers (id, owner, ordinal, quota, slot, name, instance_type, memory_mb, storage_gb, ssh_enabled,
			mount_paths, created_at, desired, generation, status)
		SELECT printf('%08x', ((u.id * ?5 + o.value) * ?4) & 4294967295), u.id, o.value, ?5, o.value, 'dev-box ' || u.id,
			'nano', 512, 5, 1, '["/root"]', ?3, 'stopped', 1, 'stopped'
		FROM users u, json_each('[0, 1, 2]') o WHERE u.id BETWEEN ?1 AND ?2`,
	`INSERT INTO container_keys (container, key, owner)
		SELECT c.id, k.id, c.owner FROM containers c JOIN ssh_keys k ON k.owner = c.owner WHERE c.owner BETWEEN ?1 AND ?2`,
}

// population is the accounts in a database: the first is the administrator, and the others have containers.
type population struct {
	data        string // the data directory, whose berth does not run while this grows
	first, last int    // accounts with containers
}

func (p *population) database() string { return filepath.Join(p.data, "berth.db") }

// containers is how many there are.
func (p *population) containers() int { return (p.last - p.first + 1) * perUser }

// grow adds accounts until they have so many containers.
func (p *population) grow(ctx context.Context, containers int) (err error) {
	if p.last == 0 {
		if err := p.begin(ctx); err != nil {
			return err
		}
	}
	from, to := p.last+1, p.first-1+containers/perUser
	// Nobody else has it open, and what a power cut leaves of it is nobody's: so there is no need to be careful.
	q := url.Values{"_pragma": {"synchronous(0)", "cache_size(-1000000)", "temp_store(2)"}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: p.database(), RawQuery: q.Encode()}).String())
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	defer func() { err = errors.Join(err, db.Close(), p.sync()) }()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	for _, query := range filling {
		if _, err := tx.ExecContext(ctx, query, from, to, time.Now().UnixMilli(), spread, perUser); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	p.last = to
	return tx.Commit()
}

// sync waits until the database is on the disk, as one that grew over months is: the kernel would write it while others measure.
func (p *population) sync() error {
	f, err := os.OpenFile(p.database(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// begin makes the database and the administrator that berth needs.
func (p *population) begin(ctx context.Context) (err error) {
	s, err := store.Open(ctx, p.database(), store.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	admin, err := s.CreateUser(ctx, "admin", compute.RoleAdmin)
	p.first = int(admin.ID) + 1
	p.last = int(admin.ID)
	return err
}

// tokens issues one for each of n accounts, which are all over the others, as berth itself does.
func (p *population) tokens(ctx context.Context, zone string, n int) (_ map[int]string, err error) {
	s, err := store.Open(ctx, p.database(), store.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	key, err := auth.OpenKey(filepath.Join(p.data, "token.key"))
	if err != nil {
		return nil, err
	}
	authority := auth.New(key, zone, s)
	r := auth.Request{Name: "bench", TTL: time.Hour, Scopes: []auth.Scope{auth.ScopeContainersRead, auth.ScopeContainersWrite}}
	n = min(n, p.last-p.first+1)
	out := make(map[int]string, n)
	for i := range n {
		user := p.first + i*(p.last-p.first)/max(n-1, 1)
		out[user], _, err = authority.Issue(ctx, compute.UserID(user), compute.IssuedByOperator, r)
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
