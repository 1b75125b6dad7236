package audit

import (
	"net/netip"
	"time"

	"berth/internal/compute"
)

// kind is what refusals have in common that are put together.
type kind struct {
	origin
	container          compute.ContainerID
	target, credential string
}

// origin is where refusals come from, and why they are.
type origin struct {
	action, via string
	code        compute.Code
	user        compute.UserID
	source      netip.Prefix
}

// repetition is the refusals of a kind after the first one.
type repetition struct {
	last compute.AuditRecord
	from time.Time
	n    int64
}

// repeats says whether r is of a kind that was recorded in this window, and counts it there. q.mu is held.
func (q *Queue) repeats(r compute.AuditRecord) bool {
	k := kind{origin{r.Action, r.Via, r.Code, r.User, sourceOf(r.Source)}, r.Container, r.Target, r.CredentialID}
	seen, known := q.refusals[k]
	if !known && q.origins[k.origin] >= maxKindsOfOrigin { // whoever tries keys, or containers, one after the other
		k = kind{origin: k.origin}
		seen, known = q.refusals[k]
	}
	if !known && len(q.refusals) >= maxKinds {
		// Whoever has that many addresses has more: all of them share one record from here on. It says so by having no source.
		k = kind{origin: origin{via: r.Via}}
		r = compute.AuditRecord{
			At: r.At, Action: r.Action, Outcome: r.Outcome, Code: r.Code, Via: r.Via, Gateway: r.Gateway, Count: r.Count,
		}
		seen, known = q.refusals[k]
	}
	if !known {
		q.refusals[k] = &repetition{}
		q.origins[k.origin]++
		return false
	}
	if seen.n == 0 {
		seen.from = r.At
	}
	seen.last = r
	seen.n += r.Count
	return true
}

// sum ends the window: what was repeated in it is recorded with its number.
func (q *Queue) sum() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, seen := range q.refusals {
		if seen.n == 0 {
			continue
		}
		r := seen.last
		r.Count, r.At, r.Until = seen.n, seen.from, seen.last.At
		q.put(r)
	}
	clear(q.refusals)
	clear(q.origins)
}

// sourceOf is what counts as one source: an IPv4 address, or an IPv6 network of 64 bits, which one person may well have whole.
func sourceOf(source string) netip.Prefix {
	ap, err := netip.ParseAddrPort(source)
	if err != nil {
		return netip.Prefix{}
	}
	ip := ap.Addr().Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
