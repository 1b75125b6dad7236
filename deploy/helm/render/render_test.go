// Package render holds the Helm chart and the kustomize manifests to the same objects: it renders both with their own
// libraries and compares. It is a module of its own, since the product needs neither; `make test` runs it.
package render

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const manifests = "../../kubernetes"

// objects are what a cluster is asked to hold, by kind, namespace and name.
type objects map[string]map[string]any

// add takes YAML documents in. Names that end in a hash of the content, which both tools make in ways of their own, lose it
// everywhere.
func (o objects) add(t *testing.T, text string) {
	t.Helper()
	text = hashed.ReplaceAllString(text, "berth-settings-HASH")
	for _, doc := range regexp.MustCompile(`(?m)^---$`).Split(text, -1) {
		var object map[string]any
		if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
		if len(object) == 0 {
			continue
		}
		meta := object["metadata"].(map[string]any)
		key := fmt.Sprintf("%v %v/%v", object["kind"], meta["namespace"], meta["name"])
		if o[key] != nil {
			t.Errorf("%s is there twice", key)
		}
		o[key] = object
	}
}

var hashed = regexp.MustCompile(`berth-settings-[0-9a-z]{10}\b`)

// kustomize builds a folder below the manifests.
func kustomize(t *testing.T, dir string) objects {
	t.Helper()
	made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatalf("kustomize %s: %v", dir, err)
	}
	text, err := made.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	o := objects{}
	o.add(t, string(text))
	for key, object := range o {
		if object["kind"] == "Namespace" {
			delete(o, key) // Helm's own business
		}
	}
	return o
}

