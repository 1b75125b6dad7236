package k8stest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"berth/internal/enginetest"
)

// BenchmarkStart measures a container's start, the first and later ones, and a bare pod's beside each.
//
//	go test -bench Start -benchtime 10x -run '^$' ./internal/k8s/k8stest
func BenchmarkStart(b *testing.B) {
	r := newRig(b)
	config, err := clientcmd.BuildConfigFromFlags("", r.cluster.Kubeconfig)
	if err != nil {
		b.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		b.Fatal(err)
	}
	var bare, made, run, again []time.Duration
	for n := range b.N + 1 {
		ctx, cancel := context.WithTimeout(context.Background(), enginetest.Timeout)
		took, err := startBare(ctx, client, r.opt.Image)
		if err != nil {
			b.Fatal(err)
		}
		s := newSpec()
		began := time.Now()
		if err := r.e.Provision(ctx, s); err != nil {
			b.Fatal(err)
		}
		provisioned := time.Since(began)
		apply := func(running bool) time.Duration {
			s.Running = running
			s.Generation++
			began := time.Now()
			if err := r.e.Apply(ctx, s); err != nil {
				b.Fatal(err)
			}
			return time.Since(began)
		}
		first := provisioned + apply(true)
		apply(false)
		later := apply(true)
		if err := r.e.Remove(ctx, s.Ref); err != nil {
			b.Fatal(err)
		}
		cancel()
		b.Logf("a bare pod %.2f s; a container %.2f s, of which %.2f s for namespace and volume; again %.2f s",
			took.Seconds(), first.Seconds(), provisioned.Seconds(), later.Seconds())
		if n == 0 {
			continue // caches are cold
		}
		bare, made, run, again = append(bare, took), append(made, provisioned), append(run, first), append(again, later)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(bare), "s/bare")
	b.ReportMetric(median(made), "s/provision")
	b.ReportMetric(median(run), "s/create")
	b.ReportMetric(median(again), "s/start")
	b.ReportMetric(median(run)/median(bare), "create/bare")
	b.ReportMetric(median(again)/median(bare), "start/bare")
}

func median(list []time.Duration) float64 {
	slices.Sort(list)
	return list[len(list)/2].Seconds()
}

// startBare starts a pod of the same image and returns how long it took to be Ready.
func startBare(ctx context.Context, client kubernetes.Interface, image string) (took time.Duration, err error) {
	pods := client.CoreV1().Pods(corev1.NamespaceDefault)
	name := "bare-" + string(newSpec().ID)
	w, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()})
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	began := time.Now()
	now := int64(0)
	_, err = pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{TerminationGracePeriodSeconds: &now, Containers: []corev1.Container{{
			Name: "main", Image: image, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sleep", "infinity"},
		}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return 0, err
	}
	ready := false
	for event := range w.ResultChan() {
		p, ok := event.Object.(*corev1.Pod)
		if !ok {
			return 0, fmt.Errorf("watch the pod: %v", event.Object)
		}
		if ready && event.Type == "DELETED" {
			return took, nil
		}
		if !ready && isReady(p) {
			ready, took = true, time.Since(began)
			if err := pods.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
				return 0, err
			}
		}
	}
	return 0, fmt.Errorf("watch the pod: %w", context.Cause(ctx))
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
