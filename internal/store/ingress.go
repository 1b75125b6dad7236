package store

import (
	"context"
	"fmt"

	"berth/internal/compute"
)

const (
	queryRules  = `SELECT id, port, target_port, created_at FROM ingress_rules WHERE container = ? ORDER BY id`
	queryRule   = `SELECT EXISTS (SELECT 1 FROM ingress_rules WHERE container = ? AND port = ?)`
	deleteRule  = `DELETE FROM ingress_rules WHERE container = ? AND port = ?`
	deleteRules = `DELETE FROM ingress_rules WHERE container = ?`
	// insertRule takes the smallest place that is free among those of container ?1, or limit ?2 itself where there are as
	// many rules: see insertContainer.
	insertRule = `INSERT INTO ingress_rules (container, quota, port, target_port, created_at, ordinal)
		VALUES (?1, ?2, ?3, ?4, ?5, CASE WHEN (SELECT count(*) FROM ingress_rules WHERE container = ?1) >= ?2 THEN ?2 ELSE (
		SELECT min(n) FROM (SELECT 0 AS n UNION ALL SELECT ordinal + 1 FROM ingress_rules WHERE container = ?1) places
		WHERE n NOT IN (SELECT ordinal FROM ingress_rules WHERE container = ?1)) END) RETURNING id`
)

func scanRule(row scanner) (compute.IngressRule, error) {
	var r compute.IngressRule
	var created int64
	err := row.Scan(&r.ID, &r.Port, &r.TargetPort, &created)
	if err != nil {
		return compute.IngressRule{}, err
	}
	r.CreatedAt = fromMillis(created)
	return r, nil
}

// IngressRules returns the rules of one of the owner's containers, oldest first.
func (r *Reader) IngressRules(
	ctx context.Context, owner compute.UserID, id compute.ContainerID,
) (list []compute.IngressRule, err error) {
	err = r.read(ctx, "list ingress rules", func(q querier) error {
		if _, err := ownContainer(ctx, q, owner, id); err != nil {
			return err
		}
		list, err = collect(ctx, q, scanRule, queryRules, id)
		return err
	})
	return list, err
}

// AddIngressRule exposes a port of one of the owner's containers; for port 443, the container's HTTPS is on from then on.
// CodeConflict when the container has a rule for that port, CodeLimit at limit.
func (s *Store) AddIngressRule(
	ctx context.Context, owner compute.UserID, id compute.ContainerID, rule compute.IngressRule, limit int,
) (compute.IngressRule, error) {
	err := s.write(ctx, "add ingress rule", func(t *tx) error {
		if _, err := ownContainer(ctx, t, owner, id); err != nil {
			return err
		}
		if err := activeUser(t, owner); err != nil {
			return err
		}
		if err := t.addRule(id, &rule, limit); err != nil {
			return err
		}
		return t.changedRule(owner, id, rule.Port, true)
	})
	if err != nil {
		return compute.IngressRule{}, err
	}
	return rule, nil
}

func (t *tx) addRule(id compute.ContainerID, rule *compute.IngressRule, limit int) error {
	var has bool // asked first: at the limit too, that is the better answer
	if err := t.QueryRowContext(t.ctx, queryRule, id, rule.Port).Scan(&has); err != nil {
		return err
	}
	if has {
		return &compute.Error{
			Code: compute.CodeConflict, Field: "port",
			Message: fmt.Sprintf("The container has a rule for port %d already; remove that one first.", rule.Port),
		}
	}
	err := t.QueryRowContext(t.ctx, insertRule, id, limit, rule.Port, rule.TargetPort, t.now).Scan(&rule.ID)
	if violates(err, "rules_within_limit") {
		return &compute.Error{
			Code: compute.CodeLimit, Cause: err,
			Message: fmt.Sprintf("The container has as many ingress rules as one may have, %d; remove one first.", limit),
		}
	}
	rule.CreatedAt = fromMillis(t.now)
	return err
}

// changedRule tells of a rule that is there now, or is not any more, and has the container's HTTPS follow.
func (t *tx) changedRule(owner compute.UserID, id compute.ContainerID, port int, there bool) error {
	if port == compute.HTTPSPort {
		if err := t.one(`UPDATE containers SET https_enabled = ? WHERE id = ?`, there, id); err != nil {
			return err
		}
	}
	return t.event(compute.Event{Kind: compute.EventContainerChanged, Owner: owner, Container: id})
}

// DeleteIngressRule removes the rule for a port from one of the owner's containers; for port 443, its HTTPS is off from
// then on.
func (s *Store) DeleteIngressRule(ctx context.Context, owner compute.UserID, id compute.ContainerID, port int) error {
	return s.write(ctx, "delete ingress rule", func(t *tx) error {
		if _, err := ownContainer(ctx, t, owner, id); err != nil {
			return err
		}
		n, err := t.exec(deleteRule, id, port)
		if err != nil {
			return err
		}
		if n == 0 {
			return compute.NotFound("ingress rule")
		}
		return t.changedRule(owner, id, port, false)
	})
}
