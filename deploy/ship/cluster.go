package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// namespace is Berth's own, as the manifests have it.
const namespace = "berth"

// cluster is where Berth goes.
type cluster struct {
	kubectl, kubeconfig string
	dev                 *devcluster // nil: it is not the development cluster
}

// devcluster is what its ready.json says.
type devcluster struct {
	Kubeconfig    string `json:"kubeconfig"`
	Kubectl       string `json:"kubectl"`
	Registry      string `json:"registry"`
	LoadBalancers string `json:"load_balancers"`
}

// findCluster takes the one that KUBECONFIG says, else the development cluster where it runs, else kubectl's own choice.
func findCluster(o options) (*cluster, error) {
	dev, err := readDevcluster(o.cluster)
	if err != nil {
		return nil, err
	}
	c := &cluster{kubectl: "kubectl", kubeconfig: o.kubeconfig}
	if dev != nil && (o.kubeconfig == "" || o.kubeconfig == dev.Kubeconfig) {
		c.kubectl, c.kubeconfig, c.dev = dev.Kubectl, dev.Kubeconfig, dev
	} else if _, err := exec.LookPath(c.kubectl); err != nil {
		// The one that was built for the development cluster is as good.
		built := filepath.Join(o.tree, "build/devcluster/kubectl")
		if _, err := os.Stat(built); err != nil {
			return nil, errors.New("kubectl is missing: https://kubernetes.io/docs/tasks/tools/; `make cluster-up` builds one, too, with a cluster for it")
		}
		c.kubectl = built
	}
	return c, nil
}

// readDevcluster returns nothing where none runs.
func readDevcluster(dir string) (*devcluster, error) {
	text, err := os.ReadFile(filepath.Join(dir, "ready.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what the development cluster says: %w", err)
	}
	var d devcluster
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, fmt.Errorf("%s/ready.json: %w", dir, err)
	}
	return &d, nil
}

// command is kubectl on the cluster.
func (c *cluster) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.kubectl, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if c.kubeconfig != "" {
		cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig)
	}
	return cmd
}

// do runs kubectl with something on its standard input, and returns what it prints.
func (c *cluster) do(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := c.command(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}

// get asks for objects as JSON.
func (c *cluster) get(ctx context.Context, into any, args ...string) error {
	out, err := c.do(ctx, "", append([]string{"get", "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("kubectl get %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// follow runs kubectl and says each line that it prints.
func (c *cluster) follow(ctx context.Context, say func(string, ...any), args ...string) error {
	cmd := c.command(ctx, args...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("kubectl: %w", err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		say("%s", strings.TrimSuffix(lines.Text(), "..."))
	}
	_, _ = io.Copy(io.Discard, out) // past a line too long for the Scanner
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return nil
}

// introduce says which cluster this is, and fails where it does not answer.
func (c *cluster) introduce(ctx context.Context, say func(string, ...any)) error {
	out, err := c.do(ctx, "", "version", "-o", "json")
	if err != nil {
		return fmt.Errorf("no cluster answers; KUBECONFIG says which one, or start the development cluster with `make cluster-up`: %w", err)
	}
	var v struct{ ServerVersion struct{ GitVersion string } }
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return fmt.Errorf("kubectl version: %w", err)
	}
	server, err := c.do(ctx, "", "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
	if err != nil {
		return err
	}
	which := "the cluster"
	if c.dev != nil {
		which = "the development cluster"
	}
	say("to %s at %s, Kubernetes %s", which, server, v.ServerVersion.GitVersion)
	return nil
}
