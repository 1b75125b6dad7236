package k8stest

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"berth/deploy/devcluster/clustertest"
	"berth/internal/compute"
	"berth/internal/k8s"
)

// TestFeatures has what pods are made of. Its parts share a cluster and clear away what they made.
func TestFeatures(t *testing.T) {
	r := newRig(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *rig)
	}{
		{"mount paths are prepared once", testPreparedOnce},
		{"mount paths that cannot be prepared", testUnprepared},
		{"an image with a user, from a registry with a password", testRegistryImage},
		{"addresses of the cluster", testBlocked},
		{"memory that the cluster measures", testMeasured},
		{"an address of its own", testLoadBalancer},
		{"spread over nodes, and users of its own", testPlacement},
		{"storage that is bounded, full, and grows", testBoundedStorage},
		{"less memory than is in use", testShrinkInUse},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, r.in(t)) })
	}
}

// with is a rig with another engine on the same cluster.
func (r *rig) with(change func(*k8s.Options)) *rig {
	r.t.Helper()
	other := &rig{t: r.t, cluster: r.cluster, opt: r.opt}
	change(&other.opt)
	other.open()
	r.t.Cleanup(other.close)
	return other
}

// watched has the engine watched, as the one control plane that drives it does, until the test ends.
func (r *rig) watched() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = r.e.Watch(ctx, func(compute.Observation) {}, func() {})
	}()
	r.t.Cleanup(func() { cancel(); <-ended })
}

func (r *rig) containers(s compute.Spec) string {
	r.t.Helper()
	return r.cluster.Do(r.t, "-n", s.String(), "get", "pod", string(s.ID)+"-0", "-o", "jsonpath={.spec.containers[*].name}")
}

func (r *rig) apply(s *compute.Spec, running bool) {
	r.t.Helper()
	s.Generation++
	s.Running = running
	if err := r.e.Apply(r.ctx(), *s); err != nil {
		r.t.Fatalf("apply: %v", err)
	}
}

func (r *rig) want(s compute.Spec, script, want string) {
	r.t.Helper()
	if out, err := r.sh(s, script); err != nil || out != want {
		r.t.Errorf("%s: %q, %v; want %q", script, out, err, want)
	}
}

func testPreparedOnce(t *testing.T, r *rig) {
	s := r.run()
	if got := r.containers(s); got != "install seed main" {
		t.Errorf("it begins with %s", got)
	}
	r.want(s, "ls -A /root | sort | tr '\\n' ' '; rm /root/.bashrc; echo mine > /root/mine", ".bashrc .profile ")
	for range 2 {
		r.apply(&s, false)
		r.apply(&s, true)
		if got := r.containers(s); got != "install main" {
			t.Errorf("later it has %s", got)
		}
		r.want(s, "cat /root/mine; ls /root/.bashrc 2>&1 | grep -c 'No such'", "mine\n1\n")
	}
	s.MountPaths = []string{"/root", "/var/lib"}
	r.apply(&s, true)
	if got := r.containers(s); got != "install seed main" {
		t.Errorf("with another mount path it has %s", got)
	}
	r.want(s, "cat /root/mine; ls -d /var/lib/dpkg", "mine\n/var/lib/dpkg\n")

	// Who loses what is noted, or fakes it, loses nothing else.
	r.cluster.Do(t, "-n", s.String(), "annotate", "pvc", "storage", "berth/seeded=nonsense", "--overwrite")
	r.apply(&s, false)
	r.apply(&s, true)
	r.want(s, "cat /root/mine; ls /root/.bashrc 2>&1 | grep -c 'No such'", "mine\n1\n")

	// A start that is cut off before it is noted has it noted by the next.
	r.cluster.Do(t, "-n", s.String(), "annotate", "pvc", "storage", "berth/seeded-")
	if err := r.e.Apply(r.ctx(), s); err != nil {
		t.Fatal(err)
	}
	if got := r.cluster.Do(t, "-n", s.String(), "get", "pvc", "storage", "-o", "jsonpath={.metadata.annotations.berth/seeded}"); got != `["/root","/var/lib"]` {
		t.Errorf("it is noted that %q is seeded", got)
	}
}

