package k8stest

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"berth/deploy/devcluster/clustertest"
	"berth/internal/compute"
	"berth/internal/k8s"
)

// logged is what an engine logs.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// testProbe has the cluster, which enforces no policy, told from one that does: rules of the node's own stand for a network
// plugin's.
func testProbe(t *testing.T, r *rig) {
	said := &logged{}
	opt := r.opt
	opt.Log = slog.New(slog.NewTextHandler(said, nil))
	e, err := k8s.Open(r.ctx(), opt)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()

	var told []k8s.Isolation
	e.WatchIsolation(r.ctx(), func(i k8s.Isolation) { told = append(told, i) })
	if len(told) != 1 || told[0].Enforced() || !strings.Contains(strings.Join(told[0].Reached, " "), r.cluster.NodeAddress) {
		t.Errorf("told %+v", told)
	}
	if text := said.String(); !strings.Contains(text, "level=WARN") || !strings.Contains(text, "does not enforce network policies") {
		t.Errorf("no warning was given: %s", text)
	}

	r.firewall("chain in { type filter hook input priority 0; tcp dport { 6443, 10250 } drop; }")
	if i, err := e.ProbeIsolation(r.ctx()); err != nil || !i.Enforced() {
		t.Errorf("behind a firewall: %+v, %v", i, err)
	}
	r.firewall("chain in { type filter hook input priority 0; ip protocol { tcp, udp } drop; }")
	if i, err := e.ProbeIsolation(r.ctx()); err == nil || !strings.Contains(err.Error(), "reaches nothing at all") {
		t.Errorf("cut off: %+v, %v", i, err)
	}
	r.firewall("")

	clustertest.Eventually(t, time.Minute, func() error {
		if left := r.cluster.Do(t, "get", "namespaces", "-l", "berth/probe", "-o", "name"); left != "" {
			return fmt.Errorf("left behind: %s", left)
		}
		return nil
	})
	list, err := e.Stored(r.ctx())
	if i := slices.IndexFunc(list, func(s compute.Stored) bool { return s.Ref.Owner == 0 }); err != nil || i >= 0 {
		t.Errorf("a probe is taken for a container: %+v, %v", list, err)
	}
}

// firewall has the node treat so what pods send, and nothing otherwise.
func (r *rig) firewall(chains string) {
	r.t.Helper()
	rules := "table bridge berth-test\ndelete table bridge berth-test\n"
	if chains != "" {
		rules += "table bridge berth-test {\n" + chains + "\n}\n"
	}
	if err := r.nft(rules); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) nft(rules string) error {
	cmd := exec.Command("nsenter", "--target", fmt.Sprint(r.cluster.Process), "--net", "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// enforce stands for a network plugin, until the test ends: pods of namespaces with policies may connect to what resolves
// names, and nobody to them.
func (r *rig) enforce() {
	r.t.Helper()
	r.firewall(`set guarded { type ipv4_addr; }
		chain in { type filter hook input priority 0; ip saddr @guarded tcp dport != 53 tcp flags & (syn|ack) == syn drop; }
		chain over { type filter hook forward priority 0; tcp dport 53 accept; tcp flags & (syn|ack) != syn accept; ip saddr @guarded drop; ip daddr @guarded drop; }`)
	client, err := kubernetes.NewForConfig(configOf(r.t, r.cluster.Kubeconfig))
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	pods, err := client.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{LabelSelector: "berth/probe"})
	if err != nil {
		cancel()
		r.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		for event := range pods.ResultChan() {
			pod, ok := event.Object.(*corev1.Pod)
			if !ok || pod.Status.PodIP == "" {
				continue
			}
			policies, err := client.NetworkingV1().NetworkPolicies(pod.Namespace).List(ctx, metav1.ListOptions{})
			if err == nil && len(policies.Items) > 0 {
				err = r.nft("add element bridge berth-test guarded { " + pod.Status.PodIP + " }\n")
			}
			if err != nil && ctx.Err() == nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	r.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Error(err)
		}
		r.firewall("")
	})
}

