package store

import (
	"context"
	"database/sql"

	"berth/internal/compute"
)

const (
	queryHistory = `SELECT seq, at, kind, owner, container, key, token, status, status_message
	FROM events WHERE container = ? AND container <> '' AND seq > ? AND kind = 'container.status' ORDER BY seq LIMIT ?`
	queryOldestEvent = `SELECT min(seq) FROM events`
)

// ContainerHistory returns up to limit changes of a container's status after an event's number, all from one snapshot.
func (r *Reader) ContainerHistory(
	ctx context.Context, owner compute.UserID, id compute.ContainerID, after int64, limit int,
) (h compute.History, err error) {
	err = r.read(ctx, "read a container's history", func(q querier) error {
		if h.Container, err = ownContainer(ctx, q, owner, id); err != nil {
			return err
		}
		if err := q.QueryRowContext(ctx, queryLastEvent).Scan(&h.Seq); err != nil {
			return err
		}
		var oldest sql.NullInt64
		if err := q.QueryRowContext(ctx, queryOldestEvent).Scan(&oldest); err != nil {
			return err
		}
		if !oldest.Valid {
			oldest.Int64 = h.Seq + 1
		}
		h.Missed = after > h.Seq || after+1 < oldest.Int64
		h.Events, err = collect(ctx, q, scanEvent, queryHistory, id, after, limit)
		return err
	})
	return h, err
}
