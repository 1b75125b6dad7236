package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// agentRef is the agent's image on the cluster's node.
const agentRef = "berth.local/agent:bench"

// cluster is a development cluster of our own.
type cluster struct {
	program    string // devcluster
	dir        string
	Kubeconfig string `json:"kubeconfig"`
	Kubectl    string `json:"kubectl"`

	image  string // of the containers, as its archive calls it
	client kubernetes.Interface
}

// newCluster starts a cluster, and puts the images on its node.
func newCluster(ctx context.Context, o options) (_ *cluster, err error) {
	c := &cluster{program: o.devcluster}
	if c.dir, err = os.MkdirTemp("", "berth-bench-cluster-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.delete())
		}
	}()
	out, err := c.run(ctx, "up", "--json")
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(out, c); err != nil {
		return nil, fmt.Errorf("ready.json: %w", err)
	}
	if c.image, err = nameOf(o.image); err != nil {
		return nil, err
	}
	agent := filepath.Join(c.dir, "agent.tar")
	if err := packAgent(o.beside("berth-agent-linux-"+runtime.GOARCH), agent); err != nil {
		return nil, fmt.Errorf("pack the agent: %w", err)
	}
	if _, err := c.run(ctx, "load", o.image, agent); err != nil {
		return nil, err
	}
	config, err := configOf(c.Kubeconfig)
	if err != nil {
		return nil, err
	}
	if c.client, err = kubernetes.NewForConfig(config); err != nil {
		return nil, err
	}
	return c, c.accounts(ctx)
}

func configOf(kubeconfig string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err == nil {
		config.QPS = -1
	}
	return config, err
}

// namespace is Berth's own.
const namespace = "berth"

// accounts makes those of Berth's programs, with the rights and the policies of a deployment: what an administrator asks of the
// API server is exempt from its fairness.
func (c *cluster) accounts(ctx context.Context) error {
	if _, err := c.do(ctx, "create", "namespace", namespace); err != nil {
		return err
	}
	base := filepath.Join(filepath.Dir(c.program), "../../deploy/kubernetes/base")
	_, err := c.do(ctx, "apply", "--server-side", "-f", filepath.Join(base, "rbac.yaml"), "-f", filepath.Join(base, "admission.yaml"))
	return err
}

// account returns a kubeconfig with a token of an account's.
func (c *cluster) account(ctx context.Context, name string) (string, error) {
	token, err := c.do(ctx, "--namespace", namespace, "create", "token", name, "--duration=24h")
	if err != nil {
		return "", err
	}
	config, err := clientcmd.LoadFromFile(c.Kubeconfig)
	if err != nil {
		return "", err
	}
	for user := range config.AuthInfos {
		config.AuthInfos[user] = &clientcmdapi.AuthInfo{Token: strings.TrimSpace(token)}
	}
	file := filepath.Join(c.dir, name+".kubeconfig")
	return file, clientcmd.WriteToFile(*config, file)
}

// rejected returns how many requests the API server has turned away to be fair to others.
func (c *cluster) rejected(ctx context.Context) (n float64, err error) {
	text, err := c.do(ctx, "get", "--raw", "/metrics")
	for line := range strings.Lines(text) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), "} "); strings.HasPrefix(name, "apiserver_flowcontrol_rejected_requests_total{") {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return 0, err
			}
			n += v
		}
	}
	return n, err
}

// do runs kubectl.
func (c *cluster) do(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Kubectl, append([]string{"--kubeconfig", c.Kubeconfig}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", args[0], err, &errs)
	}
	return string(out), nil
}

// run runs devcluster.
func (c *cluster) run(ctx context.Context, verb string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.program, append([]string{verb, "--dir", c.dir}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("devcluster %s: %w: %s", verb, err, &errs)
	}
	return out.Bytes(), nil
}

func (c *cluster) delete() error {
	_, err := c.run(context.Background(), "down", "--delete")
	return errors.Join(err, os.RemoveAll(c.dir))
}

// kubectl is a contender by `kubectl exec` into a container's pod.
func (c *cluster) kubectl(label string, b *box, env ...string) contender {
	return contender{label: label, via: slices.Concat([]string{"env"}, env, []string{
		c.Kubectl, "--kubeconfig", c.Kubeconfig, "--namespace", b.namespace(), "exec", "-i", b.id + "-0", "-c", "main", "--", "sh", "-c",
	})}
}

// namespace is that of a container of the first account.
func (b *box) namespace() string { return "compute-1-" + b.id }

// packAgent writes an image that has the agent and nothing else.
func packAgent(program, archive string) error {
	text, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	if err := w.WriteHeader(&tar.Header{Name: "agent", Mode: 0o755, Size: int64(len(text))}); err != nil {
		return err
	}
	if _, err := w.Write(text); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files.Bytes())), nil })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config.OS, config.Architecture, config.Config = "linux", runtime.GOARCH, v1.Config{Entrypoint: []string{"/agent"}}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	tag, err := name.NewTag(agentRef)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(archive, tag, img)
}

// nameOf reads from an OCI archive how its image is called.
func nameOf(archive string) (string, error) {
	f, err := os.Open(archive)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for files := tar.NewReader(f); ; {
		header, err := files.Next()
		if err != nil {
			return "", fmt.Errorf("%s: index.json: %w", archive, err)
		}
		if header.Name != "index.json" {
			continue
		}
		var index struct {
			Manifests []struct{ Annotations map[string]string }
		}
		if err := json.NewDecoder(files).Decode(&index); err != nil || len(index.Manifests) == 0 {
			return "", fmt.Errorf("%s: index.json names no image (%w)", archive, err)
		}
		return index.Manifests[0].Annotations["io.containerd.image.name"], nil
	}
}

// gateway is a berth-gateway.
type gateway struct {
	cmd    *exec.Cmd
	port   string
	exited chan struct{}
}

var gatewayLine = regexp.MustCompile(`ssh at \S+:(\d+)`)

// startGateway starts one on a port of its own, and returns once it lets people in.
func startGateway(ctx context.Context, program string, args ...string) (*gateway, error) {
	cmd := exec.Command(program, append(args, "--ssh-addr", "127.0.0.1:0")...)
	cmd.Env = environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return nil, err
	}
	g := &gateway{cmd: cmd, exited: make(chan struct{})}
	ready := make(chan string, 1)
	var said []string
	go func() {
		defer close(g.exited)
		told := false
		for s := bufio.NewScanner(r); s.Scan(); {
			if m := gatewayLine.FindStringSubmatch(s.Text()); m != nil && !told {
				told = true
				ready <- m[1]
			} else if len(said) < 20 {
				said = append(said, s.Text())
			}
		}
		_ = r.Close()
		_ = cmd.Wait()
	}()
	select {
	case g.port = <-ready:
		return g, nil
	case <-g.exited:
		return nil, fmt.Errorf("berth-gateway: %v: %s", cmd.ProcessState, strings.Join(said, "\n"))
	case <-time.After(startLimit):
	case <-ctx.Done():
	}
	return nil, errors.Join(errors.New("berth-gateway does not get ready"), g.stop())
}

func (g *gateway) stop() error {
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-g.exited:
		return nil
	case <-time.After(stopLimit):
		_ = g.cmd.Process.Kill()
		<-g.exited
		return errors.New("berth-gateway did not end on SIGTERM")
	}
}
