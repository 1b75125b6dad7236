package store

import (
	"context"
	"strings"
	"time"

	"berth/internal/compute"
)

const columnsOfToken = `t.id, t.owner, t.issued_by, t.name, t.scopes, t.created_at, t.expires_at,
	coalesce(t.last_used_at, 0), coalesce(t.revoked_at, 0)`

const (
	queryToken = `SELECT ` + columnsOfToken + `, u.id, u.username, u.role, u.disabled, u.created_at
		FROM tokens t JOIN users u ON u.id = t.owner WHERE t.id = ?`
	queryTokens = `SELECT ` + columnsOfToken + ` FROM tokens t
		WHERE t.owner = ? AND t.ordinal IS NOT NULL AND t.expires_at > ? ORDER BY t.created_at, t.id`
	queryAllTokens = `SELECT ` + columnsOfToken + ` FROM tokens t
		WHERE t.ordinal IS NOT NULL AND t.expires_at > ? ORDER BY t.owner, t.created_at, t.id`
	insertTokenQuery = `INSERT INTO tokens (id, owner, issued_by, quota, name, scopes, created_at, expires_at, ordinal)
		VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ` + freeTokenOrdinal + `)`
	expireTokensQuery = `DELETE FROM tokens WHERE owner = ? AND expires_at <= ?`
	pruneTokensQuery  = `DELETE FROM tokens
		WHERE id IN (SELECT id FROM tokens WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)`
	revokeTokenQuery = `UPDATE tokens SET revoked_at = ?1, ordinal = NULL
		WHERE id = ?2 AND owner = ?3 AND ordinal IS NOT NULL AND expires_at > ?1`
	forgetRevokedQuery = `DELETE FROM tokens WHERE id IN (SELECT id FROM tokens
		WHERE owner = ? AND revoked_at IS NOT NULL ORDER BY revoked_at DESC LIMIT ` + noLimit + ` OFFSET ?)`
	useTokenQuery = `UPDATE tokens SET last_used_at = ?1 WHERE id = ?2 AND coalesce(last_used_at, 0) < ?1`
)

// freeTokenOrdinal is the smallest place that is free among owner ?2's tokens of issuer ?3, or limit ?4 itself where
// there are as many, which the constraint tokens_within_limit refuses: also after a limit was lowered.
const freeTokenOrdinal = `CASE
		WHEN (SELECT count(*) FROM tokens WHERE owner = ?2 AND issued_by = ?3 AND ordinal IS NOT NULL) >= ?4
		THEN ?4 ELSE (SELECT min(n) FROM (SELECT 0 AS n UNION ALL
			SELECT ordinal + 1 FROM tokens WHERE owner = ?2 AND issued_by = ?3 AND ordinal IS NOT NULL) places
		WHERE n NOT IN (SELECT ordinal FROM tokens WHERE owner = ?2 AND issued_by = ?3 AND ordinal IS NOT NULL)) END`

const (
	// pruneBatch is how many expired tokens one transaction removes: others wait for it.
	pruneBatch = 256
	// keepRevoked is how many revoked tokens of an owner stay in the table. A token is refused without its row too.
	keepRevoked = 100
)

// tokenColumns is where the columns of a token are scanned to.
type tokenColumns struct {
	t                               compute.Token
	scopes                          string
	created, expires, used, revoked int64
}

func (s *tokenColumns) dest() []any {
	t := &s.t
	return []any{&t.ID, &t.Owner, &t.IssuedBy, &t.Name, &s.scopes, &s.created, &s.expires, &s.used, &s.revoked}
}

func (s *tokenColumns) token() compute.Token {
	s.t.Scopes = strings.Fields(s.scopes)
	s.t.CreatedAt, s.t.ExpiresAt = fromMillis(s.created), fromMillis(s.expires)
	if s.used != 0 {
		s.t.LastUsedAt = fromMillis(s.used)
	}
	if s.revoked != 0 {
		s.t.RevokedAt = fromMillis(s.revoked)
	}
	return s.t
}