// testUnprepared has an image that cannot be read, and so mount paths that nobody could check.
func testUnprepared(t *testing.T, r *rig) {
	r = r.with(func(o *k8s.Options) { o.Image = r.unread })
	s := r.provision()
	s.MountPaths, s.Running, s.Generation = []string{"/root", "/usr/bin/env"}, true, 1
	seen := make(chan compute.Observation, 100)
	ctx, cancel := context.WithCancel(r.ctx())
	ended, synced := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		_ = r.e.Watch(ctx, func(o compute.Observation) { seen <- o }, func() { close(synced) })
	}()
	defer func() { cancel(); <-ended }()
	<-synced
	for range 2 {
		err := r.e.Apply(r.ctx(), s)
		if compute.CodeOf(err) != compute.CodeInvalid || compute.UserMessage(err) != "Mount path /usr/bin/env is a file in the image." {
			t.Errorf("apply: %v", err)
		}
	}
	if nc, err := r.e.DialAgent(r.ctx(), s.Ref); err == nil {
		nc.Close()
		t.Error("somebody is let in")
	}
	s.MountPaths, s.Generation = []string{"/root"}, 2 // the cause goes away
	if err := r.e.Apply(r.ctx(), s); err != nil {
		t.Fatal(err)
	}
	r.want(s, "ls -A /root | sort | tr '\\n' ' '", ".bashrc .profile ")
	for {
		select {
		case o := <-seen:
			if o.Ref == s.Ref && o.Phase == compute.PhaseStopped && o.Message != "" {
				t.Errorf("told of a death: %+v", o)
			}
			continue
		default:
		}
		break
	}
}

// userImage is the base image with a command of its own, which another user runs.
func (r *rig) userImage() v1.Image {
	r.t.Helper()
	base, err := name.ParseReference(r.opt.Image)
	if err != nil {
		r.t.Fatal(err)
	}
	img, err := remote.Image(base)
	if err != nil {
		r.t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		r.t.Fatal(err)
	}
	config = config.DeepCopy()
	config.Config.User, config.Config.WorkingDir = "www-data:users", "/var/lib"
	config.Config.Env = append(config.Config.Env, "GREETING=hello $(HOME)")
	config.Config.Entrypoint = []string{
		"/bin/sh", "-c", `echo "$(id -un) $(id -gn) $HOME $PWD $GREETING $0" > /tmp/new; mv /tmp/new /tmp/who; exec sleep infinity`,
	}
	config.Config.Cmd = []string{"$(HOME)"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		r.t.Fatal(err)
	}
	return img
}

