package k8s

import (
	"context"
	"fmt"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
)

// UpdateSecret has f change what a Secret of Berth's own namespace holds, and calls it again if another changed it meanwhile.
// The Secret must be there: who may make one may make any. It is not written where f changes nothing.
func UpdateSecret(ctx context.Context, kubeconfig, namespace, name string, f func(data map[string][]byte) error) error {
	config, err := clusterConfig(kubeconfig)
	if err != nil {
		return fmt.Errorf("find the cluster: %w", err)
	}
	client, err := newClients(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secrets := client.CoreV1().Secrets(namespace)
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		s, err := secrets.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("read the Secret %s/%s: %w", namespace, name, err)
		}
		before := maps.Clone(s.Data)
		if s.Data == nil {
			s.Data = make(map[string][]byte)
		}
		if err := f(s.Data); err != nil || maps.EqualFunc(before, s.Data, slices.Equal[[]byte]) {
			return err
		}
		_, err = secrets.Update(ctx, s, metav1.UpdateOptions{FieldManager: fieldManager})
		return err
	})
}
