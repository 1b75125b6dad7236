// Command helm writes the chart's templates from the manifests under deploy/kubernetes, so that there is one source of both.
// A comment of a manifest that begins with "helm:" has what stands in its line's place in the template, nothing where it is
// empty; the namespace is the release's.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// sources are the manifests, by the template that each becomes. What is missing of them: the namespace, which is Helm's
// business, and the settings, which kustomize generates.
var sources = map[string]string{
	"admission.yaml":  "base/admission.yaml",
	"api.yaml":        "base/api.yaml",
	"gateway.yaml":    "base/gateway.yaml",
	"monitoring.yaml": "components/monitoring/monitoring.yaml",
	"network.yaml":    "base/network.yaml",
	"rbac.yaml":       "base/rbac.yaml",
	"secrets.yaml":    "base/secrets.yaml",
}

func main() {
	root := flag.String("root", ".", "the source tree")
	flag.Parse()
	for name, source := range sources {
		text, err := template(*root, source)
		if err == nil {
			err = os.WriteFile(filepath.Join(*root, "deploy/helm/berth/templates", name), text, 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "helm:", err)
			os.Exit(1)
		}
	}
}

// template is the chart's form of a manifest.
func template(root, source string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(root, "deploy/kubernetes", source))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "# Generated from deploy/kubernetes/%s by deploy/helm: do not edit.\n", source)
	for number, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		line, ok := convert(line)
		if strings.Contains(line, "helm:") {
			return nil, fmt.Errorf("%s, line %d: more than one \"helm:\"", source, number+1)
		}
		if ok {
			out.WriteString(line + "\n")
		}
	}
	return out.Bytes(), nil
}

var (
	marker    = regexp.MustCompile(`^( *)(?:[^#]*[^# ] )?# helm:(?: (.*))?$`)
	namespace = strings.NewReplacer(
		"namespace: berth}", "namespace: {{ .Release.Namespace }}}",
		"system:serviceaccount:berth:", "system:serviceaccount:{{ .Release.Namespace }}:",
		"namespace == 'berth'", "namespace == '{{ .Release.Namespace }}'",
		"orValue('') == 'berth')", "orValue('') == '{{ .Release.Namespace }}')",
		"namespace != 'berth'", "namespace != '{{ .Release.Namespace }}'",
	)
	ownLine = regexp.MustCompile(`^( *)namespace: berth$`)
)

// convert makes a line of a template from one of a manifest; ok is false where it has none.
func convert(line string) (_ string, ok bool) {
	if m := marker.FindStringSubmatch(line); m != nil {
		return m[1] + m[2], m[2] != ""
	}
	return namespace.Replace(ownLine.ReplaceAllString(line, "${1}namespace: {{ .Release.Namespace }}")), true
}
