package store

import (
	"fmt"
	"strings"
	"testing"

	"berth/internal/compute"
)

// Every query that runs for a login, a request or a pass of the loop is served by an index: none reads a whole table, and
// none sorts more than one owner's rows.
func TestIndexesServe(t *testing.T) {
	s := openNew(t, Options{})
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
