package k8stest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"berth/deploy/devcluster/clustertest"
	"berth/internal/compute"
	"berth/internal/enginetest"
	"berth/internal/k8s"
)

// TestRepair has the cluster changed under a control plane, or lose a part, and sees it put right, or told of.
func TestRepair(t *testing.T) {
	r := newRig(t)
	r.close()
	t.Run("at once", func(t *testing.T) {
		for _, part := range []struct {
			name string
			test func(*testing.T, *plane)
		}{
			{"manual edits are set back by themselves", testEditsSetBack},
			{"another program that does it again and again", testFight},
			{"the StatefulSet is gone, its pod is not", testSetGone},
			{"the namespace is gone", testNamespaceGone},
			{"the volume is being deleted", testVolumeGoing},
			{"an old backup of the database", testOldBackup},
			{"an upgrade restarts nobody", testUpgrade},
		} {
			t.Run(part.name, func(t *testing.T) {
				t.Parallel()
				part.test(t, r.plane(t, nil))
			})
		}
	})
	t.Run("a node is lost", func(t *testing.T) { testNodeLost(t, r) })
}

// plane is a control plane on the rig's cluster.
type plane struct {
	*enginetest.Plane
	t        *testing.T
	cluster  *clustertest.Cluster
	opt      k8s.Options
	database string
	log      *record
}

// record keeps what is logged.
type record struct {
	t  *testing.T
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.t.Log(strings.TrimSuffix(string(b), "\n"))
	return r.b.Write(b)
}

func (r *record) has(words string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !strings.Contains(r.b.String(), words) {
		return fmt.Errorf("the log does not say %q", words)
	}
	return nil
}

// plane starts a control plane with an installation of its own. When the test ends, its containers are deleted.
func (r *rig) plane(t *testing.T, change func(*k8s.Options)) *plane {
	t.Helper()
	p := &plane{t: t, cluster: r.cluster, opt: r.opt, database: filepath.Join(t.TempDir(), "berth.db"), log: &record{t: t}}
	p.opt.Image = r.unread
	if change != nil {
		change(&p.opt)
	}
	t.Cleanup(func() {
		if p.Plane == nil {
			return
		}
		list, err := p.Store.Reconcilable(p.ctx())
		if err != nil {
			t.Error(err)
		}
		for _, c := range list {
			if c.Desired != compute.DesiredDeleted {
				if err := p.Service.DeleteContainer(p.ctx(), p.Owner, c.ID); err != nil {
					t.Error(err)
				}
			}
		}
		for _, c := range list {
			if err := p.AwaitGone(p.ctx(), c.Ref()); err != nil {
				t.Error(err)
			}
		}
		p.close()
	})
	p.open()
	return p
}

func (p *plane) open() {
	p.t.Helper()
	log := slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	o, err := enginetest.OpenPlane(p.ctx(), p.database, opening(p.opt), log)
	if err != nil {
		p.t.Fatal(err)
	}
	p.Plane = o
	p.settle()
}

func (p *plane) close() {
	p.t.Helper()
	if err := p.Plane.Close(); err != nil {
		p.t.Errorf("close: %v", err)
	}
	p.Plane = nil
}

// ctx bounds a step far above what it needs, also where it waits for the cluster's own patience.
func (p *plane) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*enginetest.Timeout)
	p.t.Cleanup(cancel)
	return ctx
}

func (p *plane) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) settle() {
	p.t.Helper()
	p.must(p.Settle(p.ctx()))
}

func (p *plane) create() compute.Ref {
	p.t.Helper()
	ref, err := p.Create(p.ctx())
	p.must(err)
	return ref
}

// run makes a container that runs, with a mark that only this life of it has.
func (p *plane) run() compute.Ref {
	p.t.Helper()
	ref := p.create()
	p.await(ref, compute.StatusRunning, "")
	p.sh(ref, "echo here >/tmp/mark; echo kept >/root/f")
	return ref
}

func (p *plane) await(ref compute.Ref, s compute.Status, message string) {
	p.t.Helper()
	p.must(p.AwaitStatus(p.ctx(), ref, s, message))
}

func (p *plane) sh(ref compute.Ref, script string) string {
	p.t.Helper()
	out, err := p.Sh(p.ctx(), ref, script)
	p.must(err)
	return out
}

func (p *plane) sameLife(ref compute.Ref) {
	p.t.Helper()
	p.sh(ref, "test $(cat /tmp/mark) = here && test $(cat /root/f) = kept")
}

// kubectl runs kubectl in a container's namespace.
func (p *plane) kubectl(ref compute.Ref, args ...string) string {
	p.t.Helper()
	return p.cluster.Do(p.t, append([]string{"-n", ref.String()}, args...)...)
}

