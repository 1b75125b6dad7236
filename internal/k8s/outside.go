package k8s

import (
	"context"
	"errors"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"berth/internal/compute"
)

// outside is what containers' surroundings depend on and the cluster says: it changes while containers run.
type outside struct {
	addresses  []netip.Addr // of nodes and the API server, where they are public; sorted, each once
	registries []byte       // credentials for kubelets, as a .dockerconfigjson
	version    string       // tells one state of the credentials from another
}

// Surroundings that are to change everywhere do so at this pace: a hundred containers take ten seconds, and an API server
// that has other things to do is not held up.
const (
	renewalsPerSecond = 10
	renewAfter        = time.Second // nodes come and go in groups
	renewAgain        = time.Minute // what failed or was busy
)

// learnOutside sees the cluster as it is in the caches, and returns whether that is news, on which namespaces are to be looked at.
func (e *Engine) learnOutside() bool {
	o := e.lookOutside()
	e.mu.Lock()
	defer e.mu.Unlock()
	news := e.stale || !reflect.DeepEqual(o, e.outside)
	e.outside, e.stale = o, false
	return news
}

func (e *Engine) outsideNow() outside {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.outside
}

func (e *Engine) lookOutside() outside {
	var o outside
	add := func(address string) {
		if a, err := netip.ParseAddr(address); err == nil { // else a name
			o.addresses = append(o.addresses, a.Unmap().WithZone(""))
		}
	}
	// A lister's only error is that there is no such object.
	nodes, _ := e.nodes.List(labels.Everything())
	for _, n := range nodes {
		for _, a := range n.Status.Addresses {
			add(a.Address)
		}
	}
	slicesOf, _ := e.endpoints.EndpointSlices(corev1.NamespaceDefault).List(labels.Everything())
	for _, s := range slicesOf {
		for _, endpoint := range s.Endpoints {
			for _, a := range endpoint.Addresses {
				add(a)
			}
		}
	}
	if u, err := url.Parse(e.exec.config.Host); err == nil {
		add(u.Hostname())
	}
	o.addresses = slices.DeleteFunc(o.addresses, e.maker.private)
	slices.SortFunc(o.addresses, netip.Addr.Compare)
	o.addresses = slices.Compact(o.addresses)
	if e.opt.PullSecrets != nil {
		var c credentials
		c, o.version = e.credentials()
		o.registries = c.encode()
	}
	return o
}

// renew takes note that something changed on which surroundings depend.
func (e *Engine) renew() {
	select {
	case e.news <- struct{}{}:
	default:
	}
}

// keepSurroundings brings changes to the namespaces that are there, until the engine ends. Of several control planes only the
// one that watches containers does so.
func (e *Engine) keepSurroundings() {
	pace := rate.NewLimiter(renewalsPerSecond, 1)
	soon := time.NewTimer(renewAfter)
	defer soon.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-e.news:
			if e.learnOutside() {
				soon.Reset(renewAfter)
			}
			continue
		case <-soon.C:
		}
		if !e.renewAll(pace) {
			soon.Reset(renewAgain)
		}
	}
}

// renewAll returns whether all namespaces are as they should be, or will be by who watches.
func (e *Engine) renewAll(pace *rate.Limiter) bool {
	list, _ := e.namespaces.List(labels.Everything())
	whole := true
	for _, ns := range list {
		r, err := compute.ParseRef(ns.Name)
		if err != nil {
			continue // an object with our labels
		}
		if !e.watched() {
			return true
		}
		err = e.renewOne(r, pace)
		whole = whole && err == nil
		if err != nil && !errors.Is(err, errBusy) && e.ctx.Err() == nil {
			e.log.Warn("a container's policies are not up to date yet; this is tried again", "container", r, "err", err)
		}
	}
	return whole
}

// renewOne brings what changed outside to one container, unless a call changes that now: it may take long, and most see to
// this, too. What others changed there meanwhile is its review's to see.
func (e *Engine) renewOne(r compute.Ref, pace *rate.Limiter) error {
	now := e.look(r)
	if now.namespace == nil || now.namespace.DeletionTimestamp != nil || e.upToDate(now) {
		return nil
	}
	if err := pace.Wait(e.ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(e.ctx, callTimeout)
	defer cancel()
	u, ctx, release, err := e.acquireIdle(ctx, r)
	if err != nil {
		return err
	}
	defer release(nil) // whatever comes of it: nobody else tells of what happened meanwhile
	now = e.look(r)
	if now.namespace == nil || now.namespace.DeletionTimestamp != nil {
		return nil
	}
	return e.restore(ctx, u, now)
}

// upToDate says whether a container has what depends on the outside: the policy that names addresses, and credentials.
func (e *Engine) upToDate(now sight) bool {
	o := e.outsideNow()
	e.mu.Lock()
	u := e.unit(now.ref)
	e.mu.Unlock()
	wanted := []object{e.maker.namespace(now.ref, o)}
	for _, p := range e.maker.policies(now.ref, o.addresses) {
		wanted = append(wanted, p)
	}
	return !slices.ContainsFunc(wanted, func(want object) bool {
		live, _ := e.cached(want)
		return live == nil || !e.stands(u, want, live)
	})
}

func (e *Engine) watched() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.watchers) > 0
}

// apiServerSlices are the EndpointSlices that name the API server's own addresses.
const apiServerSlices = discoveryv1.LabelServiceName + "=kubernetes"
