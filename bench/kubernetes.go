package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"berth/internal/config"
)

// clusterRig is what the measurements on a cluster share: a control plane, two gateways, and a container with sshd in it.
type clusterRig struct {
	o       options
	cluster *cluster
	api     *counting
	on      *instance // berth-api
	rep     *report
	box     *box

	sshd, exec, address, kubectl, kubectlSPDY contender
}

// clusterSuite is one group of measurements on a cluster.
type clusterSuite struct {
	name string
	run  func(*clusterRig, context.Context) ([]measure, error)
}

// clusterSuites in their order: the last two have the cluster full.
func clusterSuites() []clusterSuite {
	return []clusterSuite{
		{"connect", (*clusterRig).connect},
		{"download", (*clusterRig).download},
		{"upload", (*clusterRig).upload},
		{"create", (*clusterRig).create},
		{"reconcile", (*clusterRig).reconcile},
		{"idle", (*clusterRig).idle},
	}
}

// onCluster measures Berth on a cluster of its own, beside kubectl exec and an sshd in the same pod.
func onCluster(ctx context.Context, o options, step func(string, ...any), rep *report) (err error) {
	step("starting a cluster")
	r := &clusterRig{o: o, rep: rep}
	if r.cluster, err = newCluster(ctx, o); err != nil {
		return err
	}
	defer func() {
		step("removing everything")
		err = errors.Join(err, r.cluster.delete())
	}()
	api, err := r.cluster.account(ctx, "berth-api")
	if err != nil {
		return err
	}
	config, err := configOf(api)
	if err != nil {
		return err
	}
	counted := r.cluster.dir + "/counted.kubeconfig"
	if r.api, err = newCounting(config, counted); err != nil {
		return err
	}
	defer r.api.close()
	end, err := r.startBerth(ctx, step, counted)
	defer func() { err = errors.Join(err, end()) }()
	if err != nil {
		return err
	}
	step("making a container with sshd")
	if err := r.prepare(ctx); err != nil {
		return err
	}
	rep.Server = r.sshd.peer
	for _, s := range clusterSuites() {
		if !o.chosen(s.name) {
			continue
		}
		step("measuring %s", s.name)
		rows, err := s.run(r, ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		rep.Rows = append(rep.Rows, rows...)
	}
	return nil
}

// startBerth starts berth-api, whose calls are counted, and a gateway for each transport, whose are not: they would be slowed
// down.
func (r *clusterRig) startBerth(ctx context.Context, step func(string, ...any), counted string) (end func() error, err error) {
	var stops []func() error
	end = func() error {
		var errs []error
		for _, stop := range slices.Backward(stops) {
			errs = append(errs, stop())
		}
		return errors.Join(errs...)
	}
	on := func(kubeconfig string) []string {
		return []string{
			"--engine", config.EngineKubernetes, "--kubeconfig", kubeconfig, "--agent", agentRef, "--pull-policy", "IfNotPresent",
			"--architecture", runtime.GOARCH,
		}
	}
	link, err := freeAddress()
	if err != nil {
		return end, err
	}
	o := r.o
	o.image = r.cluster.image
	step("starting berth-api and two gateways")
	limit := strconv.Itoa(r.o.pods + 10)
	r.on, err = newInstance(o, append([]string{
		o.beside("berth-api"), "--keys-per-user", "100", "--link-address", link, "--containers-per-user", limit, "--requests-per-second", "0",
	}, on(counted)...)...)
	if err != nil {
		return end, err
	}
	stops = append(stops, func() error { return errors.Join(r.on.stop(), os.RemoveAll(r.on.dir)) })
	if _, err := r.on.start(ctx); err != nil {
		return end, err
	}
	if err := r.on.signIn(ctx); err != nil {
		return end, err
	}
	if err := r.on.enrollKey(ctx); err != nil {
		return end, err
	}
	account, err := r.cluster.account(ctx, "berth-gateway")
	if err != nil {
		return end, err
	}
	for _, g := range []struct {
		c         *contender
		label     string
		transport string
	}{{&r.exec, "berth, over pod exec", "exec"}, {&r.address, "berth, to the pod's address", "pod"}} {
		credential := r.on.path(g.transport + ".pem")
		if _, err := r.on.run(ctx, "gateway", "add", g.transport, "--out", credential, "--data-dir", r.on.data); err != nil {
			return end, err
		}
		started, err := startGateway(ctx, o.beside("berth-gateway"), append([]string{
			"--data-dir", r.on.path("gateway-" + g.transport), "--link-credential", credential, "--link-address", link,
			"--image", r.cluster.image, "--agent-transport", g.transport,
		}, on(account)...)...)
		if err != nil {
			return end, err
		}
		stops = append(stops, started.stop)
		*g.c = contender{label: g.label, args: append(r.toHost(), "-p", started.port)} // the container is added to it
	}
	return end, nil
}

// signIn makes the first account and a token for it, where berth does not by itself: on a cluster nobody is at the keyboard.
func (i *instance) signIn(ctx context.Context) error {
	if _, err := i.run(ctx, "user", "add", "bench", "--admin", "--data-dir", i.data); err != nil {
		return err
	}
	token, err := i.run(ctx, "token", "--user", "bench", "--ttl", "24h", "--data-dir", i.data)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(i.data, "token"), []byte(token), 0o600)
}

