package store

import (
	"context"

	"berth/internal/compute"
)

// What administrators read and change, of all accounts. Lists are read page by page, each from where the last one ended, so
// that no page costs more for coming late.

const selectLimitedUser = `SELECT u.id, u.username, u.role, u.disabled, u.created_at, u.max_containers, u.max_keys
	FROM users u`

const (
	queryLimitedUser       = selectLimitedUser + ` WHERE u.id = ?`
	queryLimitedUsersAfter = selectLimitedUser + ` WHERE u.id > ? ORDER BY u.id LIMIT ?`
	queryOtherAdmin        = `SELECT EXISTS (SELECT 1 FROM users WHERE role = 'admin' AND disabled = 0 AND id <> ?)`

	selectOwnedContainer = `SELECT ` + columnsOfContainer + `, c.number, u.username
		FROM containers c JOIN users u ON u.id = c.owner WHERE c.ordinal IS NOT NULL AND c.number > ?2`
	queryAllContainers      = selectOwnedContainer + ` ORDER BY c.number LIMIT ?3`
	queryContainersOf       = selectOwnedContainer + ` AND c.owner = ?4 ORDER BY c.number LIMIT ?3`
	queryContainersIn       = selectOwnedContainer + ` AND c.status = ?4 ORDER BY c.number LIMIT ?3`
	queryContainersOfIn     = selectOwnedContainer + ` AND c.owner = ?4 AND c.status = ?5 ORDER BY c.number LIMIT ?3`
	queryOwnMaxContainers   = `SELECT max_containers FROM users WHERE id = ?`
	queryOwnMaxKeys         = `SELECT max_keys FROM users WHERE id = ?`
	updateUser              = `UPDATE users SET role = ?, disabled = ?, max_containers = ?, max_keys = ? WHERE id = ?`
	messageLastAdmin        = "This is the only administrator who is enabled; make another one first."
	messageLastAdminDemoted = "This is the only administrator who is enabled; make another one before it stops being one."
)

func scanLimitedUser(row scanner) (compute.LimitedUser, error) {
	var u compute.LimitedUser
	var created int64
	err := row.Scan(&u.ID, &u.Username, &u.Role, &u.Disabled, &created, &u.Limits.Containers, &u.Limits.Keys)
	if err != nil {
		return compute.LimitedUser{}, err
	}
	u.CreatedAt = fromMillis(created)
	return u, nil
}

// LimitedUser returns one account with its own limits.
func (r *Reader) LimitedUser(ctx context.Context, id compute.UserID) (compute.LimitedUser, error) {
	u, err := limitedUser(ctx, r.db, id)
	return u, mapError(ctx, "read user", err)
}

func limitedUser(ctx context.Context, q querier, id compute.UserID) (compute.LimitedUser, error) {
	u, err := scanLimitedUser(q.QueryRowContext(ctx, queryLimitedUser, id))
	return u, absent(err, "user")
}

// LimitedUsersAfter returns up to limit accounts with higher ids, in their order.
func (r *Reader) LimitedUsersAfter(ctx context.Context, after compute.UserID, limit int) ([]compute.LimitedUser, error) {
	list, err := collect(ctx, r.db, scanLimitedUser, queryLimitedUsersAfter, after, limit)
	return list, mapError(ctx, "list users", err)
}

// ChangeUser stores another role, other limits, and whether the account is shut out. CodeConflict where no enabled
// administrator would be left. Limits below what the account has take nothing away.
func (s *Store) ChangeUser(
	ctx context.Context, id compute.UserID, change compute.UserChange,
) (u compute.LimitedUser, err error) {
	if err := change.Validate(); err != nil {
		return u, err
	}
	err = s.write(ctx, "change user", func(t *tx) error {
		was, err := limitedUser(ctx, t, id)
		if err != nil {
			return err
		}
		u = changed(was, change)
		if sameUser(u, was) {
			return nil
		}
		if err := t.keepAnAdmin(was.User, u.User); err != nil {
			return err
		}
		if err := t.one(updateUser, u.Role, u.Disabled, u.Limits.Containers, u.Limits.Keys, id); err != nil {
			return err
		}
		return t.event(compute.Event{Kind: compute.EventUserChanged, Owner: id})
	})
	if err != nil {
		return compute.LimitedUser{}, err
	}
	return u, nil
}

func changed(u compute.LimitedUser, c compute.UserChange) compute.LimitedUser {
	if c.Role != nil {
		u.Role = *c.Role
	}
	if c.Disabled != nil {
		u.Disabled = *c.Disabled
	}
	if c.Containers != nil {
		u.Limits.Containers = c.Containers.Most
	}
	if c.Keys != nil {
		u.Limits.Keys = c.Keys.Most
	}
	return u
}

func sameUser(a, b compute.LimitedUser) bool {
	same := func(a, b *int) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }
	return a.User == b.User && same(a.Limits.Containers, b.Limits.Containers) && same(a.Limits.Keys, b.Limits.Keys)
}

// keepAnAdmin refuses the change that leaves nobody who could undo it over the API.
func (t *tx) keepAnAdmin(was, is compute.User) error {
	acts := func(u compute.User) bool { return u.Role == compute.RoleAdmin && !u.Disabled }
	if !acts(was) || acts(is) {
		return nil
	}
	var others bool
	if err := t.QueryRowContext(t.ctx, queryOtherAdmin, was.ID).Scan(&others); err != nil || others {
		return err
	}
	if is.Disabled {
		return compute.Errorf(compute.CodeConflict, messageLastAdmin)
	}
	return compute.Errorf(compute.CodeConflict, messageLastAdminDemoted)
}

// limitOf returns the limit that the owner has of its own by query, or else the installation's.
func (t *tx) limitOf(query string, owner compute.UserID, installations int) (int, error) {
	var own *int
	if err := t.QueryRowContext(t.ctx, query, owner).Scan(&own); err != nil {
		return 0, absent(err, "user")
	}
	if own != nil {
		return *own, nil
	}
	return installations, nil
}

// AllContainers returns up to limit containers of all accounts that have higher numbers and are as the filter says, in the
// order of their numbers, without deleted ones.
func (r *Reader) AllContainers(
	ctx context.Context, f compute.ContainerFilter, after int64, limit int,
) ([]compute.OwnedContainer, error) {
	query, args := queryAllContainers, []any{compute.NoSlot, after, limit}
	switch {
	case f.Owner != 0 && f.Status != "":
		query, args = queryContainersOfIn, append(args, f.Owner, f.Status)
	case f.Owner != 0:
		query, args = queryContainersOf, append(args, f.Owner)
	case f.Status != "":
		query, args = queryContainersIn, append(args, f.Status)
	}
	list, err := collect(ctx, r.db, scanOwnedContainer, query, args...)
	return list, mapError(ctx, "list containers of all accounts", err)
}

func scanOwnedContainer(row scanner) (compute.OwnedContainer, error) {
	var s columns
	var c compute.OwnedContainer
	err := row.Scan(append(s.dest(), &c.Number, &c.Username)...)
	if err == nil {
		c.Container, err = s.container()
	}
	return c, err
}