func scanToken(row scanner) (compute.Token, error) {
	var s tokenColumns
	if err := row.Scan(s.dest()...); err != nil {
		return compute.Token{}, err
	}
	return s.token(), nil
}

// AddToken records a token that its owner is about to get. CodeLimit when the owner has as many live ones of that issuer as
// limit says, CodeForbidden when the account is disabled.
func (s *Store) AddToken(ctx context.Context, t compute.Token, limit int) error {
	return s.write(ctx, "record a token", func(tx *tx) error {
		if err := activeUser(tx, t.Owner); err != nil {
			return err
		}
		if _, err := tx.exec(expireTokensQuery, t.Owner, tx.now); err != nil {
			return err
		}
		_, err := tx.exec(insertTokenQuery, t.ID, t.Owner, t.IssuedBy, limit, t.Name, strings.Join(t.Scopes, " "),
			t.CreatedAt.UnixMilli(), t.ExpiresAt.UnixMilli())
		if violates(err, "tokens_within_limit") {
			return &compute.Error{
				Code: compute.CodeLimit, Cause: err,
				Message: "There are as many live tokens as an account may have; revoke one, or wait until one expires.",
			}
		}
		tx.subject(t.Owner, "", "token:"+t.ID) // it is no event: nobody waits for it
		return err
	})
}

// Token returns a recorded token, also one that is revoked or has expired, with its owner.
func (r *Reader) Token(ctx context.Context, id string) (compute.Token, compute.User, error) {
	var s tokenColumns
	var u compute.User
	var created int64
	err := r.db.QueryRowContext(ctx, queryToken, id).
		Scan(append(s.dest(), &u.ID, &u.Username, &u.Role, &u.Disabled, &created)...)
	if err != nil {
		return compute.Token{}, compute.User{}, mapError(ctx, "read token", absent(err, "token"))
	}
	u.CreatedAt = fromMillis(created)
	return s.token(), u, nil
}

// Tokens returns the owner's tokens that are live at a time, oldest first.
func (r *Reader) Tokens(ctx context.Context, owner compute.UserID, at time.Time) ([]compute.Token, error) {
	list, err := collect(ctx, r.db, scanToken, queryTokens, owner, at.UnixMilli())
	return list, mapError(ctx, "list tokens", err)
}

// AllTokens returns everybody's tokens that are live at a time, by owner, oldest first.
func (r *Reader) AllTokens(ctx context.Context, at time.Time) ([]compute.Token, error) {
	list, err := collect(ctx, r.db, scanToken, queryAllTokens, at.UnixMilli())
	return list, mapError(ctx, "list tokens", err)
}

// RevokeToken ends one of the owner's live tokens.
func (s *Store) RevokeToken(ctx context.Context, owner compute.UserID, id string) error {
	return s.write(ctx, "revoke a token", func(t *tx) error {
		n, err := t.exec(revokeTokenQuery, t.now, id, owner)
		if err != nil {
			return err
		}
		if n == 0 {
			return compute.NotFound("token")
		}
		if _, err := t.exec(forgetRevokedQuery, owner, keepRevoked); err != nil {
			return err
		}
		return t.event(compute.Event{Kind: compute.EventTokenRevoked, Owner: owner, Token: id})
	})
}

// UseTokens records when tokens were last used. It tells nobody.
func (s *Store) UseTokens(ctx context.Context, used map[string]time.Time) error {
	return s.write(ctx, "record the use of tokens", func(t *tx) error {
		for id, at := range used {
			if _, err := t.exec(useTokenQuery, at.UnixMilli(), id); err != nil {
				return err
			}
		}
		return nil
	})
}

// PruneTokens removes some of the tokens that have expired, and says whether there may be more.
func (s *Store) PruneTokens(ctx context.Context) (more bool, err error) {
	err = s.write(ctx, "prune tokens", func(t *tx) error {
		n, err := t.exec(pruneTokensQuery, t.now, pruneBatch)
		more = n == pruneBatch
		return err
	})
	return more, err
}
