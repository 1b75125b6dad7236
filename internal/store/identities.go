package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"berth/internal/compute"
)

const (
	queryIdentity = selectUser + ` JOIN identities i ON i.user = u.id WHERE i.issuer = ? AND i.subject = ?`
	queryHolders  = `SELECT u.id, u.username, u.role, u.disabled, u.created_at, k.id
		FROM users u JOIN ssh_keys k ON k.owner = u.id WHERE k.fingerprint = ? AND u.disabled = 0 ORDER BY u.id`
)

// UserByIdentity returns the account of whom an external issuer calls subject.
func (r *Reader) UserByIdentity(ctx context.Context, issuer, subject string) (compute.User, error) {
	u, err := userByIdentity(ctx, r.db, issuer, subject)
	return u, mapError(ctx, "read the user of an identity", err)
}

func userByIdentity(ctx context.Context, q querier, issuer, subject string) (compute.User, error) {
	u, err := scanUser(q.QueryRowContext(ctx, queryIdentity, issuer, subject))
	return u, absent(err, "user")
}

// Provision returns the account of whom an external issuer calls subject, made if there is none, under the first of the
// names that is valid and free. A name that is taken never leads to the account that has it.
func (s *Store) Provision(ctx context.Context, issuer, subject string, names []string) (u compute.User, err error) {
	err = s.write(ctx, "provision user", func(t *tx) error {
		u, err = userByIdentity(ctx, t, issuer, subject)
		if compute.CodeOf(err) != compute.CodeNotFound {
			return err // there it is: another request was first
		}
		id, err := t.takeName(names)
		if err != nil {
			return err
		}
		err = t.one(`INSERT INTO identities (issuer, subject, "user", created_at) VALUES (?, ?, ?, ?)`,
			issuer, subject, id, t.now)
		if err != nil {
			return err
		}
		if u, err = userByID(ctx, t, id); err != nil {
			return err
		}
		t.provisioned(u)
		return t.event(compute.Event{Kind: compute.EventUserChanged, Owner: id})
	})
	if err != nil {
		return compute.User{}, err
	}
	return u, nil
}

// provisioned records that an account was made by its first sign-in. That is no part of what is asked for with it.
func (t *tx) provisioned(u compute.User) {
	r := compute.AuditRecord{Via: compute.ViaItself}
	if act := compute.ActOf(t.ctx); act != nil {
		r.Source, r.Via, r.Gateway, r.Request = act.Record.Source, act.Record.Via, act.Record.Gateway, act.Record.Request
	}
	r.Action, r.Outcome = compute.ActionProvisionUser, compute.OutcomeAllowed
	r.User, r.Owner, r.Target = u.ID, u.ID, "user:"+u.Username
	t.records = append(t.records, r)
}

// takeName makes a user under the first of the names that is valid and free.
func (t *tx) takeName(names []string) (compute.UserID, error) {
	for _, name := range names {
		if compute.ValidateUsername(name) != nil {
			continue
		}
		var id compute.UserID
		err := t.QueryRowContext(t.ctx, `INSERT INTO users (username, role, created_at) VALUES (?, 'user', ?)
			ON CONFLICT (username) DO NOTHING RETURNING id`, name, t.now).Scan(&id)
		if !errors.Is(err, sql.ErrNoRows) {
			return id, err
		}
	}
	return 0, fmt.Errorf("none of %d usernames is valid and free", len(names))
}

// KeyAccounts returns the users that are not disabled and have the key of that fingerprint, with its id among their keys.
func (r *Reader) KeyAccounts(ctx context.Context, fingerprint string) ([]compute.KeyAccount, error) {
	list, err := collect(ctx, r.db, scanKeyAccount, queryHolders, fingerprint)
	return list, mapError(ctx, "read accounts", err)
}

func scanKeyAccount(row scanner) (compute.KeyAccount, error) {
	var a compute.KeyAccount
	var created int64
	err := row.Scan(&a.User.ID, &a.User.Username, &a.User.Role, &a.User.Disabled, &created, &a.Key)
	a.User.CreatedAt = fromMillis(created)
	return a, err
}
