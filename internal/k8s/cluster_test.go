package k8s

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	"berth/internal/compute"
)

// story is an Engine on an API server whose answers, and what it tells the caches, are a test's to say: what a real one does
// only at a bad moment.
type story struct {
	*Engine
	t      *testing.T
	events map[string]chan metav1.WatchEvent // by resource

	mu     sync.Mutex
	answer func(q *http.Request, body string) (any, int) // code 0: what is patched or made is as asked for, all else is not there
	asked  []string                                      // METHOD path body, of what is neither listed nor watched
}

func newStory(t *testing.T) *story {
	t.Helper()
	s := &story{t: t, events: make(map[string]chan metav1.WatchEvent)}
	for _, resource := range []string{
		"namespaces", "persistentvolumeclaims", "pods", "nodes", "endpointslices", "statefulsets", "resourcequotas", "limitranges", "services",
		"networkpolicies", "rolebindings",
	} {
		s.events[resource] = make(chan metav1.WatchEvent, 10)
	}
	server := httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(server.Close)
	e, err := Open(t.Context(), Options{
		Kubeconfig: kubeconfigFor(t, server), InstallationID: "i", Image: strings.TrimPrefix(server.URL, "http://") + "/base:1", AgentImage: "agent",
		GatewayNamespace: "berth", LoadBalancers: &LoadBalancers{}, GatewayLabels: map[string]string{"app": "gateway"},
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	s.Engine = e
	return s
}

func (s *story) serve(w http.ResponseWriter, q *http.Request) {
	resource, watches := path.Base(q.URL.Path), q.URL.Query().Get("watch") != ""
	switch {
	case strings.HasPrefix(q.URL.Path, "/v2/"):
		http.NotFound(w, q) // it is no registry
		return
	case watches && q.URL.Query().Get("fieldSelector") == "":
		w.Header().Set("Content-Type", "application/json")
		w.(http.Flusher).Flush()
		for {
			select {
			case event := <-s.events[resource]:
				_ = json.NewEncoder(w).Encode(event)
				w.(http.Flusher).Flush()
			case <-q.Context().Done():
				return
			}
		}
	case q.Method == http.MethodGet && s.events[resource] != nil && !watches:
		answer(w, http.StatusOK, corev1.List{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "List"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []runtime.RawExtension{},
		})
		return
	}
	b, err := io.ReadAll(q.Body)
	if err != nil {
		s.t.Error(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, strings.TrimSpace(q.Method+" "+q.URL.Path+" "+string(b)))
	if s.answer != nil {
		if object, code := s.answer(q, string(b)); code != 0 {
			answer(w, code, object)
			return
		}
	}
	if q.Method == http.MethodPatch || q.Method == http.MethodPost {
		answer(w, http.StatusOK, json.RawMessage(b))
		return
	}
	answer(w, http.StatusNotFound, refusing(http.StatusNotFound, metav1.StatusReasonNotFound))
}

func (s *story) answers(f func(q *http.Request, body string) (any, int)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

// tell has the caches told of an object.
func (s *story) tell(resource, what string, o object) {
	kinds, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		s.t.Error(err)
		return
	}
	o.GetObjectKind().SetGroupVersionKind(kinds[0])
	o.SetResourceVersion(fmt.Sprint(time.Now().UnixNano()))
	b, err := json.Marshal(o)
	if err != nil {
		s.t.Error(err)
	}
	s.events[resource] <- metav1.WatchEvent{Type: what, Object: runtime.RawExtension{Raw: b}}
}

// shown returns when the caches show a container so.
func (s *story) shown(so func(sight) bool) {
	s.t.Helper()
	u, ctx, release, err := s.acquire(s.t.Context(), box)
	if err != nil {
		s.t.Fatal(err)
	}
	defer release(nil)
	if err := s.await(ctx, u, box, func(now sight) (bool, error) { return so(now), nil }); err != nil {
		s.t.Fatal(err)
	}
}

// requests are those of which each has all the words.
func (s *story) requests(words ...string) (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, asked := range s.asked {
		all := true
		for _, word := range words {
			all = all && strings.Contains(asked, word)
		}
		if all {
			list = append(list, asked)
		}
	}
	return list
}

func (s *story) namespaceOf() *corev1.Namespace {
	n := s.maker.namespace(box, outside{})
	n.UID = "namespace"
	return n
}

func (s *story) claimOf() *corev1.PersistentVolumeClaim {
	c := s.maker.storage(boxSpec())
	c.UID = "claim"
	return c
}

func boxSpec() compute.Spec {
	return compute.Spec{
		Ref: box, Hostname: "box.compute.test", MilliCPU: 1000, Arch: "amd64", MemoryMB: 64, StorageGB: 1, MountPaths: []string{"/root"},
		Running: true, Generation: 3,
	}
}

// A kubelet starts the main container also where its mount paths could not be seeded. While it is about to find that out, it
// counts as running, and nothing is noted of them yet.
func TestSeededOnlyOnceTheAgentAnswers(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	spec := boxSpec()
	set := s.makerNow().statefulSet(spec, nil)
	set.UID = "set"
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: podName(box), Namespace: box.String(), UID: "pod", Labels: s.maker.labels(box), Annotations: set.Spec.Template.Annotations},
		Spec:       set.Spec.Template.Spec,
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{Name: nameMain, ContainerID: "one"}}},
	}
	main := &pod.Status.ContainerStatuses[0]
	main.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	s.tell("namespaces", "ADDED", s.namespaceOf())
	s.tell("persistentvolumeclaims", "ADDED", s.claimOf())
	s.tell("statefulsets", "ADDED", set)
	s.tell("pods", "ADDED", pod)
	s.shown(func(now sight) bool {
		return now.phase == compute.PhaseRunning && now.claim != nil && now.namespace != nil
	})
	once := sync.OnceFunc(func() {
		main.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: exitUnprepared}}
		s.tell("pods", "MODIFIED", pod)
	})
	s.answers(func(q *http.Request, _ string) (any, int) {
		if !isExec(q) {
			return nil, 0
		}
		once()
		return refusing(http.StatusInternalServerError, metav1.StatusReasonInternalError), http.StatusInternalServerError
	})
	err := s.Apply(t.Context(), spec)
	if compute.CodeOf(err) != compute.CodeUnavailable || !strings.Contains(compute.UserMessage(err), "ended as soon as it was started") {
		t.Errorf("apply: %v", err)
	}
	if list := s.requests("/exec"); len(list) == 0 {
		t.Error("its agent was not asked")
	}
	if list := s.requests("PATCH", "/storage"); len(list) != 0 {
		t.Errorf("seeded, it says: %q", list)
	}
}

