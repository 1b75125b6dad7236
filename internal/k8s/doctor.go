package k8s

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/rest"

	"berth/internal/compute"
)

// Check is one thing that the engine needs of the cluster.
type Check struct {
	Name    string
	Problem error  // one line that says what is missing and how to get it; nil when all is well
	Fatal   bool   // without it no container runs
	Detail  string // what is there
}

// Examination says what Checks looks at.
type Examination struct {
	Options   Options                // InstallationID may be missing
	Types     []compute.InstanceType // that users may ask for
	Isolation bool                   // try every way out of a container, from two pods
}

const (
	oldest        = 30 // the minor version of Kubernetes 1 that has admission policies, and exec over WebSocket v5
	resizes       = 33 // the first that gives a running pod another size
	manyProcesses = 10000
)

// Checks looks at a cluster with the rights of its kubeconfig. For what shows only inside, it runs a pod or two for some
// moments, in namespaces of their own, and removes them.
func Checks(ctx context.Context, x Examination) []Check {
	hush()
	x.Options.StopGrace = 0 // of the probes
	config, err := clusterConfig(x.Options.Kubeconfig)
	if err != nil {
		return []Check{{Name: "cluster", Fatal: true, Problem: fmt.Errorf("it is not known where it is; name a file with --kubeconfig (%w)", err)}}
	}
	warned := &warnings{}
	config.WarningHandler = warned
	client, err := newClients(config)
	if err != nil {
		return []Check{{Name: "cluster", Fatal: true, Problem: err}}
	}
	d := doctor{Examination: x, client: client, config: config, warned: warned}
	list := []Check{d.checkVersion()}
	if list[0].Problem != nil {
		return list
	}
	list = append(list, d.checkRights(ctx), d.checkAdmission(ctx), d.checkStorage(ctx))
	list = append(list, d.checkNodes(ctx)...)
	if slices.ContainsFunc(list, func(c Check) bool { return c.Problem != nil && c.Fatal }) {
		return list // a pod would say no more
	}
	return append(list, d.probe(ctx)...)
}

type doctor struct {
	Examination
	client *clients
	config *rest.Config
	warned *warnings
}

// warnings are what the API server adds to its answers.
type warnings struct {
	mu   sync.Mutex
	list []string
}

func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, text)
}

// take returns what was said since it was last asked.
func (w *warnings) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := strings.Join(w.list, "; ")
	w.list = nil
	return text
}

func (d doctor) checkVersion() Check {
	c := Check{Name: "cluster", Fatal: true}
	v, err := d.client.Discovery().ServerVersion()
	if err != nil {
		c.Problem = fmt.Errorf("it does not answer; see whether `kubectl version` does with the same kubeconfig (%w)", err)
		return c
	}
	c.Detail = "Kubernetes " + v.GitVersion
	switch n := minorOf(v); {
	case n < oldest:
		c.Problem = fmt.Errorf("it is Kubernetes %s; 1.%d or later is needed", v.GitVersion, oldest)
	case n < resizes:
		c.Detail += fmt.Sprintf("; before 1.%d, containers get more memory and processors at their next start", resizes)
	}
	return c
}

func minorOf(v *version.Info) int {
	n, _ := strconv.Atoi(strings.TrimRight(v.Minor, "+")) // 0, too old, where it is none
	return n
}

func (d doctor) checkRights(ctx context.Context) Check {
	c := Check{Name: "rights", Fatal: true}
	missing, err := missingRights(ctx, d.client)
	switch {
	case err != nil:
		c.Problem = err
	case len(missing) > 0:
		c.Problem = fmt.Errorf("this account may not %s; apply deploy/kubernetes/base/rbac.yaml", strings.Join(missing, "; "))
	}
	return c
}

// checkAdmission looks for the policies that confine Berth's accounts. An account that is one of them tries; others look.
func (d doctor) checkAdmission(ctx context.Context) Check {
	c := Check{Name: "admission policies"}
	who, err := d.client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		c.Problem = err
		return c
	}
	absent := errors.New("nothing keeps Berth's accounts out of other namespaces; apply deploy/kubernetes/base/admission.yaml")
	if user := who.Status.UserInfo.Username; user == "system:serviceaccount:"+d.Options.GatewayNamespace+":berth-api" {
		_, err := d.client.CoreV1().LimitRanges(metav1.NamespaceDefault).Create(ctx, &corev1.LimitRange{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "berth-doctor-"},
		}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		switch {
		case err == nil:
			c.Problem = absent
		case !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy"):
			c.Problem = err
		}
		return c
	}
	_, err = d.client.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Get(ctx, "berth-within", metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		c.Problem = absent
	case apierrors.IsForbidden(err):
		c.Problem = errors.New("this account may not see them; look with an administrator's kubeconfig")
	default:
		c.Problem = err
	}
	return c
}

func (d doctor) checkStorage(ctx context.Context) Check {
	c := Check{Name: "storage class", Fatal: true}
	list, err := d.client.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{})
	if err != nil {
		c.Problem = err
		return c
	}
	want := d.Options.StorageClass
	i := slices.IndexFunc(list.Items, func(s storagev1.StorageClass) bool {
		return s.Name == want || want == "" && s.Annotations["storageclass.kubernetes.io/is-default-class"] == "true"
	})
	switch {
	case i < 0 && want != "":
		c.Problem = fmt.Errorf("there is no %s; choose another with --storage-class", want)
	case i < 0:
		c.Problem = errors.New("none is the default: annotate one with storageclass.kubernetes.io/is-default-class=true, or name one with --storage-class")
	default:
		s := list.Items[i]
		c.Detail = s.Name + " (" + s.Provisioner + ")"
		if s.AllowVolumeExpansion == nil || !*s.AllowVolumeExpansion {
			c.Fatal, c.Problem = false, fmt.Errorf("volumes of %s do not grow: no container can be given more storage_gb; set its allowVolumeExpansion where the driver can", s.Name)
		}
	}
	return c
}

