package app

import (
	"context"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"

	"berth/internal/auth"
	"berth/internal/config"
	"berth/internal/httpapi"
	"berth/internal/k8s"
	"berth/internal/link"
	"berth/internal/sshproxy"
)

// openCluster makes Kubernetes what runs containers. Every control plane reads the cluster; one of several drives it.
func (b *berth) openCluster(ctx context.Context, installation string, p *progress) error {
	options, err := clusterOptions(b.cfg)
	if err != nil {
		return err
	}
	options.InstallationID, options.Log = installation, b.log.With("part", "kubernetes")
	p.step("Reading the cluster", 0, 0)
	e, err := k8s.Open(ctx, options)
	if err != nil {
		return err
	}
	b.watchIsolation(e)
	b.cluster = e
	if b.cfg.Database == "" {
		b.ownEngine(e)
		return nil
	}
	b.onClose(e.Close)
	b.dialer = e
	place, err := e.ClusterID(ctx)
	if err != nil {
		return err
	}
	b.replica = newReplica(b.store)
	rest := func() { b.replica.set(e, false) }
	drive := func(ctx context.Context) error {
		defer rest()
		b.replica.set(e, true)
		return b.control.Run(ctx)
	}
	return b.share("kubernetes "+place, rest, drive, func() error { return nil })
}

// followAddresses has the API know where containers are reached that have an address of their own.
func (b *berth) followAddresses(api *httpapi.Server) {
	if b.cluster == nil {
		return
	}
	b.tasks = append(b.tasks, func(ctx context.Context) error {
		if err := b.cluster.ExternalIPs(ctx, api.SetExternalIP); ctx.Err() == nil {
			return fmt.Errorf("follow the containers' addresses: %w", err)
		}
		return nil
	})
}

// watchIsolation learns once whether the cluster keeps containers to their network policies.
func (b *berth) watchIsolation(e *k8s.Engine) {
	enforced := new(atomic.Int32)
	enforced.Store(-1)
	b.metrics.Gauge("berth_network_policies_enforced", func() float64 { return float64(enforced.Load()) })
	b.tasks = append(b.tasks, func(ctx context.Context) error {
		e.WatchIsolation(ctx, func(i k8s.Isolation) {
			enforced.Store(0)
			if i.Enforced() {
				enforced.Store(1)
			}
		})
		return nil
	})
}

// clusterOptions are the Kubernetes engine's, from the settings.
func clusterOptions(c config.Config) (k8s.Options, error) {
	o := k8s.Options{
		Kubeconfig: c.Kubeconfig, Image: c.Image, AgentImage: c.Agent, PullPolicy: corev1.PullPolicy(c.PullPolicy), AcceptEnv: c.AcceptEnv,
		StorageClass: c.StorageClass, GatewayNamespace: ownNamespace(c), GatewayLabels: gatewayLabels(), PriorityClass: c.PriorityClass,
		RuntimeClass: c.RuntimeClass, UserNamespaces: c.UserNamespaces, Spread: c.Spread, PullSecrets: c.PullSecrets,
		Addresses:    c.AgentTransport == config.TransportPod,
		NodeSelector: k8s.ParseLabels(c.NodeSelector), Tolerations: k8s.ParseTolerations(c.Tolerations),
	}
	if c.LoadBalancers {
		o.LoadBalancers = &k8s.LoadBalancers{Class: c.LoadBalancerClass, Annotations: k8s.ParseLabels(c.LoadBalancerAnnotations)}
	}
	if c.Resolver != "" {
		a, err := netip.ParseAddr(c.Resolver)
		if err != nil {
			return o, fmt.Errorf("resolver: %w", err)
		}
		o.Resolver = a
	}
	o.Blocked = config.Networks(c.Blocked)
	return o, nil
}

// gatewayLabels are those of the gateways' pods, in deploy/kubernetes.
func gatewayLabels() map[string]string {
	return map[string]string{"app.kubernetes.io/name": "berth-gateway"}
}

// ownNamespace is that of berth-api and berth-gateway.
func ownNamespace(c config.Config) string {
	if c.KubernetesNamespace != "" {
		return c.KubernetesNamespace
	}
	return k8s.OwnNamespace("berth")
}

// shareKeys has control planes that share a database share their keys too: what the Secret has is written into the data
// directory, and what it lacks is made there and stored in it.
func shareKeys(ctx context.Context, c config.Config) error {
	if c.KeysSecret == "" {
		return nil
	}
	if err := os.MkdirAll(c.DataDir, 0o755); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	files := clientFiles{dir: c.DataDir}
	names := append(sshproxy.HostKeyFiles(), tokenKey, linkAuthority)
	err := k8s.UpdateSecret(ctx, c.Kubeconfig, ownNamespace(c), c.KeysSecret, func(data map[string][]byte) error {
		for _, name := range names {
			if text, ok := data[name]; ok {
				if err := (invoker{}).writeFile(files.path(name), string(text), 0o600); err != nil {
					return err
				}
			}
		}
		if _, err := auth.OpenKey(files.path(tokenKey)); err != nil {
			return err
		}
		if _, err := link.OpenAuthority(files.path(linkAuthority)); err != nil {
			return err
		}
		if _, err := sshproxy.OpenHostKeys(c.DataDir); err != nil {
			return err
		}
		for _, name := range names {
			text, err := os.ReadFile(files.path(name))
			if err != nil {
				return err
			}
			data[name] = text
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("share the keys: %w", err)
	}
	return nil
}

// keepGatewaySecret fills the Secret that gateways mount: the host keys, which are the same for all, and each one's credential.
func (b *berth) keepGatewaySecret(ctx context.Context, authority *link.Authority) error {
	if _, err := sshproxy.OpenHostKeys(b.cfg.DataDir); err != nil {
		return err
	}
	var unknown map[string]string // to the database: the fingerprint by the gateway's name
	err := k8s.UpdateSecret(ctx, b.cfg.Kubeconfig, ownNamespace(b.cfg), b.cfg.GatewaySecret, func(data map[string][]byte) error {
		unknown = make(map[string]string)
		for _, name := range sshproxy.HostKeyFiles() {
			text, err := os.ReadFile(b.files.path(name))
			if err != nil {
				return err
			}
			data[name] = text
		}
		for _, name := range b.cfg.GatewayNames {
			key := name + ".pem"
			there, absent := link.Credential{}, error(fs.ErrNotExist)
			if text, ok := data[key]; ok {
				there, absent = link.ParseCredential(text)
			}
			keep, err := b.mayKeep(ctx, authority, there, absent, "Secret "+b.cfg.GatewaySecret)
			switch {
			case err != nil:
				return err
			case keep:
			case absent == nil && authority.Issued(there): // by a control plane that has yet to store it
				unknown[name] = there.Fingerprint
			default:
				if data[key], unknown[name], err = authority.Issue(name); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for name, fingerprint := range unknown {
		if err := b.store.ReplaceGateway(ctx, name, fingerprint); err != nil {
			return err
		}
	}
	return nil
}
