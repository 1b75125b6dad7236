package k8s

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"berth/internal/compute"
)

// A probe is a pod of the agent's image, in a namespace of its own, with a container's policies and limits and nothing of a
// user's. It looks from inside at what cannot be seen from without. Its namespace has a label that no container's has, so
// that nothing takes it for one, and is removed when the probe is done, or by the next one.
const (
	labelProbe   = "berth/probe"
	probeStart   = 2 * time.Minute // for its pod to run: the image may have to be pulled
	probeAnswer  = time.Minute     // to a command: a kubelet may keep its stream open for ever
	probeStale   = 15 * time.Minute
	probePort    = 7022
	probeSettles = 15 * time.Second // for the network to learn of a pod's policies
	probedNodes  = 3                // that a start tries; they are all alike
	kubeletPort  = "10250"
)

// prober makes probes on a cluster.
type prober struct {
	client  *clients
	config  *rest.Config
	maker   maker
	outside outside
}

// probe is one that runs.
type probe struct {
	prober
	namespace *corev1.Namespace
	pod       *corev1.Pod
}

// probePod is the name of its pod, and of what makes that.
const probePod = "probe"

// open starts a probe, with a container's policies or without any.
func (p prober) open(ctx context.Context, policies bool) (_ *probe, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeStart)
	defer cancel()
	if err := p.sweep(ctx); err != nil {
		return nil, err
	}
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	ns := p.maker.namespace(compute.Ref{}, p.outside)
	ns.Name, ns.Labels = "berth-probe-"+hex.EncodeToString(b[:]), probeLabels(ns.Labels)
	if ns, err = p.client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{FieldManager: fieldManager}); err != nil {
		return nil, fmt.Errorf("make the probe's namespace: %w", err)
	}
	pr := &probe{prober: p, namespace: ns}
	defer func() {
		if err != nil {
			err = errors.Join(err, pr.close())
		}
	}()
	if policies {
		for _, policy := range p.maker.policies(compute.Ref{}, p.outside.addresses) {
			policy.Namespace, policy.Labels = ns.Name, probeLabels(policy.Labels)
			if _, err := p.client.NetworkingV1().NetworkPolicies(ns.Name).Create(ctx, policy, metav1.CreateOptions{FieldManager: fieldManager}); err != nil {
				return nil, fmt.Errorf("make the probe's policies: %w", err)
			}
		}
	}
	if p.outside.registries != nil {
		if err := p.bringCredentials(ctx, ns.Name); err != nil {
			return nil, fmt.Errorf("bring the probe's image's credentials: %w", err)
		}
	}
	if _, err := p.client.AppsV1().StatefulSets(ns.Name).Create(ctx, p.set(ns.Name), metav1.CreateOptions{FieldManager: fieldManager}); err != nil {
		return nil, fmt.Errorf("make the probe: %w", err)
	}
	return pr, pr.await(ctx)
}

// bringCredentials is an apply, since nobody has the right to create a Secret under any name.
func (p prober) bringCredentials(ctx context.Context, namespace string) error {
	secret := p.maker.pullSecret(compute.Ref{}, p.outside)
	secret.Namespace, secret.Labels = namespace, probeLabels(secret.Labels)
	fields, err := json.Marshal(secret)
	if err != nil {
		return err
	}
	_, err = p.client.CoreV1().Secrets(namespace).Patch(ctx, secret.Name, types.ApplyPatchType, fields, metav1.PatchOptions{FieldManager: fieldManager})
	return err
}

// probeLabels are a container's labels as a probe has them.
func probeLabels(labels map[string]string) map[string]string {
	delete(labels, labelInstallation)
	delete(labels, labelContainer)
	labels[labelProbe] = "true"
	return labels
}

// set runs the probe, on the nodes and in the way that containers do.
func (p prober) set(namespace string) *appsv1.StatefulSet {
	s := compute.Spec{Hostname: probePod, MilliCPU: 500, MemoryMB: 256, StorageGB: 1, Running: true}
	set := p.maker.statefulSet(s, nil)
	set.ObjectMeta = metav1.ObjectMeta{Name: probePod, Namespace: namespace, Labels: probeLabels(set.Labels)}
	set.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{labelProbe: "true"}}
	set.Spec.Template.ObjectMeta = metav1.ObjectMeta{Labels: probeLabels(set.Spec.Template.Labels)}
	pod := &set.Spec.Template.Spec
	delete(pod.NodeSelector, corev1.LabelArchStable)
	pod.Volumes = nil
	main := p.maker.container(nameMain, p.maker.opt.AgentImage, []string{"/agent", "probe", "listen", ":" + strconv.Itoa(probePort)})
	main.Resources = resources(s)
	pod.Containers = []corev1.Container{
		main,
	}
	return set
}

