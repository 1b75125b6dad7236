package k8stest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"berth/deploy/devcluster/clustertest"
	"berth/internal/compute"
	"berth/internal/k8s"
)

// fault is something that goes wrong with the cluster, or with what an operator configured.
type fault struct {
	name string
	// options changes what the engine is opened with.
	options func(t *testing.T, r *rig, o *k8s.Options)
	// stopped says that the fault comes while the container is stopped; else it is there before the container is.
	stopped    bool
	begin, end func(p *plane, ref compute.Ref) // the cause comes and goes away
	message    string                          // what the container's owner reads, with status failed
	logged     []string                        // what its operator reads
}

// TestFaults has a cause keep a container from starting: its owner and its operator are told, and once the cause has gone
// away the container runs, without anybody asking again.
func TestFaults(t *testing.T) {
	r := newRig(t)
	r.close()
	t.Run("one container's", func(t *testing.T) {
		for _, f := range faults() {
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				testFault(t, r, f)
			})
		}
		for name, test := range map[string]func(*testing.T, *rig){
			"namespace stuck": testNamespaceStuck, "rights missing at the start": testRightsAtStart, "credentials that ran out": testExpired,
			"clocks that differ": testClocks, "an API server that is slow": testSlow,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, r.in(t))
			})
		}
	})
	testFault(t, r, fault{
		name: "the API server is away", stopped: true,
		begin:   func(p *plane, _ compute.Ref) { p.cluster.Run(t, "stop", "apiserver") },
		end:     func(p *plane, _ compute.Ref) { p.cluster.Run(t, "start", "apiserver") },
		message: "The cluster does not answer at the moment",
		logged:  []string{"connection refused"},
	})
}

func testFault(t *testing.T, r *rig, f fault) {
	p := r.plane(t, func(o *k8s.Options) {
		if f.options != nil {
			f.options(t, r, o)
		}
	})
	var ref compute.Ref
	if f.stopped {
		ref = p.run()
		_, err := p.Service.StopContainer(p.ctx(), p.Owner, ref.ID)
		p.must(err)
		p.await(ref, compute.StatusStopped, "")
	}
	if f.begin != nil {
		f.begin(p, ref)
	}
	if f.stopped {
		_, err := p.Service.StartContainer(p.ctx(), p.Owner, ref.ID)
		p.must(err)
	} else {
		ref = p.create()
	}
	p.await(ref, compute.StatusFailed, f.message)
	for _, words := range f.logged {
		p.must(p.log.has(words))
	}
	p.failing(1)
	f.end(p, ref)
	p.await(ref, compute.StatusRunning, "")
	p.failing(0)
	if f.stopped {
		p.sh(ref, "test $(cat /root/f) = kept")
	}
}

// failing waits until that many containers count as such, in what the metric berth_reconcile_failing tells.
func (p *plane) failing(n int) {
	p.t.Helper()
	clustertest.Eventually(p.t, time.Minute, func() error {
		if b := p.Service.Backlog(); b.Failing != n {
			return fmt.Errorf("failing: %+v, want %d", b, n)
		}
		return nil
	})
}

