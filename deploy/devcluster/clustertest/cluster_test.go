package clustertest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/leakcheck"
)

// The pod answers each connection with its name, and has a volume.
const objects = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: default}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: default, labels: {app: one}}
spec:
  containers:
  - name: main
    image: IMAGE
    imagePullPolicy: Never
    command:
    - perl
    - -MIO::Socket::INET
    - -e
    - |
      $SIG{TERM} = sub { exit };
      my $s = IO::Socket::INET->new(LocalPort => 8080, Listen => 5, ReuseAddr => 1) or die $@;
      while (my $c = $s->accept) { print $c "pod $ENV{HOSTNAME}\n"; close $c }
    volumeMounts: [{name: data, mountPath: /data}]
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
  volumes:
  - name: data
    persistentVolumeClaim: {claimName: data}
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: default}
spec:
  type: LoadBalancer
  selector: {app: one}
  ports: [{port: 80, targetPort: 8080}]
`

func TestCluster(t *testing.T) {
	kernel := kernelSettings(t)
	t.Cleanup(func() {
		if now := kernelSettings(t); now != kernel {
			t.Errorf("the kernel's settings were\n%s\nand are\n%s", kernel, now)
		}
	})
	c := Start(t)
	archive := filepath.Join(Root(t), "build/base-image.tar")
	c.Run(t, "load", archive)
	c.Apply(t, strings.ReplaceAll(objects, "IMAGE", ImageName(t, archive)))
	c.waitForPod(t)

	// In order: the last ones end what the first ones look at.
	for _, part := range []struct {
		name string
		test func(*testing.T, *Cluster)
	}{
		{"up again", testUpAgain},
		{"leaks would show", testLeaksWouldShow},
		{"exec", testExec},
		{"network", testNetwork},
		{"volume", testVolume},
		{"registry", testRegistry},
		{"admission policies", testAdmissionPolicy},
		{"no metrics", testNoMetrics},
		{"components restart", testComponentsRestart},
		{"another beside it", testAnother},
		{"everything is killed", testEverythingKilled},
		{"down", testDown},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.test(t, c) }) {
			return
		}
	}
}

func (c *Cluster) waitForPod(t testing.TB) {
	t.Helper()
	c.Do(t, "wait", "--for=condition=Ready", "pod/one", "--timeout=120s")
}

func testUpAgain(t *testing.T, c *Cluster) {
	before := *c
	c.Up(t)
	if *c != before {
		t.Errorf("ready.json changed from %+v to %+v", before, *c)
	}
	if version := c.Do(t, "version"); !strings.Contains(version, "Server Version: v1.34.") {
		t.Errorf("kubectl version says %s", version)
	}
}

// testLeaksWouldShow keeps the look at what is left behind from passing because it looks at nothing.
func testLeaksWouldShow(t *testing.T, c *Cluster) {
	now, err := leakcheck.Take()
	if err != nil {
		t.Fatal(err)
	}
	missing := []leakcheck.Kind{leakcheck.Process, leakcheck.NetNS, leakcheck.Link, leakcheck.Cgroup, leakcheck.File}
	for _, thing := range leakcheck.About(now.Since(c.before), c.words()...) {
		missing = slices.DeleteFunc(missing, func(k leakcheck.Kind) bool { return k == thing.Kind })
	}
	if len(missing) > 0 {
		t.Errorf("of a running cluster, no %v is seen", missing)
	}
}

// execMethod finds in what kubectl -v=7 says how it asked: a WebSocket begins with GET, SPDY with POST.
var execMethod = regexp.MustCompile(`verb="([A-Z]+)" url="[^"]*/exec\?`)

func testExec(t *testing.T, c *Cluster) {
	for transport, websocket := range map[string]string{"WebSocket": "true", "SPDY": "false"} {
		t.Run(transport, func(t *testing.T) {
			cmd := c.Command(t, "exec", "-i", "one", "-v=7", "--", "sh", "-c", "cat; echo oops >&2; exit 7")
			cmd.Env = append(cmd.Env, "KUBECTL_REMOTE_COMMAND_WEBSOCKETS="+websocket)
			cmd.Stdin = strings.NewReader("through and back")
			var said strings.Builder
			cmd.Stderr = &said
			out, err := cmd.Output()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 7 || string(out) != "through and back" || !strings.Contains(said.String(), "oops") {
				t.Errorf("%q, %v\n%s", out, err, &said)
			}
			if method := execMethod.FindStringSubmatch(said.String()); len(method) != 2 || (method[1] == "GET") != (websocket == "true") {
				t.Errorf("the request was %v\n%s", method, &said)
			}
		})
	}
}

func testNetwork(t *testing.T, c *Cluster) {
	pod := c.Do(t, "get", "pod", "one", "-o", "jsonpath={.status.podIP}")
	service := c.Do(t, "get", "service", "front", "-o", "jsonpath={.spec.clusterIP}")
	balanced := netip.MustParsePrefix(c.LoadBalancers).Addr().Next().String()
	c.Do(t, "patch", "service", "front", "--subresource=status", "--type=merge",
		"-p", fmt.Sprintf(`{"status": {"loadBalancer": {"ingress": [{"ip": %q}]}}}`, balanced))
	for _, addr := range []string{pod + ":8080", service + ":80", balanced + ":80"} {
		Eventually(t, 20*time.Second, func() error { return answers(addr) })
	}

	// And the other way: by the pod's own address.
	machine := c.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprint(w, host)
	}))
	if saw := c.Do(t, "exec", "one", "--", "curl", "-sS", "--max-time", "10", "http://"+machine); saw != pod {
		t.Errorf("the machine saw %s, not the pod's %s", saw, pod)
	}

	out := c.Do(t, "exec", "one", "--", "getent", "hosts", "front")
	if fields := strings.Fields(out); len(fields) != 2 || fields[0] != service || fields[1] != "front.default.svc.cluster.local" {
		t.Errorf("the pod resolves its Service to %q", out)
	}
	if out, err := c.Try(t, "exec", "one", "--", "getent", "hosts", "absent"); err == nil {
		t.Errorf("a name that is not there resolves to %q", out)
	}
}

// answers dials the pod.
func answers(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	text, err := io.ReadAll(conn)
	if err == nil && string(text) != "pod one\n" {
		err = fmt.Errorf("%s says %q", addr, text)
	}
	return err
}

func testVolume(t *testing.T, c *Cluster) {
	if phase := c.Do(t, "get", "pvc", "data", "-o", "jsonpath={.status.phase} {.spec.storageClassName}"); phase != "Bound standard" {
		t.Errorf("the claim is %s", phase)
	}
	c.Do(t, "exec", "one", "--", "sh", "-c", "echo kept >/data/file")
}

// testRegistry has the node pull an image from a registry of the test's, in plain HTTP, and not without its password.
func testRegistry(t *testing.T, c *Cluster) {
	registry := c.OwnRegistry(t, "puller", "secret")
	here := ImageName(t, filepath.Join(Root(t), "build/base-image.tar"))
	image := registry.Address + "/base:1"
	out, err := exec.Command("ctr", "--address", c.Containerd, "--namespace", "k8s.io", "images", "push",
		"--plain-http", "--user", "puller:secret", image, here).CombinedOutput()
	if err != nil {
		t.Fatalf("push: %v: %s", err, out)
	}
	c.Do(t, "create", "secret", "docker-registry", "pull", "--docker-server="+registry.Address,
		"--docker-username=puller", "--docker-password=secret")
	pull := []string{"--image=" + image, "--image-pull-policy=Always", "--command", "--", "sleep", "infinity"}
	c.Do(t, append([]string{"run", "refused"}, pull...)...)
	c.Do(t, append([]string{"run", "pulled", `--overrides={"spec": {"imagePullSecrets": [{"name": "pull"}]}}`}, pull...)...)
	c.Do(t, "wait", "--for=condition=Ready", "pod/pulled", "--timeout=120s")
	Eventually(t, time.Minute, func() error {
		if why := c.Do(t, "get", "pod", "refused", "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason}"); !strings.Contains(why, "ImagePull") {
			return fmt.Errorf("the pod without a password waits for %q", why)
		}
		return nil
	})
	c.Do(t, "delete", "pod", "pulled", "refused", "--now")
}

func testAdmissionPolicy(t *testing.T, c *Cluster) {
	c.Apply(t, `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-forbidden}
