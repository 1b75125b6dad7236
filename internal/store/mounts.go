package store

import (
	"context"
	"encoding/json"
	"slices"

	"berth/internal/compute"
)

// SetMountPaths stores other mount paths for one of the owner's containers, with a new generation; one that is to run
// shows as pending at once, and starts anew. It changes nothing, and says so, when the paths stand already, in whatever
// order: they are disjoint, so their order means nothing.
func (s *Store) SetMountPaths(
	ctx context.Context, owner compute.UserID, id compute.ContainerID, paths []string,
) (c compute.Container, changed bool, err error) {
	paths = append([]string{}, paths...)
	dirs, err := json.Marshal(paths)
	if err != nil {
		return c, false, compute.Internal("set mount paths", err)
	}
	err = s.write(ctx, "set mount paths", func(t *tx) error {
		if c, err = ownContainer(ctx, t, owner, id); err != nil || samePaths(c.MountPaths, paths) {
			return err
		}
		changed = true
		c.MountPaths = paths
		c.Generation++
		err := t.one(`UPDATE containers SET mount_paths = ?, generation = ? WHERE id = ?`, string(dirs), c.Generation, id)
		if err != nil {
			return err
		}
		err = t.event(compute.Event{Kind: compute.EventContainerChanged, Owner: owner, Container: id})
		if err != nil || c.Desired != compute.DesiredRunning {
			return err
		}
		return t.move(&c, compute.StatusPending, "")
	})
	if err != nil {
		return compute.Container{}, false, err
	}
	return c, changed, nil
}

func samePaths(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}
