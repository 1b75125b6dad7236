package store

import (
	"context"
	"database/sql"
	"errors"

	"berth/internal/compute"
)

const selectGateway = `SELECT g.name, g.fingerprint, g.created_at, g.seen_at, g.revoked_at FROM gateways g`

const (
	queryGateways = selectGateway + ` ORDER BY g.created_at, g.name`
	queryGateway  = selectGateway + ` WHERE g.fingerprint = ?`
	queryInForce  = selectGateway + ` WHERE g.name = ? AND g.revoked_at IS NULL`
)

func scanGateway(row scanner) (compute.Gateway, error) {
	var g compute.Gateway
	var created int64
	var seen, revoked sql.NullInt64
	err := row.Scan(&g.Name, &g.Fingerprint, &created, &seen, &revoked)
	if err != nil {
		return compute.Gateway{}, err
	}
	g.CreatedAt = fromMillis(created)
	if seen.Valid {
		g.SeenAt = fromMillis(seen.Int64)
	}
	if revoked.Valid {
		g.RevokedAt = fromMillis(revoked.Int64)
	}
	return g, nil
}

// AddGateway stores a gateway's credential. CodeConflict when one of that name is in force.
func (s *Store) AddGateway(ctx context.Context, name, fingerprint string) (g compute.Gateway, err error) {
	if err := compute.ValidateGatewayName(name); err != nil {
		return g, err
	}
	err = s.write(ctx, "add gateway", func(t *tx) error {
		if err := t.addGateway(name, fingerprint); err != nil {
			return err
		}
		if g, err = scanGateway(t.QueryRowContext(ctx, queryGateway, fingerprint)); err != nil {
			return err
		}
		return t.event(compute.Event{Kind: compute.EventGatewayChanged})
	})
	return g, err
}

// ReplaceGateway has a name's gateway be the one with a credential; what was in force for the name is revoked. A credential that was
// ever stored stays what it is, whoever stores it at the same time.
func (s *Store) ReplaceGateway(ctx context.Context, name, fingerprint string) error {
	if err := compute.ValidateGatewayName(name); err != nil {
		return err
	}
	err := s.write(ctx, "replace gateway", func(t *tx) error {
		switch _, err := scanGateway(t.QueryRowContext(ctx, queryGateway, fingerprint)); {
		case err == nil:
			return nil
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		if _, err := t.exec(`UPDATE gateways SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL`, t.now, name); err != nil {
			return err
		}
		if err := t.addGateway(name, fingerprint); err != nil {
			return err
		}
		return t.event(compute.Event{Kind: compute.EventGatewayChanged})
	})
	if compute.CodeOf(err) != compute.CodeConflict {
		return err
	}
	if _, unknown := s.Gateway(ctx, fingerprint); unknown != nil {
		return err
	}
	return nil // another control plane was faster
}

func (t *tx) addGateway(name, fingerprint string) error {
	_, err := t.exec(`INSERT INTO gateways (fingerprint, name, created_at) VALUES (?, ?, ?)`, fingerprint, name, t.now)
	if isUnique(err) {
		return &compute.Error{
			Code: compute.CodeConflict, Field: "name", Cause: err,
			Message: "There is a gateway of that name; revoke it first, or choose another name.",
		}
	}
	return err
}

// RevokeGateway ends the credential in force of that name, for ever.
func (s *Store) RevokeGateway(ctx context.Context, name string) (g compute.Gateway, err error) {
	err = s.write(ctx, "revoke gateway", func(t *tx) error {
		g, err = scanGateway(t.QueryRowContext(ctx, queryInForce, name))
		if err != nil {
			return absent(err, "gateway")
		}
		g.RevokedAt = fromMillis(t.now)
		if err := t.one(`UPDATE gateways SET revoked_at = ? WHERE fingerprint = ?`, t.now, g.Fingerprint); err != nil {
			return err
		}
		return t.event(compute.Event{Kind: compute.EventGatewayChanged})
	})
	if err != nil {
		return compute.Gateway{}, err
	}
	return g, nil
}

// SeeGateway stores that a gateway is connected now. It is no event.
func (s *Store) SeeGateway(ctx context.Context, fingerprint string) error {
	return s.write(ctx, "record gateway", func(t *tx) error {
		_, err := t.exec(`UPDATE gateways SET seen_at = ? WHERE fingerprint = ?`, t.now, fingerprint)
		return err
	})
}

// Gateway returns the gateway with that credential, a revoked one too.
func (r *Reader) Gateway(ctx context.Context, fingerprint string) (compute.Gateway, error) {
	g, err := scanGateway(r.db.QueryRowContext(ctx, queryGateway, fingerprint))
	return g, mapError(ctx, "read gateway", absent(err, "gateway"))
}

// Gateways returns every credential, oldest first, revoked ones too.
func (r *Reader) Gateways(ctx context.Context) ([]compute.Gateway, error) {
	list, err := collect(ctx, r.db, scanGateway, queryGateways)
	return list, mapError(ctx, "list gateways", err)
}
