package k8s

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// TestRightsAreTheManifests compares what the doctor asks for with what the manifests give.
func TestRightsAreTheManifests(t *testing.T) {
	var given, asked []string
	for _, role := range roles(t) {
		if role.Name != "berth-api" || role.Namespace == "berth" { // the installation's own namespace is no engine's business
			continue
		}
		for _, rule := range role.Rules {
			for _, resource := range rule.Resources {
				for _, name := range append(rule.ResourceNames, "")[:max(1, len(rule.ResourceNames))] {
					given = append(given, flatten(right{rule.APIGroups[0], resource, rule.Verbs, name, role.Namespace})...)
				}
			}
		}
	}
	for _, r := range rights() {
		asked = append(asked, flatten(r)...)
	}
	slices.Sort(given)
	slices.Sort(asked)
	if !slices.Equal(given, asked) {
		t.Errorf("the manifests give\n%q\nand the engine wants\n%q", given, asked)
	}
}

func flatten(r right) (list []string) {
	for _, verb := range r.verbs {
		list = append(list, fmt.Sprintf("%s %s.%s %q in %q", verb, r.resource, r.group, r.name, r.namespace))
	}
	return list
}

type role struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Rules []rbacv1.PolicyRule `json:"rules"`
}

func roles(t *testing.T) (list []role) {
	text, err := os.ReadFile("../../deploy/kubernetes/base/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for documents := kubeyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		var r role
		if err := yaml.UnmarshalStrict(document, &r); err != nil && (r.Kind == "Role" || r.Kind == "ClusterRole") {
			t.Fatal(err)
		}
		list = append(list, r)
	}
}