func testRegistryImage(t *testing.T, r *rig) {
	registry := r.cluster.OwnRegistry(t, "puller", "secret")
	tag := registry.Push(t, r.userImage(), "tenants/own:1")
	pull := func(password string) {
		r.cluster.Apply(t, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "berth-pull", "namespace": %q},
			"type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": %q}}`, r.opt.GatewayNamespace,
			fmt.Sprintf(`{"auths": {%q: {"username": "puller", "password": %q}}}`, registry.Address, password)))
	}
	pull("secret")
	r.cluster.Undo(t, "-n", r.opt.GatewayNamespace, "delete", "secret", "berth-pull")
	r = r.with(func(o *k8s.Options) { o.Image, o.PullSecrets = tag, []string{"berth-pull"} })
	r.watched()
	s := r.run()
	r.want(s, "until [ -e /tmp/who ]; do :; done; cat /tmp/who", "www-data users /var/www /var/lib hello $(HOME) $(HOME)\n")
	r.want(s, "id -u; echo $HOME; cat /proc/1/comm", "0\n/root\nagent\n")
	image := r.cluster.Do(t, "-n", s.String(), "get", "pod", string(s.ID)+"-0", "-o", "jsonpath={.spec.containers[?(@.name=='main')].image}")
	if !strings.HasPrefix(image, registry.Address+"/tenants/own@sha256:") {
		t.Errorf("the pod has %s", image)
	}

	copied := func() string {
		return r.cluster.Do(t, "-n", s.String(), "get", "secret", "berth-pull", "-o", "go-template={{index .data \".dockerconfigjson\" | base64decode}}")
	}
	if got := copied(); !strings.Contains(got, `"secret"`) {
		t.Errorf("the copy is %s", got)
	}
	pull("changed")
	clustertest.Eventually(t, 30*time.Second, func() error {
		if got := copied(); !strings.Contains(got, `"changed"`) {
			return fmt.Errorf("the copy is %s", got)
		}
		return nil
	})
}

// testBlocked gives the cluster addresses of the world, as a node and an API server may have.
func testBlocked(t *testing.T, r *rig) {
	r = r.with(func(*k8s.Options) {})
	s := r.run()
	except := func() (blocked []string, generation string) {
		out := r.cluster.Do(t, "-n", s.String(), "get", "networkpolicy", "to-public", "-o",
			"jsonpath={.metadata.generation} {.spec.egress[0].to[*].ipBlock.except}")
		generation, list, _ := strings.Cut(out, " ")
		for _, part := range strings.SplitAfter(list, "]") {
			var some []string
			if strings.TrimSpace(part) != "" {
				if err := json.Unmarshal([]byte(part), &some); err != nil {
					t.Fatal(err)
				}
			}
			blocked = append(blocked, some...)
		}
		return blocked, generation
	}
	_, before := except()
	added := []string{"203.0.113.5/32", "2001:db9::5/128", "198.51.100.7/32"}
	r.cluster.Undo(t, "delete", "node", "elsewhere", "--ignore-not-found")
	r.cluster.Undo(t, "delete", "endpointslice", "kubernetes-too", "--ignore-not-found")
	r.cluster.Apply(t, `{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "elsewhere"}, "spec": {"unschedulable": true}}`)
	r.cluster.Do(t, "patch", "node", "elsewhere", "--subresource=status", "--type=merge", "-p", `{"status": {"addresses": [
		{"type": "InternalIP", "address": "10.9.9.9"}, {"type": "Hostname", "address": "elsewhere"},
		{"type": "ExternalIP", "address": "203.0.113.5"}, {"type": "ExternalIP", "address": "2001:db9::5"}]}}`)
	r.cluster.Apply(t, `{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
		"metadata": {"name": "kubernetes-too", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
		"endpoints": [{"addresses": ["198.51.100.7"]}]}`)
	// Who does not watch drives nothing; one that begins to catches up.
	if list, now := except(); now != before {
		t.Errorf("unwatched, it wrote %q", list)
	}
	r.watched()
	has := func(want bool) {
		t.Helper()
		clustertest.Eventually(t, 30*time.Second, func() error {
			list, _ := except()
			for _, a := range added {
				if slices.Contains(list, a) != want {
					return fmt.Errorf("%s: the exceptions are %q", a, list)
				}
			}
			return nil
		})
	}
	has(true)
	if list, now := except(); now != "2" || slices.Contains(list, "10.9.9.9/32") {
		t.Errorf("after %s writes they are %q", now, list)
	}
	r.cluster.Do(t, "delete", "node", "elsewhere")
	r.cluster.Do(t, "delete", "endpointslice", "kubernetes-too")
	has(false)
}

// testMeasured plays metrics-server, behind the cluster's own aggregation.
func testMeasured(t *testing.T, r *rig) {
	s := r.run()
	before, err := r.e.Usage(r.ctx(), s.Ref)
	if err != nil || before.MemoryMB >= 123 {
		t.Fatalf("of the agent: %+v, %v", before, err)
	}
	var asked atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch q.URL.Path {
		case "/apis/metrics.k8s.io/v1beta1":
			fmt.Fprint(w, `{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "metrics.k8s.io/v1beta1",
				"resources": [{"name": "pods", "kind": "PodMetrics", "namespaced": true, "verbs": ["get", "list"]}]}`)
		case "/apis/metrics.k8s.io/v1beta1/namespaces/" + s.String() + "/pods/" + string(s.ID) + "-0":
			asked.Add(1)
			fmt.Fprintf(w, `{"kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "timestamp": %q,
				"containers": [{"name": "install", "usage": {"memory": "3Mi"}}, {"name": "main", "usage": {"memory": "123Mi"}}]}`,
				time.Now().Add(time.Second).UTC().Format(time.RFC3339))
		default:
			http.NotFound(w, q)
		}
	}))
	server.Listener.Close()
	if server.Listener, err = net.Listen("tcp", r.cluster.Machine+":0"); err != nil {
		t.Fatal(err)
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	host := netip.MustParseAddrPort(server.Listener.Addr().String())
	// While the cluster lists an API that nobody serves, it deletes no namespace.
	r.cluster.Undo(t, "-n", "kube-system", "delete", "service/metrics", "endpointslice/metrics")
	r.cluster.Undo(t, "delete", "apiservice", "v1beta1.metrics.k8s.io")
	r.cluster.Apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: metrics, namespace: kube-system}
spec: {ports: [{port: 443, targetPort: %[2]d}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: metrics, namespace: kube-system, labels: {kubernetes.io/service-name: metrics}}
addressType: IPv4
ports: [{port: %[2]d}]
endpoints: [{addresses: [%[1]s]}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  group: metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {name: metrics, namespace: kube-system}
`, host.Addr(), host.Port()))
	r.cluster.Do(t, "wait", "--for=condition=Available", "apiservice/v1beta1.metrics.k8s.io", "--timeout=60s")
	// The engine that was told that there is nothing asks again after a while; this one begins anew.
	other := r.with(func(*k8s.Options) {})
	u, err := other.e.Usage(r.ctx(), s.Ref)
	if err != nil || u.MemoryMB != 123 || u.StorageGB > 1 {
		t.Errorf("of the cluster: %+v, %v", u, err)
	}
	if again, err := r.e.Usage(r.ctx(), s.Ref); err != nil || again.MemoryMB >= 123 {
		t.Errorf("of the agent: %+v, %v", again, err)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the cluster was asked %d times", n)
	}
}

