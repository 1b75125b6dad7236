package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"berth/internal/compute"
)

const columnsOfContainer = `c.id, c.owner, c.name, c.instance_type, c.memory_mb, c.storage_gb,
	(SELECT string_agg(CAST(ck.key AS TEXT), ',') FROM container_keys ck WHERE ck.container = c.id),
	c.ssh_enabled, c.https_enabled, c.mount_paths, coalesce(c.slot, ?1), c.created_at,
	c.desired, c.generation, c.storage_made, c.status, c.status_message`

const (
	selectContainer   = `SELECT ` + columnsOfContainer + ` FROM containers c`
	queryContainers   = selectContainer + ` WHERE c.owner = ?2 AND c.ordinal IS NOT NULL ORDER BY c.number`
	queryContainer    = selectContainer + ` WHERE c.id = ?2 AND c.owner = ?3 AND c.ordinal IS NOT NULL`
	queryReconcilable = selectContainer + ` ORDER BY c.number`
	queryReconcile    = selectContainer + ` WHERE c.id = ?2`
	queryTarget       = `SELECT ` + columnsOfContainer + `, u.id, u.username, u.role, u.disabled, u.created_at
		FROM containers c JOIN users u ON u.id = c.owner
		WHERE c.id = ?2 AND c.ordinal IS NOT NULL AND u.disabled = 0`
)

// insertContainer takes the smallest place that is free among those of owner ?2 (the first, or one beside a taken one), or
// limit ?3 itself where there are as many containers, which the constraint containers_within_limit refuses: also after a
// limit was lowered.
const insertContainer = `INSERT INTO containers (id, owner, quota, name, instance_type, memory_mb, storage_gb, ssh_enabled,
		https_enabled, mount_paths, created_at, desired, generation, status, ordinal)
	VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, 'running', 1, 'pending',
		CASE WHEN (SELECT count(*) FROM containers WHERE owner = ?2 AND ordinal IS NOT NULL) >= ?3 THEN ?3 ELSE (
		SELECT min(n) FROM (SELECT 0 AS n UNION ALL
			SELECT ordinal + 1 FROM containers WHERE owner = ?2 AND ordinal IS NOT NULL) places
		WHERE n NOT IN (SELECT ordinal FROM containers WHERE owner = ?2 AND ordinal IS NOT NULL)) END)`

// proposals bounds the search for an id that was never taken: with a million taken, a second try is needed once in 4,000.
const proposals = 64

// columns is where the columns of a container are scanned to.
type columns struct {
	c       compute.Container
	created int64
	keys    sql.NullString // numbers with commas between, in any order; null when there are none
	dirs    string
}

func (s *columns) dest() []any {
	c := &s.c
	return []any{
		&c.ID, &c.Owner, &c.Name, &c.InstanceType, &c.MemoryMB, &c.StorageGB, &s.keys, &c.SSHEnabled, &c.HTTPSEnabled,
		&s.dirs, &c.Slot, &s.created, &c.Desired, &c.Generation, &c.StorageMade, &c.Status, &c.StatusMessage,
	}
}

func (s *columns) container() (compute.Container, error) {
	s.c.CreatedAt = fromMillis(s.created)
	s.c.SSHKeyIDs = []int64{}
	if s.keys.Valid {
		for text := range strings.SplitSeq(s.keys.String, ",") {
			key, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return compute.Container{}, fmt.Errorf("keys of container %s: %w", s.c.ID, err)
			}
			s.c.SSHKeyIDs = append(s.c.SSHKeyIDs, key)
		}
		slices.Sort(s.c.SSHKeyIDs)
	}
	if err := json.Unmarshal([]byte(s.dirs), &s.c.MountPaths); err != nil {
		return compute.Container{}, fmt.Errorf("mount paths of container %s: %w", s.c.ID, err)
	}
	return s.c, nil
}

func scanContainer(row scanner) (compute.Container, error) {
	var s columns
	if err := row.Scan(s.dest()...); err != nil {
		return compute.Container{}, err
	}
	return s.container()
}

