// Package api is the API in writing: the document openapi.yaml, the Go types made of it, and the two forms in which it is
// served, JSON for programs and a page for people.
//
// It answers no requests and decides nothing: internal/httpapi serves both forms and holds requests against the document.
// The types are for that edge and for others that show the same objects; the domain has its own, in internal/compute.
package api

//go:generate go tool oapi-codegen -config oapi-codegen.yaml -o types.gen.go openapi.yaml

import (
	_ "embed"
	"fmt"

	"go.yaml.in/yaml/v3"
)

//go:embed openapi.yaml
var document []byte

// JSON returns the document as JSON, its names in the order in which they are written down.
func JSON() ([]byte, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(document, &root); err != nil {
		return nil, fmt.Errorf("read openapi.yaml: %w", err)
	}
	text, err := toJSON(&root)
	if err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	return append(text, '\n'), nil
}