// owner is another account with the same key, and a token of its own.
func (i *instance) owner(ctx context.Context, name string) (*instance, error) {
	if _, err := i.run(ctx, "user", "add", name, "--key", i.key()+".pub", "--data-dir", i.data); err != nil {
		return nil, err
	}
	token, err := i.run(ctx, "token", "--user", name, "--ttl", "24h", "--data-dir", i.data)
	if err != nil {
		return nil, err
	}
	other := *i
	other.token = strings.TrimSpace(token)
	var keys struct {
		Keys []struct{ ID int64 } `json:"ssh_keys"`
	}
	if err := other.call(ctx, http.MethodGet, "/compute/ssh-keys", "", &keys); err != nil {
		return nil, err
	}
	if len(keys.Keys) != 1 {
		return nil, fmt.Errorf("%s has %d keys", name, len(keys.Keys))
	}
	other.keyID = keys.Keys[0].ID
	return &other, nil
}

// toHost are options for a server whose key is not known.
func (r *clusterRig) toHost() []string {
	return []string{
		"-F", "none", "-i", r.on.key(), "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR",
	}
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// prepare makes the container, and the contenders to reach it.
func (r *clusterRig) prepare(ctx context.Context) (err error) {
	if r.box, err = r.on.box(ctx, `{"name": "bench", "instance_type": "medium", "memory_mb": 2048, "storage_gb": 4}`); err != nil {
		return err
	}
	for _, c := range []*contender{&r.exec, &r.address} {
		c.args = append(c.args, r.box.id+"@127.0.0.1")
	}
	public, err := os.ReadFile(r.on.key() + ".pub")
	if err != nil {
		return err
	}
	if err := poll(ctx, 50*time.Millisecond, statusLimit, func() (bool, error) { // the gateways hear of it
		_, _, err := r.exec.run(ctx, nil, nil, "true")
		return err == nil, nil
	}); err != nil {
		return err
	}
	// sshd is not the last command: run in place of the shell it would take its parent, PID 1, for a sign that it is a daemon.
	if _, _, err := r.exec.run(ctx, bytes.NewReader(public), nil, `set -e
umask 022
mkdir -p /run/sshd
mkdir -p -m 0700 /root/.ssh
cat >/root/.ssh/authorized_keys
ssh-keygen -A >&2
/usr/sbin/sshd -p `+sshdPort+`
exit 0`); err != nil {
		return fmt.Errorf("start sshd in the container: %w", err)
	}
	pod, err := r.cluster.client.CoreV1().Pods(r.box.namespace()).Get(ctx, r.box.id+"-0", metav1.GetOptions{})
	if err != nil {
		return err
	}
	r.sshd = contender{label: "sshd in the pod", args: append(r.toHost(), "root@"+pod.Status.PodIP)}
	r.kubectl = r.cluster.kubectl("kubectl exec (WebSocket)", r.box)
	r.kubectlSPDY = r.cluster.kubectl("kubectl exec (SPDY)", r.box, "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false")
	for _, c := range r.contenders() {
		if c.via == nil {
			if err := c.learn(ctx); err != nil {
				return fmt.Errorf("%s: %w", c.label, err)
			}
		}
		if err := c.verify(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.label, err)
		}
	}
	return nil
}