// CreateContainer stores c as pending, under a new id and with the smallest free slot, or compute.NoSlot while none is
// free. It takes owner, name, type, sizes, keys, switches and mount paths of c. CodeInvalid on ssh_key_ids for ids that are
// not the owner's keys, CodeLimit at limit, or at the limit that the owner has of its own.
func (s *Store) CreateContainer(ctx context.Context, c compute.Container, limit int) (made compute.Container, err error) {
	dirs, err := json.Marshal(append([]string{}, c.MountPaths...))
	if err != nil {
		return made, compute.Internal("create container", err)
	}
	err = s.write(ctx, "create container", func(t *tx) error {
		if err := activeUser(t, c.Owner); err != nil {
			return err
		}
		if limit, err = t.limitOf(queryOwnMaxContainers, c.Owner, limit); err != nil {
			return err
		}
		id, err := t.takeID(c.Owner)
		if err != nil {
			return err
		}
		_, err = t.exec(insertContainer, id, c.Owner, limit, c.Name, c.InstanceType, c.MemoryMB, c.StorageGB, c.SSHEnabled,
			c.HTTPSEnabled, string(dirs), t.now)
		if violates(err, "containers_within_limit") {
			return &compute.Error{
				Code: compute.CodeLimit, Cause: err,
				Message: "You have as many containers as your account may have; delete one first.",
			}
		}
		if err != nil {
			return err
		}
		for _, key := range c.SSHKeyIDs {
			if err := t.admitKey(id, c.Owner, key); err != nil {
				return err
			}
		}
		err = t.event(
			compute.Event{Kind: compute.EventContainerCreated, Owner: c.Owner, Container: id},
			compute.Event{
				Kind: compute.EventContainerStatus, Owner: c.Owner, Container: id, Status: compute.StatusPending,
			})
		if err != nil {
			return err
		}
		if err := t.assignSlots(c.Owner, id); err != nil {
			return err
		}
		made, err = ownContainer(ctx, t, c.Owner, id)
		return err
	})
	return made, err
}

// takeID registers an id that no container ever had.
func (t *tx) takeID(owner compute.UserID) (compute.ContainerID, error) {
	for range proposals {
		id := t.opt.NewID()
		n, err := t.exec(`INSERT INTO container_ids (id, owner, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`,
			id, owner, t.now)
		if err != nil {
			return "", err
		}
		if n == 1 {
			return id, nil
		}
	}
	return "", fmt.Errorf("%d proposed container ids were all taken before", proposals)
}

func (t *tx) admitKey(id compute.ContainerID, owner compute.UserID, key int64) error {
	_, err := t.exec(`INSERT INTO container_keys (container, key, owner) VALUES (?, ?, ?)`, id, key, owner)
	if isForeignKey(err) { // the key is not there, or not this owner's: the answer is the same
		return compute.Invalid("ssh_key_ids", "None of your SSH keys has the id %d.", key)
	}
	if isUnique(err) {
		return compute.Invalid("ssh_key_ids", "SSH key %d is there twice.", key)
	}
	return err
}

// Containers returns the owner's containers, oldest first.
func (r *Reader) Containers(ctx context.Context, owner compute.UserID) ([]compute.Container, error) {
	list, err := collect(ctx, r.db, scanContainer, queryContainers, compute.NoSlot, owner)
	return list, mapError(ctx, "list containers", err)
}

// ContainersAt returns the owner's containers and the number of the last event whose change they show, from one snapshot: a
// reader of events goes on from there, and sees nothing twice and nothing too late.
func (r *Reader) ContainersAt(
	ctx context.Context, owner compute.UserID,
) (list []compute.Container, seq int64, err error) {
	err = r.read(ctx, "list containers", func(q querier) error {
		if err := q.QueryRowContext(ctx, queryLastEvent).Scan(&seq); err != nil {
			return err
		}
		list, err = collect(ctx, q, scanContainer, queryContainers, compute.NoSlot, owner)
		return err
	})
	return list, seq, err
}

// Container returns one of the owner's containers.
func (r *Reader) Container(ctx context.Context, owner compute.UserID, id compute.ContainerID) (compute.Container, error) {
	c, err := ownContainer(ctx, r.db, owner, id)
	return c, mapError(ctx, "read container", err)
}

func ownContainer(
	ctx context.Context, q querier, owner compute.UserID, id compute.ContainerID,
) (compute.Container, error) {
	c, err := scanContainer(q.QueryRowContext(ctx, queryContainer, compute.NoSlot, id, owner))
	return c, absent(err, "container")
}

// anyContainer returns a container whoever owns it, a deleted one too.
func anyContainer(ctx context.Context, q querier, id compute.ContainerID) (compute.Container, error) {
	c, err := scanContainer(q.QueryRowContext(ctx, queryReconcile, compute.NoSlot, id))
	return c, absent(err, "container")
}

