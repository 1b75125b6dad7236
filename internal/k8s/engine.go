package k8s

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"berth/internal/compute"
	"berth/internal/version"
)

const (
	fieldManager = "berth"
	callTimeout  = 30 * time.Second // for the API server's answer to a call
	imageAgain   = time.Minute      // after a registry that did not give the image
	patience     = 10 * time.Second // with what may pass in a start's usual course, before its owner is told
	longPatience = 30 * time.Second // with what only events say: a kubelet that was early tries again after some seconds
)

// Engine runs containers on a cluster. It implements control.Engine and session.Dialer.
type Engine struct {
	opt    Options
	log    *slog.Logger
	client kubernetes.Interface
	exec   execer
	maker  maker // without the image

	factories  []informers.SharedInformerFactory
	namespaces corelisters.NamespaceLister
	claims     corelisters.PersistentVolumeClaimLister
	pods       corelisters.PodLister
	sets       appslisters.StatefulSetLister
	nodes      corelisters.NodeLister
	endpoints  discoverylisters.EndpointSliceLister // the API server's
	balancers  cache.SharedIndexInformer            // Services of type LoadBalancer; nil: there are none
	secrets    map[string]corelisters.SecretLister  // by name: the options' PullSecrets

	cancel context.CancelCauseFunc
	ctx    context.Context // ends with Close
	calls  sync.WaitGroup  // that change a container; none begins once ctx ended

	news       chan struct{}  // the cluster changed in what surroundings depend on
	background sync.WaitGroup // ends with ctx

	mu       sync.Mutex // guards all below; never held over I/O
	units    map[compute.Ref]*unit
	watchers map[*watcher]struct{}

	image      image
	outside    outside
	outsideKey string
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
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		opt: o, log: o.Log, client: client, exec: execer{config, client.CoreV1().RESTClient()},
		units: make(map[compute.Ref]*unit), watchers: make(map[*watcher]struct{}), news: make(chan struct{}, 1),
		secrets: make(map[string]corelisters.SecretLister), maker: maker{opt: o},
	}
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	if err := e.follow(ctx); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	e.learnOutside()
	if !e.learnImage(ctx) {
		e.background.Go(e.keepLearning)
	}
	e.background.Go(e.keepSurroundings)
	return e, nil
}

// learnImage reads the containers' image, and returns whether it could.
func (e *Engine) learnImage(ctx context.Context) bool {
	registries, _ := e.credentials()
	img, err := readImage(ctx, e.opt.Image, e.opt.ImageArchive, registries)
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
			if e.learnImage(e.ctx) {
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
	ourLabels := func(l *metav1.ListOptions) {
		l.LabelSelector = labelManaged + "=" + managedBy + "," + labelInstallation + "=" + e.opt.InstallationID
	}
	ours := informers.NewSharedInformerFactoryWithOptions(e.client, 0,
		informers.WithTransform(withoutManagedFields), informers.WithTweakListOptions(ourLabels))
	all := informers.NewSharedInformerFactoryWithOptions(e.client, 0, informers.WithTransform(withoutManagedFields))
	server := informers.NewSharedInformerFactoryWithOptions(e.client, 0, informers.WithTransform(withoutManagedFields),
		informers.WithNamespace(corev1.NamespaceDefault),
		informers.WithTweakListOptions(func(l *metav1.ListOptions) { l.LabelSelector = apiServerSlices }))
	e.factories = []informers.SharedInformerFactory{ours, all, server}
	core := ours.Core().V1()
	e.namespaces, e.claims, e.pods = core.Namespaces().Lister(), core.PersistentVolumeClaims().Lister(), core.Pods().Lister()
	e.sets, e.nodes = ours.Apps().V1().StatefulSets().Lister(), all.Core().V1().Nodes().Lister()
	e.endpoints = server.Discovery().V1().EndpointSlices().Lister()
	told := cache.ResourceEventHandlerFuncs{
		AddFunc: e.changed, DeleteFunc: e.changed, UpdateFunc: func(_, now any) { e.changed(now) },
	}
	nodes := e.renewing()
	nodes.UpdateFunc = e.nodeChanged
	handlers := map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		core.Namespaces().Informer(): told, core.PersistentVolumeClaims().Informer(): told, core.Pods().Informer(): told,
		ours.Apps().V1().StatefulSets().Informer(): told, all.Core().V1().Nodes().Informer(): nodes,
		server.Discovery().V1().EndpointSlices().Informer(): e.renewing(),
	}
	if e.opt.LoadBalancers != nil {
		gateway := informers.NewSharedInformerFactoryWithOptions(e.client, 0, informers.WithTransform(withoutManagedFields),
			informers.WithNamespace(e.opt.GatewayNamespace), informers.WithTweakListOptions(ourLabels))
		e.factories = append(e.factories, gateway)
		e.balancers = gateway.Core().V1().Services().Informer()
		handlers[e.balancers] = cache.ResourceEventHandlerFuncs{}
	}
	for _, name := range e.opt.PullSecrets { // one by one, as rights name them
		named := informers.NewSharedInformerFactoryWithOptions(e.client, 0, informers.WithTransform(withoutManagedFields),
			informers.WithNamespace(e.opt.GatewayNamespace), informers.WithTweakListOptions(func(l *metav1.ListOptions) {
				l.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
			}))
		e.factories = append(e.factories, named)
		e.secrets[name] = named.Core().V1().Secrets().Lister()
		handlers[named.Core().V1().Secrets().Informer()] = e.renewing()
	}
	var mu sync.Mutex
	var lastErr error
	for informer, handler := range handlers {
		if err := informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
			mu.Lock()
			lastErr = err
			mu.Unlock()
			e.log.Warn("watch the cluster", "err", err)
		}); err != nil {
			return err
		}
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	for _, f := range e.factories {
		f.Start(e.ctx.Done())
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for informer := range handlers {
		if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
			mu.Lock()
			defer mu.Unlock()
			return fmt.Errorf("read the cluster's objects: %w", errors.Join(context.Cause(ctx), lastErr))
		}
	}
	return nil
}

func withoutManagedFields(object any) (any, error) {
	if o, err := meta.Accessor(object); err == nil {
		o.SetManagedFields(nil)
	}
	return object, nil
}

// Close ends what the engine runs here. Containers go on.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.cancel(errClosed)
	e.mu.Unlock()
	e.calls.Wait()
	e.background.Wait()
	for _, f := range e.factories {
		f.Shutdown()
	}
	return nil
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
	}
	return s.see()
}
