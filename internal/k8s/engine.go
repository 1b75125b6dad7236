package k8s

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"berth/internal/compute"
	"berth/internal/version"
)

const (
	fieldManager = "berth"
	callTimeout  = 30 * time.Second // for the API server's answer to a call to begin
	agentTimeout = 30 * time.Second // for the agent to accept connections after its start
	imageAgain   = time.Minute      // after a registry that did not give the image
	imageFirst   = time.Minute      // for the image, when all else waits for it
	imageLater   = 10 * time.Minute // for the image, when nothing does

	askEvery        = 200 * time.Millisecond // a pod that starts
	askOften        = 10                     // times; after that it takes long, for what no answer of its agent shows
	askAtATime      = 2                      // pods that start
	firstAgentRetry = 50 * time.Millisecond
	longAgentRetry  = time.Second

	patience     = 10 * time.Second // with what may pass in a start's usual course, before its owner is told
	longPatience = 30 * time.Second // with what only events say: a kubelet that was early tries again after some seconds
	seenWithin   = 10 * time.Second // what the API server has, in the caches
	resizeWithin = 30 * time.Second // a running container; a node tries again after 10 s, and may go on to
	goneWithin   = time.Minute      // a namespace, before the operator is told what holds it
	silentAfter  = time.Minute      // a node is given up here, once the cluster has not heard of it for some time itself
)

// Engine runs containers on a cluster. It implements control.Engine and session.Dialer.
type Engine struct {
	opt    Options
	log    *slog.Logger
	client *clients
	dialer *Dialer
	exec   execer // the dialer's
	maker  maker  // without the image

	namespaces corelisters.NamespaceLister
	claims     corelisters.PersistentVolumeClaimLister
	pods       corelisters.PodLister
	sets       appslisters.StatefulSetLister
	nodes      corelisters.NodeLister
	live       map[string]cache.Store               // what is applied, as the cluster has it, by kind
	endpoints  discoverylisters.EndpointSliceLister // the API server's
	services   cache.SharedIndexInformer            // with load balancers among them
	secrets    map[string]corelisters.SecretLister  // by name: the options' PullSecrets

	reviews workqueue.TypedDelayingInterface[compute.Ref]
	cancel  context.CancelCauseFunc
	ctx     context.Context // ends with Close
	calls   sync.WaitGroup  // that change a container, and the reviews; none begins once ctx ended

	nodeMu sync.Mutex
	silent map[string]time.Time // since when, by our own clock, the cluster does not hear of a node; guarded by nodeMu

	asking     chan struct{}  // a place for each pod that is asked early
	measuring  chan struct{}  // a place for each container that is measured
	news       chan struct{}  // the cluster changed in what surroundings depend on
	background sync.WaitGroup // ends with ctx

	mu       sync.Mutex // guards all below; never held over I/O
	units    map[compute.Ref]*unit
	watchers map[*watcher]struct{}

	image      image
	outside    outside
	stale      bool      // who began to watch has yet to look at all namespaces
	unmeasured time.Time // until when the cluster is not asked for what it measured
}

var errClosed = errors.New("the engine is closed")

// hush ends what client-go writes to standard error by itself: it calls the usual end of each connection an error. What
// matters of it comes back to us as an error, and is logged here.
var hush = sync.OnceFunc(func() { klog.SetSlogLogger(slog.New(slog.DiscardHandler)) })

// Open connects to the cluster and reads what is there of this installation.
func Open(ctx context.Context, o Options) (_ *Engine, err error) {
	o, err = o.withDefaults()
	if err != nil {
		return nil, err
	}
	hush()
	config, err := clusterConfig(o.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w", err)
	}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return caller{next, o.Log} })
	client, err := newClients(config)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		opt: o, log: o.Log, client: client, dialer: newDialer(config, client, DialerOptions{Addresses: o.Addresses, Log: o.Log}),
		units: make(map[compute.Ref]*unit), watchers: make(map[*watcher]struct{}), silent: make(map[string]time.Time),
		reviews: workqueue.NewTypedDelayingQueue[compute.Ref](), news: make(chan struct{}, 1), asking: make(chan struct{}, askAtATime),
		measuring: make(chan struct{}, measuredAtATime),
		secrets:   make(map[string]corelisters.SecretLister), maker: maker{opt: o},
	}
	e.exec = e.dialer.exec
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	if err := e.follow(ctx); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	e.learnOutside()
	if !e.learnImage(ctx, imageFirst) {
		e.background.Go(e.keepLearning)
	}
	e.background.Go(e.keepSurroundings)
	return e, nil
}