// Target returns a container with its owner and the keys that open it, from one snapshot. What is a disabled user's is
// absent.
func (r *Reader) Target(ctx context.Context, id compute.ContainerID) (target compute.Target, err error) {
	err = r.read(ctx, "read target", func(q querier) error {
		var s columns
		var created int64
		u := &target.Owner
		err := q.QueryRowContext(ctx, queryTarget, compute.NoSlot, id).
			Scan(append(s.dest(), &u.ID, &u.Username, &u.Role, &u.Disabled, &created)...)
		if err != nil {
			return absent(err, "container")
		}
		u.CreatedAt = fromMillis(created)
		if target.Container, err = s.container(); err != nil {
			return err
		}
		target.Keys, err = collect(ctx, q, scanKey, queryOpeners, id)
		return err
	})
	if err != nil {
		return compute.Target{}, err
	}
	return target, nil
}

// Reconcilable returns every container that is not purged, the deleted ones too.
func (r *Reader) Reconcilable(ctx context.Context) ([]compute.Container, error) {
	list, err := collect(ctx, r.db, scanContainer, queryReconcilable, compute.NoSlot)
	return list, mapError(ctx, "list containers to reconcile", err)
}

// ReconcileState returns one container that is not purged, a deleted one too.
func (r *Reader) ReconcileState(ctx context.Context, id compute.ContainerID) (compute.Container, error) {
	c, err := anyContainer(ctx, r.db, id)
	return c, mapError(ctx, "read container", err)
}

// SetSSH switches SSH to a container on or off.
func (s *Store) SetSSH(
	ctx context.Context, owner compute.UserID, id compute.ContainerID, enabled bool,
) (c compute.Container, err error) {
	err = s.write(ctx, "switch SSH", func(t *tx) error {
		if c, err = ownContainer(ctx, t, owner, id); err != nil || c.SSHEnabled == enabled {
			return err
		}
		c.SSHEnabled = enabled
		if err := t.one(`UPDATE containers SET ssh_enabled = ? WHERE id = ?`, enabled, id); err != nil {
			return err
		}
		return t.event(compute.Event{Kind: compute.EventContainerChanged, Owner: owner, Container: id})
	})
	return c, err
}

// RecordStorage stores that the container's storage was made: from then on it is never made anew. It is no event, since
// nobody but the loop sees it.
func (s *Store) RecordStorage(ctx context.Context, id compute.ContainerID) error {
	return s.write(ctx, "record storage", func(t *tx) error {
		if err := s.fenced(t); err != nil {
			return err
		}
		n, err := t.exec(`UPDATE containers SET storage_made = 1 WHERE id = ?`, id)
		if err == nil && n == 0 {
			return compute.NotFound("container")
		}
		return err
	})
}

// Purge ends a deleted container's row. Its id stays taken for ever and its slot for slotRest. A second Purge does
// nothing; a container that its owner did not delete is refused.
func (s *Store) Purge(ctx context.Context, id compute.ContainerID) error {
	return s.write(ctx, "purge container", func(t *tx) error {
		if err := s.fenced(t); err != nil {
			return err
		}
		c, err := anyContainer(ctx, t, id)
		if compute.CodeOf(err) == compute.CodeNotFound {
			return t.purgedBefore(id)
		}
		if err != nil {
			return err
		}
		if c.Desired != compute.DesiredDeleted {
			return compute.Errorf(compute.CodeConflict, "Container %s is not deleted.", id)
		}
		if err := t.one(`UPDATE container_ids SET purged_at = ? WHERE id = ?`, t.now, id); err != nil {
			return err
		}
		if c.Slot != compute.NoSlot {
			err := t.one(`INSERT INTO slot_releases (owner, slot, released_at) VALUES (?1, ?2, ?3)
				ON CONFLICT (owner, slot) DO UPDATE SET released_at = excluded.released_at`, c.Owner, c.Slot, t.now)
			if err != nil {
				return err
			}
		}
		if err := t.one(`DELETE FROM containers WHERE id = ?`, id); err != nil {
			return err
		}
		err = t.event(compute.Event{Kind: compute.EventContainerPurged, Owner: c.Owner, Container: id})
		if err != nil {
			return err
		}
		return t.assignSlots(c.Owner, "")
	})
}

func (t *tx) purgedBefore(id compute.ContainerID) error {
	var purged sql.NullInt64
	err := t.QueryRowContext(t.ctx, `SELECT purged_at FROM container_ids WHERE id = ?`, id).Scan(&purged)
	if err == nil && !purged.Valid {
		return errors.New("container " + string(id) + " has neither a row nor a purged tombstone")
	}
	return absent(err, "container")
}
