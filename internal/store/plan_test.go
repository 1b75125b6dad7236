package store

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"berth/internal/compute"
	"berth/internal/pgtest"
)

// Every query that runs for a login, a request or a pass of the loop is served by an index: none reads a whole table, and
// none sorts more than one owner's rows.
func TestIndexesServe(t *testing.T) {
	s := openNew(t, Options{})
	server := newPlanner(t)
	for name, query := range map[string]string{
		"target":          queryTarget,
		"openers":         queryOpeners,
		"accounts":        queryAccounts,
		"containers":      queryContainers,
		"container":       queryContainer,
		"reconcile state": queryReconcile,
		"keys":            queryKeys,
		"key opens":       queryKeyOpens,
		"user":            queryUser,
		"user by name":    queryUserByName,
		"events":          queryEvents,
		"history":         queryHistory,
		"oldest event":    queryOldestEvent,
		"insert key":      insertKeyQuery,
		"insert box":      insertContainer,
		"waiting":         queryWaiting,
		"waiting owners":  queryWaitingOwners,
		"free slot":       queryFreeSlot,
		"next slot":       queryNextSlot,
		"rules":           queryRules,
		"rule":            queryRule,
		"insert rule":     insertRule,
		"delete rule":     deleteRule,
		"delete rules":    deleteRules,
		"delete key":      `DELETE FROM ssh_keys WHERE id = ? AND owner = ?`,
		"delete box":      `DELETE FROM containers WHERE id = ?`,
		"prune":           `DELETE FROM events WHERE seq <= ?`,
		"identity":        queryIdentity,
		"key accounts":    queryHolders,
		"token":           queryToken,
		"tokens":          queryTokens,
		"insert token":    insertTokenQuery,
		"expire tokens":   expireTokensQuery,
		"prune tokens":    pruneTokensQuery,
		"revoke token":    revokeTokenQuery,
		"forget revoked":  forgetRevokedQuery,
		"use token":       useTokenQuery,
		"gateway":         queryGateway,
		"gateway named":   queryInForce,
		"gateway's audit": lockGatewayAudit,
		"note its audit":  noteGatewayAudit,
		"boxes after":     queryContainersAfter,
		"shown":           queryShown,
		"users after":     queryUsersAfter,
		"keys of range":   queryKeysOfRange,
		"event at":        queryEventAt,
		"prune audit":     pruneAuditOf,
		"count audit":     countAudit,
		"count owners":    countAuditOwners,
		"audit of owner":  plan(compute.AuditQuery{Owner: 1, Before: 7}),
		"audit of box":    plan(compute.AuditQuery{Container: "a1b2c3d4"}),
		"audit of both":   plan(compute.AuditQuery{Owner: 1, Container: "a1b2c3d4", Action: "x"}),
		"audit edge":      edgePlan(compute.AuditQuery{Owner: 1, Container: "a1b2c3d4", Action: "x"}),
		"edge of box":     edgePlan(compute.AuditQuery{Container: "a1b2c3d4", Action: "x"}),
		"audit onwards":   plan(compute.AuditQuery{After: 7, OldestFirst: true}),
		"limited user":    queryLimitedUser,
		"limited users":   queryLimitedUsersAfter,
		"all boxes":       queryAllContainers,
		"boxes of":        queryContainersOf,
		"boxes in":        queryContainersIn,
		"boxes of in":     queryContainersOfIn,
		"max containers":  queryOwnMaxContainers,
		"max keys":        queryOwnMaxKeys,
	} {
		args := make([]any, 20)
		n := strings.Count(query, "?")
		for i := 20; i > 0; i-- { // numbered parameters take as many as the highest number
			if strings.Contains(query, fmt.Sprintf("?%d", i)) {
				n = i
				break
			}
		}
		rows, err := s.writer.Query("EXPLAIN QUERY PLAN "+query, args[:n]...)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		steps := 0
		for rows.Next() {
			var id, parent, unused int
			var detail string
			if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
				t.Fatal(err)
			}
			steps++
			if strings.HasPrefix(detail, "SCAN ") && !harmlessScan(detail) {
				t.Errorf("%s: %s", name, detail)
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		if err := rows.Close(); err != nil {
			t.Fatal(err)
		}
		if steps == 0 && !strings.HasPrefix(query, "INSERT") {
			t.Errorf("%s: no plan", name)
		}
		for _, step := range server.scans(t, query, n) {
			t.Errorf("%s: PostgreSQL: %s", name, step)
		}
	}
}

func plan(q compute.AuditQuery) string {
	query, _ := auditQuery(q, 7)
	return query
}

func edgePlan(q compute.AuditQuery) string {
	query, _ := auditEdgeQuery(q, 10)
	return query
}

// harmlessScan says whether a step reads a small computed set from end to end, or a partial index that is made of nothing
// but what is asked for.
func harmlessScan(detail string) bool {
	for _, s := range []string{"CONSTANT ROW", "(subquery-", "taken", "INDEX containers_without_slot"} {
		if strings.Contains(detail, s) {
			return true
		}
	}
	return false
}

// planner explains queries on PostgreSQL.
type planner struct{ conn *pgx.Conn }

// newPlanner has PostgreSQL take an index wherever there is one that helps, as it would beside many rows.
func newPlanner(t *testing.T) planner {
	t.Helper()
	url := pgtest.NewDatabase(t)
	openAt(t, url, Options{})
	config := mustParse(t, url)
	for _, way := range []string{"enable_seqscan", "enable_bitmapscan", "enable_hashjoin", "enable_mergejoin"} {
		config.RuntimeParams[way] = "off" // what is best for tables that are empty
	}
	config.RuntimeParams["plan_cache_mode"] = "force_generic_plan"
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return planner{conn}
}

// scans returns the steps of a query with n parameters that read a table from end to end.
func (p planner) scans(t *testing.T, query string, n int) (list []string) {
	t.Helper()
	ctx := t.Context()
	if _, err := p.conn.Exec(ctx, "PREPARE q AS "+numbered(query)); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	execute := "EXECUTE q"
	if n > 0 {
		execute += "(" + strings.TrimSuffix(strings.Repeat("NULL, ", n), ", ") + ")"
	}
	rows, err := p.conn.Query(ctx, "EXPLAIN "+execute, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	steps, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	if _, err := p.conn.Exec(ctx, "DEALLOCATE q"); err != nil {
		t.Fatal(err)
	}
	for i, step := range steps {
		walks := strings.Contains(step, "Index") && strings.Contains(step, "Scan") && // an index, but from end to end
			(i+1 == len(steps) || !strings.Contains(steps[i+1], "Index Cond"))
		if (strings.Contains(step, "Seq Scan on ") || walks) && !strings.Contains(step, " containers_without_slot ") {
			list = append(list, step)
		}
	}
	if len(steps) == 0 {
		list = append(list, "no plan")
	}
	return list
}
