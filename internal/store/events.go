package store

import (
	"context"
	"database/sql"
	"errors"

	"berth/internal/compute"
)

const (
	queryEvents = `SELECT seq, at, kind, owner, container, key, token, status, status_message
	FROM events WHERE seq > ? ORDER BY seq LIMIT ?`
	queryLastEvent = `SELECT seq FROM event_counter`
)

// pruneEvery is how many events pass between two removals of old ones: a removal is part of a user's transaction, so it
// stays small.
const pruneEvery = 256

// event appends events. Their numbers come from the one counter row, which is locked until the transaction ends.
func (t *tx) event(events ...compute.Event) error {
	for _, e := range events {
		t.subjectOf(e)
		var seq int64
		err := t.QueryRowContext(t.ctx, `UPDATE event_counter SET seq = seq + 1 RETURNING seq`).Scan(&seq)
		if err != nil {
			return err
		}
		err = t.one(`INSERT INTO events (seq, at, kind, owner, container, key, token, status, status_message)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			seq, t.now, e.Kind, e.Owner, e.Container, e.KeyID, e.Token, e.Status, e.StatusMessage)
		if err != nil {
			return err
		}
		if seq%pruneEvery == 0 {
			if _, err := t.exec(`DELETE FROM events WHERE seq <= ?`, seq-t.opt.KeepEvents); err != nil {
				return err
			}
		}
		t.wrote = true
	}
	return nil
}

// Events returns up to limit events with Seq > after, in order. Old events are removed and the newest stays, so a reader
// that missed some notices: the first event's number is then not after + 1.
func (r *Reader) Events(ctx context.Context, after int64, limit int) ([]compute.Event, error) {
	list, err := collect(ctx, r.db, scanEvent, queryEvents, after, limit)
	return list, mapError(ctx, "read events", err)
}

func scanEvent(row scanner) (compute.Event, error) {
	var e compute.Event
	var at int64
	err := row.Scan(&e.Seq, &at, &e.Kind, &e.Owner, &e.Container, &e.KeyID, &e.Token, &e.Status, &e.StatusMessage)
	e.At = fromMillis(at)
	return e, err
}

// LastEvent returns the number of the newest event; 0 before the first.
func (r *Reader) LastEvent(ctx context.Context) (seq int64, err error) {
	err = r.db.QueryRowContext(ctx, queryLastEvent).Scan(&seq)
	return seq, mapError(ctx, "read the last event", err)
}

// InstallationID names this database for ever.
func (r *Reader) InstallationID(ctx context.Context) (id string, err error) {
	err = r.db.QueryRowContext(ctx, `SELECT id FROM installation`).Scan(&id)
	return id, mapError(ctx, "read the installation's id", err)
}

// Epoch counts the restores of this database: numbers of events of different epochs do not compare.
func (r *Reader) Epoch(ctx context.Context) (epoch int64, err error) {
	err = r.db.QueryRowContext(ctx, `SELECT epoch FROM installation`).Scan(&epoch)
	return epoch, mapError(ctx, "read the epoch", err)
}

// absent turns the lack of a row into CodeNotFound.
func absent(err error, what string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return compute.NotFound(what)
	}
	return err
}