spec:
  matchConstraints:
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
  validations: [{expression: "object.metadata.name != 'forbidden'", message: not that one}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-forbidden}
spec: {policyName: no-forbidden, validationActions: [Deny]}
`)
	Eventually(t, 20*time.Second, func() error {
		_, err := c.Try(t, "create", "configmap", "forbidden", "--dry-run=server")
		if err == nil {
			return errors.New("the policy is not in force")
		}
		if !strings.Contains(err.Error(), "not that one") {
			return err
		}
		return nil
	})
	c.Do(t, "create", "configmap", "allowed", "--dry-run=server")
}

func testNoMetrics(t *testing.T, c *Cluster) {
	if out, err := c.Try(t, "get", "--raw", "/apis/metrics.k8s.io"); err == nil || !strings.Contains(err.Error(), "could not find the requested resource") {
		t.Errorf("metrics.k8s.io: %q, %v", out, err)
	}
}

// testComponentsRestart has the pod run on, the same, whatever of the node ends.
func testComponentsRestart(t *testing.T, c *Cluster) {
	same := func() string {
		return c.Do(t, "get", "pod", "one", "-o", "jsonpath={.status.podIP} {.status.containerStatuses[0].containerID}")
	}
	before := same()
	for _, component := range []string{"kubelet", "apiserver", "containerd", "etcd", "proxy", "scheduler", "controller-manager"} {
		c.Run(t, "restart", "--kill", component)
		Eventually(t, time.Minute, func() error {
			_, err := c.Try(t, "exec", "one", "--", "true")
			return err
		})
	}
	c.Run(t, "restart", "kubelet")
	c.Run(t, "stop", "apiserver")
	if _, err := c.Try(t, "get", "pods"); err == nil {
		t.Error("a stopped API server answers")
	}
	c.Run(t, "start", "apiserver")
	c.waitForPod(t)
	if after := same(); after != before {
		t.Errorf("the pod was %s and is %s", before, after)
	}
	cmd := exec.Command(filepath.Join(Root(t), "build/devcluster/devcluster"), "restart", "--dir", c.Dir, "kernel")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "there are etcd") {
		t.Errorf("restart kernel: %v, %s", err, out)
	}
}

func testAnother(t *testing.T, c *Cluster) {
	other := Start(t)
	if other.Network == c.Network || other.Node == c.Node {
		t.Errorf("two clusters are %s in %s, and %s in %s", c.Node, c.Network, other.Node, other.Network)
	}
	if pods := other.Do(t, "get", "pods"); pods != "" {
		t.Errorf("the other has %s", pods)
	}
	c.Do(t, "exec", "one", "--", "true")
}

func testEverythingKilled(t *testing.T, c *Cluster) {
	// The node's first process, and so all of them.
	if err := syscall.Kill(c.Process, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	before := c.Process
	c.Up(t)
	if c.Process == before {
		t.Error("the process that was killed is taken for the cluster")
	}
	// The pod's state is an old one until the kubelet has looked.
	Eventually(t, 2*time.Minute, func() error {
		out, err := c.Try(t, "exec", "one", "--", "cat", "/data/file")
		if err == nil && out != "kept\n" {
			t.Fatalf("the volume has %q", out)
		}
		return err
	})
	pod := c.Do(t, "get", "pod", "one", "-o", "jsonpath={.status.podIP}")
	Eventually(t, 20*time.Second, func() error { return answers(pod + ":8080") })
}

func testDown(t *testing.T, c *Cluster) {
	c.Run(t, "down")
	c.Run(t, "down")
	for _, verb := range [][]string{{"status"}, {"load", "image.tar"}, {"restart", "kubelet"}} {
		cmd := exec.Command(filepath.Join(Root(t), "build/devcluster/devcluster"), append([]string{verb[0], "--dir", c.Dir}, verb[1:]...)...)
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "no cluster runs in") {
			t.Errorf("%v of a stopped cluster: %v, %s", verb, err, out)
		}
	}
}

// TestRefusals needs no cluster.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"up", "--dir", dir}, "holds what is no cluster's: thesis.txt"},
		{[]string{"up", "--delete"}, "usage"},
		{[]string{"fly"}, "usage"},
		{nil, "usage"},
		{[]string{"restart", "--dir", dir}, "usage"},
	} {
		out, err := exec.Command(filepath.Join(Root(t), "build/devcluster/devcluster"), c.args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%v: %v, %s", c.args, err, out)
		}
	}
	if out, err := exec.Command(filepath.Join(Root(t), "build/devcluster/devcluster"), "down", "--delete", "--dir", dir).CombinedOutput(); err != nil {
		t.Errorf("down: %v, %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "thesis.txt")); err != nil {
		t.Error(err)
	}
}

// kernelSettings are those of the whole machine that a kubelet and a proxy change.
func kernelSettings(t testing.TB) string {
	t.Helper()
	var all strings.Builder
	for _, name := range []string{
		"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
		"kernel/keys/root_maxbytes", "net/ipv4/ip_forward", "net/netfilter/nf_conntrack_max",
	} {
		value, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			value = []byte("absent\n")
		}
		fmt.Fprintf(&all, "%s = %s", name, value)
	}
	return all.String()
}
