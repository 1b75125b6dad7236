// Package k8stest holds the Kubernetes engine to the engines' contract, and to its own promises, on a development cluster: a
// real API server, kubelet and containerd. `make test` runs it; it has no code of its own.
package k8stest

import (
	"context"
	"flag"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"berth/deploy/devcluster/clustertest"
	"berth/deploy/images/pack"
	"berth/internal/compute"
	"berth/internal/enginetest"
	"berth/internal/k8s"
)

var running = flag.String("cluster", "", "the directory of a cluster that runs, instead of one of the test's own")

const installation = "11111111-2222-3333-4444-555555555555"

// rig is an engine on a cluster.
type rig struct {
	t        testing.TB
	cluster  *clustertest.Cluster
	accounts accounts // the engine has the control plane's
	opt      k8s.Options
	unread   string // the base image by a name of the node's own, of which no registry knows what is in it
	e        *k8s.Engine
}

func newRig(t testing.TB) *rig {
	t.Helper()
	var c *clustertest.Cluster
	if *running != "" {
		c = &clustertest.Cluster{Dir: *running}
		c.Up(t)
	} else {
		c = clustertest.Start(t)
	}
	build := filepath.Join(clustertest.Root(t), "build")
	base := filepath.Join(build, "base-image.tar")
	c.Run(t, "load", base)
	images, err := pack.Push(t.Context(), filepath.Join(build, "images-"+runtime.GOARCH), c.Registry+"/berth", "test", func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	a := newAccounts(t, c)
	r := &rig{t: t, cluster: c, accounts: a, unread: clustertest.ImageName(t, base), opt: k8s.Options{
		Kubeconfig: a.api, InstallationID: installation, Image: images[pack.Base].Ref, AgentImage: images[pack.Agent].Ref,
		PullPolicy: corev1.PullIfNotPresent, GatewayNamespace: "berth",
		Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}}
	t.Cleanup(r.close)
	r.open()
	return r
}

// in is the rig for a part of its test.
func (r *rig) in(t *testing.T) *rig {
	part := *r
	part.t = t
	return &part
}

func (r *rig) open() *k8s.Engine {
	r.t.Helper()
	e, err := k8s.Open(r.ctx(), r.opt)
	if err != nil {
		r.t.Fatalf("open: %v", err)
	}
	r.e = e
	return e
}

func (r *rig) close() {
	if r.e != nil {
		if err := r.e.Close(); err != nil {
			r.t.Errorf("close: %v", err)
		}
		r.e = nil
	}
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), enginetest.Timeout)
	r.t.Cleanup(cancel)
	return ctx
}

func newSpec() compute.Spec {
	id := compute.NewContainerID()
	return compute.Spec{
		Ref: compute.Ref{Owner: 7, ID: id}, Hostname: string(id) + ".compute.localhost", MilliCPU: 1000, Arch: runtime.GOARCH,
		MemoryMB: 256, StorageGB: 2, MountPaths: []string{"/root"},
	}
}

// testWriter gives what is logged to the test.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

func TestContract(t *testing.T) {
	r := newRig(t)
	enginetest.Run(t, &enginetest.Subject{
		Engine: r.apart(), Shell: enginetest.Shell, Spec: newSpec, HostsMounted: true,
		Reopen: func(*testing.T) enginetest.Engine {
			r.close()
			r.open()
			return r.apart()
		},
	})
}
