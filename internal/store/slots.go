package store

import (
	"context"
	"database/sql"
	"time"

	"berth/internal/compute"
)

const (
	queryWaiting = `SELECT c.id FROM containers c
		WHERE c.owner = ? AND c.slot IS NULL AND c.desired <> 'deleted' ORDER BY c.number`
	queryWaitingOwners = `SELECT DISTINCT owner FROM containers WHERE slot IS NULL AND desired <> 'deleted'`
	// queryFreeSlot finds the smallest slot of owner ?1 that container ?2 may have now: neither taken nor released after ?3.
	queryFreeSlot = `WITH taken (n) AS (
			SELECT slot FROM containers WHERE owner = ?1 AND slot IS NOT NULL
			UNION SELECT slot FROM slot_releases WHERE owner = ?1 AND released_at > ?3)
		SELECT min(n) FROM (SELECT 0 AS n UNION ALL SELECT n + 1 FROM taken) places
		WHERE n NOT IN (SELECT n FROM taken) AND n <= (SELECT quota FROM containers WHERE id = ?2)`
	// queryNextSlot finds when the first resting slot that nobody took again may be given.
	queryNextSlot = `SELECT min(r.released_at) FROM slot_releases r WHERE r.released_at > ?2 AND r.owner = ?1
		AND NOT EXISTS (SELECT 1 FROM containers c WHERE c.owner = r.owner AND c.slot = r.slot)`
)

// assignSlots gives free slots to the owner's containers that have none, the oldest first. The container just made is told
// of by its own event.
func (t *tx) assignSlots(owner compute.UserID, made compute.ContainerID) error {
	waiting, err := collect(t.ctx, t, scanContainerID, queryWaiting, owner)
	if err != nil || len(waiting) == 0 {
		return err
	}
	// A clock that was set back would let slots rest for as long; they rest from now instead.
	_, err = t.exec(`UPDATE slot_releases SET released_at = ?1 WHERE owner = ?2 AND released_at > ?1`, t.now, owner)
	if err != nil {
		return err
	}
	for _, id := range waiting {
		var slot sql.NullInt64
		err := t.QueryRowContext(t.ctx, queryFreeSlot, owner, id, t.now-slotRest.Milliseconds()).Scan(&slot)
		if err != nil {
			return err
		}
		if !slot.Valid {
			continue
		}
		if err := t.one(`UPDATE containers SET slot = ? WHERE id = ?`, slot.Int64, id); err != nil {
			return err
		}
		if id == made {
			continue
		}
		err = t.event(compute.Event{Kind: compute.EventContainerChanged, Owner: owner, Container: id})
		if err != nil {
			return err
		}
	}
	return nil
}

// AssignSlots gives slots that are free again to containers that have none, and returns when the next may become free that
// somebody waits for; the zero time when nobody does. Writes of an owner do the same for that owner, so it is for those who
// wait without another word.
func (s *Store) AssignSlots(ctx context.Context) (next time.Time, err error) {
	err = s.write(ctx, "assign slots", func(t *tx) error {
		owners, err := collect(ctx, t, func(row scanner) (id compute.UserID, err error) {
			err = row.Scan(&id)
			return id, err
		}, queryWaitingOwners)
		if err != nil {
			return err
		}
		for _, owner := range owners {
			if err := t.assignSlots(owner, ""); err != nil {
				return err
			}
			at, err := t.nextSlot(owner)
			if err != nil {
				return err
			}
			if !at.IsZero() && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
		return nil
	})
	return next, err
}

// nextSlot returns when a resting slot is free again for a container of the owner that waits; the zero time when none waits
// or no slot rests.
func (t *tx) nextSlot(owner compute.UserID) (time.Time, error) {
	waiting, err := collect(t.ctx, t, scanContainerID, queryWaiting, owner)
	if err != nil || len(waiting) == 0 {
		return time.Time{}, err
	}
	var released sql.NullInt64
	err = t.QueryRowContext(t.ctx, queryNextSlot, owner, t.now-slotRest.Milliseconds()).Scan(&released)
	if err != nil || !released.Valid {
		return time.Time{}, err
	}
	return fromMillis(released.Int64).Add(slotRest), nil
}