// testSuite has the isolation suite find everything blocked where it is, and say so of nothing that is not there.
func testSuite(t *testing.T, r *rig) {
	r.enforce()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	opt := r.opt
	opt.Kubeconfig = r.cluster.Kubeconfig
	blocked := 0
	for _, c := range k8s.Checks(ctx, k8s.Examination{Options: opt, Isolation: true}) {
		if !strings.HasPrefix(c.Name, "isolation: ") {
			continue
		}
		if c.Problem != nil {
			t.Errorf("%s: %v", c.Name, c.Problem)
		}
		if c.Detail == "blocked" {
			blocked++
		}
	}
	if blocked != 4 { // the API server, the node, to and from another container
		t.Errorf("%d ways were found blocked", blocked)
	}
}

// testDoctor has the cluster looked at by an administrator and by the control plane's account.
func testDoctor(t *testing.T, r *rig) {
	types := []compute.InstanceType{{Name: "here", Architecture: runtime.GOARCH}, {Name: "there", Architecture: "riscv64"}}
	for name, kubeconfig := range map[string]string{"an administrator": r.cluster.Kubeconfig, "the control plane": r.accounts.api} {
		t.Run(name, func(t *testing.T) {
			r := r.in(t)
			opt := r.opt
			opt.Kubeconfig = kubeconfig
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			r.expect(k8s.Checks(ctx, k8s.Examination{Options: opt, Types: types, Isolation: name == "an administrator"}), map[string]string{
				"cluster":            "ok: Kubernetes v1.34.",
				"rights":             "ok: ",
				"admission policies": "ok: ",
				"storage class":      "warning: volumes of standard do not grow",
				"nodes":              "ok: 1 " + runtime.GOARCH,
				"architectures":      "warning: no riscv64 node is ready: containers of the types there cannot run",
				"Pod Security":       "ok: ",
				"exec":               "ok: WebSocket, SPDY",
				"limit of processes": "ok: about 4",
				// Of one of the two.
				"network policies":                      "warning: they are not enforced: a container reaches the API server",
				"isolation: to the API server":          "warning: a container gets through",
				"isolation: to node":                    "warning: a container gets through",
				"isolation: to another container":       "warning: a container gets through",
				"isolation: from another container":     "warning: a container gets through",
				"isolation: to the metadata service":    "ok: nothing answers there",
				"isolation: to the wire server (Azure)": "ok: nothing answers there",
				"isolation: names are resolved":         "ok: ",
			})
		})
	}
	// What it says where something is missing.
	for _, wrong := range []struct {
		want   string
		change func(*k8s.Options)
	}{
		{"FAIL: there is no absent", func(o *k8s.Options) { o.StorageClass = "absent" }},
		{"FAIL: none is ready for containers", func(o *k8s.Options) { o.NodeSelector = map[string]string{"absent": "yes"} }},
		{"FAIL: the probe's pod does not start: ErrImageNeverPull", func(o *k8s.Options) { o.AgentImage, o.PullPolicy = "berth.local/absent:1", "Never" }},
		{"FAIL: it does not answer", func(o *k8s.Options) { o.Kubeconfig = r.kubeconfig("http://127.0.0.1:1") }},
		{"FAIL: it is not known where it is", func(o *k8s.Options) { o.Kubeconfig = "/absent" }},
		{"get, list, watch, create, patch, delete namespaces", func(o *k8s.Options) { o.Kubeconfig = r.accounts.gateway }},
	} {
		opt := r.opt
		wrong.change(&opt)
		list := k8s.Checks(r.ctx(), k8s.Examination{Options: opt})
		if !slices.ContainsFunc(list, func(c k8s.Check) bool { return strings.Contains(verdict(c), wrong.want) }) {
			t.Errorf("%s is not among %v", wrong.want, list)
		}
	}
}

// expect compares checks with what is said of those whose names begin so. All that is found is expected.
func (r *rig) expect(list []k8s.Check, want map[string]string) {
	r.t.Helper()
	for _, c := range list {
		best := ""
		for name := range want {
			if strings.HasPrefix(c.Name, name) && len(name) > len(best) {
				best = name
			}
		}
		if best == "" || !strings.HasPrefix(verdict(c), want[best]) {
			r.t.Errorf("%s: %s; want %q", c.Name, verdict(c), want[best])
		}
	}
	if len(list) < 10 {
		r.t.Errorf("only %d checks: %v", len(list), list)
	}
}

func verdict(c k8s.Check) string {
	switch {
	case c.Problem != nil && c.Fatal:
		return "FAIL: " + c.Problem.Error()
	case c.Problem != nil:
		return "warning: " + c.Problem.Error()
	}
	return "ok: " + c.Detail
}