// learnImage reads the containers' image, and returns whether it could. A registry may take a connection and say nothing.
func (e *Engine) learnImage(ctx context.Context, within time.Duration) bool {
	registries, _ := e.credentials()
	bounded, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	img, err := readImage(bounded, e.opt.Image, registries)
	if err != nil && ctx.Err() == nil {
		e.log.Warn("the containers' image cannot be read; until it is, its own command does not run, and mount paths are not checked against it",
			"image", e.opt.Image, "err", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.image = img
	return err == nil
}

// keepLearning tries again until it can be read, or the engine ends.
func (e *Engine) keepLearning() {
	again := time.NewTicker(imageAgain)
	defer again.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-again.C:
			if e.learnImage(e.ctx, imageLater) {
				return
			}
		}
	}
}

// makerNow makes objects with what is known of the image.
func (e *Engine) makerNow() maker {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := e.maker
	m.image = e.image
	return m
}

// clusterConfig says how the cluster is reached. Rates are the API server's own business: it has priority and fairness.
func clusterConfig(kubeconfig string) (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	config.UserAgent = "berth/" + version.String()
	return config, nil
}

// follow starts to watch the cluster's objects, and returns when it knows them all.
func (e *Engine) follow(ctx context.Context) error {
	ours := func(l *metav1.ListOptions) {
		l.LabelSelector = labelManaged + "=" + managedBy + "," + labelInstallation + "=" + e.opt.InstallationID
	}
	all := func(*metav1.ListOptions) {}
	core, apps := e.client.CoreV1().RESTClient(), e.client.AppsV1().RESTClient()
	claims := informerOf(core, "persistentvolumeclaims", metav1.NamespaceAll, &corev1.PersistentVolumeClaim{}, ours)
	pods := informerOf(core, "pods", metav1.NamespaceAll, &corev1.Pod{}, ours)
	nodes := informerOf(core, "nodes", metav1.NamespaceAll, &corev1.Node{}, all)
	endpoints := informerOf(e.client.DiscoveryV1().RESTClient(), "endpointslices", metav1.NamespaceDefault, &discoveryv1.EndpointSlice{},
		func(l *metav1.ListOptions) { l.LabelSelector = apiServerSlices })
	applied := map[string]cache.SharedIndexInformer{
		"Namespace":     informerOf(core, "namespaces", metav1.NamespaceAll, &corev1.Namespace{}, ours),
		"StatefulSet":   informerOf(apps, "statefulsets", metav1.NamespaceAll, &appsv1.StatefulSet{}, ours),
		"ResourceQuota": informerOf(core, "resourcequotas", metav1.NamespaceAll, &corev1.ResourceQuota{}, ours),
		"LimitRange":    informerOf(core, "limitranges", metav1.NamespaceAll, &corev1.LimitRange{}, ours),
		"Service":       informerOf(core, "services", metav1.NamespaceAll, &corev1.Service{}, ours),
		"NetworkPolicy": informerOf(e.client.NetworkingV1().RESTClient(), "networkpolicies", metav1.NamespaceAll, &networkingv1.NetworkPolicy{}, ours),
		"RoleBinding":   informerOf(e.client.RbacV1().RESTClient(), "rolebindings", metav1.NamespaceAll, &rbacv1.RoleBinding{}, ours),
	}
	e.claims, e.pods = corelisters.NewPersistentVolumeClaimLister(claims.GetIndexer()), corelisters.NewPodLister(pods.GetIndexer())
	e.nodes, e.endpoints = corelisters.NewNodeLister(nodes.GetIndexer()), discoverylisters.NewEndpointSliceLister(endpoints.GetIndexer())
	e.namespaces = corelisters.NewNamespaceLister(applied["Namespace"].GetIndexer())
	e.sets, e.services = appslisters.NewStatefulSetLister(applied["StatefulSet"].GetIndexer()), applied["Service"]
	e.live = make(map[string]cache.Store, len(applied))
	informed := map[cache.SharedIndexInformer]func(any){
		claims: e.changed, pods: e.changed,
		nodes: func(o any) { e.nodeChanged(o); e.renew() }, endpoints: func(any) { e.renew() },
	}
	for kind, informer := range applied {
		e.live[kind], informed[informer] = informer.GetStore(), e.changed
	}
	for _, name := range e.opt.PullSecrets { // one by one, as rights name them
		named := informerOf(core, "secrets", e.opt.GatewayNamespace, &corev1.Secret{}, func(l *metav1.ListOptions) {
			l.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
		})
		e.secrets[name] = corelisters.NewSecretLister(named.GetIndexer())
		informed[named] = func(any) { e.renew() }
	}
	complaints := &complaints{last: make(map[cache.SharedIndexInformer]error)}
	for informer, changed := range informed {
		if err := informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
			err = timely(err)
			complaints.note(informer, err)
			e.log.Warn("watch the cluster", "err", err)
		}); err != nil {
			return err
		}
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: changed, DeleteFunc: changed, UpdateFunc: func(_, now any) { changed(now) },
		}); err != nil {
			return err
		}
	}
	for informer := range informed {
		e.background.Go(func() { informer.RunWithContext(e.ctx) })
	}
	e.calls.Go(func() {
		for {
			r, closed := e.reviews.Get()
			if closed {
				return
			}
			e.review(r)
			e.reviews.Done(r)
		}
	})
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for informer := range informed {
		if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
			return fmt.Errorf("read the cluster's objects: %w", errors.Join(context.Cause(ctx), complaints.all()))
		}
	}
	return nil
}

