package k8s

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth/internal/compute"
)

// nameGateway is the gateway's account, the one role that it has, and what binds it to that in a container's namespace.
const nameGateway = "berth-gateway"

// gatewayRole lets the gateway into this namespace: it has no right anywhere else.
func (m maker) gatewayRole(r compute.Ref) *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "RoleBinding"},
		ObjectMeta: m.meta(r, nameGateway),
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: nameGateway},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: nameGateway, Namespace: m.opt.GatewayNamespace}},
	}
}

// right is some verbs on a kind of object, which may be a subresource, everywhere or in one namespace.
type right struct {
	group, resource string
	verbs           []string
	name            string // of the one object that it is about
	namespace       string
}

// rights are what the control plane needs, as deploy/kubernetes/base/rbac.yaml gives it: a test compares them.
func rights() []right {
	apply := []string{"list", "watch", "create", "patch"} // server-side apply creates what is not there
	return []right{
		{resource: "namespaces", verbs: []string{"get", "list", "watch", "create", "patch", "delete"}},
		{resource: "persistentvolumeclaims", verbs: []string{"get", "list", "watch", "create", "patch"}},
		{group: "apps", resource: "statefulsets", verbs: []string{"list", "watch", "create", "patch", "delete"}},
		{resource: "services", verbs: apply},
		{resource: "resourcequotas", verbs: apply},
		{resource: "limitranges", verbs: apply},
		{group: "networking.k8s.io", resource: "networkpolicies", verbs: apply},
		{group: rbacv1.GroupName, resource: "rolebindings", verbs: apply},
		{group: rbacv1.GroupName, resource: "clusterroles", name: nameGateway, verbs: []string{"bind"}},
		{resource: "secrets", name: namePull, verbs: []string{"create", "patch"}},
		{resource: "pods", verbs: []string{"get", "list", "watch", "delete"}},
		{resource: "pods/resize", verbs: []string{"patch"}},
		{resource: "pods/exec", verbs: []string{"get", "create"}},
		{resource: "nodes", verbs: []string{"list", "watch"}},
		{resource: "events", verbs: []string{"list"}},
		{group: "storage.k8s.io", resource: "storageclasses", verbs: []string{"get", "list"}},
		{group: "metrics.k8s.io", resource: "pods", verbs: []string{"get"}},
		{group: "discovery.k8s.io", resource: "endpointslices", namespace: metav1.NamespaceDefault, verbs: []string{"list", "watch"}},
	}
}

// missingRights asks the API server which of the rights its caller does not have, and names them as rbac.yaml would.
func missingRights(ctx context.Context, client *clients) ([]string, error) {
	var missing []string
	for _, r := range rights() {
		var verbs []string
		for _, verb := range r.verbs {
			resource, sub, _ := strings.Cut(r.resource, "/")
			review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
				ResourceAttributes: &authorizationv1.ResourceAttributes{
					Verb: verb, Group: r.group, Resource: resource, Subresource: sub, Name: r.name, Namespace: r.namespace,
				},
			}}
			answer, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
			if err != nil {
				return nil, fmt.Errorf("ask for rights: %w", err)
			}
			if !answer.Status.Allowed {
				verbs = append(verbs, verb)
			}
		}
		if len(verbs) == 0 {
			continue
		}
		said := strings.Join(verbs, ", ") + " " + strings.TrimSuffix(r.resource+"."+r.group, ".")
		if r.namespace != "" {
			said += " in namespace " + r.namespace
		}
		missing = append(missing, said)
	}
	slices.Sort(missing)
	return missing, nil
}
