package store

import (
	"context"
	"database/sql"
	"errors"
	"slices"

	"berth/internal/compute"
)

// What copies of the state are made and kept from. Pages are read one by one, each from a snapshot of its own, so that a
// slow reader holds nothing: one that takes the version first, then all pages, then the changes since that version, has
// missed nothing.

const (
	queryContainersAfter = selectContainer + ` WHERE c.id > ?2 AND c.ordinal IS NOT NULL ORDER BY c.id LIMIT ?3`
	queryShown           = selectContainer + ` WHERE c.id = ?2 AND c.ordinal IS NOT NULL`
	queryUsersAfter      = selectUser + ` WHERE u.id > ? ORDER BY u.id LIMIT ?`
	queryKeysOfRange     = selectKey + ` WHERE k.owner BETWEEN ? AND ? ORDER BY k.owner, k.id`
	queryEventAt         = `SELECT at FROM events WHERE seq = ?`
)

// Version returns the version of the state as it is now.
func (r *Reader) Version(ctx context.Context) (v compute.Version, err error) {
	err = r.read(ctx, "read version", func(q querier) error {
		v, err = version(ctx, q)
		return err
	})
	return v, err
}

func version(ctx context.Context, q querier) (v compute.Version, err error) {
	err = q.QueryRowContext(ctx, `SELECT i.id, i.epoch, e.seq FROM installation i, event_counter e`).
		Scan(&v.Installation, &v.Epoch, &v.Seq)
	if err != nil {
		return v, err
	}
	var at int64
	err = q.QueryRowContext(ctx, queryEventAt, v.Seq).Scan(&at)
	switch {
	case err == nil:
		v.At = fromMillis(at)
	case errors.Is(err, sql.ErrNoRows):
		err = nil
	}
	return v, err
}

// AccountsAfter returns up to limit accounts with higher ids, in their order, disabled ones too.
func (r *Reader) AccountsAfter(ctx context.Context, after compute.UserID, limit int) (list []compute.Account, err error) {
	err = r.read(ctx, "read accounts", func(q querier) error {
		users, err := collect(ctx, q, scanUser, queryUsersAfter, after, limit)
		if err != nil || len(users) == 0 {
			return err
		}
		list = make([]compute.Account, len(users))
		for i, u := range users {
			list[i].User = u
		}
		keys, err := collect(ctx, q, scanKey, queryKeysOfRange, users[0].ID, users[len(users)-1].ID)
		i := 0
		for _, k := range keys {
			for list[i].ID != k.Owner {
				i++
			}
			list[i].Keys = append(list[i].Keys, k)
		}
		return err
	})
	return list, err
}

// ContainersAfter returns up to limit containers with higher ids, in their order, without deleted ones.
func (r *Reader) ContainersAfter(ctx context.Context, after compute.ContainerID, limit int) ([]compute.Container, error) {
	list, err := collect(ctx, r.db, scanContainer, queryContainersAfter, compute.NoSlot, after, limit)
	return list, mapError(ctx, "read containers", err)
}

// ChangesSince returns what up to limit events after v touched, as it is now, all from one snapshot. OK is false when that
// cannot be told: v is of another installation, epoch or history, or its events are gone.
func (r *Reader) ChangesSince(ctx context.Context, v compute.Version, limit int) (c compute.Changes, ok bool, err error) {
	err = r.read(ctx, "read changes", func(q querier) error {
		var events []compute.Event
		if events, c.To, ok, err = eventsSince(ctx, q, v, limit); err != nil || !ok {
			return err
		}
		if len(events) > 0 {
			last := events[len(events)-1]
			c.To.Seq, c.To.At = last.Seq, last.At
		}
		return readTouched(ctx, q, events, &c)
	})
	if err != nil || !ok {
		return compute.Changes{}, false, err
	}
	return c, true, nil
}

// eventsSince returns up to limit events after v, and the version of the snapshot that it reads.
func eventsSince(
	ctx context.Context, q querier, v compute.Version, limit int,
) (events []compute.Event, now compute.Version, ok bool, err error) {
	now, err = version(ctx, q)
	if err != nil || v.Installation != now.Installation || v.Epoch != now.Epoch || v.Seq > now.Seq {
		return nil, now, false, err
	}
	if v.Seq == now.Seq {
		return nil, now, v.At.Equal(now.At), nil
	}
	if v.At.IsZero() { // before the first event, or its row was gone already when the copy was made
		events, err = collect(ctx, q, scanEvent, queryEvents, v.Seq, limit)
		return events, now, len(events) > 0 && events[0].Seq == v.Seq+1, err
	}
	events, err = collect(ctx, q, scanEvent, queryEvents, v.Seq-1, limit+1)
	if err != nil || len(events) == 0 || events[0].Seq != v.Seq || !events[0].At.Equal(v.At) {
		return nil, now, false, err
	}
	return events[1:], now, true, nil
}

// readTouched reads everything that the events are about. A container may come before its owner's account does.
func readTouched(ctx context.Context, q querier, events []compute.Event, c *compute.Changes) error {
	var owners []compute.UserID
	var containers []compute.ContainerID
	for _, e := range events {
		switch {
		case e.Container != "":
			containers = append(containers, e.Container)
		case e.Owner != 0:
			owners = append(owners, e.Owner)
		}
	}
	slices.Sort(owners)
	for _, id := range slices.Compact(owners) {
		u, err := userByID(ctx, q, id)
		if err != nil {
			return err
		}
		keys, err := collect(ctx, q, scanKey, queryKeys, id)
		if err != nil {
			return err
		}
		c.Accounts = append(c.Accounts, compute.Account{User: u, Keys: keys})
	}
	slices.Sort(containers)
	for _, id := range slices.Compact(containers) {
		box, err := scanContainer(q.QueryRowContext(ctx, queryShown, compute.NoSlot, id))
		switch {
		case errors.Is(err, sql.ErrNoRows):
			c.Gone = append(c.Gone, id)
		case err != nil:
			return err
		default:
			c.Containers = append(c.Containers, box)
		}
	}
	return nil
}
