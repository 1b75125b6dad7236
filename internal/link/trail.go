package link

import (
	"context"
	"regexp"
	"time"

	"golang.org/x/time/rate"

	"berth/internal/compute"
)

// Trail is where a Server keeps what gateways saw.
type Trail interface {
	// AppendGatewayAudit stores records that the gateway of that credential numbered from first on, but for those that are
	// stored already, and returns the number of the newest one that is. A queue is a name for the numbers; another one begins
	// anew. CodeNotFound when the credential is not in force.
	AppendGatewayAudit(
		ctx context.Context, fingerprint, queue string, first int64, records []compute.AuditRecord,
	) (last int64, err error)
}

// How fast one gateway's records are taken, and how long after a fault it is tried again. Who asks for an answer waits for it,
// so nothing is lost by this; the database has others to serve.
const (
	batchesPerSecond = 10
	batchBurst       = 20
	trailPause       = 2 * time.Second
)

var queueName = regexp.MustCompile(`^([0-9a-f]{32})?$`)

func validQueue(s string) bool { return queueName.MatchString(s) }

// takeRecords hands on what the gateway sent. It may send more once it was told that those are stored.
func (p *peer) takeRecords(payload []byte) error {
	var b batch
	if err := p.w.codec.read(payload, &b); err != nil {
		return err
	}
	n := int64(len(b.Records))
	if n < 1 || n > maxBatch || b.First < 1 || b.First >= maxNumber || b.Last != b.First+n-1 {
		return errMalformed
	}
	select {
	case p.records <- b:
		return nil
	default:
		return errOrder
	}
}

// keepRecords stores what the gateway sends, batch by batch, and tells it. A fault of the database holds up records alone:
// who may enter goes on to be told.
func (p *peer) keepRecords(ctx context.Context, queue string) {
	pace := rate.NewLimiter(batchesPerSecond, batchBurst)
	b := batch{First: 1} // of none: it tells where to go on
	for {
		last, ok := p.store(ctx, queue, b)
		if !ok {
			return
		}
		select {
		case p.stored <- last:
		case <-ctx.Done():
			return
		}
		select {
		case b = <-p.records:
		case <-ctx.Done():
			return
		}
		if pace.Wait(ctx) != nil {
			return
		}
	}
}

// store stores one batch. Not ok is the end of the connection.
func (p *peer) store(ctx context.Context, queue string, b batch) (last int64, ok bool) {
	list := p.vet(b.Records)
	for failed := false; ; {
		last, err := p.s.o.Trail.AppendGatewayAudit(ctx, p.gateway.Fingerprint, queue, b.First, list)
		if err == nil {
			return last, true
		}
		if ctx.Err() != nil {
			return 0, false
		}
		if !failed {
			failed = true
			p.s.log.Error("audit records of a gateway are not stored; it keeps them", "gateway", p.gateway.Name, "err", err)
		}
		t := time.NewTimer(trailPause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return 0, false
		}
	}
}

// vet turns what the gateway sent into records. In the place of one that no gateway of ours sends it says that one is missing.
func (p *peer) vet(sent []wireRecord) []compute.AuditRecord {
	now := time.Now()
	list := make([]compute.AuditRecord, len(sent))
	forged := 0
	for i, w := range sent {
		r, ok := w.record(p.gateway, now)
		if !ok {
			forged++
			r = lostRecord(p.gateway, r.At, r.Count)
		}
		list[i] = r
	}
	if forged > 0 {
		p.s.forged.Add(uint64(forged))
		p.s.log.Error("a gateway sent audit records that none may send; they are not kept", "gateway", p.gateway.Name,
			"remote", p.remote, "records", forged)
	}
	return list
}