// A volume that lost our labels is not in the caches. It gets them back, and what asked for it goes on.
func TestVolumeWithoutLabels(t *testing.T) {
	t.Parallel()
	for what, call := range map[string]func(*story, context.Context, compute.Spec) error{
		"apply":     func(s *story, ctx context.Context, spec compute.Spec) error { return s.Apply(ctx, spec) },
		"provision": func(s *story, ctx context.Context, spec compute.Spec) error { return s.Provision(ctx, spec) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newStory(t)
			there := s.claimOf() // at the API server
			there.Labels = map[string]string{"team": "red"}
			s.tell("namespaces", "ADDED", s.namespaceOf())
			s.shown(func(now sight) bool { return now.namespace != nil })
			s.answers(func(q *http.Request, body string) (any, int) {
				switch q.Method + " " + path.Base(q.URL.Path) {
				case "POST namespaces":
					return refusing(http.StatusConflict, metav1.StatusReasonAlreadyExists), http.StatusConflict
				case "GET " + box.String():
					return s.namespaceOf(), http.StatusOK
				case "GET storage":
					return there, http.StatusOK
				case "PATCH storage":
					var patch corev1.PersistentVolumeClaim
					if err := json.Unmarshal([]byte(body), &patch); err != nil || patch.UID != there.UID || !labelled(&patch, s.maker.labels(box)) {
						t.Errorf("the patch is %s", body)
					}
					s.tell("persistentvolumeclaims", "ADDED", s.claimOf())
					return there, http.StatusOK
				}
				return nil, 0
			})
			spec := boxSpec()
			spec.Running = false
			ctx, cancel := context.WithTimeout(t.Context(), 3*seenWithin)
			defer cancel()
			if err := call(s, ctx, spec); err != nil {
				t.Fatal(err)
			}
			// Who takes them away again at once has them away for a while.
			s.tell("persistentvolumeclaims", "DELETED", s.claimOf())
			s.shown(func(now sight) bool { return now.claim == nil })
			if err := call(s, ctx, spec); err == nil || compute.CodeOf(err) != compute.CodeUnavailable {
				t.Errorf("taken away again: %v", err)
			}
			if list := s.requests("PATCH", "/storage"); len(list) != 1 {
				t.Errorf("it was patched by %q", list)
			}
			// What the caches are never told of is not waited for without end.
			s.mu.Lock()
			there = s.claimOf()
			s.mu.Unlock()
			if err := call(s, ctx, spec); err == nil || compute.CodeOf(err) != compute.CodeUnavailable || ctx.Err() != nil {
				t.Errorf("not told of: %v", err)
			}
		})
	}
}