// eventually waits until kubectl prints something.
func (p *plane) eventually(ref compute.Ref, want string, args ...string) {
	p.t.Helper()
	clustertest.Eventually(p.t, enginetest.Timeout, func() error {
		out, err := p.cluster.Try(p.t, append([]string{"-n", ref.String()}, args...)...)
		if err == nil && out != want {
			err = fmt.Errorf("kubectl %v prints %q, not %q", args, out, want)
		}
		return err
	})
}

// testEditsSetBack changes each thing of ours, and adds what is not. The first is set back, the second stays.
func testEditsSetBack(t *testing.T, p *plane) {
	ref := p.run()
	p.kubectl(ref, "annotate", "networkpolicy", "to-public", "team=red")
	for _, edit := range []struct {
		do         []string
		look, want string
	}{
		{[]string{"delete", "networkpolicy", "deny"}, "networkpolicy/deny {.spec.policyTypes}", `["Ingress","Egress"]`},
		{[]string{"patch", "networkpolicy", "to-public", "--type=merge", "-p", `{"spec": {"egress": [{}]}}`}, "networkpolicy/to-public {.spec.egress[0].to[0].ipBlock.cidr}", "0.0.0.0/0"},
		{[]string{"delete", "resourcequota", "berth"}, "resourcequota/berth {.spec.hard.pods}", "1"},
		{[]string{"patch", "resourcequota", "berth", "--type=merge", "-p", `{"spec": {"hard": {"pods": "9"}}}`}, "resourcequota/berth {.spec.hard.pods}", "1"},
		{[]string{"delete", "rolebinding", "berth-gateway"}, "rolebinding/berth-gateway {.roleRef.kind}", "ClusterRole"},
		{[]string{"patch", "rolebinding", "berth-gateway", "--type=merge", "-p", `{"subjects": []}`}, "rolebinding/berth-gateway {.subjects[0].name}", "berth-gateway"},
		{[]string{"delete", "limitrange", "berth"}, "limitrange/berth {.spec.limits[0].type}", "Container"},
		{[]string{"patch", "service", "container", "--type=merge", "-p", `{"spec": {"selector": {"else": "where"}}}`}, "service/container {.spec.selector.else}", ""},
		{[]string{"label", "persistentvolumeclaim", "storage", "app.kubernetes.io/managed-by-", "berth/installation-"}, "persistentvolumeclaim/storage {.metadata.labels.app\\.kubernetes\\.io/managed-by}", "berth"},
		{[]string{"label", "namespace", ref.String(), "pod-security.kubernetes.io/enforce=privileged", "--overwrite"}, "namespace/" + ref.String() + " {.metadata.labels.pod-security\\.kubernetes\\.io/enforce}", "baseline"},
		{[]string{"patch", "statefulset", string(ref.ID), "--type=strategic", "-p", `{"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "other"}]}}}}`}, "statefulset/" + string(ref.ID) + ` {.spec.template.spec.containers[?(@.name=="main")].image}`, p.opt.Image},
	} {
		p.kubectl(ref, edit.do...)
		what, path, _ := strings.Cut(edit.look, " ")
		p.eventually(ref, edit.want, "get", what, "-o", "jsonpath="+path)
	}
	if team := p.kubectl(ref, "get", "networkpolicy", "to-public", "-o", "jsonpath={.metadata.annotations.team}"); team != "red" {
		t.Errorf("what was added is %q", team)
	}
	p.must(p.log.has("networkpolicy/to-public (by kubectl-patch)"))
	p.must(p.log.has("persistentvolumeclaim/storage"))
	p.await(ref, compute.StatusRunning, "")
	p.settle()
	p.sameLife(ref)

	// Of one that is stopped, too.
	_, err := p.Service.StopContainer(p.ctx(), p.Owner, ref.ID)
	p.must(err)
	p.await(ref, compute.StatusStopped, "")
	p.kubectl(ref, "scale", "statefulset", string(ref.ID), "--replicas=1")
	p.eventually(ref, "0", "get", "statefulset", string(ref.ID), "-o", "jsonpath={.spec.replicas}")
	p.eventually(ref, "", "get", "pods", "-o", "name")
	p.await(ref, compute.StatusStopped, "")
}

// testFight has another program undo what is set back, as soon as it is: it is set back ever more seldom.
func testFight(t *testing.T, p *plane) {
	ref := p.run()
	config, err := clientcmd.BuildConfigFromFlags("", p.cluster.Kubeconfig)
	p.must(err)
	client, err := kubernetes.NewForConfig(config)
	p.must(err)
	policies := client.NetworkingV1().NetworkPolicies(ref.String())
	ctx, cancel := context.WithTimeout(p.ctx(), 20*time.Second)
	defer cancel()
	w, err := policies.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=to-public"})
	p.must(err)
	defer w.Stop()
	undone := 0
	for event := range w.ResultChan() { // ends with ctx
		policy, ok := event.Object.(*networkingv1.NetworkPolicy)
		if !ok || len(policy.Spec.Egress) == 1 {
			continue
		}
		policy.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{}}
		if _, err := policies.Update(ctx, policy, metav1.UpdateOptions{FieldManager: "fighter"}); err == nil {
			undone++
		}
	}
	// At first, and after 1, 3, 7 and 15 seconds.
	if undone < 4 || undone > 6 {
		t.Errorf("in 20 s it was set back %d times", undone)
	}
	p.must(p.log.has("(by fighter)"))
	p.sameLife(ref)
}