// testLoadBalancer plays the controller that gives addresses away.
func testLoadBalancer(t *testing.T, r *rig) {
	change := func(o *k8s.Options) {
		o.LoadBalancers, o.GatewayLabels = &k8s.LoadBalancers{}, map[string]string{"app": "berth-gateway"}
	}
	p := r.plane(t, change)
	r = r.with(change)
	type word struct {
		ref  compute.Ref
		addr netip.Addr
	}
	said := make(chan word, 100)
	ctx, cancel := context.WithCancel(r.ctx())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = r.e.ExternalIPs(ctx, func(c compute.Ref, a netip.Addr) { said <- word{c, a} })
	}()
	defer func() { cancel(); <-ended }()
	s := r.run()
	next := func(want netip.Addr) {
		t.Helper()
		for {
			select {
			case w := <-said:
				if w.ref == s.Ref && w.addr == want {
					return
				}
			case <-ctx.Done():
				t.Fatalf("%s was not said", want)
			}
		}
	}
	next(netip.Addr{})
	service := []string{"-n", r.opt.GatewayNamespace, "get", "service", s.String(), "-o"}
	got := r.cluster.Do(t, append(service, "jsonpath={.spec.type} {.spec.selector} {.spec.ports[0].port}:{.spec.ports[0].targetPort}")...)
	if got != `LoadBalancer {"app":"berth-gateway"} 22:ssh` {
		t.Errorf("the Service is %s", got)
	}
	given := netip.MustParsePrefix(r.cluster.LoadBalancers).Addr().Next()
	r.cluster.Do(t, "-n", r.opt.GatewayNamespace, "patch", "service", s.String(), "--subresource=status", "--type=merge",
		"-p", fmt.Sprintf(`{"status": {"loadBalancer": {"ingress": [{"ip": %q}]}}}`, given))
	next(given)
	r.apply(&s, false)
	r.apply(&s, true)
	if got := r.cluster.Do(t, append(service, "jsonpath={.status.loadBalancer.ingress[0].ip}")...); got != given.String() {
		t.Errorf("after a stop it has %q", got)
	}
	if err := r.e.Remove(r.ctx(), s.Ref); err != nil {
		t.Fatal(err)
	}
	next(netip.Addr{})
	if out, err := r.cluster.Try(t, append(service, "name")...); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("removed, there is %s, %v", out, err)
	}

	// One that somebody deletes is made anew by a control plane.
	ref := p.run()
	p.cluster.Do(t, "-n", p.opt.GatewayNamespace, "delete", "service", ref.String())
	clustertest.Eventually(t, 30*time.Second, func() error {
		_, err := p.cluster.Try(t, "-n", p.opt.GatewayNamespace, "get", "service", ref.String())
		return err
	})
	p.sameLife(ref)
}