// await returns once the pod runs.
func (p *probe) await(ctx context.Context) error {
	var last sight
	for ctx.Err() == nil {
		w, err := p.client.CoreV1().Pods(p.namespace.Name).Watch(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("metadata.name", probePod+"-0").String(),
		})
		if err != nil {
			return fmt.Errorf("watch the probe: %w", err)
		}
		for event := range w.ResultChan() {
			pod, ok := event.Object.(*corev1.Pod)
			if !ok {
				break // the watch ended; another one sees it anew
			}
			last.pod = pod
			if s := statusOf(pod.Status.ContainerStatuses, nameMain); s != nil && s.State.Running != nil && pod.Status.PodIP != "" {
				w.Stop()
				p.pod = pod
				return nil
			}
			if err, soon := last.trouble(); err != nil && !soon {
				w.Stop()
				return fmt.Errorf("the probe's pod does not start: %w", err.Cause)
			}
		}
		w.Stop()
	}
	if err, _ := last.trouble(); err != nil {
		return fmt.Errorf("the probe's pod does not start: %w", err.Cause)
	}
	return fmt.Errorf("the probe's pod does not start: %w", context.Cause(ctx))
}

// close removes the probe, whether its context ended or not.
func (p *probe) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	return p.remove(ctx, p.namespace)
}

func (p prober) remove(ctx context.Context, ns *corev1.Namespace) error {
	err := p.client.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &ns.UID}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("remove the probe's namespace %s: %w", ns.Name, err)
	}
	return nil
}

// sweep removes what earlier probes left when they were killed.
func (p prober) sweep(ctx context.Context) error {
	list, err := p.client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: labelManaged + "=" + managedBy + "," + labelProbe})
	if err != nil {
		return fmt.Errorf("look for earlier probes: %w", err)
	}
	for _, ns := range list.Items {
		if ns.DeletionTimestamp == nil && time.Since(ns.CreationTimestamp.Time) > probeStale {
			if err := p.remove(ctx, &ns); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *probe) address() string {
	return net.JoinHostPort(p.pod.Status.PodIP, strconv.Itoa(probePort))
}

// exec runs the agent in the probe, over one protocol, and returns what it printed.
func (p *probe) exec(ctx context.Context, over protocol, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, probeAnswer, fmt.Errorf("no answer within %s", probeAnswer))
	defer cancel()
	x := execer{p.config, p.client.CoreV1().RESTClient()}
	to := x.command(p.pod.Namespace, p.pod.Name, append([]string{"/agent"}, args...), false)
	out, said := &head{limit: 64 << 10}, &head{limit: maxComplaint}
	err := over(x, ctx, to, remotecommand.StreamOptions{Stdout: out, Stderr: said})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return out.bytes(), said.explain(err)
}

// probed is what the agent found (agent.Probed).
type probed struct {
	Reached   []string `json:"reached"`
	Processes int      `json:"processes"`
	Bounded   bool     `json:"bounded"`
}

// ask has the agent look, over whichever protocol works.
func (p *probe) ask(ctx context.Context, args ...string) (probed, error) {
	var found probed
	args = append([]string{"probe"}, args...)
	out, err := p.exec(ctx, execer.overWebSocket, args...)
	if err != nil {
		var again error
		if out, again = p.exec(ctx, execer.overSPDY, args...); again != nil {
			return found, fmt.Errorf("run the probe: %w", errors.Join(err, again))
		}
	}
	if err := json.Unmarshal(out, &found); err != nil {
		return found, fmt.Errorf("the probe says %q: %w", strings.TrimSpace(string(out)), err)
	}
	return found, nil
}

// reached asks which of the targets a pod reaches, once its policies had time to come into force.
func (p *probe) reached(ctx context.Context, targets []target) (map[string]bool, error) {
	return p.dial(ctx, "missed", probeSettles, targets)
}

// tries asks which of the targets a pod reaches now.
func (p *probe) tries(ctx context.Context, targets []target) (map[string]bool, error) {
	return p.dial(ctx, "reached", 0, targets)
}