func testSetGone(t *testing.T, p *plane) {
	ref := p.run()
	p.kubectl(ref, "delete", "statefulset", string(ref.ID), "--cascade=orphan")
	p.eventually(ref, "1", "get", "statefulset", string(ref.ID), "-o", "jsonpath={.status.readyReplicas}")
	p.settle()
	p.sameLife(ref)
	p.kubectl(ref, "delete", "statefulset", string(ref.ID))
	p.eventually(ref, "1", "get", "statefulset", string(ref.ID), "-o", "jsonpath={.status.readyReplicas}")
	p.await(ref, compute.StatusRunning, "")
	p.settle()
	p.sh(ref, "test $(cat /root/f) = kept && test ! -e /tmp/mark")
}

// testNamespaceGone has storage deleted by hand: it is never made anew, empty.
func testNamespaceGone(t *testing.T, p *plane) {
	ref := p.run()
	p.cluster.Do(t, "delete", "namespace", ref.String())
	p.await(ref, compute.StatusFailed, "storage missing")
	_, err := p.Service.StartContainer(p.ctx(), p.Owner, ref.ID)
	p.must(err)
	p.await(ref, compute.StatusFailed, "storage missing")
	gone(t, p.cluster, ref)
	p.must(p.Service.DeleteContainer(p.ctx(), p.Owner, ref.ID))
	p.must(p.AwaitGone(p.ctx(), ref))
}

// testVolumeGoing has a volume deleted by hand that a container still uses: it is left running, for it holds the only copy.
func testVolumeGoing(t *testing.T, p *plane) {
	ref := p.run()
	p.kubectl(ref, "delete", "persistentvolumeclaim", "storage", "--wait=false")
	p.eventually(ref, "true", "get", "persistentvolumeclaim", "storage", "-o", `go-template={{if .metadata.deletionTimestamp}}true{{end}}`)
	_, err := p.Service.StopContainer(p.ctx(), p.Owner, ref.ID)
	p.must(err)
	p.await(ref, compute.StatusFailed, "storage missing")
	p.sameLife(ref)
}

// testOldBackup goes on with a database that does not know of the newest container: it is reported, and left alone until an
// administrator says so.
func testOldBackup(t *testing.T, p *plane) {
	known := p.run()
	p.close()
	backup, err := os.ReadFile(p.database)
	p.must(err)
	p.open()
	ref := p.run()
	p.close()
	newer, err := os.ReadFile(p.database)
	p.must(err)
	p.must(os.WriteFile(p.database, backup, 0o600))
	p.open()
	p.must(p.log.has("the engine has a container that the database does not know"))
	p.sameLife(known)
	p.sameLife(ref)
	mine := func() []compute.Stored {
		list, err := p.Service.Quarantined(p.ctx(), p.Admin)
		p.must(err)
		return slices.DeleteFunc(list, func(v compute.Stored) bool { return v.Foreign }) // other tests' are on the cluster too
	}
	if list := mine(); len(list) != 1 || list[0].Ref != ref || !list[0].Running {
		t.Fatalf("quarantined are %+v", list)
	}
	p.wantCode(p.Service.DiscardStorage(p.ctx(), p.Admin, known), compute.CodeConflict)
	p.wantCode(p.Service.DiscardStorage(p.ctx(), p.Owner, ref), compute.CodeForbidden)
	p.sameLife(ref)

	// The right database is found: nothing is lost. With the old one again, an administrator discards it.
	p.close()
	p.must(os.WriteFile(p.database, newer, 0o600))
	p.open()
	p.await(ref, compute.StatusRunning, "")
	p.sameLife(ref)
	if list := mine(); len(list) != 0 {
		t.Errorf("quarantined are %+v", list)
	}
	p.close()
	p.must(os.WriteFile(p.database, backup, 0o600))
	p.open()
	p.must(p.Service.DiscardStorage(p.ctx(), p.Admin, ref))
	gone(t, p.cluster, ref)
	p.wantCode(p.Service.DiscardStorage(p.ctx(), p.Admin, ref), compute.CodeNotFound)
	p.sameLife(known)
}

