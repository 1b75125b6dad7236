package k8s

import (
	"errors"

	"k8s.io/client-go/discovery"
	admissionv1 "k8s.io/client-go/kubernetes/typed/admissionregistration/v1"
	appsv1 "k8s.io/client-go/kubernetes/typed/apps/v1"
	authenticationv1 "k8s.io/client-go/kubernetes/typed/authentication/v1"
	authorizationv1 "k8s.io/client-go/kubernetes/typed/authorization/v1"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	discoveryv1 "k8s.io/client-go/kubernetes/typed/discovery/v1"
	networkingv1 "k8s.io/client-go/kubernetes/typed/networking/v1"
	rbacv1 "k8s.io/client-go/kubernetes/typed/rbac/v1"
	storagev1 "k8s.io/client-go/kubernetes/typed/storage/v1"
	"k8s.io/client-go/rest"
)

// clients are those of the API groups that we use. client-go's own set has every group there is: a hundred packages more to
// compile.
type clients struct {
	admission      *admissionv1.AdmissionregistrationV1Client
	apps           *appsv1.AppsV1Client
	authentication *authenticationv1.AuthenticationV1Client
	authorization  *authorizationv1.AuthorizationV1Client
	core           *corev1.CoreV1Client
	slices         *discoveryv1.DiscoveryV1Client
	networking     *networkingv1.NetworkingV1Client
	rbac           *rbacv1.RbacV1Client
	storage        *storagev1.StorageV1Client
	discovery      *discovery.DiscoveryClient
}

// newClients connects to nothing. They share their connections.
func newClients(config *rest.Config) (*clients, error) {
	h, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	var c clients
	var errs [10]error
	c.admission, errs[0] = admissionv1.NewForConfigAndClient(config, h)
	c.apps, errs[1] = appsv1.NewForConfigAndClient(config, h)
	c.authentication, errs[2] = authenticationv1.NewForConfigAndClient(config, h)
	c.authorization, errs[3] = authorizationv1.NewForConfigAndClient(config, h)
	c.core, errs[4] = corev1.NewForConfigAndClient(config, h)
	c.slices, errs[5] = discoveryv1.NewForConfigAndClient(config, h)
	c.networking, errs[6] = networkingv1.NewForConfigAndClient(config, h)
	c.rbac, errs[7] = rbacv1.NewForConfigAndClient(config, h)
	c.storage, errs[8] = storagev1.NewForConfigAndClient(config, h)
	c.discovery, errs[9] = discovery.NewDiscoveryClientForConfigAndClient(config, h)
	return &c, errors.Join(errs[:]...)
}

func (c *clients) AdmissionregistrationV1() admissionv1.AdmissionregistrationV1Interface {
	return c.admission
}

func (c *clients) AppsV1() appsv1.AppsV1Interface { return c.apps }

func (c *clients) AuthenticationV1() authenticationv1.AuthenticationV1Interface {
	return c.authentication
}

func (c *clients) AuthorizationV1() authorizationv1.AuthorizationV1Interface { return c.authorization }

func (c *clients) CoreV1() corev1.CoreV1Interface { return c.core }

func (c *clients) DiscoveryV1() discoveryv1.DiscoveryV1Interface { return c.slices }

func (c *clients) NetworkingV1() networkingv1.NetworkingV1Interface { return c.networking }

func (c *clients) RbacV1() rbacv1.RbacV1Interface { return c.rbac }

func (c *clients) StorageV1() storagev1.StorageV1Interface { return c.storage }

func (c *clients) Discovery() discovery.DiscoveryInterface { return c.discovery }
