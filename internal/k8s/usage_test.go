package k8s

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"berth/internal/compute"
)

// scale is an engine whose caches have containers that run, on something that runs `agent usage` where an API server should be:
// the n-th one says n MiB, and after its turn.
type scale struct {
	*Engine
	t     *testing.T
	pods  cache.Indexer
	execs atomic.Int32
	begun chan struct{} // told of each exec
	turn  chan struct{} // lets one exec end
}

func newScale(t *testing.T, refs ...compute.Ref) *scale {
	t.Helper()
	s := &scale{t: t, begun: make(chan struct{}, 1000), turn: make(chan struct{}, 1000)}
	d := against(t, s.serve)
	var caches [4]cache.Indexer
	for i := range caches {
		caches[i] = cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	}
	s.pods = caches[3]
	s.Engine = &Engine{
		dialer: d, exec: d.exec, units: make(map[compute.Ref]*unit), reviews: workqueue.NewTypedDelayingQueue[compute.Ref](),
		measuring: make(chan struct{}, measuredAtATime), unmeasured: time.Now().Add(time.Hour), // of the cluster
		namespaces: corelisters.NewNamespaceLister(caches[0]), claims: corelisters.NewPersistentVolumeClaimLister(caches[1]),
		sets: appslisters.NewStatefulSetLister(caches[2]), pods: corelisters.NewPodLister(caches[3]),
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, r := range refs {
		w := whole()
		w.namespace.Name = r.String()
		w.claim.Namespace, w.claim.Name = r.String(), nameStorage
		w.set.Namespace, w.set.Name = r.String(), statefulSetName(r)
		w.pod.Namespace, w.pod.Name = r.String(), podName(r)
		w.pod.Annotations = map[string]string{annotationMounts: `["/root"]`}
		for i, o := range []any{w.namespace, w.claim, w.set, w.pod} {
			if err := caches[i].Add(o); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

func (s *scale) serve(w http.ResponseWriter, q *http.Request) {
	if !isExec(q) || strings.Join(q.URL.Query()["command"], " ") != agentPath+" usage /root" {
		s.t.Errorf("it asked for %s", q.URL)
	}
	n := s.execs.Add(1)
	s.begun <- struct{}{}
	select {
	case <-s.turn:
	case <-q.Context().Done():
		return
	}
	up := websocket.Upgrader{Subprotocols: []string{"v5.channel.k8s.io"}}
	ws, err := up.Upgrade(w, q, nil)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer ws.Close()
	for _, m := range []string{fmt.Sprintf("\x01{\"memory_bytes\": %d, \"storage_bytes\": 0}", n<<20), "\x03{\"status\": \"Success\"}"} {
		if err := ws.WriteMessage(websocket.BinaryMessage, []byte(m)); err != nil {
			s.t.Error(err)
		}
	}
	_ = ws.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
}

func (s *scale) want(r compute.Ref, mb int) {
	s.t.Helper()
	if u, err := s.Usage(s.t.Context(), r); err != nil || u.MemoryMB != mb {
		s.t.Errorf("usage of %s is %+v, %v; want %d MB", r, u, err, mb)
	}
}

// outdate has a figure's time run out.
func (s *scale) outdate(r compute.Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.units[r].measured.until = time.Now().Add(-time.Second)
}

// However many ask for it, a container is measured once at a time, and for them all.
func TestUsageIsShared(t *testing.T) {
	s := newScale(t, box)
	var askers sync.WaitGroup
	for range 50 {
		askers.Go(func() { s.want(box, 1) })
	}
	<-s.begun
	s.turn <- struct{}{}
	askers.Wait()
	s.want(box, 1)
	s.outdate(box)

	gaveUp, cancel := context.WithCancel(t.Context())
	go func() { <-s.begun; cancel() }()
	if u, err := s.Usage(gaveUp, box); err != nil || u.MemoryMB != 1 {
		t.Errorf("who does not wait for the next figure has %+v, %v", u, err)
	}
	askers.Go(func() { s.want(box, 2) })
	s.turn <- struct{}{}
	askers.Wait()
	if n := s.execs.Load(); n != 2 {
		t.Errorf("it was measured %d times", n)
	}
}

// What takes long is measured less often.
func TestUsageThatTakesLong(t *testing.T) {
	s := newScale(t, box)
	began := time.Now()
	go func() {
		<-s.begun
		time.AfterFunc(time.Second, func() { s.turn <- struct{}{} })
	}()
	s.want(box, 1)
	if kept := s.units[box].measured.until.Sub(began); kept < measuredRest*time.Second {
		t.Errorf("what took a second is kept for %v", kept)
	}
}

// Only so many are measured at a time; who gets no turn learns nothing, and holds nobody up.
func TestUsageBound(t *testing.T) {
	refs := make([]compute.Ref, 3*measuredAtATime)
	for i := range refs {
		refs[i] = compute.Ref{Owner: 7, ID: compute.ContainerID(fmt.Sprintf("%08x", 0xa0000000+i))}
	}
	s := newScale(t, refs...)
	ctx, cancel := context.WithCancel(t.Context())
	var askers sync.WaitGroup
	for _, r := range refs {
		askers.Go(func() {
			if u, err := s.Usage(ctx, r); !errors.Is(err, context.Canceled) {
				t.Errorf("usage is %+v, %v", u, err)
			}
		})
	}
	for range measuredAtATime {
		<-s.begun
	}
	cancel()
	askers.Wait()
	if n := s.execs.Load(); n != measuredAtATime {
		t.Errorf("%d are measured at a time", n)
	}
	for range refs {
		s.turn <- struct{}{}
	}
	for _, r := range refs { // those that had no turn have one now
		if u, err := s.Usage(t.Context(), r); err != nil || u.MemoryMB == 0 {
			t.Errorf("usage is %+v, %v", u, err)
		}
	}
	if n := s.execs.Load(); int(n) != len(refs) {
		t.Errorf("%d containers were measured %d times", len(refs), n)
	}
}

// A figure is one life's, and does not outlast its container.
func TestUsageOfAnotherLife(t *testing.T) {
	s := newScale(t, box)
	s.turn <- struct{}{}
	s.want(box, 1)
	next := whole().pod
	next.Namespace, next.Name, next.Annotations = box.String(), podName(box), map[string]string{annotationMounts: `["/root"]`}
	next.Status.ContainerStatuses[0].ContainerID = "two"
	if err := s.pods.Update(next); err != nil {
		t.Fatal(err)
	}
	brief, cancel := context.WithCancel(t.Context())
	<-s.begun
	go func() { <-s.begun; cancel() }()
	if u, err := s.Usage(brief, box); !errors.Is(err, context.Canceled) {
		t.Errorf("of the life before: %+v, %v", u, err)
	}
	s.turn <- struct{}{}
	s.want(box, 2)

	ns, err := s.namespaces.Get(box.String())
	if err != nil {
		t.Fatal(err)
	}
	s.namespaces = corelisters.NewNamespaceLister(cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}))
	s.changed(ns)
	if _, err := s.Usage(t.Context(), box); compute.CodeOf(err) != compute.CodeNotRunning || len(s.units) != 0 {
		t.Errorf("of one that is gone: %v; %d are remembered", err, len(s.units))
	}
}

func TestMemoryMeasured(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	const pod = `{"timestamp": "2026-01-02T03:04:06Z", "containers": [
		{"name": "install", "usage": {"cpu": "1", "memory": "9Mi"}}, {"name": "main", "usage": {"cpu": "1", "memory": "3072Ki"}}]}`
	for metrics, want := range map[string]int64{
		pod: 3 << 20,
		`{"timestamp": "2026-01-02T03:04:04Z", "containers": [{"name": "main", "usage": {"memory": "1Gi"}}]}`: 0, // of another life
		`{"timestamp": "2026-01-02T03:04:06Z", "containers": [{"name": "main", "usage": {"memory": "-1"}}]}`:  0,
		`{"timestamp": "2026-01-02T03:04:06Z", "containers": [{"name": "other"}]}`:                            0,
		`{"containers": [{"name": "main", "usage": {"memory": "much"}}]}`:                                     0,
		`[`: 0, ``: 0,
	} {
		if got := memoryIn([]byte(metrics), since); got != want {
			t.Errorf("%s is %d, want %d", metrics, got, want)
		}
	}
}
