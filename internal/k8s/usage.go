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

// What a measurement costs is the tenant's to say: how many files are walked, and, as root there, whether the walk ever ends.
const (
	measuredAtATime = 16               // containers, by this process: each is an exec by way of the API server
	measuredWithin  = 10 * time.Second // else it is given up
	measuredFor     = 5 * time.Second  // at least; and
	measuredRest    = 10               // times as long as it took
)

var errSlowUsage = fmt.Errorf("its agent did not measure it within %s", measuredWithin)

// measurement is one look at what a container uses. All who ask while it is under way await it, and who asks soon after has it,
// failed or not.
type measurement struct {
	before *compute.Usage // what was known when it began; nil: nothing of this life
	done   chan struct{}  // closed once what follows is there

	life  string
	usage compute.Usage
	err   error
	until time.Time // when another may begin; zero until done; Engine.mu guards it
}

// Usage is shown, never acted on. Storage, and memory where the cluster does not measure it, is what the container's own agent
// says, which a tenant can forge. It is seconds old, or older where a new figure takes longer than ctx.
func (e *Engine) Usage(ctx context.Context, r compute.Ref) (compute.Usage, error) {
	if ctx.Err() != nil {
		return compute.Usage{}, context.Cause(ctx)
	}
	m, err := e.measurement(r)
	if err != nil {
		return compute.Usage{}, err
	}
	select {
	case <-m.done:
		return m.usage, m.err
	case <-ctx.Done():
	}
	if m.before != nil {
		return *m.before, nil
	}
	return compute.Usage{}, context.Cause(ctx)
}

// measurement returns the container's last one, or begins another: a container has one at a time. It is forgotten with the
// container's unit.
func (e *Engine) measurement(r compute.Ref) (*measurement, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return nil, closing(e.ctx)
	}
	now := e.look(r)
	if now.phase != compute.PhaseRunning {
		return nil, notRunning()
	}
	u, m := e.unit(r), &measurement{done: make(chan struct{})}
	if last := u.measured; last != nil {
		same := last.life == now.life
		if last.until.IsZero() || same && time.Now().Before(last.until) {
			return last, nil
		}
		if same && last.err == nil {
			usage := last.usage // alone, or each would hold all before it
			m.before = &usage
		}
	}
	u.measured = m
	e.background.Go(func() { e.measure(m, r) })
	return m, nil
}

// measure awaits its turn, and measures a container.
func (e *Engine) measure(m *measurement, r compute.Ref) {
	defer close(m.done)
	select {
	case e.measuring <- struct{}{}:
		defer func() { <-e.measuring }()
	case <-e.ctx.Done():
	}
	ctx, cancel := context.WithTimeoutCause(e.ctx, measuredWithin, errSlowUsage)
	defer cancel()
	began, now := time.Now(), e.look(r)
	usage, err := e.usageNow(ctx, now)
	ended := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	m.life, m.usage, m.err = now.life, usage, err
	m.until = ended.Add(max(measuredFor, measuredRest*ended.Sub(began)))
}

func (e *Engine) usageNow(ctx context.Context, now sight) (compute.Usage, error) {
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
