package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"berth/internal/compute"
)

// played is an engine whose caches hold what a test puts there.
type played struct {
	*Engine
	nodes, pods, claims cache.Indexer
}

// answers stands where an API server should be. It needs no connection, so that a test's clock may be a faked one.
type answers func(*http.Request) (code int, object any)

func (a answers) RoundTrip(q *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	code, object := a(q)
	answer(w, code, object)
	return w.Result(), nil
}

func play(t *testing.T, a answers) *played {
	t.Helper()
	config := &rest.Config{Host: "http://cluster.example", QPS: -1, Transport: a}
	client, err := newClients(config)
	if err != nil {
		t.Fatal(err)
	}
	store := func() cache.Indexer {
		return cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	}
	opt := Options{InstallationID: "i", Image: "base", AgentImage: "agent", GatewayNamespace: "berth"}
	e := &Engine{
		opt: opt, log: slog.New(slog.DiscardHandler), client: client, dialer: newDialer(config, client, DialerOptions{}), maker: maker{opt: opt},
		units: make(map[compute.Ref]*unit), watchers: make(map[*watcher]struct{}), live: make(map[string]cache.Store),
		reviews: workqueue.NewTypedDelayingQueue[compute.Ref](), news: make(chan struct{}, 1),
	}
	p := &played{e, store(), store(), store()}
	for _, o := range append(e.maker.surroundings(box, outside{}), e.maker.namespace(box, outside{}), e.maker.statefulSet(goldenSpec(), nil)) {
		e.live[o.GetObjectKind().GroupVersionKind().Kind] = store()
	}
	e.namespaces = corelisters.NewNamespaceLister(e.live["Namespace"].(cache.Indexer))
	e.sets = appslisters.NewStatefulSetLister(e.live["StatefulSet"].(cache.Indexer))
	e.claims, e.pods = corelisters.NewPersistentVolumeClaimLister(p.claims), corelisters.NewPodLister(p.pods)
	e.nodes, e.endpoints = corelisters.NewNodeLister(p.nodes), discoverylisters.NewEndpointSliceLister(store())
	e.exec = e.dialer.exec
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// holds puts a container that runs into the caches, as it would be with nothing outside.
func (p *played) holds(t *testing.T, r compute.Ref) *corev1.Pod {
	t.Helper()
	s, spec := whole(), goldenSpec()
	spec.Ref = r
	s.claim.ObjectMeta = p.maker.meta(r, nameStorage)
	s.pod.ObjectMeta = p.maker.meta(r, podName(r))
	s.pod.Spec.Containers = []corev1.Container{{Name: nameMain, Resources: resources(spec)}}
	err := errors.Join(p.claims.Add(s.claim), p.pods.Add(s.pod))
	for _, o := range append(p.maker.surroundings(r, outside{}), p.maker.namespace(r, outside{}), p.maker.statefulSet(spec, nil)) {
		err = errors.Join(err, p.live[o.GetObjectKind().GroupVersionKind().Kind].Add(o))
	}
	if err != nil {
		t.Fatal(err)
	}
	return s.pod
}

// joins gives the cluster a node with an address of the world.
func (p *played) joins(t *testing.T, address string) {
	t.Helper()
	if err := p.nodes.Add(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: address},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeExternalIP, Address: address}}},
	}); err != nil {
		t.Fatal(err)
	}
}

// watch has the engine watched.
func (p *played) watch() *watcher {
	w := &watcher{queue: make(map[compute.Ref]compute.Observation), wake: make(chan struct{}, 1)}
	p.watchers[w] = struct{}{}
	return w
}

// echo answers an apply with the object as it was asked for.
func echo(q *http.Request) (int, any) {
	b, err := io.ReadAll(q.Body)
	if err != nil {
		return http.StatusBadRequest, err
	}
	return http.StatusOK, json.RawMessage(b)
}

// What nodes tell all the time, and means nothing here, holds up nothing.
func TestRenewalAmongNodesNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var renewed []time.Time
		p := play(t, func(q *http.Request) (int, any) {
			renewed = append(renewed, time.Now())
			return echo(q)
		})
		p.holds(t, box)
		p.watch()
		p.background.Go(p.keepSurroundings)
		<-time.After(time.Minute)
		p.joins(t, "203.0.113.5")
		changed := time.Now()
		for range 100 {
			p.renew()
			<-time.After(renewAfter / 10)
		}
		if len(renewed) != 1 || renewed[0].Sub(changed) > 2*renewAfter {
			t.Errorf("changed at %s, renewed at %s", changed, renewed)
		}
	})
}

// A call that takes long has its own container come later, and no other.
func TestRenewalPassesByWhatIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		p := play(t, func(q *http.Request) (int, any) {
			asked = append(asked, q.URL.Path)
			return echo(q)
		})
		refs := []compute.Ref{{Owner: 7, ID: "00000001"}, {Owner: 7, ID: "00000002"}, {Owner: 7, ID: "00000003"}}
		for _, r := range refs {
			p.holds(t, r)
		}
		p.watch()
		p.joins(t, "203.0.113.5")
		p.learnOutside()
		pace := rate.NewLimiter(rate.Inf, 1)
		_, _, release, err := p.acquire(t.Context(), refs[1])
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if p.renewAll(pace) || len(asked) != 2 || strings.Contains(strings.Join(asked, " "), refs[1].String()) {
			t.Errorf("while one is busy, it asks for %q", asked)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("it waited %s", took)
		}
		release(nil)
		asked = nil
		if err := p.renewOne(refs[1], pace); err != nil || len(asked) != 1 || !strings.Contains(asked[0], refs[1].String()) {
			t.Errorf("then it asks for %q, %v", asked, err)
		}
	})
}

// Who watches hears of a death in the middle of a renewal, whatever comes of that.
func TestDeathDuringRenewal(t *testing.T) {
	for what, answer := range map[string]answers{
		"done":   echo,
		"failed": func(*http.Request) (int, any) { return 403, refusing(403, metav1.StatusReasonForbidden) },
	} {
		var p *played
		var pod *corev1.Pod
		p = play(t, func(q *http.Request) (int, any) {
			pod = pod.DeepCopy()
			pod.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "OOMKilled"}}
			if err := p.pods.Update(pod); err != nil {
				t.Error(err)
			}
			p.changed(pod)
			return answer(q)
		})
		pod = p.holds(t, box)
		w := p.watch()
		p.joins(t, "203.0.113.5")
		p.learnOutside()
		if err := p.renewOne(box, rate.NewLimiter(rate.Inf, 1)); (err != nil) != (what == "failed") {
			t.Errorf("%s: %v", what, err)
		}
		if o := w.queue[box]; o.Phase != compute.PhaseStopped || o.Message != "It ran out of memory." {
			t.Errorf("%s: told %+v", what, w.queue)
		}
	}
}
