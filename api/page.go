package api

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

var (
	//go:embed page.html
	pageTemplate string
	//go:embed page.css
	pageStyle string
)

// Page returns the document as one page of HTML that loads nothing, and the source expression by which a
// Content-Security-Policy lets its style in.
func Page() (html []byte, styleSource string, err error) {
	var doc openAPI
	if err := yaml.Unmarshal(document, &doc); err != nil {
		return nil, "", fmt.Errorf("read openapi.yaml: %w", err)
	}
	v, err := doc.view()
	if err != nil {
		return nil, "", fmt.Errorf("openapi.yaml: %w", err)
	}
	t, err := template.New("page").Funcs(template.FuncMap{"markdown": markdown, "phrase": phrase}).Parse(pageTemplate)
	if err != nil {
		return nil, "", err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, v); err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256([]byte(pageStyle))
	return out.Bytes(), "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'", nil
}

// view is what the template shows.
type view struct {
	Style       template.CSS
	Title       string
	Summary     string
	Description string
	Security    string
	Groups      []group
	Codes       []code
	Schemas     []schemaView
}

type group struct {
	ID, Name, Description string
	Operations            []operationView
}

type operationView struct {
	ID, Method, Path     string
	Summary, Description string
	NotServedYet         bool
	Open                 bool   // without a token
	Scope                string // that the token needs
	Parameters           []field
	Body                 *schemaView
	Samples              []sample
	Answers              []answerView
}

type sample struct{ Label, Text string }

type answerView struct {
	Status, Phrase, Description string
	Schema                      string
	Example                     string
	Headers                     []field
	Good                        bool
}

type field struct {
	Name, In, Type, Schema string
	Required               bool
	Default                string
	Values                 []string
	Description            string
}

type schemaView struct {
	Name, Description, Example string
	Values                     []string
	Fields                     []field
}

type code struct{ Name, Status, Means string }

func (d *openAPI) view() (*view, error) {
	v := &view{
		Style: template.CSS(pageStyle), // a file of ours
		Title: d.Info.Title, Summary: d.Info.Summary, Description: d.Info.Description,
	}
	for _, s := range d.Components.SecuritySchemes {
		v.Security += s.value.Description
	}
	for _, t := range d.Tags {
		v.Groups = append(v.Groups, group{ID: anchor(t.Name), Name: t.Name, Description: t.Description})
	}
	for _, p := range d.Paths {
		for _, o := range p.value.operations {
			i := slices.IndexFunc(v.Groups, func(g group) bool { return slices.Contains(o.Tags, g.Name) })
			if i < 0 {
				return nil, fmt.Errorf("%s %s has no tag of the list", o.method, p.key)
			}
			shown, err := d.operation(p.key, p.value.Parameters, o)
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", o.method, p.key, err)
			}
			v.Groups[i].Operations = append(v.Groups[i].Operations, shown)
		}
	}
	for _, s := range d.Components.Schemas {
		if len(s.value.EnumDescriptions) > 0 {
			v.Codes = append(v.Codes, codes(s.value)...)
		}
		shown, err := d.schema(s.key, s.value)
		if err != nil {
			return nil, fmt.Errorf("schema %s: %w", s.key, err)
		}
		v.Schemas = append(v.Schemas, shown)
	}
	return v, nil
}

func anchor(name string) string { return strings.ToLower(strings.ReplaceAll(name, " ", "-")) }

// codes reads the descriptions of an enumeration, each of which begins with a status.
func codes(s schema) []code {
	list := make([]code, len(s.EnumDescriptions))
	for i, e := range s.EnumDescriptions {
		status, means, _ := strings.Cut(e.value, ": ")
		list[i] = code{e.key, status, means}
	}
	return list
}

func (d *openAPI) operation(path string, shared []parameter, o operation) (operationView, error) {
	v := operationView{
		ID: o.ID, Method: o.method, Path: path, Summary: o.Summary, Description: o.Description,
		NotServedYet: o.NotServedYet, Open: len(o.Security) == 0,
	}
	for _, s := range o.Security {
		for _, scopes := range s {
			v.Scope = strings.Join(scopes, ", ")
		}
	}
	sampled := path
	for _, p := range slices.Concat(shared, o.Parameters) {
		if p.Ref != "" {
			var err error
			if p, err = resolve(d.Components.Parameters, p.Ref); err != nil {
				return v, err
			}
		}
		f, err := d.field(p.Name, p.Schema, p.Required)
		if err != nil {
			return v, err
		}
		f.In, f.Description = p.In, p.Description
		v.Parameters = append(v.Parameters, f)
		sampled = strings.ReplaceAll(sampled, "{"+p.Name+"}", p.Example.Value)
	}
	if json, ok := o.RequestBody.Content.get("application/json"); ok {
		body, err := resolve(d.Components.Schemas, json.Schema.Ref)
		if err != nil {
			return v, err
		}
		shown, err := d.schema(json.Schema.Ref[strings.LastIndexByte(json.Schema.Ref, '/')+1:], body)
		if err != nil {
			return v, err
		}
		if shown.Example, err = example(&json.Example); err != nil {
			return v, err
		}
		v.Body = &shown
	}
	v.Samples = o.samples(sampled, v)
	var err error
	v.Answers, err = d.answers(o)
	return v, err
}

