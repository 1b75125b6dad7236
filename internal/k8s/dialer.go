package k8s

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"berth/internal/compute"
)

// Dialer reaches the agents of a cluster's containers. It implements session.Dialer, for gateways apart and, within an Engine,
// for all others. It watches nothing and knows containers by name alone; in a container's namespace it needs to get pods, and
// to get and create pods/exec, and nothing anywhere else.
type Dialer struct {
	log   *slog.Logger
	pods  func(namespace string) podGetter
	exec  execer
	dials chan struct{} // full while as many are under way as may be
	addr  *addresses    // nil: all goes by pod exec

	ctx    context.Context // ends with Close, and its connections with it
	cancel context.CancelCauseFunc
}

type podGetter interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (*corev1.Pod, error)
}

// DialerOptions configures a Dialer.
type DialerOptions struct {
	Kubeconfig string // file; empty: as a pod of the cluster
	// Addresses has agents connected to at their pods' addresses, where these are reached from here, and by pod exec elsewhere.
	Addresses bool
	Log       *slog.Logger
}

// maxDials bounds what the API server is asked for at the same time, as when all of a node's connections end at once. A dial
// takes some hundredths of a second.
const maxDials = 16

var errDialerClosed = errors.New("the connections to the cluster are closed")

// NewDialer returns a Dialer. It reads the kubeconfig, and connects to nothing.
func NewDialer(o DialerOptions) (*Dialer, error) {
	hush()
	config, err := clusterConfig(o.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w", err)
	}
	client, err := newClients(config)
	if err != nil {
		return nil, err
	}
	return newDialer(config, client, o), nil
}

func newDialer(config *rest.Config, client *clients, o DialerOptions) *Dialer {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	d := &Dialer{
		log: o.Log, exec: execer{config, client.CoreV1().RESTClient()}, dials: make(chan struct{}, maxDials),
		pods: func(namespace string) podGetter { return client.CoreV1().Pods(namespace) },
	}
	if o.Addresses {
		d.addr = newAddresses(d.log, d.exec)
	}
	d.ctx, d.cancel = context.WithCancelCause(context.Background())
	return d
}

// Close ends all connections.
func (d *Dialer) Close() error {
	d.cancel(errDialerClosed)
	return nil
}

// DialAgent connects to the container's agent; CodeNotRunning when there is none. The connection lives until it or the Dialer
// is closed.
func (d *Dialer) DialAgent(ctx context.Context, r compute.Ref) (net.Conn, error) {
	if d.addr != nil {
		if nc := d.addr.again(ctx, r); nc != nil {
			return d.keep(nc), nil // the API server had no part in it
		}
	}
	select {
	case d.dials <- struct{}{}:
		defer func() { <-d.dials }()
	case <-ctx.Done():
	}
	if ctx.Err() != nil { // a select may take either
		return nil, context.Cause(ctx)
	}
	if d.addr != nil {
		pod, err := d.find(ctx, r)
		if err != nil {
			return nil, err
		}
		if nc := d.addr.first(ctx, r, pod); nc != nil {
			return d.keep(nc), nil
		}
	}
	nc, err := d.exec.dial(ctx, d.ctx, r, agentPath, "connect")
	switch {
	case err == nil:
		return nc, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case apierrors.IsNotFound(err):
		return nil, notRunning()
	}
	// What comes back of an exec into a container that does not run are words for people: of the API server, the kubelet or
	// the runtime.
	if _, podErr := d.find(ctx, r); compute.CodeOf(podErr) == compute.CodeNotRunning {
		return nil, podErr
	}
	return nil, explain(ctx, "connect to the agent", err)
}

// find returns the pod that a container runs in; CodeNotRunning when there is none.
func (d *Dialer) find(ctx context.Context, r compute.Ref) (*corev1.Pod, error) {
	p, err := d.pods(r.String()).Get(ctx, podName(r), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err), err == nil && !mainRuns(p):
		return nil, notRunning()
	case apierrors.IsForbidden(err): // a gateway has rights where a container is, and loses them with it
		return nil, &compute.Error{
			Code: compute.CodeNotRunning, Cause: err,
			Message: "The container is gone, or the cluster does not let this gateway into it; your operator can see why.",
		}
	case err != nil:
		return nil, explain(ctx, "look at the container's pod", err)
	}
	return p, nil
}

func mainRuns(p *corev1.Pod) bool {
	status := statusOf(p.Status.ContainerStatuses, nameMain)
	return p.DeletionTimestamp == nil && status != nil && status.State.Running != nil
}

// keep has a connection end with the Dialer.
func (d *Dialer) keep(nc net.Conn) net.Conn {
	return kept{nc, context.AfterFunc(d.ctx, func() { _ = nc.Close() })}
}

type kept struct {
	net.Conn
	release func() bool
}

func (k kept) Close() error {
	k.release()
	return k.Conn.Close()
}

func notRunning() *compute.Error {
	return compute.Errorf(compute.CodeNotRunning, "The container is not running.")
}

// DialAgent connects to the container's agent.
func (e *Engine) DialAgent(ctx context.Context, r compute.Ref) (net.Conn, error) {
	if s := e.look(r); s.phase != compute.PhaseRunning {
		return nil, notRunning()
	}
	return e.dialer.DialAgent(ctx, r)
}
