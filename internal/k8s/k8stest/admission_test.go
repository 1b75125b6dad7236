package k8stest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"

	"berth/deploy/devcluster/clustertest"
)

// user is kubectl as somebody.
type user struct {
	t          testing.TB
	cluster    *clustertest.Cluster
	kubeconfig string
}

func as(t testing.TB, c *clustertest.Cluster, kubeconfig string) user { return user{t, c, kubeconfig} }

func (u user) run(stdin string, args ...string) error {
	cmd := u.cluster.Command(u.t, args...)
	cmd.Env = append(cmd.Env, "KUBECONFIG="+u.kubeconfig)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// exec runs a program without any look at the pod before.
func (u user) exec(namespace, pod string, command ...string) error {
	config := configOf(u.t, u.kubeconfig)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		u.t.Fatal(err)
	}
	to := client.CoreV1().RESTClient().Get().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: "main", Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	x, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, to.String())
	if err != nil {
		u.t.Fatal(err)
	}
	return x.StreamWithContext(u.t.Context(), remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard})
}

// apply is server-side, and by the field manager of the engine.
func (u user) apply(object string) error {
	return u.run(object, "apply", "--server-side", "--force-conflicts", "--field-manager=berth", "--validate=false", "-f", "-")
}

func refusedByPolicy(err error) error {
	switch {
	case err == nil:
		return errors.New("it was not refused")
	case !strings.Contains(err.Error(), "ValidatingAdmissionPolicy 'berth-"):
		return fmt.Errorf("it was not refused by a policy: %w", err)
	}
	return nil
}

func refusedByRole(err error) error {
	switch {
	case err == nil:
		return errors.New("it was not refused")
	case !strings.Contains(strings.ToLower(err.Error()), "is forbidden: user") || strings.Contains(err.Error(), "ValidatingAdmissionPolicy"):
		return fmt.Errorf("it was not refused for want of a right: %w", err)
	}
	return nil
}

func allowed(err error) error { return err }

const labelled = `app.kubernetes.io/managed-by: berth, berth/installation: i, berth/container: deadbeef, pod-security.kubernetes.io/enforce: baseline`

func namespaceObject(name, labels string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {%s}}}", name, labels)
}

func object(apiVersion, kind, namespace, rest string) string {
	return fmt.Sprintf("{apiVersion: %s, kind: %s, metadata: {name: x, namespace: %s}, %s}", apiVersion, kind, namespace, rest)
}

func serviceObject(namespace, labels, spec string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: x, namespace: %s, labels: {%s}}, spec: {ports: [{port: 22}], %s}}", namespace, labels, spec)
}

func statefulSet(namespace, pod string) string {
	return object("apps/v1", "StatefulSet", namespace, `spec: {replicas: 0, serviceName: x, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {`+
		`containers: [{name: c, image: x}], `+pod+`}}}`)
}

func binding(namespace, role, subject string) string {
	return object("rbac.authorization.k8s.io/v1", "RoleBinding", namespace,
		"roleRef: {apiGroup: rbac.authorization.k8s.io, "+role+"}, subjects: [{"+subject+"}]")
}

// pullSecret is of the only name that the control plane may write in containers' namespaces.
func pullSecret(namespace, rest string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Secret, metadata: {name: berth-pull, namespace: %s, "+
		"annotations: {kubernetes.io/service-account.name: default}}, %s}", namespace, rest)
}

