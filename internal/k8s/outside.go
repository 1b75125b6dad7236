package k8s

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"

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
	renewAgain        = time.Minute // after a failure
)

// key tells one state of the surroundings from another. A namespace says which it has, so that nobody who may look at one
// learns of credentials, these are told apart by their version alone.
func (m maker) key(o outside) string {
	o.registries = nil
	b, _ := json.Marshal(m.surroundings(compute.Ref{}, o)) // objects never fail
	sum := sha256.Sum256(append(b, o.version...))
	return hex.EncodeToString(sum[:8])
}

// learnOutside sees the cluster as it is in the caches.
func (e *Engine) learnOutside() {
	o := e.lookOutside()
	key := e.maker.key(o)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.outside, e.outsideKey = o, key
}

func (e *Engine) outsideNow() (o outside, key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.outside, e.outsideKey
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

// surround makes what is around the pod as it should be now, whoever changed it, and has the namespace say so.
func (e *Engine) surround(ctx context.Context, r compute.Ref, ns *corev1.Namespace) error {
	now, key := e.outsideNow()
	g, bounded := errgroup.WithContext(ctx)
	for _, object := range e.maker.surroundings(r, now) {
		g.Go(func() error {
			client, resource := e.resourceOf(object)
			return e.apply(bounded, client, resource, object)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if ns.Annotations[annotationSurroundings] == key {
		return nil
	}
	want := e.maker.namespace(r, key)
	want.UID = ns.UID
	return e.apply(ctx, e.client.CoreV1().RESTClient(), "namespaces", want)
}

// renew takes note that something changed on which surroundings depend.
func (e *Engine) renew() {
	select {
	case e.news <- struct{}{}:
	default:
	}
}

func (e *Engine) nodeChanged(was, now any) {
	before, ok := was.(*corev1.Node)
	after, _ := now.(*corev1.Node)
	if !ok || after == nil || !slices.Equal(before.Status.Addresses, after.Status.Addresses) {
		e.renew()
	}
}

func (e *Engine) renewing() cache.ResourceEventHandlerFuncs {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { e.renew() }, DeleteFunc: func(any) { e.renew() }, UpdateFunc: func(_, _ any) { e.renew() },
	}
}

// keepSurroundings brings changes to the namespaces that are there, until the engine ends. Of several control planes only the
// one that watches containers does so.
func (e *Engine) keepSurroundings() {
	pace := rate.NewLimiter(renewalsPerSecond, 1)
	soon := time.NewTimer(0)
	defer soon.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-e.news:
			e.learnOutside()
			soon.Reset(renewAfter)
			continue
		case <-soon.C:
		}
		if !e.renewAll(pace) {
			soon.Reset(renewAgain)
		}
	}
}

// renewAll returns whether all namespaces are as they should be, or will be by somebody else.
func (e *Engine) renewAll(pace *rate.Limiter) bool {
	list, _ := e.namespaces.List(labels.Everything())
	whole := true
	for _, ns := range list {
		r, err := compute.ParseRef(ns.Name)
		if _, key := e.outsideNow(); err != nil || ns.DeletionTimestamp != nil || ns.Annotations[annotationSurroundings] == key {
			continue
		}
		if !e.watched() || pace.Wait(e.ctx) != nil {
			return true
		}
		ctx, cancel := context.WithTimeout(e.ctx, callTimeout)
		err = e.surround(ctx, r, ns)
		cancel()
		if now, gone := e.namespaces.Get(ns.Name); gone != nil || now.DeletionTimestamp != nil || apierrors.IsNotFound(err) || e.ctx.Err() != nil {
			continue
		}
		if err != nil {
			whole = false
			e.log.Warn("a container's policies are not up to date yet; this is tried again", "container", r, "err", err)
		}
	}
	return whole
}

func (e *Engine) watched() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.watchers) > 0
}

// apiServerSlices are the EndpointSlices that name the API server's own addresses.
const apiServerSlices = discoveryv1.LabelServiceName + "=kubernetes"
