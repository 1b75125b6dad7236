package store

import (
	"context"

	"berth/internal/compute"
)

// SetDesired stores what the owner asks for now, with a new generation; the latest request wins. It changes nothing when d
// stands already, except that DesiredRunning on a failed container is a new attempt. A start shows as pending at once; a
// stop leaves the status to what is observed. DesiredDeleted writes the tombstone.
func (s *Store) SetDesired(
	ctx context.Context, owner compute.UserID, id compute.ContainerID, d compute.Desired,
) (c compute.Container, err error) {
	err = s.write(ctx, "set desired state", func(t *tx) error {
		if c, err = ownContainer(ctx, t, owner, id); err != nil {
			return err
		}
		if c.Desired == d && (d != compute.DesiredRunning || c.Status != compute.StatusFailed) {
			return nil
		}
		c.Desired = d
		c.Generation++
		if d == compute.DesiredDeleted {
			return t.bury(c)
		}
		err := t.one(`UPDATE containers SET desired = ?, generation = ? WHERE id = ?`, d, c.Generation, id)
		if err != nil {
			return err
		}
		err = t.event(compute.Event{Kind: compute.EventContainerChanged, Owner: owner, Container: id})
		if err != nil {
			return err
		}
		if d == compute.DesiredRunning {
			if err := t.move(&c, compute.StatusPending, ""); err != nil {
				return err
			}
		}
		return t.assignSlots(owner, "")
	})
	return c, err
}

// bury makes a container absent for its owner, takes its ingress rules away and writes the tombstone that permits its
// storage to be destroyed.
func (t *tx) bury(c compute.Container) error {
	err := t.one(`UPDATE containers SET desired = ?, generation = ?, ordinal = NULL, https_enabled = 0 WHERE id = ?`,
		compute.DesiredDeleted, c.Generation, c.ID)
	if err != nil {
		return err
	}
	if _, err := t.exec(deleteRules, c.ID); err != nil {
		return err
	}
	if err := t.one(`UPDATE container_ids SET deleted_at = ? WHERE id = ?`, t.now, c.ID); err != nil {
		return err
	}
	return t.event(compute.Event{Kind: compute.EventContainerDeleted, Owner: c.Owner, Container: c.ID})
}

// SetStatus is the one transition function: it moves the container to status through compute.Between, with an event for
// each status on the way. It changes nothing when generation is no longer the row's, when status and message stand
// already, and for a deleted container, which shows to nobody. It is for who drives the engine, as RecordStorage and Purge.
func (s *Store) SetStatus(
	ctx context.Context, id compute.ContainerID, generation int64, status compute.Status, message string,
) error {
	return s.write(ctx, "set status", func(t *tx) error {
		if err := s.fenced(t); err != nil {
			return err
		}
		c, err := anyContainer(ctx, t, id)
		if err != nil || c.Generation != generation || c.Desired == compute.DesiredDeleted {
			return err
		}
		return t.move(&c, status, message)
	})
}

// move walks c from its status to another. Only the last step carries the message.
func (t *tx) move(c *compute.Container, to compute.Status, message string) error {
	path := compute.Between(c.Status, to)
	if len(path) == 0 {
		if c.StatusMessage == message {
			return nil
		}
		path = []compute.Status{to}
	}
	for i, status := range path {
		e := compute.Event{Kind: compute.EventContainerStatus, Owner: c.Owner, Container: c.ID, Status: status}
		if i == len(path)-1 {
			e.StatusMessage = message
		}
		if err := t.event(e); err != nil {
			return err
		}
	}
	c.Status, c.StatusMessage = to, message
	return t.one(`UPDATE containers SET status = ?, status_message = ? WHERE id = ?`, to, message, c.ID)
}
