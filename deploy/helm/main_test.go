package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestTemplatesAreGenerated keeps what is checked in to what the manifests make.
func TestTemplatesAreGenerated(t *testing.T) {
	for name, source := range sources {
		want, err := template("../..", source)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("berth/templates", name)
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what %s makes (%v): go run ./deploy/helm", path, source, err)
		}
	}
}

// TestNothingIsForgotten fails where a manifest is in neither the chart nor the list of those that are not for it.
func TestNothingIsForgotten(t *testing.T) {
	known := map[string]bool{"base/namespace.yaml": true, "base/kustomization.yaml": true, "components/monitoring/kustomization.yaml": true}
	for _, source := range sources {
		known[source] = true
	}
	for _, folder := range []string{"base", "components/monitoring"} {
		files, err := os.ReadDir("../kubernetes/" + folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if name := folder + "/" + f.Name(); !known[name] {
				t.Errorf("%s is not in the chart", name)
			}
		}
	}
}

func TestConvert(t *testing.T) {
	for line, want := range map[string]string{
		"  replicas: 1 # helm: replicas: {{ .Values.n }}": "  replicas: {{ .Values.n }}",
		"    # helm: {{- end }}":                          "    {{- end }}",
		"  - {key: a} # helm:":                            "",
		"  # a remark":                                    "  # a remark",
		"  strategy: {type: Recreate} # one writer":       "  strategy: {type: Recreate} # one writer",
		"  namespace: berth":                              "  namespace: {{ .Release.Namespace }}",
		"metadata: {name: x, namespace: berth}":           "metadata: {name: x, namespace: {{ .Release.Namespace }}}",
		"metadata: {name: x, namespace: default}":         "metadata: {name: x, namespace: default}",
		"  name: berth":                                   "  name: berth",
	} {
		got, ok := convert(line)
		if got != want && ok || ok != (want != "") {
			t.Errorf("%q: %q, %v; want %q", line, got, ok, want)
		}
	}
}
