package store

import (
	"context"

	"berth/internal/compute"
)

const selectKey = `SELECT k.id, k.owner, k.name, k.public_key, k.fingerprint, k.created_at FROM ssh_keys k`

const (
	queryKeys     = selectKey + ` WHERE k.owner = ? ORDER BY k.id`
	queryOpeners  = selectKey + ` JOIN container_keys ck ON ck.key = k.id WHERE ck.container = ? ORDER BY k.id`
	queryKeyOpens = `SELECT c.id FROM container_keys ck JOIN containers c ON c.id = ck.container
		WHERE ck.key = ? AND c.ordinal IS NOT NULL ORDER BY c.number`
	insertKeyQuery = `INSERT INTO ssh_keys (owner, name, public_key, fingerprint, created_at, quota, ordinal)
		VALUES (?1, ?2, ?3, ?4, ?5, ?6, ` + freeKeyOrdinal + `)
		RETURNING id`
)

// freeKeyOrdinal is the smallest place that is free among those of owner ?1 (the first, or one beside a taken one), or limit
// ?6 itself where there are as many keys, which the constraint keys_within_limit refuses: also after a limit was lowered.
const freeKeyOrdinal = `CASE WHEN (SELECT count(*) FROM ssh_keys WHERE owner = ?1) >= ?6 THEN ?6 ELSE (
		SELECT min(n) FROM (SELECT 0 AS n UNION ALL SELECT ordinal + 1 FROM ssh_keys WHERE owner = ?1) places
		WHERE n NOT IN (SELECT ordinal FROM ssh_keys WHERE owner = ?1)) END`

func scanKey(row scanner) (compute.SSHKey, error) {
	var k compute.SSHKey
	var created int64
	err := row.Scan(&k.ID, &k.Owner, &k.Name, &k.PublicKey, &k.Fingerprint, &created)
	if err != nil {
		return compute.SSHKey{}, err
	}
	k.CreatedAt = fromMillis(created)
	return k, nil
}

// AddKey stores a public key with its owner. CodeConflict when the owner has it already, CodeLimit at limit, or at the limit
// that the owner has of its own.
func (s *Store) AddKey(ctx context.Context, k compute.SSHKey, limit int) (added compute.SSHKey, err error) {
	err = s.write(ctx, "add SSH key", func(t *tx) error {
		if err := activeUser(t, k.Owner); err != nil {
			return err
		}
		if limit, err = t.limitOf(queryOwnMaxKeys, k.Owner, limit); err != nil {
			return err
		}
		return t.addKey(&k, limit)
	})
	if err != nil {
		return compute.SSHKey{}, err
	}
	return k, nil
}

func (t *tx) addKey(k *compute.SSHKey, limit int) error {
	if err := t.lacksKey(*k); err != nil { // asked first: at the limit too, that is the better answer
		return err
	}
	err := t.QueryRowContext(t.ctx, insertKeyQuery, k.Owner, k.Name, k.PublicKey, k.Fingerprint, t.now, limit).Scan(&k.ID)
	if violates(err, "keys_within_limit") {
		return &compute.Error{
			Code: compute.CodeLimit, Cause: err,
			Message: "You have as many SSH keys as your account may have; delete one first.",
		}
	}
	if err != nil {
		return err
	}
	k.CreatedAt = fromMillis(t.now)
	return t.event(compute.Event{Kind: compute.EventKeyAdded, Owner: k.Owner, KeyID: k.ID})
}

// lacksKey refuses a key that the owner has.
func (t *tx) lacksKey(k compute.SSHKey) error {
	var has bool
	err := t.QueryRowContext(t.ctx, `SELECT EXISTS (SELECT 1 FROM ssh_keys WHERE owner = ? AND fingerprint = ?)`,
		k.Owner, k.Fingerprint).Scan(&has)
	if err != nil || !has {
		return err
	}
	return &compute.Error{
		Code: compute.CodeConflict, Field: "public_key", Message: "You have that SSH key already.",
	}
}

// Keys returns the owner's keys, oldest first.
func (r *Reader) Keys(ctx context.Context, owner compute.UserID) ([]compute.SSHKey, error) {
	list, err := collect(ctx, r.db, scanKey, queryKeys, owner)
	return list, mapError(ctx, "list SSH keys", err)
}

// DeleteKey removes a key, from the containers that it opens too.
func (s *Store) DeleteKey(ctx context.Context, owner compute.UserID, id int64) error {
	return s.write(ctx, "delete SSH key", func(t *tx) error {
		opened, err := collect(ctx, t, scanContainerID, queryKeyOpens, id)
		if err != nil {
			return err
		}
		n, err := t.exec(`DELETE FROM ssh_keys WHERE id = ? AND owner = ?`, id, owner)
		if err != nil {
			return err
		}
		if n == 0 {
			return compute.NotFound("SSH key")
		}
		events := []compute.Event{{Kind: compute.EventKeyDeleted, Owner: owner, KeyID: id}}
		for _, c := range opened {
			events = append(events, compute.Event{Kind: compute.EventContainerChanged, Owner: owner, Container: c})
		}
		return t.event(events...)
	})
}

func scanContainerID(row scanner) (id compute.ContainerID, err error) {
	err = row.Scan(&id)
	return id, err
}