func testPlacement(t *testing.T, r *rig) {
	spread := r.with(func(o *k8s.Options) { o.Spread = true })
	s := spread.run()
	spread.want(s, "echo here", "here\n")
	// This cluster's containerd has no user namespaces, and its node says so.
	mapped := r.with(func(o *k8s.Options) { o.UserNamespaces = true })
	if err := mapped.e.Admit(r.ctx(), newSpec()); compute.CodeOf(err) != compute.CodeCapacity || !strings.Contains(compute.UserMessage(err), "users of its own") {
		t.Errorf("admitted: %v", err)
	}
}

func testBoundedStorage(t *testing.T, r *rig) {
	on := func(class string) *rig { return r.with(func(o *k8s.Options) { o.StorageClass = class }) }
	s := newSpec()
	larger := s
	larger.StorageGB++
	if err := on("standard").e.AdmitChange(r.ctx(), s, larger); compute.CodeOf(err) != compute.CodeCapacity {
		t.Errorf("a class that does not grow: %v", err)
	}
	r = on("bounded")
	s.StorageGB = 1
	s = r.runOf(s)
	size := func(least int) error {
		out, err := r.sh(s, "df -BM --output=size /root | tail -1 | tr -dc 0-9")
		if n, _ := strconv.Atoi(out); err == nil && n < least {
			err = fmt.Errorf("it has %s MiB, not %d", out, least)
		}
		return err
	}
	if err := size(1100); err == nil {
		t.Error("its storage is larger than asked for")
	}
	r.want(s, "head -c 2G /dev/zero > /root/big 2>/dev/null; echo $?; echo more > /root/more; echo $?", "1\n1\n")
	r.apply(&s, false)
	r.apply(&s, true) // full
	r.want(s, "cat /root/more; echo lives", "lives\n")

	s.MountPaths = []string{"/root", "/usr/lib"}
	s.Generation++
	if err := r.e.Apply(r.ctx(), s); compute.CodeOf(err) != compute.CodeCapacity || !strings.Contains(compute.UserMessage(err), "larger storage_gb") {
		t.Errorf("no room for what the image holds: %v", err)
	}
	was := s
	for _, s.StorageGB = range []int{2, 3} { // while it cannot start, and while it runs
		if err := r.e.AdmitChange(r.ctx(), was, s); err != nil {
			t.Fatal(err)
		}
		s.Generation++
		clustertest.Eventually(t, time.Minute, func() error { return r.e.Apply(r.ctx(), s) })
		clustertest.Eventually(t, time.Minute, func() error { return size(s.StorageGB*1024 - 100) })
		was = s
	}
	r.want(s, "test -d /usr/lib/dpkg && echo seeded; echo more > /root/more && cat /root/more", "seeded\nmore\n")
}

// runOf makes a container as s says, which runs until the test ends.
func (r *rig) runOf(s compute.Spec) compute.Spec {
	r.t.Helper()
	r.t.Cleanup(func() {
		if err := r.e.Remove(r.ctx(), s.Ref); err != nil {
			r.t.Errorf("remove: %v", err)
		}
	})
	if err := r.e.Provision(r.ctx(), s); err != nil {
		r.t.Fatalf("provision: %v", err)
	}
	r.apply(&s, true)
	return s
}
