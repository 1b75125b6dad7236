package k8s

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"berth/internal/compute"
	"berth/internal/pinned"
)

// addresses connects to agents at their pods' addresses (docs/adr/0027). The agent is told our key for it, and we learn its own,
// by pod exec, which leads into that pod for certain; then both know each other without the API server. What a hostile agent says
// its key is reaches nobody else: no other agent has our key for this one.
type addresses struct {
	log *slog.Logger
	run func(ctx context.Context, r compute.Ref, limit int, command ...string) ([]byte, error) // by pod exec

	mu      sync.Mutex // guards what follows
	pairs   map[compute.Ref]*pairing
	without map[compute.Ref]failure
}

func newAddresses(log *slog.Logger, x execer) *addresses {
	return &addresses{log: log, run: x.run, pairs: make(map[compute.Ref]*pairing), without: make(map[compute.Ref]failure)}
}

// failure is an agent that was not reached at its address.
type failure struct {
	until time.Time // not to be tried before
	wait  time.Duration
}

// pairing is how one container's agent is reached.
type pairing struct {
	ours    *pinned.Identity
	theirs  pinned.Key
	address string
}

const (
	// reachLimit is for a connection within a cluster: what takes longer is blocked, or gone.
	reachLimit = time.Second
	// pairLimit is for an exchange of keys, which waits for a process in the container.
	pairLimit = 5 * time.Second
	// An agent that could not be reached, or does not know how, is tried again after a while: soon at first, for it may only have
	// been about to begin another life.
	tryAgain     = 2 * time.Second
	tryAgainLast = 10 * time.Minute
	// maxPairings bounds what is remembered, 2 kB each. Those that are forgotten are learned anew.
	maxPairings = 20000
)

// again connects to an agent that is known; nil where there is none at that address any more.
func (a *addresses) again(ctx context.Context, r compute.Ref) net.Conn {
	a.mu.Lock()
	p := a.pairs[r]
	a.mu.Unlock()
	if p == nil {
		return nil
	}
	nc, err := p.dial(ctx)
	if err == nil {
		return nc
	}
	// It may run elsewhere by now, or as another process.
	a.log.Debug("an agent is not where it was", "container", r, "err", err)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pairs[r] == p {
		delete(a.pairs, r)
	}
	return nil
}

// first connects to an agent that is not known yet; nil where it is to be reached by pod exec.
func (a *addresses) first(ctx context.Context, r compute.Ref, pod *corev1.Pod) net.Conn {
	a.mu.Lock()
	failed := a.without[r]
	a.mu.Unlock()
	if time.Until(failed.until) > 0 {
		return nil
	}
	nc, err := a.pair(ctx, r, pod)
	if err == nil || ctx.Err() != nil {
		return nc
	}
	failed.wait = min(max(tryAgain, 3*failed.wait), tryAgainLast)
	a.log.Info("an agent is reached by pod exec, not at its address", "container", r, "err", err, "again_after", failed.wait)
	failed.until = time.Now().Add(failed.wait)
	a.mu.Lock()
	defer a.mu.Unlock()
	bound(a.without)
	a.without[r] = failed
	return nil
}

// pair exchanges keys with an agent and connects to it.
func (a *addresses) pair(ctx context.Context, r compute.Ref, pod *corev1.Pod) (net.Conn, error) {
	ip, err := netip.ParseAddr(pod.Status.PodIP)
	if err != nil {
		return nil, fmt.Errorf("the pod's address: %w", err)
	}
	p := &pairing{address: netip.AddrPortFrom(ip, pinned.Port).String()}
	if p.ours, err = pinned.NewIdentity(); err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, pairLimit)
	defer cancel()
	said, err := a.run(asking, r, 2*len(p.theirs)+1, agentPath, "pair", p.ours.Public().String())
	if err != nil {
		return nil, err
	}
	if p.theirs, err = pinned.ParseKey(strings.TrimSpace(string(said))); err != nil {
		return nil, fmt.Errorf("the agent's key: %w", err)
	}
	nc, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.without, r)
	bound(a.pairs)
	a.pairs[r] = p
	return nc, nil
}

// bound makes room for one more.
func bound[V any](m map[compute.Ref]V) {
	for r := range m {
		if len(m) < maxPairings {
			return
		}
		delete(m, r)
	}
}

func (p *pairing) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, reachLimit)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", p.address)
	if err != nil {
		return nil, err
	}
	return p.ours.Dial(ctx, nc, p.theirs)
}
