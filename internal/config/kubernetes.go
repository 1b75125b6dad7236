package config

import (
	"net/netip"
	"regexp"
	"strings"

	"berth/internal/compute"
)

// Engines.
const (
	EngineContainerd = "containerd"
	EngineKubernetes = "kubernetes"
)

// Transports to agents in pods.
const (
	TransportExec = "exec"
	TransportPod  = "pod"
)

// OnKubernetes says whether a cluster runs the containers.
func (c Config) OnKubernetes() bool { return c.Engine == EngineKubernetes }

var (
	kubernetesName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
	kubernetesKey  = regexp.MustCompile(`^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	labelValue     = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$`)
)

// checkKubernetes refuses what no cluster takes.
func (c Config) checkKubernetes(bad func(setting, format string, args ...any)) {
	switch c.Engine {
	case EngineContainerd, EngineKubernetes:
	default:
		bad("engine", "choose containerd or kubernetes")
	}
	for setting, name := range map[string]string{
		"kubernetes-namespace": c.KubernetesNamespace, "gateway-secret": c.GatewaySecret,
		"keys-secret": c.KeysSecret, "storage-class": c.StorageClass,
		"priority-class": c.PriorityClass, "runtime-class": c.RuntimeClass,
	} {
		if name != "" && !kubernetesName.MatchString(name) {
			bad(setting, "%q is no name of an object in Kubernetes", name)
		}
	}
	for _, name := range c.PullSecrets {
		if !kubernetesName.MatchString(name) {
			bad("pull-secrets", "%q is no name of an object in Kubernetes", name)
		}
	}
	if class := c.LoadBalancerClass; class != "" && !kubernetesKey.MatchString(class) {
		bad("load-balancer-class", "%q is not a class, such as example.com/internal", class)
	}
	for _, a := range c.LoadBalancerAnnotations {
		if key, _, ok := strings.Cut(a, "="); !ok || !kubernetesKey.MatchString(key) {
			bad("load-balancer-annotations", "%q is not KEY=VALUE, such as example.com/proxy-protocol=v2", a)
		}
	}
	for _, name := range c.GatewayNames {
		if err := compute.ValidateGatewayName(name); err != nil {
			bad("gateway-names", "%s", compute.UserMessage(err))
		}
	}
	for _, l := range c.NodeSelector {
		if key, value, ok := strings.Cut(l, "="); !ok || !kubernetesKey.MatchString(key) || !labelValue.MatchString(value) {
			bad("node-selector", "%q is not KEY=VALUE, such as disktype=ssd", l)
		}
	}
	for _, t := range c.Tolerations {
		rest, effect, _ := strings.Cut(t, ":")
		key, value, _ := strings.Cut(rest, "=")
		switch {
		case !kubernetesKey.MatchString(key), !labelValue.MatchString(value):
			bad("tolerations", "%q is not KEY, KEY=VALUE or one of them with :EFFECT, such as tenants=yes:NoSchedule", t)
		case effect != "" && effect != "NoSchedule" && effect != "PreferNoSchedule" && effect != "NoExecute":
			bad("tolerations", "%q: the effect is NoSchedule, PreferNoSchedule or NoExecute", t)
		}
	}
	switch c.PullPolicy {
	case "", "Always", "IfNotPresent", "Never":
	default:
		bad("pull-policy", "choose Always, IfNotPresent or Never")
	}
	switch c.Architecture {
	case "", "amd64", "arm64":
	default:
		bad("architecture", "choose amd64 or arm64")
	}
	switch c.AgentTransport {
	case TransportExec, TransportPod:
	default:
		bad("agent-transport", "choose exec or pod")
	}
	if _, err := netip.ParseAddr(c.Resolver); c.Resolver != "" && err != nil {
		bad("resolver", "%q is no address, such as 10.96.0.10", c.Resolver)
	}
	for _, b := range c.Blocked {
		checkNetwork("blocked", b, bad)
	}
	if !c.OnKubernetes() {
		return
	}
	if c.Image == "" || c.Agent == "" {
		bad("image, agent", "on Kubernetes both are references in a registry that its nodes reach, such as registry.example.com/berth/base:1")
	}
}