func (p *probe) dial(ctx context.Context, until string, within time.Duration, targets []target) (map[string]bool, error) {
	args := []string{until, strconv.Itoa(int(within.Seconds()))}
	for _, t := range targets {
		args = append(args, t.address)
	}
	found, err := p.ask(ctx, args...)
	reached := make(map[string]bool)
	for _, address := range found.Reached {
		reached[address] = true
	}
	return reached, err
}

// resolves says whether the probe reaches what it has names resolved by: the one thing inside the cluster that it may.
func (p *probe) resolves(ctx context.Context) (bool, error) {
	reached, err := p.dial(ctx, "reached", probeSettles, []target{{address: "resolver"}})
	return len(reached) > 0, err
}

// target is what no container may reach.
type target struct{ name, address string }

// targets are the API server and nodes, by all of their addresses; most bounds the nodes.
func (p prober) targets(ctx context.Context, most int) ([]target, error) {
	var list []target
	slices, err := p.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=kubernetes"})
	if err != nil {
		return nil, fmt.Errorf("ask for the API server's addresses: %w", err)
	}
	for _, slice := range slices.Items {
		for _, port := range slice.Ports {
			for _, e := range slice.Endpoints {
				for _, address := range e.Addresses {
					if port.Port != nil {
						list = append(list, target{"the API server", net.JoinHostPort(address, strconv.Itoa(int(*port.Port)))})
					}
				}
			}
		}
	}
	if len(list) == 0 {
		return nil, errors.New("the API server's own addresses are not to be found: the Service kubernetes in the namespace default has no endpoints")
	}
	nodes, err := p.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	for _, n := range nodes.Items[:min(most, len(nodes.Items))] {
		for _, a := range n.Status.Addresses {
			if (a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP) && net.ParseIP(a.Address) != nil {
				list = append(list, target{"node " + n.Name, net.JoinHostPort(a.Address, kubeletPort)})
			}
		}
	}
	return list, nil
}

// Isolation is what a probe found of network policies.
type Isolation struct {
	Reached []string // that no container may reach, and this one does: the cluster does not enforce its policies
}

// Enforced says whether the cluster keeps containers to their policies, as far as a probe sees.
func (i Isolation) Enforced() bool { return len(i.Reached) == 0 }

// ProbeIsolation has a pod with a container's policies try what these forbid, and warns the operator where it succeeds. It
// fails where nothing can be said: where the pod does not start, say, or reaches nothing at all.
func (e *Engine) ProbeIsolation(ctx context.Context) (_ Isolation, err error) {
	p := prober{client: e.client, config: e.exec.config, maker: e.maker, outside: e.outsideNow()}
	pr, err := p.open(ctx, true)
	if err != nil {
		return Isolation{}, err
	}
	defer func() { err = errors.Join(err, pr.close()) }()
	i, err := pr.isolation(ctx)
	if err == nil && !i.Enforced() {
		e.log.Warn("this cluster does not enforce network policies: containers reach each other, its nodes and its API server; "+
			"install a network plugin that does, such as Calico or Cilium", "reached", strings.Join(i.Reached, ", "))
	}
	return i, err
}

func (p *probe) isolation(ctx context.Context) (Isolation, error) {
	targets, err := p.targets(ctx, probedNodes)
	if err != nil {
		return Isolation{}, err
	}
	reached, err := p.reached(ctx, targets)
	if err != nil {
		return Isolation{}, err
	}
	var i Isolation
	for _, t := range targets {
		if reached[t.address] {
			i.Reached = append(i.Reached, t.name+" ("+t.address+")")
		}
	}
	if !i.Enforced() {
		return i, nil
	}
	ok, err := p.resolves(ctx)
	if err == nil && !ok {
		err = errors.New("the probe's pod reaches nothing at all, not even what resolves names; where that is none of kube-system's pods " +
			"labelled k8s-app=kube-dns (a cache on each node, say), name it with the setting resolver")
	}
	return i, err
}

// WatchIsolation probes until it is known whether the cluster enforces policies, tells of that, and returns.
func (e *Engine) WatchIsolation(ctx context.Context, tell func(Isolation)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	again := time.NewTimer(0)
	defer again.Stop()
	for pause := time.Minute; ; pause = min(2*pause, time.Hour) {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
		i, err := e.ProbeIsolation(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			tell(i)
			return
		}
		e.log.Warn("it is not known whether this cluster enforces network policies; a probe is tried again", "err", err, "in", pause)
		again.Reset(pause)
	}
}
