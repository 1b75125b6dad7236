package k8s

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	corev1 "k8s.io/api/core/v1"
)

// An image is read with what a kubelet would pull it with.
func TestCredentialsMatchAsKubeletsMatch(t *testing.T) {
	all := make(credentials)
	for _, s := range []corev1.Secret{
		{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths": {
			"registry.example": {"auth": "aG9zdDpw"},
			"registry.example/team": {"username": "team", "password": "p"},
			"https://index.docker.io/v1/": {"username": "hub", "password": "p"},
			"*.mirror.example": {"username": "any", "password": "p"},
			"10.0.0.1:5000": {"username": "port", "password": "p"}}}`)}},
		{Type: corev1.SecretTypeDockercfg, Data: map[string][]byte{corev1.DockerConfigKey: []byte(
			`{"registry.example": {"username": "late", "password": "p"}, "old.example": {"username": "old", "password": "p"}}`)}},
	} {
		if err := all.add(&s); err != nil {
			t.Fatal(err)
		}
	}
	again := make(credentials)
	copied := &corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: all.encode()}}
	if err := again.add(copied); err != nil {
		t.Fatal(err)
	}
	for image, want := range map[string]string{
		"registry.example/base:1": "host", "registry.example/team/base:1": "team", "registry.example/teams/base:1": "host",
		"debian:12": "hub", "a.mirror.example/xx": "any", "mirror.example/xx": "", "10.0.0.1:5000/xx": "port", "10.0.0.1/xx": "",
		"old.example/xx": "old", "elsewhere.example/xx": "",
	} {
		ref, err := name.ParseReference(image)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []credentials{all, again} {
			got, err := c.Resolve(ref.Context())
			if err != nil {
				t.Fatal(err)
			}
			if auth, err := got.Authorization(); err != nil || auth.Username != want || (got == authn.Anonymous) != (want == "") {
				t.Errorf("%s is pulled as %q, %v; want %q", image, auth.Username, err, want)
			}
		}
	}
}

func TestCredentialsRefused(t *testing.T) {
	for why, s := range map[string]corev1.Secret{
		"docker-registry":             {Type: corev1.SecretTypeOpaque},
		"no registry's":               {Type: corev1.SecretTypeDockercfg, Data: map[string][]byte{corev1.DockerConfigKey: []byte("[")}},
		"no registry's configuration": {Type: corev1.SecretTypeDockerConfigJson},
	} {
		c := make(credentials)
		if err := c.add(&s); err == nil || !strings.Contains(err.Error(), why) || len(c) > 0 {
			t.Errorf("%v, want %q; there is %v", err, why, c)
		}
	}
	broken := credentials{"registry.example": json.RawMessage(`7`)}
	ref, err := name.ParseReference("registry.example/xx")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := broken.Resolve(ref.Context()); err == nil || !strings.Contains(err.Error(), "registry.example") {
		t.Errorf("broken credentials: %v", err)
	}
}
