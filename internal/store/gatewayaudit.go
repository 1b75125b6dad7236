package store

import (
	"context"
	"slices"

	"berth/internal/compute"
)

const (
	// lockGatewayAudit changes nothing, and keeps others from doing so.
	lockGatewayAudit = `UPDATE gateways SET audit_seq = audit_seq WHERE fingerprint = ? AND revoked_at IS NULL
		RETURNING audit_queue, audit_seq`
	noteGatewayAudit = `UPDATE gateways SET audit_queue = ?, audit_seq = ? WHERE fingerprint = ?`
)

// AppendGatewayAudit stores records that a gateway numbered from first on, but for those that are stored already, and returns
// the number of the newest one that is: with the records, or not at all. Of another queue than before, none is. Records of
// accounts that do not exist are nobody's. CodeNotFound when the credential is not in force.
func (s *Store) AppendGatewayAudit(
	ctx context.Context, fingerprint, queue string, first int64, records []compute.AuditRecord,
) (last int64, err error) {
	err = s.write(ctx, "store a gateway's audit records", func(t *tx) error {
		var known string
		if err := t.QueryRowContext(ctx, lockGatewayAudit, fingerprint).Scan(&known, &last); err != nil {
			return absent(err, "gateway")
		}
		if known != queue {
			last = 0
		}
		n := int64(len(records))
		if known == queue && first+n-1 <= last {
			return nil
		}
		list := slices.Clone(records[min(max(last+1-first, 0), n):])
		last = max(last, first+n-1)
		if err := t.disown(list); err != nil {
			return err
		}
		t.records = list
		return t.one(noteGatewayAudit, queue, last, fingerprint)
	})
	if err != nil {
		return 0, err
	}
	return last, nil
}

// disown takes the account from records of one that does not exist: whoever has that number one day did not do this.
func (t *tx) disown(list []compute.AuditRecord) error {
	there := make(map[compute.UserID]bool)
	for i := range list {
		r := &list[i]
		exists, asked := there[r.User]
		if !asked && r.User != 0 {
			err := t.QueryRowContext(t.ctx, `SELECT EXISTS (SELECT 1 FROM users WHERE id = ?)`, r.User).Scan(&exists)
			if err != nil {
				return err
			}
			there[r.User] = exists
		}
		if !exists {
			r.User, r.Owner = 0, 0
		}
	}
	return nil
}
