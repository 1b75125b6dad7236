package shiptest

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/deploy/devcluster/clustertest"
)

// TestDevelopmentCluster is `make cluster-up && make deploy`, and what comes after.
func TestDevelopmentCluster(t *testing.T) {
	r := newRig(t, clustertest.Start(t))
	said := r.up()
	for _, want := range []string{"make a container:", "ssh -F " + r.given + "/ssh_config root@ID.compute.localhost", "to the development cluster at "} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is missing in what it says:\n%s", want, said)
		}
	}
	for name, mode := range map[string]os.FileMode{"token": 0o600, "id_ed25519": 0o600, "ssh_config": 0o644, "known_hosts": 0o644, "ready.json": 0o644} {
		if info, err := os.Stat(filepath.Join(r.data, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}

	id := r.create("dev-box")
	if out := r.ssh("compute.localhost", "ls"); !strings.Contains(out, id) || !strings.Contains(out, "running") {
		t.Errorf("the lobby lists:\n%s", out)
	}
	at := "root@" + id + ".compute.localhost"
	if out := r.ssh(at, "id -un; cat /proc/1/comm"); out != "root\nagent\n" {
		t.Errorf("inside: %q", out)
	}

	t.Run("each gateway lets people in", func(t *testing.T) {
		addresses := strings.Fields(r.kubectl("-n", "berth", "get", "pods", "-l", "app.kubernetes.io/name=berth-gateway",
			"-o", "jsonpath={.items[*].status.podIP}"))
		if len(addresses) != 2 {
			t.Fatalf("gateways at %v", addresses)
		}
		for _, address := range addresses {
			if out := r.ssh("-o", "HostName="+address, "-p", "2222", "-l", id, "compute.localhost", "echo in"); out != "in\n" {
				t.Errorf("by %s: %q", address, out)
			}
		}
	})

	t.Run("without a control plane", func(t *testing.T) {
		session := r.converse(at)
		r.kubectl("-n", "berth", "scale", "deployment/berth-api", "--replicas=0")
		r.kubectl("-n", "berth", "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=berth-api", "--timeout=2m")
		session.say("still here")
		if out := r.ssh(at, "echo in"); out != "in\n" {
			t.Errorf("a login: %q", out)
		}
		r.kubectl("-n", "berth", "scale", "deployment/berth-api", "--replicas=1")
		r.kubectl("-n", "berth", "rollout", "status", "deployment/berth-api", "--timeout=3m")
		session.say("still here")
		session.end()
	})

	t.Run("the operator's commands", func(t *testing.T) {
		cmd := r.cluster.Command(t, "-n", "berth", "exec", "-i", "deploy/berth-api", "--", "berth", "user", "add", "alice", "--key", "-")
		key, err := os.ReadFile(filepath.Join(r.data, "id_ed25519.pub"))
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdin = bytes.NewReader(key)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "alice") {
			t.Errorf("berth user add: %v\n%s", err, out)
		}
		clustertest.Eventually(t, patience, func() error { // after the control plane's restart
			if out := r.kubectl("-n", "berth", "exec", "deploy/berth-api", "--", "berth", "gateway", "ls"); strings.Count(out, "connected") != 2 {
				return fmt.Errorf("berth gateway ls:\n%s", out)
			}
			return nil
		})
	})

	t.Run("the same again changes nothing", func(t *testing.T) {
		api, gateways, life := r.pods("berth-api"), r.pods("berth-gateway"), r.life(id)
		r.up()
		if now := r.pods("berth-api"); !slices.Equal(now, api) {
			t.Errorf("the api's pods were %v and are %v", api, now)
		}
		if now := r.pods("berth-gateway"); !slices.Equal(now, gateways) {
			t.Errorf("the gateways' pods were %v and are %v", gateways, now)
		}
		if now := r.life(id); now != life {
			t.Errorf("the container was %q and is %q", life, now)
		}
	})

	t.Run("an upgrade", func(t *testing.T) {
		api, gateways, life := r.pods("berth-api"), r.pods("berth-gateway"), r.life(id)
		r.ssh(at, "touch /tmp/since-the-start")
		r.pack("v2")
		logins := r.keepLoggingIn(at)
		r.up("--version", "v2")
		logins()
		for _, now := range append(r.pods("berth-api"), r.pods("berth-gateway")...) {
			if slices.Contains(api, now) || slices.Contains(gateways, now) {
				t.Errorf("pod %s is of the version before", now)
			}
		}
		r.ssh(at, "ls /tmp/since-the-start")
		if now := r.life(id); now != life || life == "" {
			t.Errorf("the container was %q and is %q", life, now)
		}
		if n := strings.Fields(r.kubectl("-n", "berth", "get", "configmaps", "-l", "app.kubernetes.io/part-of=berth", "-o", "name")); len(n) != 1 {
			t.Errorf("settings are left: %v", n)
		}
	})

	t.Run("removed and deployed again", func(t *testing.T) {
		life := r.life(id)
		known, err := os.ReadFile(filepath.Join(r.data, "known_hosts"))
		if err != nil {
			t.Fatal(err)
		}
		r.undeploy()
		if now := r.life(id); now != life {
			t.Errorf("the container was %q and is %q", life, now)
		}
		if left := r.kubectl("-n", "berth", "get", "pods,services,statefulsets,deployments,configmaps", "-l", "app.kubernetes.io/part-of=berth", "-o", "name"); left != "" {
			t.Errorf("left: %s", left)
		}
		r.up()
		if again, err := os.ReadFile(filepath.Join(r.data, "known_hosts")); err != nil || !bytes.Equal(again, known) {
			t.Errorf("the host keys are others: %v", err)
		}
		if out := r.ssh(at, "echo in"); out != "in\n" {
			t.Errorf("a login: %q", out)
		}
	})

	t.Run("nobody is there to be asked", func(t *testing.T) {
		if said, err := r.tryShip("down", "--cluster", r.cluster.Dir, "--data", r.data, "--delete"); err == nil || !strings.Contains(said, "all containers (1) with what they store") {
			t.Errorf("%v: %s", err, said)
		}
		r.ssh(at, "true")
	})

	r.undeploy("--delete")
	for _, kind := range []string{"namespaces", "clusterroles", "clusterrolebindings", "validatingadmissionpolicies", "persistentvolumes"} {
		for _, left := range strings.Fields(r.kubectl("get", kind, "-o", "name")) {
			_, name, _ := strings.Cut(left, "/")
			if name == "berth" || strings.HasPrefix(name, "berth-") || strings.HasPrefix(name, "compute-") || kind == "persistentvolumes" {
				t.Errorf("left: %s", left)
			}
		}
	}
	if left, err := os.ReadDir(r.data); err != nil || len(left) != 2 { // the demo key
		t.Errorf("left in the data directory: %v, %v", left, err)
	}
}

