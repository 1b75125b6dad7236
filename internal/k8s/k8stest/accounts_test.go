package k8stest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"berth/deploy/devcluster/clustertest"
	"berth/internal/compute"
	"berth/internal/enginetest"
	"berth/internal/k8s"
)

const ownNamespace = "berth"

// accounts are the kubeconfigs of Berth's two accounts: real tokens, with the rights that the manifests give.
type accounts struct{ api, gateway string }

// newAccounts gives a cluster what Berth's manifests say of rights. All of this package's engines have no others.
func newAccounts(t testing.TB, c *clustertest.Cluster) accounts {
	t.Helper()
	c.Apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+ownNamespace+"}\n")
	for _, name := range []string{"rbac.yaml", "admission.yaml"} {
		text, err := os.ReadFile(filepath.Join(clustertest.Root(t), "deploy/kubernetes/base", name))
		if err != nil {
			t.Fatal(err)
		}
		c.Apply(t, string(text))
	}
	a := accounts{account(t, c, "berth-api"), account(t, c, "berth-gateway")}
	// A policy is in force some moments after it is there. Each of these is refused by another one, and by nothing else.
	for _, object := range []string{
		"{apiVersion: v1, kind: LimitRange, metadata: {name: x, namespace: default}, spec: {limits: []}}",
		"{apiVersion: v1, kind: Namespace, metadata: {name: x}}",
	} {
		clustertest.Eventually(t, 30*time.Second, func() error { return refusedByPolicy(as(t, c, a.api).apply(object)) })
	}
	return a
}

// account returns a kubeconfig with a token that the cluster made for the account.
func account(t testing.TB, c *clustertest.Cluster, name string) string {
	t.Helper()
	config, err := clientcmd.LoadFromFile(c.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	token := c.Do(t, "-n", ownNamespace, "create", "token", name, "--duration=24h")
	for user := range config.AuthInfos {
		config.AuthInfos[user] = &clientcmdapi.AuthInfo{Token: token}
	}
	file := filepath.Join(t.TempDir(), name)
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	return file
}

func configOf(t testing.TB, kubeconfig string) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	return config
}

// apart is an engine whose agents are reached by a gateway with its own account.
type apart struct {
	*k8s.Engine
	gateway *k8s.Dialer
}

func (a apart) DialAgent(ctx context.Context, r compute.Ref) (net.Conn, error) {
	return a.gateway.DialAgent(ctx, r)
}

// apart returns the rig's engine with the gateway in front of it.
func (r *rig) apart() enginetest.Engine {
	r.t.Helper()
	d, err := k8s.NewDialer(k8s.DialerOptions{Kubeconfig: r.accounts.gateway, Log: r.opt.Log})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := d.Close(); err != nil {
			r.t.Error(err)
		}
	})
	return apart{r.e, d}
}
