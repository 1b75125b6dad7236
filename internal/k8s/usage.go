package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"berth/internal/compute"
)

// Usage is shown, never acted on. Storage, and memory where the cluster does not measure it, is what the container's own agent
// says, which a tenant can forge.
func (e *Engine) Usage(ctx context.Context, r compute.Ref) (compute.Usage, error) {
	now := e.look(r)
	if now.phase != compute.PhaseRunning {
		return compute.Usage{}, notRunning()
	}
	measured := make(chan int64, 1)
	go func() { measured <- e.measured(ctx, now) }() // ends with the call, or ctx
	said, err := e.agentUsage(ctx, now)
	memory := <-measured
	if err != nil {
		return compute.Usage{}, err
	}
	if memory == 0 {
		memory = said.MemoryBytes
	}
	return compute.Usage{MemoryMB: int(memory >> 20), StorageGB: float64(said.StorageBytes) / (1 << 30)}, nil
}

// agentUsage is what a container's agent says of it.
type agentUsage struct {
	MemoryBytes  int64 `json:"memory_bytes"`
	StorageBytes int64 `json:"storage_bytes"`
}

func (e *Engine) agentUsage(ctx context.Context, now sight) (said agentUsage, err error) {
	var paths []string
	if err := json.Unmarshal([]byte(now.pod.Annotations[annotationMounts]), &paths); err != nil {
		return said, compute.Internal("read the pod's mount paths", err)
	}
	out, err := e.exec.run(ctx, now.ref, 1<<10, append([]string{agentPath, "usage"}, paths...)...)
	if ctx.Err() != nil {
		return said, context.Cause(ctx)
	}
	if err != nil {
		if e.look(now.ref).phase != compute.PhaseRunning {
			return said, notRunning()
		}
		return said, unreachable("measure the container", err)
	}
	if err := json.Unmarshal(out, &said); err != nil || said.MemoryBytes < 0 || said.StorageBytes < 0 {
		return said, unreachable("measure the container", fmt.Errorf("it says %q", strings.TrimSpace(string(out))))
	}
	return said, nil
}

const (
	unmeasuredFor  = time.Minute // how long a cluster that does not serve metrics.k8s.io is not asked again
	metricsTimeout = 2 * time.Second
)

// measured is what the cluster measured of the container's memory, in bytes; 0 where it has no figure of this life.
func (e *Engine) measured(ctx context.Context, now sight) int64 {
	e.mu.Lock()
	quiet := time.Now().Before(e.unmeasured)
	e.mu.Unlock()
	if quiet {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	b, err := e.client.CoreV1().RESTClient().Get().
		AbsPath("/apis/metrics.k8s.io/v1beta1/namespaces", now.ref.String(), "pods", now.pod.Name).Do(ctx).Raw()
	if err == nil {
		return memoryIn(b, statusOf(now.pod.Status.ContainerStatuses, nameMain).State.Running.StartedAt.Time)
	}
	if status := apierrors.APIStatus(nil); errors.As(err, &status) && apierrors.IsNotFound(err) &&
		status.Status().Details != nil && status.Status().Details.Name == now.pod.Name {
		return 0 // this pod is too young
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unmeasured = time.Now().Add(unmeasuredFor)
	return 0
}

// memoryIn reads a PodMetrics: what the main container has of memory, unless that is of a life before since.
func memoryIn(metrics []byte, since time.Time) int64 {
	var m struct {
		Timestamp  time.Time `json:"timestamp"`
		Containers []struct {
			Name  string              `json:"name"`
			Usage corev1.ResourceList `json:"usage"`
		} `json:"containers"`
	}
	if json.Unmarshal(metrics, &m) != nil || m.Timestamp.Before(since) {
		return 0
	}
	for _, c := range m.Containers {
		if c.Name == nameMain {
			return max(0, c.Usage.Memory().Value())
		}
	}
	return 0
}