// testAdmission tries what the accounts' roles allow, where it is allowed, and where and how it is not.
func testAdmission(t *testing.T, r *rig) {
	s := r.run()
	ours, pod := s.String(), string(s.ID)+"-0"
	r.cluster.Apply(t, namespaceObject("foreign", "team: red"))
	r.cluster.Apply(t, namespaceObject("compute-9-deadbeef", "team: red"))
	r.cluster.Apply(t, namespaceObject("somebodys", labelled))
	r.cluster.Apply(t, "{apiVersion: v1, kind: Service, metadata: {name: gateway, namespace: berth}, spec: {ports: [{port: 22}]}}")
	r.cluster.Apply(t, "{apiVersion: v1, kind: Secret, metadata: {name: berth-gateway, namespace: berth}}")
	r.cluster.Apply(t, "{apiVersion: v1, kind: Secret, metadata: {name: other, namespace: berth}}")
	r.cluster.Apply(t, object("apps/v1", "StatefulSet", "foreign", `spec: {replicas: 0, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: x}]}}}`))
	r.cluster.Apply(t, fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: foreign}, spec: {terminationGracePeriodSeconds: 0, `+
		`containers: [{name: c, image: %q, imagePullPolicy: Never, command: [sleep, infinity]}]}}`, r.opt.Image))
	r.cluster.Do(t, "-n", "foreign", "wait", "--for=condition=Ready", "pod/p", "--timeout=120s")

	api, gateway := as(t, r.cluster, r.accounts.api), as(t, r.cluster, r.accounts.gateway)
	const gatewayRole, gatewayAccount = "kind: ClusterRole, name: berth-gateway", "kind: ServiceAccount, name: berth-gateway, namespace: berth"
	const noToken = "automountServiceAccountToken: false"
	for _, try := range []struct {
		what string
		err  error
		want func(error) error
	}{
		// Where.
		{"policies in a container's namespace", api.apply(object("v1", "LimitRange", ours, "spec: {limits: []}")), allowed},
		{"in a foreign one", api.apply(object("v1", "LimitRange", "foreign", "spec: {limits: []}")), refusedByPolicy},
		{"in a foreign one with a name of ours", api.apply(object("v1", "LimitRange", "compute-9-deadbeef", "spec: {limits: []}")), refusedByPolicy},
		{"in one with our labels and a name that is not", api.apply(object("v1", "LimitRange", "somebodys", "spec: {limits: []}")), refusedByPolicy},
		{"in the cluster's own", api.apply(object("v1", "LimitRange", "kube-system", "spec: {limits: []}")), refusedByPolicy},
		{"in the installation's own", api.apply(object("v1", "LimitRange", "berth", "spec: {limits: []}")), refusedByPolicy},
		{"a StatefulSet in the installation's own", api.apply(statefulSet("berth", noToken)), refusedByPolicy},
		{"delete a foreign StatefulSet", api.run("", "-n", "foreign", "delete", "statefulset", "x"), refusedByPolicy},
		{"delete a foreign pod", api.run("", "-n", "foreign", "delete", "--raw", "/api/v1/namespaces/foreign/pods/p"), refusedByPolicy},
		{"the control plane runs a command in a container", api.exec(ours, pod, "/.berth/agent", "--version"), allowed},
		{"in a foreign pod", api.exec("foreign", "p", "true"), refusedByPolicy},
		{"the gateway runs a command in a container", gateway.exec(ours, pod, "/.berth/agent", "--version"), allowed},
		{"in a foreign pod", gateway.exec("foreign", "p", "true"), refusedByRole},

		// Namespaces.
		{"a namespace without labels", api.apply(namespaceObject("compute-1-00000001", "")), refusedByPolicy},
		{"without Pod Security", api.apply(namespaceObject("compute-1-deadbeef", strings.Replace(labelled, "baseline", "privileged", 1))), refusedByPolicy},
		{"of an old Pod Security", api.apply(namespaceObject("compute-1-deadbeef", labelled+", pod-security.kubernetes.io/enforce-version: v1.20")), refusedByPolicy},
		{"of another name", api.apply(namespaceObject("kube-other", labelled)), refusedByPolicy},
		{"of another container", api.apply(namespaceObject("compute-1-deadbee0", labelled)), refusedByPolicy},
		{"label a foreign one", api.apply(namespaceObject("compute-9-deadbeef", labelled)), refusedByPolicy},
		{"delete a foreign one", api.run("", "delete", "namespace", "foreign", "--wait=false"), refusedByPolicy},
		{"change whose it is", api.run("", "label", "namespace", ours, "berth/installation=other", "--overwrite"), refusedByPolicy},
		{"take our label off", api.run("", "label", "namespace", ours, "app.kubernetes.io/managed-by-"), refusedByPolicy},
		{"take Pod Security off", api.run("", "label", "namespace", ours, "pod-security.kubernetes.io/enforce-"), refusedByPolicy},
		{"weaken Pod Security", api.run("", "label", "namespace", ours, "pod-security.kubernetes.io/enforce=privileged", "--overwrite"), refusedByPolicy},
		{"add a label", api.run("", "label", "namespace", ours, "team=red"), allowed},
		{"make one, and remove it", errors.Join(
			api.apply(namespaceObject("compute-1-deadbeef", labelled)), api.run("", "delete", "namespace", "compute-1-deadbeef", "--wait=false"),
		), allowed},

		// Roles.
		{"bind the gateway's role", api.apply(binding(ours, gatewayRole, gatewayAccount)), allowed},
		{"bind it to somebody", api.apply(strings.Replace(binding(ours, gatewayRole, "kind: User, name: eve, apiGroup: rbac.authorization.k8s.io"), "name: x", "name: x2", 1)), refusedByPolicy},
		{"bind it in a foreign namespace", api.apply(binding("foreign", gatewayRole, gatewayAccount)), refusedByPolicy},
		{"bind another role", api.apply(strings.Replace(binding(ours, "kind: ClusterRole, name: admin", gatewayAccount), "name: x", "name: x3", 1)), refusedByRole},

		// What is made there.
		{"a StatefulSet without a token", api.apply(statefulSet(ours, noToken)), allowed},
		{"with the default one", api.apply(statefulSet(ours, "restartPolicy: Always")), refusedByPolicy},
		{"with one by a volume", api.apply(statefulSet(ours, noToken+", volumes: [{name: t, projected: {sources: [{serviceAccountToken: {path: t}}]}}]")), refusedByPolicy},
		{"before the cluster's own", api.apply(statefulSet(ours, noToken+", priorityClassName: system-node-critical")), refusedByPolicy},
		{"a Secret with a token", api.apply(pullSecret(ours, "type: kubernetes.io/service-account-token")), refusedByPolicy},
		{"credentials for registries", api.apply(pullSecret(ours, "type: kubernetes.io/dockerconfigjson, data: {.dockerconfigjson: e30=}")), allowed},
		{"a pod", api.apply(object("v1", "Pod", ours, "spec: {containers: [{name: c, image: x}]}")), refusedByRole},
		{"a Service with a node port", api.apply(serviceObject(ours, "", "type: NodePort")), refusedByPolicy},
		{"a Service of others' addresses", api.apply(serviceObject(ours, "", "externalIPs: [192.0.2.1]")), refusedByPolicy},

		// The installation's own namespace.
		{"a load balancer", api.apply(serviceObject("berth", "berth/container: deadbeef", "type: LoadBalancer")), allowed},
		{"one of others' addresses", api.apply(serviceObject("berth", "berth/container: deadbeef", "type: LoadBalancer, externalIPs: [192.0.2.1]")), refusedByPolicy},
		{"and away again", api.run("", "-n", "berth", "delete", "service", "x"), allowed},
		{"the gateway's Service", api.run("", "-n", "berth", "annotate", "service", "gateway", "a=b"), refusedByPolicy},
		{"delete that", api.run("", "-n", "berth", "delete", "service", "gateway"), refusedByPolicy},
		{"fill the gateway's Secret", api.run("", "-n", "berth", "patch", "secret", "berth-gateway", "-p", `{"data": {"credential": "eA=="}}`), allowed},
		{"another Secret", api.run("", "-n", "berth", "patch", "secret", "other", "-p", `{"data": {"credential": "eA=="}}`), refusedByRole},
	} {
		if err := try.want(try.err); err != nil {
			t.Errorf("%s: %v", try.what, err)
		}
	}
	// The policies hold too where somebody gave the accounts every right.
	for _, account := range []string{"berth-api", "berth-gateway"} {
		r.cluster.Do(t, "create", "clusterrolebinding", "all-"+account, "--clusterrole=cluster-admin", "--serviceaccount=berth:"+account)
		defer r.cluster.Do(t, "delete", "clusterrolebinding", "all-"+account)
	}
	for what, refused := range map[string]func() error{
		"another role": func() error {
			return api.apply(strings.Replace(binding(ours, "kind: ClusterRole, name: admin", gatewayAccount), "name: x", "name: x3", 1))
		},
		"a command of the gateway's in a foreign pod": func() error { return gateway.exec("foreign", "p", "true") },
		"another Secret's namespace":                  func() error { return api.run("", "-n", "foreign", "create", "secret", "generic", "s") },
		"a ConfigMap of the installation's":           func() error { return api.run("", "-n", "berth", "create", "configmap", "c") },
		"a Secret by the gateway":                     func() error { return gateway.run("", "-n", "berth", "create", "secret", "generic", "s") },
		"a namespace by the gateway":                  func() error { return gateway.run("", "create", "namespace", "x") },
	} {
		clustertest.Eventually(t, 20*time.Second, func() error {
			if err := refusedByPolicy(refused()); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		})
	}
	r.cluster.Do(t, "delete", "namespace", "foreign", "compute-9-deadbeef", "somebodys", "--wait=false")
	r.cluster.Do(t, "-n", "berth", "delete", "service/gateway", "secret/berth-gateway", "secret/other")
}
