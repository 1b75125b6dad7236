// Package clustertest starts development clusters for tests: real ones, each with a directory, a network and names of its
// own, taken down when the test ends. Its boundary: it runs the programs that `make cluster` builds, and what it knows of a
// cluster is what ready.json says.
package clustertest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/internal/leakcheck"
)

// Cluster is a running one. Its fields are those of ready.json.
type Cluster struct {
	Dir           string `json:"-"`
	Process       int    `json:"process"`
	Kubeconfig    string `json:"kubeconfig"`
	Kubectl       string `json:"kubectl"`
	Node          string `json:"node"`
	NodeAddress   string `json:"node_address"`
	Machine       string `json:"machine_address"`
	Network       string `json:"network"`
	LoadBalancers string `json:"load_balancers"`
	Containerd    string `json:"containerd"`
	Registry      string `json:"registry"`
	Logs          string `json:"logs"`
	Registries    string `json:"registries"`

	before *leakcheck.Snapshot
}

// Start starts a cluster. When the test ends, it is stopped, and the test fails if anything of it is left on the machine.
func Start(t testing.TB) *Cluster {
	t.Helper()
	before, err := leakcheck.Take()
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{Dir: t.TempDir(), before: before}
	own, err := os.Stat(c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			c.printLogs(t)
		}
		c.Run(t, "down", "--delete")
		left, err := leakcheck.Settled(before, leakcheck.Patience, c.words()...)
		if err != nil {
			t.Error(err)
		}
		for _, thing := range left {
			if !ofAnother(thing, own) {
				t.Errorf("left behind: %v", thing)
			}
		}
	})
	c.Up(t)
	return c
}

// ofAnother says whether a thing has gone since, or is of the node of another cluster than the one with the directory own: in
// every node its cluster's directory has the same name.
func ofAnother(thing leakcheck.Thing, own os.FileInfo) bool {
	var processes []string // that are it, or are in it
	switch thing.Kind {
	case leakcheck.Process:
		pid, _, _ := strings.Cut(thing.Name, " ")
		processes = []string{filepath.Join("/proc", pid)}
	case leakcheck.NetNS:
		links, _ := filepath.Glob("/proc/[0-9]*/ns/net") // the pattern is sound
		for _, link := range links {
			if to, err := os.Readlink(link); err == nil && to == thing.Name {
				processes = append(processes, filepath.Dir(filepath.Dir(link)))
			}
		}
	default:
		return false
	}
	return !slices.ContainsFunc(processes, func(process string) bool {
		if _, err := os.Stat(process); errors.Is(err, fs.ErrNotExist) {
			return false
		}
		dir, err := os.Stat(filepath.Join(process, "root/cluster"))
		return err != nil || os.SameFile(dir, own)
	})
}

// words tell the cluster's things from others on the machine, those of clusters beside it above all. What runs in the node ends
// with the node's first process, which has the node's name.
func (c *Cluster) words() []string {
	words := []string{c.Dir}
	if c.Node != "" {
		words = append(words, c.Node, strings.Replace(c.Node, "berth-dev-", "bdev", 1))
	}
	return words
}

// Up starts the cluster, where it does not run, and learns where it is.
func (c *Cluster) Up(t testing.TB) {
	t.Helper()
	if err := json.Unmarshal(c.Run(t, "up", "--json"), c); err != nil {
		t.Fatalf("ready.json: %v", err)
	}
}

// Run runs devcluster on this cluster and returns what it prints.
func (c *Cluster) Run(t testing.TB, verb string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(filepath.Join(Root(t), "build/devcluster/devcluster"), append([]string{verb, "--dir", c.Dir}, args...)...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("devcluster %s %v: %v\n%s", verb, args, err, &said)
	}
	t.Logf("devcluster %s %v\n%s", verb, args, &said)
	return out.Bytes()
}

// Command is kubectl on this cluster, to be run.
func (c *Cluster) Command(t testing.TB, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), c.Kubectl, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig)
	return cmd
}

// Try runs kubectl and returns what it printed; the error has what it complained of.
func (c *Cluster) Try(t testing.TB, args ...string) (string, error) {
	cmd := c.Command(t, args...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}

// Do runs kubectl, which must succeed.
func (c *Cluster) Do(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.Try(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Undo runs kubectl when the test ends, and its context has.
func (c *Cluster) Undo(t testing.TB, args ...string) {
	t.Helper()
	t.Cleanup(func() {
		cmd := exec.Command(c.Kubectl, args...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
		}
	})
}

// Apply has the cluster be as the objects say.
func (c *Cluster) Apply(t testing.TB, objects string) {
	t.Helper()
	cmd := c.Command(t, "apply", "--server-side", "-f", "-")
	cmd.Stdin = strings.NewReader(objects)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("kubectl apply: %v: %s", err, out)
	}
}

// Eventually asks until there is no error, for what announces nothing to wait on.
func Eventually(t testing.TB, within time.Duration, ask func() error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(within); ; <-tick.C {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", within, err)
		}
	}
}

// Root is the source tree's.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	t.Fatal("no go.mod above the working directory")
	return ""
}

// ImageName reads from an OCI archive how its image is called.
func ImageName(t testing.TB, archive string) string {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for files := tar.NewReader(f); ; {
		header, err := files.Next()
		if err != nil {
			t.Fatalf("%s: index.json: %v", archive, err)
		}
		if header.Name != "index.json" {
			continue
		}
		var index struct {
			Manifests []struct{ Annotations map[string]string }
		}
		if err := json.NewDecoder(files).Decode(&index); err != nil {
			t.Fatal(err)
		}
		return index.Manifests[0].Annotations["io.containerd.image.name"]
	}
}

// printLogs shows the end of each component's log.
func (c *Cluster) printLogs(t testing.TB) {
	logs, err := filepath.Glob(filepath.Join(c.Dir, "log/*.log"))
	if err != nil {
		t.Error(err)
	}
	for _, log := range logs {
		text, err := os.ReadFile(log)
		if err != nil {
			t.Error(err)
		}
		t.Logf("%s ends with\n%s", filepath.Base(log), text[max(0, len(text)-4000):])
	}
}
