package containerd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/compute"
)

// Stored lists what there is of containers: a volume, mounts, processes or a record, whosever they are.
func (e *Engine) Stored(ctx context.Context) ([]compute.Stored, error) {
	refs, err := e.known(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]compute.Stored, 0, len(refs))
	for _, r := range refs {
		v := e.volume(r)
		s := compute.Stored{Ref: r, Running: e.running(r), Foreign: errors.Is(v.check(), errForeignVolume)}
		var st unix.Stat_t
		switch err := unix.Lstat(v.file, &st); {
		case err == nil:
			s.Bytes, s.WrittenAt = st.Blocks*512, time.Unix(st.Mtim.Unix())
		case !errors.Is(err, unix.ENOENT):
			return nil, err
		}
		list = append(list, s)
	}
	return list, ctx.Err()
}

// Discard destroys what there is of a container that the database does not know, another installation's too. While unknown
// is asked, and until all is gone, nothing else changes the container.
func (e *Engine) Discard(ctx context.Context, r compute.Ref, unknown func(context.Context) error) error {
	u, ctx, err := e.acquire(ctx, r)
	if err != nil {
		return err
	}
	defer e.release(u)
	if err := unknown(ctx); err != nil {
		return err
	}
	refs, err := e.known(ctx)
	if err != nil {
		return e.explain(ctx, r, "look for the storage", err)
	}
	if !slices.Contains(refs, r) {
		return compute.NotFound("storage")
	}
	if err := e.teardown(ctx, u, 0); err != nil {
		return e.explain(ctx, r, "end the container", err)
	}
	return e.explain(ctx, r, "discard the storage", e.volume(r).discard(ctx))
}

// discard deletes the volume, which must not be mounted, whosever it is.
func (v volume) discard(ctx context.Context) error {
	if err := waitDetached(ctx, v.file); err != nil {
		return err
	}
	for _, file := range []string{v.file, strings.TrimSuffix(v.file, ".img") + unfinished} {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return syncDir(filepath.Dir(v.file))
}
