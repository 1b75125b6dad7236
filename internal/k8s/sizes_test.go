package k8s

import (
	"strings"
	"testing"

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