func (r *clusterRig) contenders() []*contender {
	return []*contender{&r.sshd, &r.kubectl, &r.kubectlSPDY, &r.exec, &r.address}
}

// rows makes measures of tallies, of which the first is sshd's and the second kubectl's. goals holds what a contender's ratios to
// both have to be.
func (r *clusterRig) rows(
	suite, what, unit string, tallies []tally, value func(seconds float64) float64, goals map[*contender]func(sshd, kubectl float64) *goal,
) []measure {
	var out []measure
	for _, t := range tallies {
		values := make([]float64, len(t.seconds))
		for i, s := range t.seconds {
			values[i] = value(s)
		}
		m := newMeasure(suite, what, t.c.label, t.c.cipher, unit, values)
		out = append(out, m)
		now := &out[len(out)-1]
		now.against(out[0], nil)
		if g := goals[t.c]; g != nil {
			now.Goal = g(now.Ratio, now.Median/out[1].Median)
		}
	}
	return out
}

// turns has nobody's CPU time counted but the clients': the rest is spread over the whole cluster.
func (r *clusterRig) turns(ctx context.Context, rounds int, once once) ([]tally, error) {
	return takeTurns(ctx, rounds, r.contenders(), func() (time.Duration, error) { return 0, nil }, once)
}

func (r *clusterRig) connect(ctx context.Context) ([]measure, error) {
	tallies, err := r.turns(ctx, connectsPerRun*r.o.runs, logIn)
	if err != nil {
		return nil, err
	}
	return r.rows("connect", connectTitle+"; `kubectl exec … true`", "s", tallies, func(s float64) float64 { return s },
		map[*contender]func(float64, float64) *goal{&r.exec: func(sshd, kubectl float64) *goal {
			return &goal{
				fmt.Sprintf("≤ 0.15 of sshd, ≤ 0.25 of kubectl exec (%.2f)", kubectl), sshd <= 0.15 && kubectl <= 0.25,
			}
		}}), nil
}

func (r *clusterRig) transfer(ctx context.Context, suite, what string, once once) ([]measure, error) {
	tallies, err := r.turns(ctx, r.o.runs, once)
	if err != nil {
		return nil, err
	}
	return r.rows(suite, what, "MB/s", tallies, rate(r.o.size), map[*contender]func(float64, float64) *goal{
		&r.exec: func(_, kubectl float64) *goal {
			return &goal{fmt.Sprintf("≥ 0.90 of kubectl exec (%.2f)", kubectl), kubectl >= 0.9}
		},
		&r.address: func(sshd, _ float64) *goal { return atLeast(0.9)(sshd) },
	}), nil
}

func (r *clusterRig) download(ctx context.Context) ([]measure, error) {
	return r.transfer(ctx, "download", downloadTitle(r.o.size), fetch(r.o.size))
}

func (r *clusterRig) upload(ctx context.Context) ([]measure, error) {
	return r.transfer(ctx, "upload", uploadTitle(r.o.size), push(r.o.size))
}

// create measures containers from the request until they run, in turn with pods of the same image until they are Ready.
func (r *clusterRig) create(ctx context.Context) ([]measure, error) {
	var pods, boxes []float64
	for range r.o.runs {
		took, err := r.barePod(ctx)
		if err != nil {
			return nil, fmt.Errorf("a bare pod: %w", err)
		}
		pods = append(pods, took.Seconds())
		b, err := r.on.box(ctx, `{"name": "bench-new", "memory_mb": 256, "storage_gb": 2}`)
		if err != nil {
			return nil, err
		}
		boxes = append(boxes, b.running.Sub(b.created).Seconds())
		if err := r.remove(ctx, b); err != nil {
			return nil, err
		}
	}
	const what = "a new container, from POST /compute/containers until running; a bare pod until it is Ready"
	rows := []measure{newMeasure("create", what, "a bare pod", "", "s", pods), newMeasure("create", what, "berth", "", "s", boxes)}
	ratio := rows[1].Median / rows[0].Median
	rows[1].Goal = &goal{fmt.Sprintf("≤ 1.50 of a bare pod (%.2f)", ratio), ratio <= 1.5}
	return rows, nil
}