func (p *plane) wantCode(err error, want compute.Code) {
	p.t.Helper()
	if err == nil || compute.CodeOf(err) != want {
		p.t.Errorf("error %v, want one with code %s", err, want)
	}
}

// testUpgrade goes on with a Berth that makes other templates and other surroundings: they are applied, and restart nobody.
func testUpgrade(t *testing.T, p *plane) {
	ref := p.run()
	p.close()
	p.opt.AcceptEnv, p.opt.GatewayLabels = []string{"LANG"}, map[string]string{"app": "gateway"}
	p.open()
	p.await(ref, compute.StatusRunning, "")
	p.sameLife(ref)
	p.eventually(ref, "gateway", "get", "networkpolicy", "from-gateway", "-o", "jsonpath={.spec.ingress[0].from[0].podSelector.matchLabels.app}")
	template := p.kubectl(ref, "get", "statefulset", string(ref.ID), "-o", `jsonpath={.spec.template.spec.containers[?(@.name=="main")].command}`)
	if !strings.Contains(template, "--accept-env") {
		t.Errorf("its template is the old one: %s", template)
	}
	for _, op := range []func(context.Context, compute.Principal, compute.ContainerID) error{
		func(ctx context.Context, who compute.Principal, id compute.ContainerID) error {
			_, err := p.Service.StopContainer(ctx, who, id)
			return errors.Join(err, p.AwaitStatus(ctx, ref, compute.StatusStopped, ""))
		},
		func(ctx context.Context, who compute.Principal, id compute.ContainerID) error {
			_, err := p.Service.StartContainer(ctx, who, id)
			return errors.Join(err, p.AwaitStatus(ctx, ref, compute.StatusRunning, ""))
		},
	} {
		p.must(op(p.ctx(), p.Owner, ref.ID))
	}
	p.sh(ref, `tr '\0' ' ' </proc/1/cmdline | grep -q -- --accept-env && test $(cat /root/f) = kept`)
}

// testNodeLost stops the kubelet. What runs there may go on, so it is only told of; where the cluster gives the node up, the
// container starts again once it may, with its storage.
func testNodeLost(t *testing.T, r *rig) {
	patient := r.plane(t, nil)
	evicted := r.plane(t, func(o *k8s.Options) {
		second := int64(1)
		o.Tolerations = []corev1.Toleration{{
			Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &second,
		}}
	})
	one, two := patient.run(), evicted.run()
	podsOf := func() string { return evicted.kubectl(two, "get", "pods", "-o", "jsonpath={.items[*].metadata.uid}") }
	first := podsOf()
	// A cluster that has lost every node gives none up: somebody has to say that it should.
	giveUp := func() {
		r.cluster.Do(t, "wait", "--for=condition=Ready=Unknown", "node/"+r.cluster.Node, "--timeout=3m")
		r.cluster.Do(t, "taint", "node", r.cluster.Node, corev1.TaintNodeUnreachable+"=:NoExecute", "--overwrite")
	}
	r.cluster.Run(t, "stop", "kubelet")
	defer r.cluster.Run(t, "start", "kubelet") // it may run
	giveUp()
	patient.await(one, compute.StatusFailed, "Its node does not answer.")
	patient.must(patient.log.has("is not heard of"))
	evicted.await(two, compute.StatusFailed, "Its node was lost.")
	evicted.must(evicted.log.has("node.kubernetes.io/out-of-service"))
	if now := podsOf(); now != first { // never two of it
		t.Errorf("its pods were %s and are %s", first, now)
	}
	r.cluster.Run(t, "start", "kubelet")
	patient.await(one, compute.StatusRunning, "")
	patient.settle()
	patient.sameLife(one)
	evicted.await(two, compute.StatusRunning, "")
	evicted.settle()
	evicted.sh(two, "test $(cat /root/f) = kept && test ! -e /tmp/mark")

	// It is lost again, and its operator is sure that it is down.
	first = podsOf()
	r.cluster.Run(t, "stop", "kubelet")
	giveUp()
	evicted.eventually(two, "true", "get", "pods", "-o", `go-template={{range .items}}{{if .metadata.deletionTimestamp}}true{{end}}{{end}}`)
	r.cluster.Do(t, "taint", "node", r.cluster.Node, "node.kubernetes.io/out-of-service=down:NoExecute")
	clean := sync.OnceFunc(func() { r.cluster.Do(t, "taint", "node", r.cluster.Node, "node.kubernetes.io/out-of-service-") })
	defer clean()
	evicted.await(two, compute.StatusFailed, "No node can run it now")
	if now := podsOf(); now == first || strings.Contains(now, " ") {
		t.Errorf("its pods were %s and are %s", first, now)
	}
	clean()
	r.cluster.Run(t, "start", "kubelet")
	evicted.await(two, compute.StatusRunning, "")
	evicted.settle()
	evicted.sh(two, "test $(cat /root/f) = kept")
}
