package k8s

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"berth/internal/compute"
)

// private are the ranges that no container may reach: others' networks, the cluster's own, metadata services, and the
// prefixes by which a translator would lead to them.
var private = []string{
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3",
	"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "fc00::/7", "fe80::/10", "ff00::/8",
}

// private says whether an address is blocked by its range already.
func (m maker) private(a netip.Addr) bool {
	in := func(p netip.Prefix) bool { return p.Contains(a) }
	return slices.ContainsFunc(m.opt.Blocked, in) || slices.ContainsFunc(private, func(s string) bool { return in(netip.MustParsePrefix(s)) })
}

// policies are the container's network: nothing in or out but what they name. It may not reach the cluster's own addresses.
func (m maker) policies(r compute.Ref, cluster []netip.Addr) []*networkingv1.NetworkPolicy {
	both := []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	return []*networkingv1.NetworkPolicy{
		m.policy(r, "deny", networkingv1.NetworkPolicySpec{PolicyTypes: both}),
		m.policy(r, "from-gateway", networkingv1.NetworkPolicySpec{
			PolicyTypes: both[:1],
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{
				NamespaceSelector: namespaceNamed(m.opt.GatewayNamespace),
				PodSelector:       &metav1.LabelSelector{MatchLabels: m.opt.GatewayLabels},
			}}}},
		}),
		m.policy(r, "to-public", networkingv1.NetworkPolicySpec{PolicyTypes: both[1:], Egress: m.egress(cluster)}),
	}
}

func (m maker) policy(r compute.Ref, name string, spec networkingv1.NetworkPolicySpec) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: m.meta(r, name), Spec: spec,
	}
}

func (m maker) egress(cluster []netip.Addr) []networkingv1.NetworkPolicyEgressRule {
	var except [2][]string // of IPv4 and of IPv6
	add := func(p netip.Prefix) {
		i := 0
		if p.Addr().Is6() {
			i = 1
		}
		except[i] = append(except[i], p.Masked().String())
	}
	for _, p := range private {
		add(netip.MustParsePrefix(p))
	}
	for _, p := range m.opt.Blocked {
		add(p)
	}
	for _, a := range cluster {
		add(netip.PrefixFrom(a, a.BitLen()))
	}
	var public []networkingv1.NetworkPolicyPeer
	for i, all := range []string{"0.0.0.0/0", "::/0"} {
		slices.Sort(except[i])
		public = append(public, networkingv1.NetworkPolicyPeer{
			IPBlock: &networkingv1.IPBlock{CIDR: all, Except: slices.Compact(except[i])},
		})
	}
	resolver := networkingv1.NetworkPolicyPeer{
		NamespaceSelector: namespaceNamed("kube-system"),
		PodSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{"k8s-app": "kube-dns"}},
	}
	if a := m.opt.Resolver; a.IsValid() {
		resolver = networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: netip.PrefixFrom(a, a.BitLen()).String()}}
	}
	port := intstr.FromInt32(53)
	udp, tcp := corev1.ProtocolUDP, corev1.ProtocolTCP
	return []networkingv1.NetworkPolicyEgressRule{
		{To: public},
		{
			To:    []networkingv1.NetworkPolicyPeer{resolver},
			Ports: []networkingv1.NetworkPolicyPort{{Protocol: &udp, Port: &port}, {Protocol: &tcp, Port: &port}},
		},
	}
}

func namespaceNamed(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: name}}
}
