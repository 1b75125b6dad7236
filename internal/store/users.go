package store

import (
	"context"

	"berth/internal/compute"
)

const selectUser = `SELECT u.id, u.username, u.role, u.disabled, u.created_at FROM users u`

const (
	queryUsers      = selectUser + ` ORDER BY u.id`
	queryUser       = selectUser + ` WHERE u.id = ?`
	queryUserByName = selectUser + ` WHERE u.username = ?`
	queryNameTaken  = `SELECT EXISTS (SELECT 1 FROM users WHERE username = ?)`
	queryAccounts   = selectUser + ` JOIN ssh_keys k ON k.owner = u.id WHERE k.fingerprint = ? AND u.disabled = 0 ORDER BY u.id`
)

func scanUser(row scanner) (compute.User, error) {
	var u compute.User
	var created int64
	err := row.Scan(&u.ID, &u.Username, &u.Role, &u.Disabled, &created)
	if err != nil {
		return compute.User{}, err
	}
	u.CreatedAt = fromMillis(created)
	return u, nil
}

// CreateUser makes an account with its first keys, whose number the caller has checked. CodeConflict when the name is taken.
func (s *Store) CreateUser(
	ctx context.Context, username string, role compute.Role, keys ...compute.SSHKey,
) (u compute.User, err error) {
	if err := compute.ValidateUsername(username); err != nil {
		return u, err
	}
	if err := compute.ValidateRole(role); err != nil {
		return u, err
	}
	err = s.write(ctx, "create user", func(t *tx) error {
		var taken bool // asked first: PostgreSQL would use a number up for the refused account
		if err := t.QueryRowContext(ctx, queryNameTaken, username).Scan(&taken); err != nil {
			return err
		}
		if taken {
			return &compute.Error{
				Code: compute.CodeConflict, Field: "username", Message: "That username is taken; choose another.",
			}
		}
		var id compute.UserID
		err := t.QueryRowContext(ctx, `INSERT INTO users (username, role, created_at) VALUES (?, ?, ?) RETURNING id`,
			username, role, t.now).Scan(&id)
		if err != nil {
			return err
		}
		if u, err = userByID(ctx, t, id); err != nil {
			return err
		}
		if err := t.event(compute.Event{Kind: compute.EventUserChanged, Owner: u.ID}); err != nil {
			return err
		}
		for _, k := range keys {
			k.Owner = u.ID
			if err := t.addKey(&k, len(keys)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return compute.User{}, err
	}
	return u, nil
}

// Users returns every account, oldest first.
func (r *Reader) Users(ctx context.Context) (list []compute.User, err error) {
	list, err = collect(ctx, r.db, scanUser, queryUsers)
	return list, mapError(ctx, "list users", err)
}

// User returns one account.
func (r *Reader) User(ctx context.Context, id compute.UserID) (compute.User, error) {
	u, err := userByID(ctx, r.db, id)
	return u, mapError(ctx, "read user", err)
}

// UserByName returns the account of that name.
func (r *Reader) UserByName(ctx context.Context, username string) (compute.User, error) {
	u, err := scanUser(r.db.QueryRowContext(ctx, queryUserByName, username))
	return u, mapError(ctx, "read user", absent(err, "user"))
}

// Accounts returns the users that are not disabled and have the key of that fingerprint.
func (r *Reader) Accounts(ctx context.Context, fingerprint string) ([]compute.User, error) {
	list, err := collect(ctx, r.db, scanUser, queryAccounts, fingerprint)
	return list, mapError(ctx, "read accounts", err)
}

// SetUserDisabled shuts an account out, or lets it in again. CodeConflict for the last administrator that is enabled.
func (s *Store) SetUserDisabled(ctx context.Context, id compute.UserID, disabled bool) (compute.User, error) {
	changed, err := s.ChangeUser(ctx, id, compute.UserChange{Disabled: &disabled})
	return changed.User, err
}

func userByID(ctx context.Context, q querier, id compute.UserID) (compute.User, error) {
	u, err := scanUser(q.QueryRowContext(ctx, queryUser, id))
	return u, absent(err, "user")
}

// activeUser fails for an account that may not be given anything new.
func activeUser(t *tx, id compute.UserID) error {
	u, err := userByID(t.ctx, t, id)
	if err != nil {
		return err
	}
	if u.Disabled {
		return compute.Errorf(compute.CodeForbidden, "This account is disabled; ask your operator.")
	}
	return nil
}