// informerOf follows the objects of a kind that a list of them would have. client-go's own factories would compile one for each
// kind there is.
func informerOf(c cache.Getter, resource, namespace string, object runtime.Object, which func(*metav1.ListOptions)) cache.SharedIndexInformer {
	i := cache.NewSharedIndexInformer(cache.NewFilteredListWatchFromClient(c, resource, namespace, which), object, 0,
		cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	_ = i.SetTransform(slim) // fails only once it has started
	return i
}

// complaints are what each informer failed with last.
type complaints struct {
	mu   sync.Mutex
	last map[cache.SharedIndexInformer]error
}

func (c *complaints) note(i cache.SharedIndexInformer, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last[i] = err
}

// all are those of the informers that have not read their objects yet, each once.
func (c *complaints) all() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	said := make(map[string]error)
	for i, err := range c.last {
		if !i.HasSynced() {
			said[err.Error()] = err
		}
	}
	var errs []error
	for _, text := range slices.Sorted(maps.Keys(said)) {
		errs = append(errs, said[text])
	}
	return errors.Join(errs...)
}

// slim takes out what the caches need not hold: which field is whose. Who wrote, and when, stays.
func slim(object any) (any, error) {
	if o, err := meta.Accessor(object); err == nil {
		for i, f := range o.GetManagedFields() {
			f.FieldsV1 = nil
			o.GetManagedFields()[i] = f
		}
	}
	return object, nil
}

// nodeChanged takes note of a node that the cluster no longer hears of, or hears of again.
func (e *Engine) nodeChanged(object any) {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	n, ok := object.(*corev1.Node)
	if !ok {
		return
	}
	_, err := e.nodes.Get(n.Name) // of one that is gone, the cluster ends the pods
	unknown := err == nil && slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown
	})
	e.nodeMu.Lock()
	_, was := e.silent[n.Name]
	switch {
	case unknown && !was:
		e.silent[n.Name] = time.Now()
	case !unknown:
		delete(e.silent, n.Name)
	}
	e.nodeMu.Unlock()
	if unknown == was {
		return
	}
	e.log.Warn("a node is heard of no more, or again", "node", n.Name, "heard", !unknown)
	pods, err := e.pods.List(labels.Everything())
	if err != nil {
		return // a lister has no errors
	}
	for _, p := range pods {
		if r, err := compute.ParseRef(p.Namespace); err == nil && p.Spec.NodeName == n.Name {
			e.reviews.AddAfter(r, settleAfter)
		}
	}
}

// silence says whether a node that the cluster does not hear of is given up here, and else how long until it is, if at all.
func (e *Engine) silence(node string) (silent bool, in time.Duration) {
	e.nodeMu.Lock()
	defer e.nodeMu.Unlock()
	since, ok := e.silent[node]
	if !ok {
		return false, 0
	}
	in = silentAfter - time.Since(since)
	return in <= 0, max(0, in)
}

// Close ends what the engine runs here. Containers go on.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.cancel(errClosed)
	e.mu.Unlock()
	e.reviews.ShutDown()
	err := e.dialer.Close()
	e.calls.Wait()
	e.background.Wait()
	return err
}

// look sees a container as it is in the caches.
func (e *Engine) look(r compute.Ref) sight {
	s, ns := sight{ref: r}, r.String()
	// A lister's only error is that there is no such object.
	if o, err := e.namespaces.Get(ns); err == nil {
		s.namespace = o
	}
	if o, err := e.claims.PersistentVolumeClaims(ns).Get(nameStorage); err == nil {
		s.claim = o
	}
	if o, err := e.sets.StatefulSets(ns).Get(statefulSetName(r)); err == nil {
		s.set = o
	}
	if o, err := e.pods.Pods(ns).Get(podName(r)); err == nil {
		s.pod = o
		s.silent, s.silentIn = e.silence(o.Spec.NodeName)
	}
	return s.see()
}
