package api

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// What follows is the part of OpenAPI that the page shows, in the document's own order, which a map would lose.

type openAPI struct {
	Info struct {
		Title, Version, Summary, Description string
	}
	Tags       []tag
	Paths      ordered[pathItem]
	Components struct {
		Schemas         ordered[schema]
		Parameters      ordered[parameter]
		Headers         ordered[header]
		Responses       ordered[response]
		SecuritySchemes ordered[securityScheme] `yaml:"securitySchemes"`
	}
}

type tag struct{ Name, Description string }

type securityScheme struct{ Type, Scheme, Description string }

// pathItem is a path's operations, and the parameters that they share.
type pathItem struct {
	Parameters []parameter
	operations []operation
}

type operation struct {
	method       string
	ID           string `yaml:"operationId"`
	Summary      string
	Description  string
	Tags         []string
	Parameters   []parameter
	Security     []map[string][]string
	NotServedYet bool                                 `yaml:"x-not-served-yet"`
	CodeSamples  []codeSample                         `yaml:"x-codeSamples"`
	RequestBody  struct{ Content ordered[mediaType] } `yaml:"requestBody"`
	Responses    ordered[response]
}

type codeSample struct{ Label, Source string }

type parameter struct {
	Ref         string `yaml:"$ref"`
	Name, In    string
	Required    bool
	Description string
	Schema      schema
	Example     yaml.Node
}

type header struct {
	Ref         string `yaml:"$ref"`
	Description string
}

type response struct {
	Ref         string `yaml:"$ref"`
	Description string
	Headers     ordered[header]
	Content     ordered[mediaType]
}

type mediaType struct {
	Schema  schema
	Example yaml.Node
}

type schema struct {
	Ref              string `yaml:"$ref"`
	Type             oneOrMore
	Description      string
	Enum             []string
	EnumDescriptions ordered[string] `yaml:"x-enumDescriptions"`
	Default          yaml.Node
	Example          yaml.Node
	Properties       ordered[schema]
	Required         []string
	Items            *schema
}

// ordered is a mapping that keeps its order.
type ordered[T any] []entry[T]

type entry[T any] struct {
	key   string
	value T
}

// UnmarshalYAML reads a mapping.
func (o *ordered[T]) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: want a mapping", n.Line)
	}
	for i := 0; i < len(n.Content); i += 2 {
		e := entry[T]{key: n.Content[i].Value}
		if err := n.Content[i+1].Decode(&e.value); err != nil {
			return err
		}
		*o = append(*o, e)
	}
	return nil
}

func (o ordered[T]) get(key string) (T, bool) {
	for _, e := range o {
		if e.key == key {
			return e.value, true
		}
	}
	var none T
	return none, false
}

// resolve follows a reference into one group of the components.
func resolve[T any](in ordered[T], ref string) (T, error) {
	v, ok := in.get(ref[strings.LastIndexByte(ref, '/')+1:])
	if !ok {
		return v, fmt.Errorf("%s leads nowhere", ref)
	}
	return v, nil
}

// oneOrMore is the type of a schema: a name, or a list of them.
type oneOrMore []string

// UnmarshalYAML reads either form.
func (o *oneOrMore) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*o = oneOrMore{n.Value}
		return nil
	}
	return n.Decode((*[]string)(o))
}

// UnmarshalYAML reads a path's operations in their order.
func (p *pathItem) UnmarshalYAML(n *yaml.Node) error {
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i].Value, n.Content[i+1]
		if key == "parameters" {
			if err := value.Decode(&p.Parameters); err != nil {
				return err
			}
			continue
		}
		o := operation{method: strings.ToUpper(key)}
		if err := value.Decode(&o); err != nil {
			return err
		}
		p.operations = append(p.operations, o)
	}
	return nil
}