// checkNodes looks for one of each architecture that is asked for.
func (d doctor) checkNodes(ctx context.Context) []Check {
	c := Check{Name: "nodes", Fatal: true}
	list, err := d.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(d.Options.NodeSelector).String()})
	if err != nil {
		c.Problem = err
		return []Check{c}
	}
	ready := map[string]int{}
	for _, n := range list.Items {
		for _, s := range n.Status.Conditions {
			if s.Type == corev1.NodeReady && s.Status == corev1.ConditionTrue && !n.Spec.Unschedulable {
				ready[n.Labels[corev1.LabelArchStable]]++
			}
		}
	}
	if len(ready) == 0 {
		c.Problem = errors.New("none is ready for containers; see `kubectl get nodes`, and the setting node-selector")
		return []Check{c}
	}
	var said []string
	for _, arch := range slices.Sorted(maps.Keys(ready)) {
		said = append(said, fmt.Sprintf("%d %s", ready[arch], arch))
	}
	c.Detail = strings.Join(said, ", ")
	checks := []Check{c}
	lacking := map[string][]string{}
	for _, t := range d.Types {
		if ready[t.Architecture] == 0 {
			lacking[t.Architecture] = append(lacking[t.Architecture], t.Name)
		}
	}
	for _, arch := range slices.Sorted(maps.Keys(lacking)) {
		checks = append(checks, Check{Name: "architectures", Problem: fmt.Errorf(
			"no %s node is ready: containers of the types %s cannot run; add one, or have all types on another with --architecture",
			arch, strings.Join(lacking[arch], ", "))})
	}
	return checks
}

// probe looks from inside.
func (d doctor) probe(ctx context.Context) (list []Check) {
	p := prober{client: d.client, config: d.config, maker: maker{opt: d.Options}}
	inside, err := p.open(ctx, true)
	if err != nil {
		return []Check{{Name: "a pod", Fatal: true, Problem: err}}
	}
	defer func() {
		if err := inside.close(); err != nil {
			list = append(list, Check{Name: "clearing away", Problem: err})
		}
	}()
	list = append(list, d.checkPodSecurity(ctx, inside))
	exec := checkExec(ctx, inside)
	list = append(list, exec)
	if exec.Problem != nil && exec.Fatal {
		return list
	}
	list = append(list, checkProcesses(ctx, inside))
	if d.Isolation {
		return append(list, isolationSuite(ctx, inside)...)
	}
	return append(list, checkPolicies(ctx, inside))
}

// checkPodSecurity asks what the cluster thinks of a pod that has all of its node. It would warn of one, or refuse it.
func (d doctor) checkPodSecurity(ctx context.Context, p *probe) Check {
	c := Check{Name: "Pod Security"}
	set := p.set(p.namespace.Name)
	set.Name = "privileged"
	*set.Spec.Template.Spec.Containers[0].SecurityContext = corev1.SecurityContext{Privileged: new(true)}
	d.warned.take()
	_, err := d.client.AppsV1().StatefulSets(set.Namespace).Create(ctx, set, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if said := d.warned.take(); err == nil && !strings.Contains(said, "PodSecurity") {
		c.Problem = errors.New("the API server does not hold pods to their namespace's level; turn the admission plugin PodSecurity on")
	} else if err != nil && !apierrors.IsForbidden(err) {
		c.Problem = err
	}
	return c
}

func checkExec(ctx context.Context, p *probe) Check {
	c := Check{Name: "exec", Fatal: true}
	var works []string
	var errs []error
	for _, way := range []struct {
		name string
		over protocol
	}{{"WebSocket", execer.overWebSocket}, {"SPDY", execer.overSPDY}} {
		if _, err := p.exec(ctx, way.over, "--version"); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", way.name, err))
		} else {
			works = append(works, way.name)
		}
	}
	c.Detail = strings.Join(works, ", ")
	switch {
	case len(works) == 0:
		c.Problem = fmt.Errorf("no command runs in a pod: %w", errors.Join(errs...))
	case len(errs) > 0:
		c.Detail += " alone: " + oneLine(errs[0].Error())
	}
	return c
}

func checkProcesses(ctx context.Context, p *probe) Check {
	c := Check{Name: "limit of processes"}
	found, err := p.ask(ctx, "processes", strconv.Itoa(manyProcesses))
	switch {
	case err != nil:
		c.Problem = err
	case !found.Bounded:
		c.Problem = fmt.Errorf("a container may have %d processes and more, and take all of its node's: set podPidsLimit of the kubelets to less, such as 4096 (seen on %s)",
			found.Processes, p.pod.Spec.NodeName)
	default:
		c.Detail = fmt.Sprintf("about %d, on %s", found.Processes, p.pod.Spec.NodeName)
	}
	return c
}

const enforceThem = "use a network plugin that enforces NetworkPolicy, such as Calico or Cilium"

func checkPolicies(ctx context.Context, p *probe) Check {
	c := Check{Name: "network policies"}
	i, err := p.isolation(ctx)
	switch {
	case err != nil:
		c.Problem = err
	case !i.Enforced():
		c.Problem = fmt.Errorf("they are not enforced: a container reaches %s, and other containers; %s", strings.Join(i.Reached, ", "), enforceThem)
	default:
		c.Detail = "enforced, as far as one pod sees; --isolation tries more"
	}
	return c
}