// helm renders the chart with values over its own.
func helm(t *testing.T, namespace, values string) (objects, error) {
	t.Helper()
	c, err := loader.Load("../berth")
	if err != nil {
		t.Fatal(err)
	}
	over, err := chartutil.ReadValues([]byte(values))
	if err != nil {
		t.Fatal(err)
	}
	release := chartutil.ReleaseOptions{Name: "berth", Namespace: namespace, Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(c, over, release, nil)
	if err != nil {
		return nil, err
	}
	rendered, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	o := objects{}
	for _, name := range slices.Sorted(maps.Keys(rendered)) {
		if strings.HasSuffix(name, ".yaml") {
			o.add(t, rendered[name])
		}
	}
	return o, nil
}

func compare(t *testing.T, chart, manifests objects) {
	t.Helper()
	for key := range manifests {
		if chart[key] == nil {
			t.Errorf("the chart has no %s", key)
		}
	}
	for key, object := range chart {
		want := manifests[key]
		if want == nil {
			t.Errorf("only the chart has %s", key)
			continue
		}
		if d := diff(lines(t, object), lines(t, want)); d != "" {
			t.Errorf("%s differs (chart -, manifests +):\n%s", key, d)
		}
	}
}

// lines is an object as text. White space in expressions, of which kustomize makes more, means nothing; nor does the order of
// what has names, in which a patch puts its own first.
func lines(t *testing.T, object map[string]any) string {
	t.Helper()
	sortNamed(object)
	text, err := json.MarshalIndent(object, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return broken.ReplaceAllString(string(text), " ")
}

func sortNamed(value any) {
	switch v := value.(type) {
	case map[string]any:
		for _, inner := range v {
			sortNamed(inner)
		}
	case []any:
		name := func(item any) string {
			m, _ := item.(map[string]any)
			s, _ := m["name"].(string)
			return s
		}
		slices.SortStableFunc(v, func(a, b any) int { return strings.Compare(name(a), name(b)) })
		for _, inner := range v {
			sortNamed(inner)
		}
	}
}

var broken = regexp.MustCompile(`(\\n)+ *`)

// diff shows the lines that only one of the texts has.
func diff(a, b string) string {
	var out strings.Builder
	for _, side := range []struct{ sign, text, other string }{{"-", a, b}, {"+", b, a}} {
		other := strings.Split(side.other, "\n")
		for i, line := range strings.Split(side.text, "\n") {
			if !slices.Contains(other, line) {
				fmt.Fprintf(&out, "%s %d: %s\n", side.sign, i, line)
			}
		}
	}
	if a != b && out.Len() == 0 {
		return "the same lines in another order:\n" + a + "\n" + b
	}
	return out.String()
}

// same gives the chart the images that the manifests have.
const same = `
zone: compute.localhost
images: {api: berth/api, gateway: berth/gateway, agent: berth/agent, base: berth/base}
`

// overlay writes a kustomization beside the manifests, as an operator's is, and returns its folder.
func overlay(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	from, err := filepath.Abs(manifests)
	if err != nil {
		t.Fatal(err)
	}
	to, err := filepath.Rel(dir, from)
	if err != nil {
		t.Fatal(err)
	}
	text = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n" + strings.ReplaceAll(text, "MANIFESTS", to)
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestChartIsTheManifests(t *testing.T) {
	for _, test := range []struct{ name, kustomization, values string }{
		{"SQLite", "resources: [MANIFESTS/base]", ""},
		{
			"PostgreSQL", "resources: [MANIFESTS/overlays/postgresql]",
			"database: {address: 'postgres://berth@postgresql/berth'}",
		},
		{
			"monitoring", "resources: [MANIFESTS/base]\ncomponents: [MANIFESTS/components/monitoring]",
			"monitoring: {enabled: true}",
		},
		{
			"the development cluster", "resources: [MANIFESTS/overlays/dev]",
			"api: {podSecurityContext: {runAsNonRoot: false, runAsUser: 0}}",
		},
		{
			"an operator's settings", `
resources: [MANIFESTS/base]
images:
- {name: berth/api, newName: registry.example.com/berth/api, newTag: v1}
- {name: berth/gateway, newName: registry.example.com/berth/gateway, newTag: v1}
configMapGenerator:
- name: berth-settings
  namespace: berth
  behavior: merge
  literals:
  - BERTH_ZONE=compute.example.com
  - BERTH_IMAGE=registry.example.com/berth/base:v1
  - BERTH_AGENT=registry.example.com/berth/agent:v1
  - BERTH_STORAGE_CLASS=fast
  - BERTH_AUDIT_RECORDS=30000000
  - BERTH_PROVISION_USERS=true
  - BERTH_BLOCKED=198.51.100.0/24,203.0.113.0/24
patches:
- target: {kind: Deployment}
  patch: |
    - {op: replace, path: /spec/template/spec/imagePullSecrets, value: [{name: registry}]}
- target: {kind: StatefulSet}
  patch: |
    - {op: replace, path: /spec/template/spec/imagePullSecrets, value: [{name: registry}]}
- target: {kind: Service, name: berth-gateway}
  patch: |
    - {op: add, path: /metadata/annotations, value: {example.com/address: public}}
- target: {kind: PersistentVolumeClaim}
  patch: |
    - {op: add, path: /spec/storageClassName, value: fast}
`, `
zone: compute.example.com
images: {registry: registry.example.com/berth, tag: v1, api: "", gateway: "", agent: "", base: ""}
settings: {storage-class: fast, audit-records: 30000000, provision-users: true, blocked: [198.51.100.0/24, 203.0.113.0/24]}
imagePullSecrets: [{name: registry}]
gateway: {service: {annotations: {example.com/address: public}}}
storage: {className: fast}
`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			chart, err := helm(t, "berth", merge(t, same, test.values))
			if err != nil {
				t.Fatal(err)
			}
			compare(t, chart, kustomize(t, overlay(t, test.kustomization)))
		})
	}
}

// merge lays values over others.
func merge(t *testing.T, base, over string) string {
	t.Helper()
	a, err := chartutil.ReadValues([]byte(base))
	if err != nil {
		t.Fatal(err)
	}
	b, err := chartutil.ReadValues([]byte(over))
	if err != nil {
		t.Fatal(err)
	}
	text, err := chartutil.Values(chartutil.CoalesceTables(b, a)).YAML()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestAnotherNamespace finds a place where the chart forgot that its namespace may be another.
func TestAnotherNamespace(t *testing.T) {
	there, err := helm(t, "elsewhere", same)
	if err != nil {
		t.Fatal(err)
	}
	moved := objects{}
	for key, object := range there {
		text := lines(t, object)
		if m := ofBerth.FindString(text); m != "" {
			t.Errorf("%s: %s", key, m)
		}
		moved.add(t, strings.ReplaceAll(text, "elsewhere", "berth"))
	}
	here, err := helm(t, "berth", same)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, moved, here)
}

var ofBerth = regexp.MustCompile(`"namespace": "berth"|serviceaccount:berth:|namespace [=!]= 'berth'|namespace\.orValue\('*\) == 'berth'`)

func TestGatewaysHaveNames(t *testing.T) {
	o, err := helm(t, "berth", merge(t, same, "gateway: {replicas: 3}"))
	if err != nil {
		t.Fatal(err)
	}
	if text := lines(t, o["Deployment berth/berth-api"]); !strings.Contains(text, `"berth-gateway-0,berth-gateway-1,berth-gateway-2"`) {
		t.Errorf("the api does not name all three:\n%s", text)
	}
	if text := lines(t, o["StatefulSet berth/berth-gateway"]); strings.Count(text, `"key": "berth-gateway-`) != 3 {
		t.Errorf("the gateways wait for other credentials than three:\n%s", text)
	}
}

func TestValuesThatMakeNoSense(t *testing.T) {
	for want, values := range map[string]string{
		"zone: name the DNS zone":    "images: {registry: registry.example.com/berth}",
		"images.registry: say where": "zone: compute.example.com",
		"replica":                    merge(t, same, "replica: 3"),
		"replicas":                   merge(t, same, "gateway: {replicas: 0}"),
		"/database/address":          merge(t, same, "database: {address: 'mysql://berth@db/berth'}"),
		"/gateway/service/type":      merge(t, same, "gateway: {service: {type: Loadbalancer}}"),
		"BERTH_ZONE":                 merge(t, same, "settings: {BERTH_ZONE: compute.example.com}"),
		"/settings/audit-days":       merge(t, same, "settings: {audit-days: 1.5}"),
		"/monitoring/enabled":        merge(t, same, "monitoring: {enabled: 'yes'}"),
	} {
		if _, err := helm(t, "berth", values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got: %v", want, err)
		}
	}
}
