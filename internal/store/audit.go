package store

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/internal/compute"
)

const (
	insertAudit = `INSERT INTO audit (seq, at, class, action, outcome, code, "user", owner, credential, credential_id, source, via,
		gateway, request, container, target, session, session_kind, duration, count, until_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	selectAudit = `SELECT a.seq, a.at, a.action, a.outcome, a.code, a.user, coalesce(u.username, ''), a.owner,
		coalesce(o.username, ''), a.credential, a.credential_id, a.source, a.via, a.gateway, a.request, a.container, a.target,
		a.session, a.session_kind, a.duration, a.count, a.until_at
		FROM audit a LEFT JOIN users u ON u.id = a.user LEFT JOIN users o ON o.id = a.owner`
	queryLastAudit = `SELECT seq FROM audit_counter`
	// pruneAuditByAge looks at the oldest alone: rows are about in the order of their times.
	pruneAuditByAge = `DELETE FROM audit WHERE seq IN
		(SELECT seq FROM (SELECT seq, at FROM audit ORDER BY seq LIMIT ?2) oldest WHERE at < ?1)`
	pruneAuditOf = `DELETE FROM audit WHERE seq IN
		(SELECT seq FROM audit WHERE class = ? AND owner = ? ORDER BY seq LIMIT ?)`
	countAudit       = `SELECT count(*) FROM audit WHERE class = ?`
	countAuditOwners = `SELECT owner, count(*) FROM audit WHERE class = ? GROUP BY owner`
)

// subject notes what the act of this transaction is done to, if there is one that is not recorded yet. The first word is
// the one that counts: what follows is a consequence.
func (t *tx) subject(owner compute.UserID, container compute.ContainerID, target string) {
	act := compute.ActOf(t.ctx)
	if !act.Ready() || t.act != nil {
		return
	}
	r := act.Record
	r.Outcome = compute.OutcomeAllowed
	if owner != 0 {
		r.Owner = owner
	}
	if container != "" {
		r.Container = container
	}
	if target != "" {
		r.Target = target
	}
	t.act, t.records = act, append(t.records, r)
}

// subjectOf is subject for what an event tells of.
func (t *tx) subjectOf(e compute.Event) {
	target := ""
	switch {
	case e.KeyID != 0:
		target = "ssh_key:" + strconv.FormatInt(e.KeyID, 10)
	case e.Token != "":
		target = "token:" + e.Token
	}
	t.subject(e.Owner, e.Container, target)
}

// writeAudit appends the transaction's records. It comes last, so that the counters are always locked in the same order.
func (t *tx) writeAudit() error {
	for _, r := range t.records {
		var seq int64
		err := t.QueryRowContext(t.ctx, `UPDATE audit_counter SET seq = seq + 1 RETURNING seq`).Scan(&seq)
		if err != nil {
			return err
		}
		r, at, until := r.Bounded(), t.now, int64(0)
		if !r.At.IsZero() {
			at = r.At.UnixMilli()
		}
		if !r.Until.IsZero() {
			until = r.Until.UnixMilli()
		}
		err = t.one(insertAudit, seq, at, r.Class(), r.Action, r.Outcome, r.Code, r.User, r.Owner, r.Credential, r.CredentialID,
			r.Source, r.Via, r.Gateway, r.Request, r.Container, r.Target, r.Session, r.SessionKind,
			max(r.Duration.Milliseconds(), 0), r.Count, until)
		if err != nil {
			return err
		}
	}
	return nil
}

// AppendAudit stores records of what changed nothing: logins, sessions, refusals.
func (s *Store) AppendAudit(ctx context.Context, records []compute.AuditRecord) error {
	return s.write(ctx, "store audit records", func(t *tx) error {
		t.records = slices.Clone(records)
		return nil
	})
}

// auditWindow is how many records one question looks at, at most: nobody's question holds up others for long.
const auditWindow = 20_000

// Audit returns records that q selects, the newest first unless it says otherwise, and from where to go on: there may be more
// before, or after, the record of that number. It is 0 when there are none. Where few match, a page may have fewer than the
// limit, or none, and still there are more.
func (r *Reader) Audit(ctx context.Context, q compute.AuditQuery) (list []compute.AuditRecord, next int64, err error) {
	return r.auditWithin(ctx, q, auditWindow)
}

func (r *Reader) auditWithin(
	ctx context.Context, q compute.AuditQuery, window int,
) (list []compute.AuditRecord, next int64, err error) {
	err = r.read(ctx, "read audit records", func(tx querier) error {
		edge, err := auditEdge(ctx, tx, q, window)
		if err != nil {
			return err
		}
		query, args := auditQuery(q, edge)
		if list, err = collect(ctx, tx, scanAudit, query, args...); err != nil {
			return err
		}
		next = edge
		if len(list) > q.Limit {
			list = list[:q.Limit]
			next = list[q.Limit-1].Seq
		}
		return nil
	})
	return list, next, err
}

// conditions is a WHERE clause that grows.
type conditions struct {
	where []string
	args  []any
}

func (c *conditions) add(given bool, condition string, value any) {
	if given {
		c.where, c.args = append(c.where, condition), append(c.args, value)
	}
}

func (c *conditions) clause(q compute.AuditQuery) string {
	order := " ORDER BY a.seq DESC"
	if q.OldestFirst {
		order = " ORDER BY a.seq"
	}
	if len(c.where) == 0 {
		return order
	}
	return " WHERE " + strings.Join(c.where, " AND ") + order
}

// walk adds what an index serves: what is looked at, in order, until enough of it matches.
func (c *conditions) walk(q compute.AuditQuery) {
	c.add(q.Owner != 0, "a.owner = ?", q.Owner)
	c.add(q.Owner == 0 && q.Container != "", "a.container <> '' AND a.container = ?", q.Container) // for the partial index
	c.add(q.After != 0, "a.seq > ?", q.After)
	c.add(q.Before != 0, "a.seq < ?", q.Before)
}

// auditEdge returns the number of the last record that the question looks at; 0 when it looks at all there are.
func auditEdge(ctx context.Context, tx querier, q compute.AuditQuery, window int) (edge int64, err error) {
	if q.Action == "" && q.Outcome == "" && q.Since.IsZero() && q.Until.IsZero() && (q.Owner == 0 || q.Container == "") {
		return 0, nil // each one that it looks at matches
	}
	query, args := auditEdgeQuery(q, window)
	err = tx.QueryRowContext(ctx, query, args...).Scan(&edge)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return edge, err
}

func auditEdgeQuery(q compute.AuditQuery, window int) (query string, args []any) {
	var c conditions
	c.walk(q)
	return "SELECT a.seq FROM audit a" + c.clause(q) + " LIMIT 1 OFFSET ?", append(c.args, window-1)
}

func auditQuery(q compute.AuditQuery, edge int64) (query string, args []any) {
	var c conditions
	c.walk(q)
	c.add(edge != 0 && q.OldestFirst, "a.seq <= ?", edge)
	c.add(edge != 0 && !q.OldestFirst, "a.seq >= ?", edge)
	// The empty text keeps the database from walking the container's index instead, of which the edge says nothing.
	c.add(q.Owner != 0 && q.Container != "", "a.container || '' = ?", q.Container)
	c.add(q.Action != "", "a.action = ?", q.Action)
	c.add(q.Outcome != "", "a.outcome = ?", q.Outcome)
	c.add(!q.Since.IsZero(), "a.at >= ?", q.Since.UnixMilli())
	c.add(!q.Until.IsZero(), "a.at < ?", q.Until.UnixMilli())
	return selectAudit + c.clause(q) + " LIMIT ?", append(c.args, q.Limit+1) // one more, to know whether there is
}

func scanAudit(row scanner) (compute.AuditRecord, error) {
	var r compute.AuditRecord
	var at, until, duration int64
	err := row.Scan(&r.Seq, &at, &r.Action, &r.Outcome, &r.Code, &r.User, &r.Username, &r.Owner, &r.OwnerName, &r.Credential,
		&r.CredentialID, &r.Source, &r.Via, &r.Gateway, &r.Request, &r.Container, &r.Target, &r.Session, &r.SessionKind,
		&duration, &r.Count, &until)
	r.At, r.Duration = fromMillis(at), time.Duration(duration)*time.Millisecond
	if until != 0 {
		r.Until = fromMillis(until)
	}
	return r, err
}

// LastAudit returns the number of the newest record; 0 before the first.
func (r *Reader) LastAudit(ctx context.Context) (seq int64, err error) {
	err = r.db.QueryRowContext(ctx, queryLastAudit).Scan(&seq)
	return seq, mapError(ctx, "read the last audit record", err)
}

// auditBatch is how many records one transaction removes at most of each kind: others wait for it.
const auditBatch = 1000

// PruneAudit removes some of the records that are to be kept no longer, and says whether there may be more. Where a class has
// too many, the accounts that have the most lose their oldest: who makes many pushes out their own, and nobody else's.
func (s *Store) PruneAudit(ctx context.Context, keep compute.AuditRetention) (more bool, err error) {
	excess := make(map[compute.AuditClass]map[compute.UserID]int64)
	for _, class := range []compute.AuditClass{compute.AuditChange, compute.AuditAccess, compute.AuditRefusal} {
		if excess[class], err = s.auditExcess(ctx, class, keep.PerClass); err != nil {
			return false, mapError(ctx, "count audit records", err)
		}
	}
	err = s.write(ctx, "prune audit records", func(t *tx) error {
		n, err := t.exec(pruneAuditByAge, t.now-keep.Age.Milliseconds(), auditBatch)
		if err != nil {
			return err
		}
		more = n == auditBatch
		for class, owners := range excess {
			left := int64(auditBatch)
			for owner, n := range owners {
				take := min(n, left)
				if _, err := t.exec(pruneAuditOf, class, owner, take); err != nil {
					return err
				}
				left -= take
				if more = more || take < n; left == 0 {
					break
				}
			}
		}
		return nil
	})
	return more, err
}

// auditExcess returns how many records each owner has too many, so that no more than limit of the class stay.
func (s *Store) auditExcess(ctx context.Context, class compute.AuditClass, limit int64) (map[compute.UserID]int64, error) {
	var total int64
	if err := s.db.QueryRowContext(ctx, countAudit, class).Scan(&total); err != nil || total <= limit {
		return nil, err
	}
	type share struct {
		owner compute.UserID
		n     int64
	}
	list, err := collect(ctx, s.db, func(row scanner) (v share, err error) { return v, row.Scan(&v.owner, &v.n) },
		countAuditOwners, class)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	counts := make([]int64, len(list))
	for i, v := range list {
		counts[i] = v.n
	}
	most := waterLevel(counts, limit)
	excess := make(map[compute.UserID]int64)
	for _, v := range list {
		if v.n > most {
			excess[v.owner] = v.n - most
		}
	}
	return excess, nil
}

// waterLevel is the greatest number of which it holds that all counts, each cut to it, are together at most limit.
func waterLevel(counts []int64, limit int64) int64 {
	counts = slices.Sorted(slices.Values(counts))
	for i, n := range counts {
		others := int64(len(counts) - i)
		if n*others > limit {
			return max(limit, 0) / others
		}
		limit -= n
	}
	return counts[len(counts)-1]
}