func faults() []fault {
	return []fault{
		{
			name: "no node of the architecture", stopped: true,
			options: func(t *testing.T, r *rig, o *k8s.Options) {
				o.NodeSelector = map[string]string{"tenants": "yes"}
				r.cluster.Do(t, "label", "node", r.cluster.Node, "tenants=yes")
			},
			begin:   func(p *plane, _ compute.Ref) { p.cluster.Do(p.t, "label", "node", p.cluster.Node, "tenants-") },
			end:     func(p *plane, _ compute.Ref) { p.cluster.Do(p.t, "label", "node", p.cluster.Node, "tenants=yes") },
			message: "node is free for it", logged: []string{"didn't match Pod's node affinity/selector"},
		},
		{
			name:    "an image that the node does not have",
			options: func(_ *testing.T, _ *rig, o *k8s.Options) { o.Image, o.PullPolicy = "berth.local/absent:1", "Never" },
			end:     func(p *plane, _ compute.Ref) { p.tag("berth.local/absent:1") },
			message: "berth.local/absent:1", logged: []string{"ErrImageNeverPull"},
		},
		{
			name:    "an image that cannot be pulled",
			options: func(_ *testing.T, _ *rig, o *k8s.Options) { o.Image = "berth.invalid/base:1" },
			end:     func(p *plane, _ compute.Ref) { p.tag("berth.invalid/base:1") },
			message: "Its image berth.invalid/base:1 cannot be pulled", logged: []string{"failed to resolve reference"},
		},
		{
			name:    "a volume that nothing makes",
			options: func(_ *testing.T, _ *rig, o *k8s.Options) { o.StorageClass = "later" },
			end: func(p *plane, _ compute.Ref) {
				p.cluster.Apply(p.t, "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: later}\nprovisioner: kubernetes.io/host-path\n")
			},
			message: "Its storage is not there yet", logged: []string{"unbound immediate PersistentVolumeClaims"},
		},
		{
			name: "a quota", stopped: true,
			begin: func(p *plane, ref compute.Ref) {
				p.kubectl(ref, "create", "quota", "small", "--hard=requests.memory=1Mi")
				p.eventually(ref, "1Mi", "get", "quota", "small", "-o", "jsonpath={.status.hard.requests\\.memory}")
			},
			end:     func(p *plane, ref compute.Ref) { p.kubectl(ref, "delete", "quota", "small") },
			message: "quota has no room", logged: []string{"exceeded quota: small"},
		},
		{
			name: "exec refused by a policy", stopped: true,
			begin: func(p *plane, ref compute.Ref) {
				p.cluster.Apply(p.t, strings.ReplaceAll(noExec, "ID", string(ref.ID)))
				clustertest.Eventually(p.t, time.Minute, func() error { // it takes moments to work
					out, err := p.cluster.Try(p.t, "create", "--raw", "/api/v1/namespaces/"+ref.String()+"/pods/absent/exec?command=true", "-f", "/dev/null")
					if err == nil || !strings.Contains(err.Error(), "no exec here") {
						return fmt.Errorf("exec is not refused yet: %q, %w", out, err)
					}
					return nil
				})
			},
			end: func(p *plane, ref compute.Ref) {
				p.cluster.Do(p.t, "delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", "no-exec-"+string(ref.ID))
			},
			message: "The cluster refuses what this needs", logged: []string{"no exec here"},
		},
		{
			name: "a verb that is missing",
			options: func(t *testing.T, r *rig, o *k8s.Options) {
				r.account(t, "verbless", `[{"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "watch", "patch", "delete"]},
					{"apiGroups": ["rbac.authorization.k8s.io"], "verbs": ["create", "bind"], "resources": ["rolebindings", "clusterroles"]},
					{"apiGroups": ["", "networking.k8s.io", "apps"], "verbs": ["create"], "resources":
						["namespaces", "resourcequotas", "limitranges", "services", "networkpolicies", "statefulsets", "pods/exec"]}]`)
				o.Kubeconfig = r.tokenFor(t, "verbless")
			},
			end: func(p *plane, _ compute.Ref) {
				p.cluster.Do(p.t, "patch", "clusterrole", "verbless", "--type=json", "-p", `[{"op": "add", "path": "/rules/-", "value": {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}}]`)
			},
			message: "The cluster refuses what this needs", logged: []string{"persistentvolumeclaims is forbidden", `cannot create resource \"persistentvolumeclaims\"`},
		},
		{
			name: "credentials that are taken away", stopped: true,
			options: func(t *testing.T, r *rig, o *k8s.Options) {
				r.account(t, "fired", `[{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]`)
				o.Kubeconfig = r.tokenFor(t, "fired")
			},
			begin: func(p *plane, _ compute.Ref) {
				p.cluster.Do(p.t, "delete", "serviceaccount", "fired")
				clustertest.Eventually(p.t, time.Minute, func() error { // the API server remembers tokens for seconds
					cmd := p.cluster.Command(p.t, "--kubeconfig", p.opt.Kubeconfig, "get", "namespaces")
					if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "logged in") {
						return fmt.Errorf("not refused yet: %s, %w", out, err)
					}
					return nil
				})
			},
			end: func(p *plane, _ compute.Ref) {
				p.cluster.Do(p.t, "create", "serviceaccount", "fired")
				p.must(writeToken(p.t, p.cluster, "fired", filepath.Join(filepath.Dir(p.opt.Kubeconfig), "token")))
			},
			message: "The cluster refuses what this needs", logged: []string{"Unauthorized"},
		},
	}
}

