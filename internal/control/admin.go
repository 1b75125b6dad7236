package control

import (
	"context"
	"slices"
	"strings"

	"berth/internal/compute"
)

// What administrators do for all accounts. Edges show others that nothing is there; what is refused here is what an edge
// forgot.

func admins(p compute.Principal) error {
	if p.Role != compute.RoleAdmin {
		return compute.Errorf(compute.CodeForbidden, "Only administrators may do that.")
	}
	return nil
}

// page reads up to limit, and one more to say whether there is more.
func page[T any](limit int, read func(limit int) ([]T, error)) (list []T, more bool, err error) {
	list, err = read(limit + 1)
	if len(list) > limit {
		list, more = list[:limit], true
	}
	return list, more, err
}

// ListUsers returns up to limit accounts with higher ids, in their order, and whether there are more.
func (s *Service) ListUsers(
	ctx context.Context, p compute.Principal, after compute.UserID, limit int,
) (list []compute.LimitedUser, more bool, err error) {
	if err := admins(p); err != nil {
		return nil, false, err
	}
	return page(limit, func(limit int) ([]compute.LimitedUser, error) { return s.store.LimitedUsersAfter(ctx, after, limit) })
}

// GetUser returns one account.
func (s *Service) GetUser(ctx context.Context, p compute.Principal, id compute.UserID) (compute.LimitedUser, error) {
	if err := admins(p); err != nil {
		return compute.LimitedUser{}, err
	}
	return s.store.LimitedUser(ctx, id)
}

// AddUser makes an account with the given public keys, authorized_keys lines. All of it is stored, or none.
func (s *Service) AddUser(
	ctx context.Context, p compute.Principal, username string, role compute.Role, keys []string,
) (compute.LimitedUser, error) {
	if err := admins(p); err != nil {
		return compute.LimitedUser{}, err
	}
	u, err := Users{Store: s.store, Limits: s.limits}.Add(ctx, username, role, keys)
	return compute.LimitedUser{User: u}, err
}

// ChangeUser changes an account's role and limits, and bars it from everything or lets it in again. CodeConflict where no
// administrator would be left.
func (s *Service) ChangeUser(
	ctx context.Context, p compute.Principal, id compute.UserID, change compute.UserChange,
) (compute.LimitedUser, error) {
	if err := admins(p); err != nil {
		return compute.LimitedUser{}, err
	}
	return s.store.ChangeUser(ctx, id, change)
}

// ListAllContainers returns up to limit containers of all accounts that have higher numbers, in their order, and whether
// there are more. What they use is not measured: it would be asked of the engine for each.
func (s *Service) ListAllContainers(
	ctx context.Context, p compute.Principal, f compute.ContainerFilter, after int64, limit int,
) (list []compute.OwnedContainer, more bool, err error) {
	if err := admins(p); err != nil {
		return nil, false, err
	}
	return page(limit, func(limit int) ([]compute.OwnedContainer, error) { return s.store.AllContainers(ctx, f, after, limit) })
}

// StopAnyContainer asks for a container to stop, whosever it is, as its owner does.
func (s *Service) StopAnyContainer(
	ctx context.Context, p compute.Principal, id compute.ContainerID,
) (compute.OwnedContainer, error) {
	if err := admins(p); err != nil {
		return compute.OwnedContainer{}, err
	}
	was, err := s.store.ReconcileState(ctx, id) // a deleted one too, which SetDesired does not find
	if err != nil {
		return compute.OwnedContainer{}, err
	}
	owner, err := s.store.User(ctx, was.Owner)
	if err != nil {
		return compute.OwnedContainer{}, err
	}
	c, err := s.store.SetDesired(ctx, was.Owner, id, compute.DesiredStopped)
	if err != nil {
		return compute.OwnedContainer{}, err
	}
	s.loop.kick(c.Ref(), c.Generation)
	return compute.OwnedContainer{Container: c, Username: owner.Username}, nil
}

// Quarantined returns what the engine holds and the database does not know. Nothing deletes it but DiscardStorage: the
// database may be the one that is wrong, such as an old backup's.
func (s *Service) Quarantined(ctx context.Context, p compute.Principal) ([]compute.Stored, error) {
	if err := admins(p); err != nil {
		return nil, err
	}
	stored, err := s.engine.Stored(ctx) // before the database is read, which knows of a container before the engine does
	if err != nil {
		return nil, err
	}
	rows, err := s.store.Reconcilable(ctx)
	if err != nil {
		return nil, err
	}
	known := make(map[compute.Ref]bool, len(rows))
	for _, c := range rows {
		known[c.Ref()] = true
	}
	stored = slices.DeleteFunc(stored, func(v compute.Stored) bool { return known[v.Ref] })
	slices.SortFunc(stored, func(a, b compute.Stored) int { return strings.Compare(a.String(), b.String()) })
	return stored, nil
}

// DiscardStorage destroys what the engine holds of one container, for good. CodeConflict when the database knows of it.
func (s *Service) DiscardStorage(ctx context.Context, p compute.Principal, r compute.Ref) error {
	if err := admins(p); err != nil {
		return err
	}
	err := s.engine.Discard(ctx, r, func(ctx context.Context) error {
		c, err := s.store.ReconcileState(ctx, r.ID)
		switch {
		case err == nil && c.Ref() == r:
			return compute.Errorf(compute.CodeConflict, "The database knows this container: it goes when its owner deletes it.")
		case err == nil, compute.CodeOf(err) == compute.CodeNotFound:
			return nil
		default:
			return err
		}
	})
	if err != nil {
		return err
	}
	s.log.Warn("an administrator discarded storage that the database does not know", "storage", r, "admin", p.Username)
	return nil
}
