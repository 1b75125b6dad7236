package httpapi

import (
	"net/netip"
	"sync"

	"berth/internal/compute"
)

// addresses are where containers are reached that have an address of their own, by which one wakes whose feeds show them.
type addresses struct {
	gateway string // that of the others

	mu    sync.Mutex // guards what follows
	own   map[compute.ContainerID]string
	feeds map[compute.UserID]map[chan struct{}]struct{}
}

func newAddresses(gateway string) *addresses {
	return &addresses{
		gateway: gateway, own: make(map[compute.ContainerID]string), feeds: make(map[compute.UserID]map[chan struct{}]struct{}),
	}
}

// SetExternalIP says where a container is reached from outside from now on; with the zero address, where the gateway is. Its
// owner's feeds tell it.
func (s *Server) SetExternalIP(r compute.Ref, ip netip.Addr) {
	a := s.addresses
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.own[r.ID]
	if ip.IsValid() {
		a.own[r.ID] = ip.String()
	} else {
		delete(a.own, r.ID)
	}
	if a.own[r.ID] == before {
		return
	}
	for wake := range a.feeds[r.Owner] {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// of is the container's address; empty where it is not known.
func (a *addresses) of(id compute.ContainerID) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if own := a.own[id]; own != "" {
		return own
	}
	return a.gateway
}

// follow returns what is given something when an address of the user's containers may have changed, until stop is called.
func (a *addresses) follow(u compute.UserID) (wake <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.feeds[u] == nil {
		a.feeds[u] = make(map[chan struct{}]struct{})
	}
	a.feeds[u][c] = struct{}{}
	return c, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if delete(a.feeds[u], c); len(a.feeds[u]) == 0 {
			delete(a.feeds, u)
		}
	}
}
