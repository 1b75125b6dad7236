// Package k8stest holds the Kubernetes engine to the engines' contract, and to its own promises, on a development cluster: a
// real API server, kubelet and containerd. `make test-k8s` runs it; it has no code of its own.
package k8stest

import (
	"archive/tar"
	"bytes"
	"context"
	"flag"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	corev1 "k8s.io/api/core/v1"

	"berth/deploy/devcluster/clustertest"
	"berth/internal/compute"
	"berth/internal/enginetest"
	"berth/internal/k8s"
)

var running = flag.String("cluster", "", "the directory of a cluster that runs, instead of one of the test's own")

const (
	installation = "11111111-2222-3333-4444-555555555555"
	agentImage   = "berth.local/agent:test"
)

// rig is an engine on a cluster.
type rig struct {
	t        testing.TB
	cluster  *clustertest.Cluster
	accounts accounts // the engine has the control plane's
	opt      k8s.Options
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
	base := filepath.Join(clustertest.Root(t), "build/base-image.tar")
	c.Run(t, "load", base)
	c.Run(t, "load", agentArchive(t))
	a := newAccounts(t, c)
	r := &rig{t: t, cluster: c, accounts: a, opt: k8s.Options{
		Kubeconfig: a.api, InstallationID: installation,
		Image: clustertest.ImageName(t, base), ImageArchive: base, AgentImage: agentImage, PullPolicy: corev1.PullIfNotPresent,
		GatewayNamespace: "berth", Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}}
	t.Cleanup(r.close)
	r.open()
	return r
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

// agentArchive writes an image that has the agent and nothing else.
func agentArchive(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := enginetest.BuildAgent(dir + "/agent"); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(dir + "/agent")
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	err = w.WriteHeader(&tar.Header{Name: "agent", Mode: 0o755, Size: int64(len(program))})
	if err == nil {
		_, err = w.Write(program)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.OS, config.Architecture, config.Config = "linux", runtime.GOARCH, v1.Config{Entrypoint: []string{"/agent"}}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(agentImage)
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(dir+"/agent.tar", tag, img); err != nil {
		t.Fatal(err)
	}
	return dir + "/agent.tar"
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
