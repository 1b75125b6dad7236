package shiptest

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"berth/deploy/devcluster/clustertest"
)

// chart installs Berth by Helm as docs/operator/kubernetes.md and the chart's notes say, uses it, installs it again over what it
// left, and removes it.
func (r *rig) chart(images string) {
	r.t.Helper()
	values := "zone=compute.example.com,images.tag=v1,images.registry=" + images
	if said := r.helm("install", "berth", "deploy/helm/berth", "--create-namespace", "--set", values); !strings.Contains(said, "-- berth user add NAME --admin") {
		r.t.Errorf("its notes:\n%s", said)
	}
	r.awaitServing()
	r.beAdministrator()
	id := r.create("dev-box")
	at := "root@" + id + ".compute.example.com"
	if out := r.ssh(at, "id -un"); out != "root\n" {
		r.t.Errorf("inside: %q", out)
	}

	life := r.life(id)
	r.helm("uninstall", "berth", "--wait")
	r.helm("install", "berth", "deploy/helm/berth", "--set", values)
	r.awaitServing()
	if now := r.life(id); now != life || life == "" {
		r.t.Errorf("the container was %q and is %q", life, now)
	}
	if out := r.ssh(at, "echo in"); out != "in\n" { // by the same host keys
		r.t.Errorf("a login: %q", out)
	}

	if err := r.api(http.MethodDelete, "/compute/containers/"+id, nil, nil); err != nil {
		r.t.Fatal(err)
	}
	r.kubectl("wait", "--for=delete", "namespace", "-l", "berth/container="+id, "--timeout=3m")
	r.helm("uninstall", "berth", "--wait")
	r.kubectl("delete", "namespace", "berth")
}

// helm runs Helm's own program, which must succeed.
func (r *rig) helm(args ...string) string {
	r.t.Helper()
	root := clustertest.Root(r.t)
	cmd := exec.CommandContext(r.t.Context(), filepath.Join(root, "build/helm"), append(args, "--namespace", "berth")...)
	cmd.Dir, cmd.Env = root, r.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("helm %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// awaitServing learns where Berth is once it serves. Nothing leads there by name.
func (r *rig) awaitServing() {
	r.t.Helper()
	for _, part := range []string{"deployment/berth-api", "statefulset/berth-gateway"} {
		r.kubectl("-n", "berth", "rollout", "status", part, "--timeout=3m")
	}
	r.ready.APIURL = "http://" + r.address("berth-api") + ":7080"
	config := fmt.Sprintf(`
Host compute.example.com
  HostName %s
Host *.compute.example.com
  ProxyJump compute.example.com
Host *
  HostKeyAlias compute.example.com
  IdentityFile %s
  StrictHostKeyChecking accept-new
  UserKnownHostsFile %s/known_hosts
`, r.address("berth-gateway"), filepath.Join(r.data, "key"), r.data)
	if err := os.WriteFile(filepath.Join(r.data, "ssh_config"), []byte(config), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) address(service string) string {
	r.t.Helper()
	return r.kubectl("-n", "berth", "get", "service", service, "-o", "jsonpath={.spec.clusterIP}")
}

// beAdministrator does what the chart's notes ask for.
func (r *rig) beAdministrator() {
	r.t.Helper()
	key := filepath.Join(r.data, "key")
	if out, err := exec.CommandContext(r.t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		r.t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		r.t.Fatal(err)
	}
	add := r.cluster.Command(r.t, "-n", "berth", "exec", "-i", "deploy/berth-api", "--", "berth", "user", "add", "alice", "--admin", "--key", "-")
	add.Stdin = bytes.NewReader(public)
	if out, err := add.CombinedOutput(); err != nil {
		r.t.Fatalf("berth user add: %v: %s", err, out)
	}
	token := r.kubectl("-n", "berth", "exec", "deploy/berth-api", "--", "berth", "token")
	if err := os.WriteFile(filepath.Join(r.data, "token"), []byte(token), 0o600); err != nil {
		r.t.Fatal(err)
	}
}
