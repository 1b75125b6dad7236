package store

import (
	"context"
	"slices"

	"berth/internal/compute"
)

// ChangeContainer stores what f makes of one of the owner's containers: its name, memory, storage and keys. Other sizes are a
// new generation. f runs within the transaction and sees the container as it stands; its error is returned, and nothing is
// stored. It says whether anything changed. CodeInvalid on ssh_key_ids for ids that are not the owner's keys.
func (s *Store) ChangeContainer(
	ctx context.Context, owner compute.UserID, id compute.ContainerID, f func(compute.Container) (compute.Container, error),
) (c compute.Container, changed bool, err error) {
	err = s.write(ctx, "change container", func(t *tx) error {
		was, err := ownContainer(ctx, t, owner, id)
		if err != nil {
			return err
		}
		if c, err = f(was); err != nil {
			return err
		}
		resized := c.MemoryMB != was.MemoryMB || c.StorageGB != was.StorageGB
		rekeyed := !slices.Equal(c.SSHKeyIDs, was.SSHKeyIDs)
		if changed = resized || rekeyed || c.Name != was.Name; !changed {
			return nil
		}
		if resized {
			c.Generation++
		}
		err = t.one(`UPDATE containers SET name = ?, memory_mb = ?, storage_gb = ?, generation = ? WHERE id = ?`,
			c.Name, c.MemoryMB, c.StorageGB, c.Generation, id)
		if err != nil {
			return err
		}
		if rekeyed {
			if err := t.replaceKeys(c); err != nil {
				return err
			}
		}
		return t.event(compute.Event{Kind: compute.EventContainerChanged, Owner: owner, Container: id})
	})
	if err != nil {
		return compute.Container{}, false, err
	}
	return c, changed, nil
}

func (t *tx) replaceKeys(c compute.Container) error {
	if _, err := t.exec(`DELETE FROM container_keys WHERE container = ?`, c.ID); err != nil {
		return err
	}
	for _, key := range c.SSHKeyIDs {
		if err := t.admitKey(c.ID, c.Owner, key); err != nil {
			return err
		}
	}
	return nil
}
