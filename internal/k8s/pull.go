package k8s

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth/internal/compute"
)

// namePull is what the copy of the registries' credentials is called in each container's namespace. Rights name it: the
// control plane may write Secrets of this name and no other.
const namePull = "berth-pull"

// credentials are for registries, by what a kubelet matches an image with: HOST, or HOST/PATH, where HOST may have *.
type credentials map[string]json.RawMessage

// credentials are those of all the Secrets that the options name, and which state of them.
func (e *Engine) credentials() (all credentials, version string) {
	all = make(credentials)
	for _, name := range e.opt.PullSecrets {
		s, err := e.secrets[name].Secrets(e.opt.GatewayNamespace).Get(name)
		if err == nil {
			version += s.ResourceVersion + ","
			err = all.add(s)
		}
		if err != nil { // an image may be there without
			e.log.Warn("credentials for registries are missing", "secret", e.opt.GatewayNamespace+"/"+name, "err", err)
		}
	}
	return all, version
}

// add takes in those of a Secret, in either of Kubernetes' two forms. The first Secret that has a registry wins.
func (c credentials) add(s *corev1.Secret) error {
	var auths map[string]json.RawMessage
	var err error
	switch s.Type {
	case corev1.SecretTypeDockerConfigJson:
		var whole struct {
			Auths map[string]json.RawMessage `json:"auths"`
		}
		err = json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &whole)
		auths = whole.Auths
	case corev1.SecretTypeDockercfg:
		err = json.Unmarshal(s.Data[corev1.DockerConfigKey], &auths)
	default:
		return fmt.Errorf("its type is %s; make it by kubectl create secret docker-registry", s.Type)
	}
	if err != nil {
		return fmt.Errorf("it is no registry's configuration: %w", err)
	}
	for registry, auth := range auths {
		if _, ok := c[registry]; !ok {
			c[registry] = auth
		}
	}
	return nil
}

func (c credentials) encode() []byte {
	b, _ := json.Marshal(map[string]credentials{"auths": c}) // it was JSON
	return b
}

// Resolve finds the credentials for an image as a kubelet does, the most specific first. It implements authn.Keychain.
func (c credentials) Resolve(image authn.Resource) (authn.Authenticator, error) {
	keys := slices.SortedFunc(maps.Keys(c), func(a, b string) int { return strings.Compare(b, a) })
	for _, key := range keys {
		if !matches(key, image) {
			continue
		}
		var auth authn.AuthConfig
		if err := json.Unmarshal(c[key], &auth); err != nil {
			return nil, fmt.Errorf("the credentials for %s: %w", key, err)
		}
		return authn.FromConfig(auth), nil
	}
	return authn.Anonymous, nil
}

func matches(key string, image authn.Resource) bool {
	for _, scheme := range []string{"https://", "http://"} {
		key = strings.TrimPrefix(key, scheme)
	}
	host, below, _ := strings.Cut(strings.TrimSuffix(key, "/"), "/")
	if host == "docker.io" || host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "index.docker.io"
	}
	if below == "v1" || below == "v2" { // of the registries' own interface, as in Docker's configuration
		below = ""
	}
	if ok, err := path.Match(host, image.RegistryStr()); err != nil || !ok {
		return false
	}
	repository := strings.TrimPrefix(image.String(), image.RegistryStr()+"/")
	return below == "" || repository == below || strings.HasPrefix(repository, below+"/")
}

// pullSecret has the credentials where a kubelet looks for them: in the pod's namespace.
func (m maker) pullSecret(r compute.Ref, o outside) *corev1.Secret {
	return &corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: m.meta(r, namePull),
		Type:       corev1.SecretTypeDockerConfigJson,
		Data:       map[string][]byte{corev1.DockerConfigJsonKey: o.registries},
	}
}