const noExec = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-exec-ID}
spec:
  failurePolicy: Fail
  matchConstraints:
    namespaceSelector: {matchLabels: {berth/container: "ID"}}
    resourceRules:
    - {apiGroups: [""], apiVersions: [v1], operations: [CONNECT], resources: [pods/exec]}
  validations:
  - {expression: "false", message: "no exec here"}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-exec-ID}
spec: {policyName: no-exec-ID, validationActions: [Deny]}
`

// tag gives the base image, which the node has, another name.
func (p *plane) tag(name string) {
	p.t.Helper()
	base := clustertest.ImageName(p.t, filepath.Join(clustertest.Root(p.t), "build/base-image.tar"))
	out, err := exec.Command("ctr", "--address", p.cluster.Containerd, "--namespace", "k8s.io", "images", "tag", "--force", base, name).CombinedOutput()
	if err != nil {
		p.t.Fatalf("tag: %v: %s", err, out)
	}
}

// account makes a service account with rights of its own, for as long as the test runs.
func (r *rig) account(t *testing.T, name, rules string) {
	t.Helper()
	r.cluster.Apply(t, fmt.Sprintf(`
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[1]s, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: %[1]s}
rules: %[2]s
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: %[1]s}
subjects: [{kind: ServiceAccount, name: %[1]s, namespace: default}]
`, name, rules))
}

// tokenFor writes a kubeconfig that reads a service account's token from a file beside it, as a pod has it.
func (r *rig) tokenFor(t *testing.T, account string) string {
	t.Helper()
	dir := t.TempDir()
	if err := writeToken(t, r.cluster, account, filepath.Join(dir, "token")); err != nil {
		t.Fatal(err)
	}
	return r.configOf(t, dir, `"tokenFile": `+quote(filepath.Join(dir, "token")))
}

func writeToken(t *testing.T, c *clustertest.Cluster, account, file string) error {
	return os.WriteFile(file, []byte(c.Do(t, "create", "token", account)), 0o600)
}

func quote(s string) string {
	b, _ := json.Marshal(s) // strings never fail
	return string(b)
}

// configOf writes a kubeconfig for the cluster with a user of its own.
func (r *rig) configOf(t *testing.T, dir, user string) string {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", r.cluster.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := json.Marshal(config.CAData) // as base64
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
		"users": [{"name": "u", "user": {%s}}], "clusters": [{"name": "c", "cluster": {"server": %q, "certificate-authority-data": %s}}]}`,
		user, config.Host, ca)
	file := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// testNamespaceStuck has something hold a namespace that is deleted: the operator reads what, and it goes once nothing does.
func testNamespaceStuck(t *testing.T, r *rig) {
	p := r.plane(t, nil)
	ref := p.run()
	p.kubectl(ref, "create", "configmap", "held")
	p.kubectl(ref, "patch", "configmap", "held", "--type=merge", "-p", `{"metadata": {"finalizers": ["example.com/held"]}}`)
	p.must(p.Service.DeleteContainer(p.ctx(), p.Owner, ref.ID))
	_, err := p.Service.GetContainer(p.ctx(), p.Owner, ref.ID)
	p.wantCode(err, compute.CodeNotFound)
	clustertest.Eventually(t, 2*time.Minute, func() error { return p.log.has("example.com/held in 1 resource instances") })
	p.kubectl(ref, "patch", "configmap", "held", "--type=merge", "-p", `{"metadata": {"finalizers": null}}`)
	p.must(p.AwaitGone(p.ctx(), ref))
	gone(t, r.cluster, ref)
}

// testRightsAtStart has no right to watch what is watched: every kind is named.
func testRightsAtStart(t *testing.T, r *rig) {
	r.account(t, "blind", `[{"apiGroups": ["", "apps"], "resources": ["namespaces", "pods", "persistentvolumeclaims", "nodes", "services", "limitranges", "statefulsets"], "verbs": ["list", "watch"]}]`)
	wrong := r.opt
	wrong.Kubeconfig = r.tokenFor(t, "blind")
	r.refuses(wrong, "networkpolicies.networking.k8s.io is forbidden", "resourcequotas is forbidden", `cannot list resource "resourcequotas"`)
}

