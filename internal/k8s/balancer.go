package k8s

import (
	"context"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/cache"

	"berth/internal/compute"
)

// LoadBalancers asks the cluster for an address of its own for each container, at which the gateway answers.
type LoadBalancers struct {
	Class       string            // empty: the cluster's default
	Annotations map[string]string // for the cluster's controller, such as one that asks for the PROXY protocol
}

// balancer is the Service. It is the gateway's, in its namespace, and lives as long as the container, whether that runs or not.
func (m maker) balancer(r compute.Ref) *corev1.Service {
	lb := m.opt.LoadBalancers
	s := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{
			Name: r.String(), Namespace: m.opt.GatewayNamespace, Labels: m.labels(r), Annotations: lb.Annotations,
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Selector: m.opt.GatewayLabels,
			Ports:                 []corev1.ServicePort{{Name: "ssh", Protocol: corev1.ProtocolTCP, Port: 22, TargetPort: intstr.FromString("ssh")}},
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, // keeps the client's address
		},
	}
	if lb.Class != "" {
		s.Spec.LoadBalancerClass = &lb.Class
	}
	return s
}

// ExternalIPs calls f with the address of every container that has one, and at each change, until ctx or the engine ends. A
// container whose address is gone has the zero one. Calls come one at a time, and may repeat what was said.
func (e *Engine) ExternalIPs(ctx context.Context, f func(compute.Ref, netip.Addr)) error {
	if e.opt.LoadBalancers != nil {
		var mu sync.Mutex // guards over, held over f
		over := false
		say := func(object any, gone bool) {
			s, ok := object.(*corev1.Service)
			if !ok || s.Namespace != e.opt.GatewayNamespace {
				return
			}
			r, err := compute.ParseRef(s.Name)
			if err != nil {
				return // an object with our labels
			}
			var a netip.Addr
			if !gone {
				a = addressOf(s)
			}
			mu.Lock()
			defer mu.Unlock()
			if !over {
				f(r, a)
			}
		}
		handler, err := e.services.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(o any) { say(o, false) }, UpdateFunc: func(_, o any) { say(o, false) },
			DeleteFunc: func(o any) {
				if last, ok := o.(cache.DeletedFinalStateUnknown); ok {
					o = last.Obj
				}
				say(o, true)
			},
		})
		if err != nil {
			return err
		}
		defer func() {
			_ = e.services.RemoveEventHandler(handler) // it is there
			mu.Lock()
			over = true
			mu.Unlock()
		}()
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-e.ctx.Done():
		return context.Cause(e.ctx)
	}
}

// addressOf is the Service's first IPv4 address, or else its first.
func addressOf(s *corev1.Service) (first netip.Addr) {
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(ingress.IP)
		if err != nil {
			continue // a name
		}
		if a = a.Unmap(); a.Is4() {
			return a
		}
		if !first.IsValid() {
			first = a
		}
	}
	return first
}

// removeBalancer gives the container's address back, if it has one: also where the option was turned off since. The API server
// is asked, for the caches may not have heard of it yet.
func (e *Engine) removeBalancer(ctx context.Context, r compute.Ref) error {
	services := e.client.CoreV1().Services(e.opt.GatewayNamespace)
	s, err := services.Get(ctx, r.String(), metav1.GetOptions{})
	if err == nil && labelled(s, e.maker.labels(r)) {
		err = services.Delete(ctx, s.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &s.UID}})
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return e.explain(ctx, "give the container's address back", err)
	}
	return nil
}