// The API server is ahead of the caches: what a start that was cut off had made is removed, also what came to be while the rest
// was, and the container is not gone before its namespace is.
func TestRemoveAsksTheAPIServer(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	var gone atomic.Bool
	balancer := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: box.String(), Namespace: "berth", UID: "first", Labels: s.maker.labels(box)}}
	s.answers(func(q *http.Request, _ string) (any, int) {
		switch q.Method + " " + strings.TrimPrefix(q.URL.Path, "/api/v1/") {
		case "GET namespaces/berth/services/" + box.String():
			if balancer != nil {
				return balancer, http.StatusOK
			}
		case "DELETE namespaces/berth/services/" + box.String():
			balancer = nil
			return metav1.Status{Status: metav1.StatusSuccess}, http.StatusOK
		case "GET namespaces/" + box.String():
			if !gone.Load() {
				return s.namespaceOf(), http.StatusOK
			}
		case "DELETE namespaces/" + box.String():
			return s.namespaceOf(), http.StatusOK
		case "GET namespaces": // the watch of this one
			gone.Store(true)
			balancer = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: box.String(), Namespace: "berth", UID: "second", Labels: s.maker.labels(box)}}
			n := s.namespaceOf()
			n.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}
			return metav1.WatchEvent{Type: "DELETED", Object: runtime.RawExtension{Object: n}}, http.StatusOK
		}
		return nil, 0
	})
	if err := s.Remove(t.Context(), box); err != nil {
		t.Fatal(err)
	}
	if !gone.Load() {
		t.Error("removed, its namespace is there")
	}
	list := s.requests("DELETE", "/services/")
	if len(list) != 2 || !strings.Contains(list[0], "first") || !strings.Contains(list[1], "second") {
		t.Errorf("of load balancers, it removed %q", list)
	}
}

// Another's Service of this name is left alone.
func TestRemoveLeavesOthersServices(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	s.answers(func(q *http.Request, _ string) (any, int) {
		if q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/services/") {
			return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: box.String(), Namespace: "berth", UID: "other"}}, http.StatusOK
		}
		return nil, 0
	})
	if err := s.Remove(t.Context(), box); err != nil {
		t.Fatal(err)
	}
	if list := s.requests("DELETE"); len(list) != 0 {
		t.Errorf("it removed %q", list)
	}
}