// samples shows how the operation is called: as the document says, or by curl.
func (o operation) samples(path string, v operationView) []sample {
	var list []sample
	for _, s := range o.CodeSamples {
		list = append(list, sample{s.Label, strings.TrimSpace(s.Source)})
	}
	if len(list) > 0 {
		return list
	}
	words := []string{`curl "$API` + path + `"`}
	if o.method != http.MethodGet && (o.method != http.MethodPost || v.Body == nil) {
		words[0] = "curl -X " + o.method + ` "$API` + path + `"`
	}
	if !v.Open {
		words = append(words, `-H "Authorization: Bearer $TOKEN"`)
	}
	if v.Body != nil {
		words = append(words, `-H "Content-Type: application/json"`, "-d '"+strings.ReplaceAll(v.Body.Example, "'", `'\''`)+"'")
	}
	return []sample{{"curl", strings.Join(words, " \\\n  ")}}
}

func (d *openAPI) answers(o operation) ([]answerView, error) {
	var list []answerView
	for _, r := range o.Responses {
		a, resp := answerView{Status: r.key, Phrase: "Otherwise"}, r.value
		if n, err := strconv.Atoi(r.key); err == nil {
			a.Phrase, a.Good = http.StatusText(n), n < http.StatusBadRequest
		}
		if resp.Ref != "" {
			var err error
			if resp, err = resolve(d.Components.Responses, resp.Ref); err != nil {
				return nil, err
			}
		}
		a.Description = resp.Description
		for _, h := range resp.Headers {
			head := h.value
			if head.Ref != "" {
				var err error
				if head, err = resolve(d.Components.Headers, head.Ref); err != nil {
					return nil, err
				}
			}
			a.Headers = append(a.Headers, field{Name: h.key, Description: head.Description})
		}
		for _, m := range resp.Content {
			f, err := d.field("", m.value.Schema, false)
			if err != nil {
				return nil, err
			}
			a.Schema = f.Schema
			if m.value.Example.Kind == 0 {
				continue
			}
			if m.key != "application/json" && !strings.HasSuffix(m.key, "+json") {
				a.Example = m.value.Example.Value
			} else if a.Example, err = example(&m.value.Example); err != nil {
				return nil, err
			}
		}
		list = append(list, a)
	}
	return list, nil
}

func (d *openAPI) schema(name string, s schema) (schemaView, error) {
	v := schemaView{Name: name, Description: s.Description, Values: s.Enum}
	if s.Example.Kind != 0 {
		var err error
		if v.Example, err = example(&s.Example); err != nil {
			return v, err
		}
	}
	for _, p := range s.Properties {
		f, err := d.field(p.key, p.value, slices.Contains(s.Required, p.key))
		if err != nil {
			return v, err
		}
		v.Fields = append(v.Fields, f)
	}
	return v, nil
}

// field says in words what type a value has. Schema is the name of the schema that says more, where there is one.
func (d *openAPI) field(name string, s schema, required bool) (field, error) {
	f := field{Name: name, Required: required, Description: s.Description, Values: s.Enum}
	if s.Ref != "" {
		to, err := resolve(d.Components.Schemas, s.Ref)
		if err != nil {
			return f, err
		}
		f, err = d.field(name, to, required)
		switch {
		case len(to.EnumDescriptions) > 0:
			f.Schema, f.Values = "errors", nil
		case len(to.Properties) > 0:
			f.Schema = s.Ref[strings.LastIndexByte(s.Ref, '/')+1:]
		}
		return f, err
	}
	types := slices.Clone(s.Type)
	for i, t := range types {
		switch {
		case t == "integer":
			types[i] = "whole number"
		case t == "array" && s.Items != nil:
			item, err := d.field("", *s.Items, false)
			if err != nil {
				return f, err
			}
			f.Schema = item.Schema
			types[i] = "array of " + item.Type + "s"
		}
	}
	f.Type = strings.Join(types, " or ")
	if s.Default.Kind != 0 {
		var err error
		if f.Default, err = example(&s.Default); err != nil {
			return f, err
		}
	}
	return f, nil
}
