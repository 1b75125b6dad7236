package k8s

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth/internal/compute"
)

// What no node can do is said before anything is made.
func TestRoomOnNodes(t *testing.T) {
	node := func(arch, memory string, handlers ...corev1.NodeRuntimeHandler) *corev1.Node {
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{corev1.LabelArchStable: arch}},
			Status: corev1.NodeStatus{
				Allocatable: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}, RuntimeHandlers: handlers,
			},
		}
	}
	maps := func(name string, yes bool) corev1.NodeRuntimeHandler {
		return corev1.NodeRuntimeHandler{Name: name, Features: &corev1.NodeRuntimeHandlerFeatures{UserNamespaces: &yes}}
	}
	users := Options{UserNamespaces: true}
	for _, c := range []struct {
		nodes []*corev1.Node
		opt   Options
		want  string // of the refusal
	}{
		{nil, Options{}, "no amd64 node"},
		{[]*corev1.Node{node("arm64", "8Gi")}, Options{}, "no amd64 node"},
		{[]*corev1.Node{node("arm64", "8Gi"), node("amd64", "511Mi")}, Options{}, "the largest of its kind has 511 MB"},
		{[]*corev1.Node{node("amd64", "512Mi")}, Options{}, ""},
		{[]*corev1.Node{node("amd64", "1Gi")}, users, "users of its own"},
		{[]*corev1.Node{node("amd64", "1Gi", maps("", false), maps("other", true))}, users, "users of its own"},
		{[]*corev1.Node{node("amd64", "1Gi"), node("amd64", "1Gi", maps("", true))}, users, ""},
		{[]*corev1.Node{node("amd64", "1Gi", maps("other", true))}, Options{UserNamespaces: true, RuntimeClass: "sandboxed"}, ""},
	} {
		err := roomOn(c.nodes, goldenSpec(), c.opt)
		if c.want == "" && err != nil || c.want != "" && (compute.CodeOf(err) != compute.CodeCapacity || !strings.Contains(compute.UserMessage(err), c.want)) {
			t.Errorf("%d nodes: %v, want %q", len(c.nodes), err, c.want)
		}
	}
}

// A new size takes no longer than a node does to say what comes of it, and half a minute where it says nothing.
func TestResize(t *testing.T) {
	spec := goldenSpec()
	spec.MemoryMB = 128
	small := resources(spec)
	condition := func(kind corev1.PodConditionType, reason string, generation int64) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{
				Type: kind, Status: corev1.ConditionTrue, Reason: reason, ObservedGeneration: generation,
			})
		}
	}
	done := func(p *corev1.Pod) {
		p.Status.Conditions = nil
		p.Status.ContainerStatuses[0].Resources = &small
	}
	const says = 12 * time.Second
	for what, c := range map[string]struct {
		before, says func(*corev1.Pod) // of an earlier size, and what its node does after a while
		took         time.Duration
		code         compute.Code
	}{
		"done":                       {says: done, took: says},
		"not seen to":                {took: 30 * time.Second},
		"begun and not done":         {says: condition(corev1.PodResizeInProgress, "", 2), took: 30 * time.Second},
		"more in use":                {says: condition(corev1.PodResizeInProgress, corev1.PodReasonError, 2), took: says},
		"more in use, earlier":       {before: condition(corev1.PodResizeInProgress, corev1.PodReasonError, 1), says: done, took: says},
		"more in use, where unsaid":  {says: condition(corev1.PodResizeInProgress, corev1.PodReasonError, 0), took: says},
		"no room":                    {says: condition(corev1.PodResizePending, corev1.PodReasonDeferred, 2), took: says, code: compute.CodeCapacity},
		"no room, for an older size": {before: condition(corev1.PodResizePending, corev1.PodReasonDeferred, 1), says: done, took: says},
		"ended":                      {says: func(p *corev1.Pod) { p.UID = "another" }, took: says, code: compute.CodeUnavailable},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var p *played
				var pod *corev1.Pod
				change := func(change func(*corev1.Pod)) {
					if change == nil {
						return
					}
					pod = pod.DeepCopy()
					change(pod)
					if err := p.pods.Update(pod); err != nil {
						t.Error(err)
					}
					p.changed(pod)
				}
				p = play(t, func(q *http.Request) (int, any) {
					if !strings.HasSuffix(q.URL.Path, "/resize") {
						t.Errorf("it asked for %s", q.URL.Path)
					}
					asked := pod.DeepCopy()
					asked.Generation, asked.Spec.Containers[0].Resources = 2, small
					time.AfterFunc(says, func() { change(c.says) })
					return http.StatusOK, asked
				})
				pod = p.holds(t, spec.Ref)
				change(c.before)
				u, ctx, release, err := p.acquire(t.Context(), spec.Ref)
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				err = p.resize(ctx, u, spec)
				release(err)
				if (err != nil) != (c.code != "") || err != nil && compute.CodeOf(err) != c.code {
					t.Errorf("it ends with %v, want %q", err, c.code)
				}
				if took := time.Since(began); took != c.took {
					t.Errorf("it took %s, not %s", took, c.took)
				}
				<-time.After(resizeWithin) // of the bubble, until the node has spoken
			})
		})
	}
}
