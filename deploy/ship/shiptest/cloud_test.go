package shiptest

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"berth/deploy/devcluster/clustertest"
	"berth/internal/pgtest"
)

// What a cluster of somebody else's has around it: volumes that whoever runs in a pod may write, a database, and load balancers.

// makeVolume has the control plane's next claim get a volume of the group that it asks for. The development cluster's own are
// root's.
func makeVolume(t *testing.T, c *clustertest.Cluster, name string) {
	t.Helper()
	dir := filepath.Join(c.Dir, "tmp", name) // the node's /tmp
	if err := os.Mkdir(dir, 0o770); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 0, 65532); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o770); err != nil {
		t.Fatal(err)
	}
	c.Apply(t, strings.ReplaceAll(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: VOLUME}
spec:
  capacity: {storage: 5Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: standard
  persistentVolumeReclaimPolicy: Retain
  claimRef: {namespace: berth, name: berth-data}
  hostPath: {path: /tmp/VOLUME, type: Directory}
`, "VOLUME", name))
}

// postgresOverlay starts a PostgreSQL that asks for a password, and returns an operator's own overlay for it, and for a registry
// that asks for one too. The Secrets with the passwords are made as docs/operator/kubernetes.md says.
func postgresOverlay(t *testing.T, c *clustertest.Cluster, images *clustertest.Registry) string {
	t.Helper()
	server, err := pgtest.Start("listen_addresses = '"+c.Machine+"'", "fsync = off")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	hba, err := os.OpenFile(server.SQL(t, "postgres", "SHOW hba_file"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = hba.WriteString("host berth berth " + c.Network + " scram-sha-256\n")
		err = errors.Join(err, hba.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	server.SQL(t, "postgres", "SELECT pg_reload_conf()")
	server.SQL(t, "postgres", "CREATE ROLE berth LOGIN PASSWORD 'secret'")
	server.SQL(t, "postgres", "CREATE DATABASE berth OWNER berth ENCODING 'UTF8' TEMPLATE template0")
	dir := t.TempDir()
	pgpass := filepath.Join(dir, "pgpass")
	if err := os.WriteFile(pgpass, []byte("*:*:berth:berth:secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Do(t, "create", "namespace", "berth")
	c.Do(t, "-n", "berth", "create", "secret", "generic", "berth-database", "--from-file=pgpass="+pgpass)
	c.Do(t, "-n", "berth", "create", "secret", "docker-registry", "berth-pull", "--docker-server="+images.Address,
		"--docker-username="+images.User, "--docker-password="+images.Password)

	overlay := filepath.Join(dir, "overlay")
	if err := os.Mkdir(overlay, 0o755); err != nil {
		t.Fatal(err)
	}
	base, err := filepath.Rel(overlay, filepath.Join(clustertest.Root(t), "deploy/kubernetes/overlays/postgresql"))
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [%s]
configMapGenerator:
- name: berth-settings
  namespace: berth
  behavior: merge
  literals: ["BERTH_DATABASE=postgres://berth@%s/berth", BERTH_PULL_SECRETS=berth-pull]
patches:
- patch: '{apiVersion: apps/v1, kind: Deployment, metadata: {name: berth-api, namespace: berth}, spec: {template: {spec: {imagePullSecrets: [{name: berth-pull}]}}}}'
- patch: '{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: berth-gateway, namespace: berth}, spec: {template: {spec: {imagePullSecrets: [{name: berth-pull}]}}}}'
`, base, c.Machine)
	if err := os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return overlay
}

// giveAddress gives the gateway's Service an address once it is there, as a cloud's controller does.
func giveAddress(t *testing.T, c *clustertest.Cluster) {
	t.Helper()
	pool, err := netip.ParsePrefix(c.LoadBalancers)
	if err != nil {
		t.Fatal(err)
	}
	address := pool.Addr().Next()
	var wait sync.WaitGroup
	wait.Go(func() {
		_, err := c.Try(t, "-n", "berth", "wait", "--for=create", "service/berth-gateway", "--timeout=10m")
		if err == nil {
			_, err = c.Try(t, "-n", "berth", "patch", "service", "berth-gateway", "--subresource=status", "--type=merge",
				"--patch", fmt.Sprintf(`{"status":{"loadBalancer":{"ingress":[{"ip":%q}]}}}`, address))
		}
		if err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(wait.Wait)
}

// login leaves what `docker login` leaves.
func (r *rig) login(to *clustertest.Registry) {
	r.t.Helper()
	dir := r.t.TempDir()
	auth := base64.StdEncoding.EncodeToString([]byte(to.User + ":" + to.Password))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, to.Address, auth), 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.env = append(slices.Clone(r.env), "DOCKER_CONFIG="+dir)
}