// keepLoggingIn does so again and again until what it returns is called; each time it has to work.
func (r *rig) keepLoggingIn(at string) (stop func()) {
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for n := 1; ; n++ {
			if out, err := r.client(at, "true").CombinedOutput(); err != nil {
				r.t.Errorf("login %d: %v: %s", n, err, out)
			}
			select {
			case <-over:
				r.t.Logf("%d logins", n)
				return
			default:
			}
		}
	}()
	return func() {
		close(over)
		<-ended
	}
}

// TestAnotherCluster deploys as to a cluster of which nothing is known but its kubeconfig: a registry and a zone are given. The
// cluster holds Berth's pods to restricted Pod Security.
func TestAnotherCluster(t *testing.T) {
	c := clustertest.Start(t)
	r := newRig(t, c)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text, err := os.ReadFile(c.Kubeconfig)
	if err == nil {
		err = os.WriteFile(kubeconfig, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.env, r.down = append(r.env, "KUBECONFIG="+kubeconfig), nil
	if said, err := r.tryShip("up", "--data", r.data, "--images", r.images); err == nil ||
		!strings.Contains(said, "REGISTRY=registry.example.com/berth") || !strings.Contains(said, "ZONE=compute.example.com") {
		t.Errorf("without a registry and a zone: %v\n%s", err, said)
	}
	open, locked := c.OwnRegistry(t, "", ""), c.OwnRegistry(t, "alice", "open sesame")
	to := func(images *clustertest.Registry) []string {
		return []string{"--images", r.images, "--registry", images.Address + "/some/berth", "--zone", "compute.example.com"}
	}

	t.Run("SQLite", func(t *testing.T) {
		makeVolume(t, c, "sqlite")
		on := r.on(t)
		on.flags = to(open)
		on.first(c)
		on.undeploy("--delete")
	})

	t.Run("Helm", func(t *testing.T) {
		makeVolume(t, c, "helm")
		on := r.on(t)
		on.ship("push", "--images", r.images, "--version", "v1", "--registry", open.Address+"/some/berth")
		on.data = t.TempDir()
		on.chart(open.Address + "/some/berth")
	})

	t.Run("PostgreSQL and a locked registry", func(t *testing.T) {
		on := r.on(t)
		on.login(locked)
		on.flags = append(to(locked), "--overlay", postgresOverlay(t, c, locked))
		at := on.first(c)
		on.takeOver(at)
		on.undeploy("--delete")
		if left := on.kubectl("get", "namespaces", "-o", "name"); strings.Contains(left, "compute-") || strings.Contains(left, "/berth") {
			t.Errorf("left:\n%s", left)
		}
	})
}

// on is the rig for a part of the test.
func (r *rig) on(t *testing.T) *rig {
	part := *r
	part.t = t
	return &part
}

// first deploys, and returns where a container is.
func (r *rig) first(c *clustertest.Cluster) (at string) {
	r.t.Helper()
	giveAddress(r.t, c)
	said := r.up()
	for _, want := range []string{"port-forward service/berth-api 7080", "have the DNS names compute.example.com and *.compute.example.com lead there"} {
		if !strings.Contains(said, want) {
			r.t.Errorf("%q is missing in what it says:\n%s", want, said)
		}
	}
	if r.ready.APIURL != "" {
		r.t.Errorf("the API is at %s, where nothing leads", r.ready.APIURL)
	}
	r.ready.APIURL = "http://" + r.kubectl("-n", "berth", "get", "service", "berth-api", "-o", "jsonpath={.spec.clusterIP}") + ":7080"
	at = "root@" + r.create("dev-box") + ".compute.example.com"
	if out := r.ssh(at, "id -un"); out != "root\n" {
		r.t.Errorf("inside: %q", out)
	}
	return at
}

// takeOver kills both control planes, one after the other, each while the cluster makes a container; and so at least once the one
// that drives it. What is half made comes to run all the same.
func (r *rig) takeOver(at string) {
	r.t.Helper()
	pods := strings.Fields(r.kubectl("-n", "berth", "get", "pods", "-l", "app.kubernetes.io/name=berth-api", "-o", "jsonpath={.items[*].metadata.name}"))
	if len(pods) != 2 {
		r.t.Fatalf("control planes: %v", pods)
	}
	for _, pod := range pods {
		process, name := r.process(pod), strings.TrimPrefix(pod, "berth-api-")
		var made struct{ ID string }
		if err := r.api(http.MethodPost, "/compute/containers", map[string]any{"name": name, "ssh_key_ids": []int{1}, "ssh_enabled": true}, &made); err != nil {
			r.t.Fatal(err)
		}
		clustertest.Eventually(r.t, patience, func() error {
			if there := r.kubectl("get", "namespaces", "-l", "berth/container="+made.ID, "-o", "name"); there == "" {
				return errors.New("it has no namespace")
			}
			return nil
		})
		r.kill(process)
		if there := r.life(made.ID); strings.Contains(there, "containerd://") {
			r.t.Errorf("%s ran already when a control plane was killed", made.ID)
		}
		r.awaitRunning(made.ID)
		if out := r.ssh("root@"+made.ID+"."+r.ready.Zone, "id -un"); out != "root\n" {
			r.t.Errorf("in %s: %q", made.ID, out)
		}
		clustertest.Eventually(r.t, patience, func() error {
			if r.process(pod) == process {
				return errors.New("its kubelet has not started it again")
			}
			return nil
		})
		r.kubectl("-n", "berth", "wait", "--for=condition=Ready", "pod", pod, "--timeout=3m")
	}
	if out := r.ssh(at, "echo in"); out != "in\n" {
		r.t.Errorf("a login: %q", out)
	}
}

// process is what a pod of Berth's runs, by the name that containerd has for it.
func (r *rig) process(pod string) string {
	r.t.Helper()
	id := r.kubectl("-n", "berth", "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	return strings.TrimPrefix(id, "containerd://")
}

// kill ends one as a crash does. Kubernetes itself always asks first.
func (r *rig) kill(process string) {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "ctr", "--address", r.cluster.Containerd, "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", process)
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("ctr tasks kill: %v: %s", err, out)
	}
}

// TestWhatIsRefused asks for what cannot be, without a cluster.
func TestWhatIsRefused(t *testing.T) {
	root := clustertest.Root(t)
	r := &rig{t: t, env: append(os.Environ(), "KUBECONFIG=/nowhere", "PATH="+filepath.Join(root, "build/devcluster")+":"+os.Getenv("PATH"))}
	mine := t.TempDir()
	if err := os.WriteFile(filepath.Join(mine, "berth.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	there := []string{"--cluster", t.TempDir(), "--registry", "registry.example.com/berth", "--zone", "compute.example.com"}
	for want, args := range map[string][]string{
		"no verb":                             {},
		`no verb is called "deploy"`:          {"deploy"},
		"bad command line":                    {"up", "--registery", "x"},
		"give ARCH=DIR":                       {"images", "--program", "bin"},
		"belongs to a Berth on this machine":  append([]string{"up", "--data", mine}, there...),
		"no cluster answers; KUBECONFIG says": append([]string{"up", "--data", t.TempDir()}, there...),
		"make cluster-up":                     {"up", "--cluster", t.TempDir(), "--data", t.TempDir()},
	} {
		if said, err := r.tryShip(args...); err == nil || !strings.Contains(said, want) {
			t.Errorf("%v: want %q, got %v:\n%s", args, want, err, fmt.Sprint(said))
		}
	}
}
