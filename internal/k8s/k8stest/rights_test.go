package k8stest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"berth/internal/k8s"
)

// TestRights has what Berth's accounts may do, and where.
func TestRights(t *testing.T) {
	r := newRig(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *rig)
	}{
		{"each account", testRights},
		{"one that has too few", testMissing},
		{"admission", testAdmission},
		{"probe", testProbe},
		{"doctor", testDoctor},
		{"isolation suite", testSuite},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, r.in(t)) })
	}
}

// everyone is what Kubernetes itself lets each account do: ask what it may do, and who it is.
const everyone = `
create selfsubjectaccessreviews.authorization.k8s.io
create selfsubjectrulesreviews.authorization.k8s.io
create selfsubjectreviews.authentication.k8s.io`

// mayDo is all that an account may do, by namespace; "" is everywhere. Each line is verbs and a kind of object, and perhaps the
// one object that it is about.
var mayDo = map[string]map[string]string{
	"berth-api": {
		"": everyone + `
get,list,watch,create,patch,delete namespaces
get,list,watch,create,patch persistentvolumeclaims
list,watch,create,patch,delete statefulsets.apps
list,watch,create,patch services
list,watch,create,patch resourcequotas
list,watch,create,patch limitranges
list,watch,create,patch networkpolicies.networking.k8s.io
list,watch,create,patch rolebindings.rbac.authorization.k8s.io
create,patch secrets berth-pull
bind clusterroles.rbac.authorization.k8s.io berth-gateway
get,list,watch,delete pods
patch pods/resize
get,create pods/exec
list,watch nodes
list events
get,list storageclasses.storage.k8s.io
get pods.metrics.k8s.io`,
		"berth": `
get,update,patch secrets berth-api
get,update,patch secrets berth-gateway
get,list,watch secrets berth-pull
get,list,watch,create,patch,delete services`,
		"default": `
list,watch endpointslices.discovery.k8s.io`,
	},
	"berth-gateway": {
		"": everyone,
		"a container's": `
get pods
get,create pods/exec`,
	},
}

// setOf spells the lines out, one right each.
func setOf(lists ...string) map[string]bool {
	set := map[string]bool{}
	for line := range strings.Lines(strings.Join(lists, "\n")) {
		if f := strings.Fields(line); len(f) > 0 {
			for _, verb := range strings.Split(f[0], ",") {
				set[verb+" "+strings.Join(f[1:], " ")] = true
			}
		}
	}
	return set
}

// testMissing has an engine open with an account that lacks rights: the error names one.
func testMissing(t *testing.T, r *rig) {
	opt := r.opt
	opt.Kubeconfig = r.accounts.gateway
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	e, err := k8s.Open(ctx, opt)
	if err == nil {
		_ = e.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "cannot list resource") {
		t.Errorf("open: %v", err)
	}
}

// testRights holds each account to its list, of which nothing is missing either.
func testRights(t *testing.T, r *rig) {
	container := r.run().String()
	for name, kubeconfig := range map[string]string{"berth-api": r.accounts.api, "berth-gateway": r.accounts.gateway} {
		client, err := kubernetes.NewForConfig(configOf(t, kubeconfig))
		if err != nil {
			t.Fatal(err)
		}
		for _, namespace := range []string{"", "berth", "default", "kube-system", container} {
			own := namespace
			if namespace == container {
				own = "a container's"
			}
			want := setOf(mayDo[name][""])
			if own != "" {
				maps.Copy(want, setOf(mayDo[name][own]))
			}
			t.Run(name+" in "+own, func(t *testing.T) {
				if namespace != "" { // the cluster answers for namespaces alone
					sameRights(t, "it says", rulesOf(t, r.ctx(), client, namespace), want)
				}
				sameRights(t, "tried", reviewed(t, r.ctx(), client, namespace), want)
			})
		}
	}
}

func sameRights(t *testing.T, how string, got, want map[string]bool) {
	t.Helper()
	for _, right := range slices.Sorted(maps.Keys(got)) {
		if !want[right] {
			t.Errorf("%s: it may %s", how, right)
		}
	}
	for _, right := range slices.Sorted(maps.Keys(want)) {
		if !got[right] {
			t.Errorf("%s: it may not %s", how, right)
		}
	}
}

