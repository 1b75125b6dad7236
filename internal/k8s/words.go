package k8s

import (
	"context"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ParseLabels reads labels, each KEY=VALUE.
func ParseLabels(list []string) map[string]string {
	labels := make(map[string]string, len(list))
	for _, l := range list {
		key, value, _ := strings.Cut(l, "=")
		labels[key] = value
	}
	return labels
}

// ParseTolerations reads tolerations, each as a taint of kubectl's: KEY=VALUE:EFFECT. Without a value all of the key's are
// tolerated, without an effect all effects.
func ParseTolerations(list []string) []corev1.Toleration {
	var tolerations []corev1.Toleration
	for _, text := range list {
		rest, effect, _ := strings.Cut(text, ":")
		key, value, valued := strings.Cut(rest, "=")
		t := corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffect(effect)}
		if valued {
			t.Operator, t.Value = corev1.TolerationOpEqual, value
		}
		tolerations = append(tolerations, t)
	}
	return tolerations
}

// namespaceFile is where a pod finds the name of its namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// OwnNamespace returns the namespace of the pod that this process runs in; other where it runs in none.
func OwnNamespace(other string) string {
	text, err := os.ReadFile(namespaceFile)
	if name := strings.TrimSpace(string(text)); err == nil && name != "" {
		return name
	}
	return other
}

// ClusterID tells this cluster from others: its first namespace is made once.
func (e *Engine) ClusterID(ctx context.Context) (string, error) {
	n, err := e.client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
	if err != nil {
		return "", e.explain(ctx, "tell which cluster this is", err)
	}
	return string(n.UID), nil
}

// Answers says whether the API server does.
func (e *Engine) Answers(ctx context.Context) error {
	return e.client.CoreV1().RESTClient().Get().AbsPath("/version").Do(ctx).Error()
}