// refuses opens an engine, which must fail, and say why.
func (r *rig) refuses(o k8s.Options, words ...string) {
	r.t.Helper()
	o.Image = r.unread
	ctx, cancel := context.WithTimeout(r.ctx(), 5*time.Second)
	defer cancel()
	e, err := k8s.Open(ctx, o)
	if err == nil {
		_ = e.Close()
		err = errors.New("none")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			r.t.Errorf("the error does not say %q: %v", w, err)
		}
	}
}

// certificate is one that the cluster's authority signed, valid for an hour from a time on.
func (r *rig) certificate(from time.Time, subject pkix.Name, usage x509.ExtKeyUsage, host string) (cert, key []byte) {
	r.t.Helper()
	must := func(err error) {
		if err != nil {
			r.t.Helper()
			r.t.Fatal(err)
		}
	}
	pki := filepath.Join(r.cluster.Dir, "pki")
	ca, err := tls.LoadX509KeyPair(pki+"/ca.crt", pki+"/ca.key")
	must(err)
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(from.UnixNano()), Subject: subject, NotBefore: from, NotAfter: from.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage}, DNSNames: []string{host},
	}, ca.Leaf, &own.PublicKey, ca.PrivateKey)
	must(err)
	b, err := x509.MarshalECPrivateKey(own)
	must(err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: b})
}

func testExpired(t *testing.T, r *rig) {
	cert, key := r.certificate(time.Now().Add(-2*time.Hour), pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}, x509.ExtKeyUsageClientAuth, "")
	encode := func(b []byte) string {
		text, _ := json.Marshal(b)
		return string(text)
	}
	wrong := r.opt
	wrong.Kubeconfig = r.configOf(t, t.TempDir(), `"client-certificate-data": `+encode(cert)+`, "client-key-data": `+encode(key))
	r.refuses(wrong, "Unauthorized")
}

// testClocks has an API server whose certificate begins tomorrow, by this machine's clock.
func testClocks(t *testing.T, r *rig) {
	cert, key := r.certificate(time.Now().Add(24*time.Hour), pkix.Name{CommonName: "localhost"}, x509.ExtKeyUsageServerAuth, "localhost")
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	t.Cleanup(server.Close)
	port := server.Listener.Addr().String()[strings.LastIndex(server.Listener.Addr().String(), ":"):]
	wrong := r.opt
	wrong.Kubeconfig = r.configOf(t, t.TempDir(), "")
	text, err := os.ReadFile(wrong.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", r.cluster.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.ReplaceAll(string(text), config.Host, "https://localhost"+port))
	if err := os.WriteFile(wrong.Kubeconfig, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r.refuses(wrong, "not yet valid", "is this machine's clock right")
}

// testSlow has an API server that accepts what changes something and does not answer.
func testSlow(t *testing.T, r *rig) {
	config, err := clientcmd.BuildConfigFromFlags("", r.cluster.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport, proxy.FlushInterval = transport, -1
	var held atomic.Bool
	over := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if held.Load() && q.Method != http.MethodGet {
			<-over
			return
		}
		proxy.ServeHTTP(w, q)
	}))
	t.Cleanup(func() { close(over); server.CloseClientConnections(); server.Close() })
	r.opt.Image = r.unread
	r.opt.Kubeconfig = r.kubeconfig(server.URL)
	e := r.open()
	t.Cleanup(r.close)
	s := newSpec()
	held.Store(true)
	began := time.Now()
	err = e.Provision(r.ctx(), s)
	if compute.CodeOf(err) != compute.CodeUnavailable || !strings.Contains(err.Error(), "did not begin to answer") {
		t.Errorf("provision: %v", err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("it took %s", took)
	}
	held.Store(false)
	for _, err := range []error{e.Provision(r.ctx(), s), e.Remove(r.ctx(), s.Ref)} {
		if err != nil {
			t.Error(err)
		}
	}
}