// rulesOf is what the API server lists for its caller.
func rulesOf(t *testing.T, ctx context.Context, client kubernetes.Interface, namespace string) map[string]bool {
	t.Helper()
	review, err := client.AuthorizationV1().SelfSubjectRulesReviews().Create(ctx,
		&authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if review.Status.Incomplete {
		t.Errorf("the rules are incomplete: %s", review.Status.EvaluationError)
	}
	set := map[string]bool{}
	for _, rule := range review.Status.ResourceRules {
		for _, verb := range rule.Verbs {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					if len(rule.ResourceNames) == 0 {
						set[spell(verb, group, resource, "")] = true
					}
					for _, name := range rule.ResourceNames {
						set[spell(verb, group, resource, name)] = true
					}
				}
			}
		}
	}
	for _, rule := range review.Status.NonResourceRules {
		for _, url := range rule.NonResourceURLs {
			if !slices.Equal(rule.Verbs, []string{"get"}) || !strings.HasPrefix(url, "/") || !harmless[strings.TrimSuffix(strings.TrimSuffix(url, "*"), "/")] {
				t.Errorf("it may %v %s", rule.Verbs, url)
			}
		}
	}
	return set
}

// harmless are the pages that say what the API server is, and whether it is well.
var harmless = map[string]bool{
	"/api": true, "/apis": true, "/healthz": true, "/livez": true, "/openapi": true, "/readyz": true, "/version": true,
	"/openid/v1/jwks": true, "/.well-known/openid-configuration": true,
}

func spell(verb, group, resource, name string) string {
	kind, sub, _ := strings.Cut(resource, "/")
	if group != "" {
		kind += "." + group
	}
	if sub != "" {
		kind += "/" + sub
	}
	return strings.TrimSpace(verb + " " + kind + " " + name)
}

// reviewed asks about every kind of object that the cluster has, and those that it has only as rights, with every verb.
func reviewed(t *testing.T, ctx context.Context, client kubernetes.Interface, namespace string) map[string]bool {
	t.Helper()
	_, lists, err := client.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	type kind struct{ group, resource string }
	kinds := map[kind]bool{
		{"", "users"}: true, {"", "groups"}: true, {"authentication.k8s.io", "uids"}: true, {"authentication.k8s.io", "userextras/scopes"}: true,
		{"certificates.k8s.io", "signers"}: true, {"*", "*"}: true, {"", "*"}: true, {"", "nodes/metrics"}: true, {"", "nodes/log"}: true,
		{"", "nodes/stats"}: true, {"", "nodes/configz"}: true, {"", "nodes/pods"}: true,
		{"metrics.k8s.io", "pods"}: true, {"metrics.k8s.io", "nodes"}: true, // which a cluster may not have
	}
	for _, list := range lists {
		group, _, ok := strings.Cut(list.GroupVersion, "/")
		if !ok {
			group = ""
		}
		for _, r := range list.APIResources {
			kinds[kind{group, r.Name}] = true // whatever a subresource's own kind is: rights are on its parent's group
		}
	}
	if len(kinds) < 60 {
		t.Fatalf("the cluster has only %d kinds of objects", len(kinds))
	}
	verbs := []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "bind", "*"}
	if namespace == "" {
		verbs = append(verbs, "escalate", "impersonate", "approve", "sign", "attest", "use", "proxy", "connect")
	}
	names := map[string][]string{"secrets": {"berth-api", "berth-gateway", "berth-pull", "other"}, "clusterroles": {"berth-gateway", "cluster-admin"}}
	var mu sync.Mutex
	set := map[string]bool{}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for k := range kinds {
		for _, verb := range verbs {
			for _, name := range append([]string{""}, names[k.resource]...) {
				g.Go(func() error {
					resource, sub, _ := strings.Cut(k.resource, "/")
					answer, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
						Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
							Verb: verb, Group: k.group, Resource: resource, Subresource: sub, Name: name, Namespace: namespace,
						}},
					}, metav1.CreateOptions{})
					if err != nil {
						return fmt.Errorf("%s: %w", spell(verb, k.group, k.resource, name), err)
					}
					if answer.Status.Allowed {
						mu.Lock()
						set[spell(verb, k.group, k.resource, name)] = true
						mu.Unlock()
					}
					return nil
				})
			}
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for right := range set { // of any object: not to be told again of one
		if f := strings.Fields(right); len(f) == 3 && set[f[0]+" "+f[1]] {
			delete(set, right)
		}
	}
	return set
}