// barePod returns how long a pod takes to be Ready.
func (r *clusterRig) barePod(ctx context.Context) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, statusLimit, errors.New("it does not get Ready"))
	defer cancel()
	pods := r.cluster.client.CoreV1().Pods("default")
	watch, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", "bench-bare").String()})
	if err != nil {
		return 0, err
	}
	defer watch.Stop()
	now := int64(0)
	began := time.Now()
	if _, err := pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "bench-bare"},
		Spec: corev1.PodSpec{TerminationGracePeriodSeconds: &now, Containers: []corev1.Container{{
			Name: "main", Image: r.cluster.image, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sleep", "infinity"},
		}}},
	}, metav1.CreateOptions{}); err != nil {
		return 0, err
	}
	for event := range watch.ResultChan() {
		p, ok := event.Object.(*corev1.Pod)
		if !ok {
			return 0, fmt.Errorf("%v", event.Object)
		}
		if event.Type == "DELETED" {
			return took, nil
		}
		ready := slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
		if ready && took == 0 {
			took = time.Since(began)
			if err := pods.Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil {
				return 0, err
			}
		}
	}
	return 0, context.Cause(ctx)
}

// remove deletes a container, and returns when nothing of it is left.
func (r *clusterRig) remove(ctx context.Context, b *box) error {
	var answer struct{}
	if err := r.on.call(ctx, http.MethodDelete, "/compute/containers/"+b.id, "", &answer); err != nil {
		return err
	}
	return poll(ctx, 50*time.Millisecond, statusLimit, func() (bool, error) {
		list, err := r.cluster.client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("metadata.name", b.namespace()).String(),
		})
		return err == nil && len(list.Items) == 0, err
	})
}

// reconcile asks for many containers at once, of many owners, since one's wait for each other, and returns when all run.
func (r *clusterRig) reconcile(ctx context.Context) ([]measure, error) {
	var owners []*instance
	for n := range reconcileOwners {
		owner, err := r.on.owner(ctx, fmt.Sprintf("owner-%d", n))
		if err != nil {
			return nil, err
		}
		owners = append(owners, owner)
	}
	before, err := r.cluster.rejected(ctx)
	if err != nil {
		return nil, err
	}
	r.api.take()
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(r.o.pods)*10*time.Second, errors.New("not all of them run"))
	defer cancel()
	began := time.Now()
	var mu sync.Mutex
	var errs []error
	var each []float64
	var wg sync.WaitGroup
	for n := range r.o.pods {
		wg.Go(func() {
			b, err := owners[n%len(owners)].boxWithin(ctx,
				`{"name": "bench-many", "memory_mb": 64, "storage_gb": 1}`, time.Second)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			each = append(each, b.running.Sub(began).Seconds())
		})
	}
	wg.Wait()
	if len(errs) > 0 {
		return nil, fmt.Errorf("%d of %d: %w", len(errs), r.o.pods, errs[0])
	}
	calls, busy := r.api.take()
	after, err := r.cluster.rejected(ctx)
	if err != nil {
		return nil, err
	}
	sum, text := summary(calls)
	r.rep.note("calls of the API server for %d containers from nothing: %d, %.1f each; %d answered 429, %.0f turned away by priority and fairness\n  %s",
		r.o.pods, sum, float64(sum)/float64(r.o.pods), busy, after-before, text)
	m := newMeasure("reconcile", fmt.Sprintf("%d containers at once, until each runs", r.o.pods), "berth", "", "s", each)
	m.Goal = &goal{"nothing turned away", busy == 0 && after == before}
	return []measure{m}, nil
}

const (
	reconcileOwners = 20
	idleFor         = time.Minute
	idleCalls       = 60
)

// idle counts the calls of a control plane that has nothing to do.
func (r *clusterRig) idle(ctx context.Context) ([]measure, error) {
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	r.api.take()
	select {
	case <-time.After(idleFor):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	calls, _ := r.api.take()
	sum, text := summary(calls)
	r.rep.note("calls of an idle control plane in a minute: %d\n  %s", sum, strings.TrimSpace(text))
	m := newMeasure("idle", "calls of the API server in a minute", "berth", "", "", []float64{float64(sum)})
	m.Goal = &goal{fmt.Sprintf("≤ %d", idleCalls), sum <= idleCalls}
	return []measure{m}, nil
}
