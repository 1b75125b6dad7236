package k8s

import (
	"errors"
	"log/slog"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Options configures an Engine. InstallationID, Image, AgentImage and GatewayNamespace are required.
type Options struct {
	Kubeconfig     string // file; empty: as a pod of the cluster
	InstallationID string

	Image       string            // containers run it, by digest where it may change
	AgentImage  string            // has the agent as /agent
	PullPolicy  corev1.PullPolicy // default: Kubernetes' own
	PullSecrets []string          // for registries: Secrets in the gateway's namespace, copied to where kubelets need them
	AcceptEnv   []string          // environment variables that clients may send

	StorageClass string // empty: the cluster's default

	GatewayNamespace string // where the gateway's pods are, which alone may connect to containers
	GatewayLabels    map[string]string
	Resolver         netip.Addr     // of names; zero: the cluster's
	Blocked          []netip.Prefix // that containers may not reach, beside private ones, nodes and the API server

	LoadBalancers *LoadBalancers // nil: containers have the gateway's address

	NodeSelector   map[string]string
	Tolerations    []corev1.Toleration
	PriorityClass  string
	RuntimeClass   string
	UserNamespaces bool // hostUsers: false; nodes must be able to
	Spread         bool // over nodes, where there is a choice

	Addresses bool // agents are connected to at their pods' addresses, where these can be reached

	StopGrace time.Duration // between TERM and KILL; default 20 s

	Log *slog.Logger
}

const defaultGrace = 20 * time.Second

func (o Options) withDefaults() (Options, error) {
	var missing []error
	for name, value := range map[string]string{
		"installation": o.InstallationID, "image": o.Image, "agent image": o.AgentImage, "gateway's namespace": o.GatewayNamespace,
	} {
		if value == "" {
			missing = append(missing, errors.New("the Kubernetes engine needs to be told the "+name))
		}
	}
	if o.LoadBalancers != nil && len(o.GatewayLabels) == 0 {
		missing = append(missing, errors.New("load balancers need to be told the labels of the gateway's pods"))
	}
	if len(o.PullSecrets) == 0 {
		o.PullSecrets = nil // none are copied
	}
	if o.StopGrace == 0 {
		o.StopGrace = defaultGrace
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return o, errors.Join(missing...)
}
