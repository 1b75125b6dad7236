package k8s

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
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
	agentTimeout = 30 * time.Second // for the agent to accept connections after its start
	patience     = 10 * time.Second // with what may pass in a start's usual course, before its owner is told
	longPatience = 30 * time.Second // with what only events say: a kubelet that was early tries again after some seconds
)

// Engine runs containers on a cluster. It implements control.Engine and session.Dialer.
type Engine struct {
	opt    Options
	log    *slog.Logger
	client kubernetes.Interface
	dialer *Dialer
	exec   execer // the dialer's
	maker  maker
	image  image

	factories  []informers.SharedInformerFactory
	namespaces corelisters.NamespaceLister
	claims     corelisters.PersistentVolumeClaimLister
	pods       corelisters.PodLister
	sets       appslisters.StatefulSetLister
	nodes      corelisters.NodeLister

	cancel context.CancelCauseFunc
	ctx    context.Context // ends with Close
	calls  sync.WaitGroup  // that change a container; none begins once ctx ended

	mu       sync.Mutex // guards all below; never held over I/O
	units    map[compute.Ref]*unit
	watchers map[*watcher]struct{}
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
		opt: o, log: o.Log, client: client, dialer: newDialer(config, client, DialerOptions{Addresses: o.Addresses, Log: o.Log}),
		units: make(map[compute.Ref]*unit), watchers: make(map[*watcher]struct{}),
	}
	e.exec = e.dialer.exec
	if e.image, err = readImage(ctx, o.Image, o.ImageArchive); err != nil {
		e.log.Warn("the containers' image cannot be read; its own command will not run, and mount paths are not checked against it",
			"image", o.Image, "err", err)
	}
	e.maker = maker{opt: o, command: e.image.command}
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	if err := e.follow(ctx); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
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
	ours := informers.NewSharedInformerFactoryWithOptions(e.client, 0,
		informers.WithTransform(withoutManagedFields),
		informers.WithTweakListOptions(func(l *metav1.ListOptions) {
			l.LabelSelector = labelManaged + "=" + managedBy + "," + labelInstallation + "=" + e.opt.InstallationID
		}))
	all := informers.NewSharedInformerFactoryWithOptions(e.client, 0, informers.WithTransform(withoutManagedFields))
	e.factories = []informers.SharedInformerFactory{ours, all}
	core := ours.Core().V1()
	e.namespaces, e.claims, e.pods = core.Namespaces().Lister(), core.PersistentVolumeClaims().Lister(), core.Pods().Lister()
	e.sets, e.nodes = ours.Apps().V1().StatefulSets().Lister(), all.Core().V1().Nodes().Lister()
	informed := []cache.SharedIndexInformer{
		core.Namespaces().Informer(), core.PersistentVolumeClaims().Informer(), core.Pods().Informer(),
		ours.Apps().V1().StatefulSets().Informer(), all.Core().V1().Nodes().Informer(),
	}
	var mu sync.Mutex
	var lastErr error
	for i, informer := range informed {
		if err := informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
			mu.Lock()
			lastErr = err
			mu.Unlock()
			e.log.Warn("watch the cluster", "err", err)
		}); err != nil {
			return err
		}
		if i == len(informed)-1 {
			break // nodes are only asked for
		}
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: e.changed, DeleteFunc: e.changed, UpdateFunc: func(_, now any) { e.changed(now) },
		}); err != nil {
			return err
		}
	}
	for _, f := range e.factories {
		f.Start(e.ctx.Done())
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for _, informer := range informed {
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
	err := e.dialer.Close()
	e.calls.Wait()
	for _, f := range e.factories {
		f.Shutdown()
	}
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
	}
	return s.see()
}
