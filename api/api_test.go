package api

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"go.yaml.in/yaml/v3"
)

// load reads the document as it is served.
func load(t *testing.T) *openapi3.T {
	t.Helper()
	text, err := JSON()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// The document is OpenAPI 3.1, and each of its examples is what its schema says.
func TestDocument(t *testing.T) {
	doc := load(t)
	if err := doc.Validate(t.Context()); err != nil {
		t.Error(err)
	}
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("openapi is %q", doc.OpenAPI)
	}
	doc.Components.Schemas["Container"].Value.Properties["memory_mb"].Value.Type = &openapi3.Types{"string"}
	if doc.Validate(t.Context()) == nil {
		t.Error("examples that are not as their schema pass")
	}
}

// Every example of the contract, copied out of it with another zone, is what the document says: what a request may send,
// or all that an answer or a message has.
func TestContractExamples(t *testing.T) {
	doc := load(t)
	for _, s := range doc.Components.Schemas {
		no := false
		s.Value.AdditionalProperties.Has = &no
	}
	operations := map[string]*openapi3.Operation{}
	for _, item := range doc.Paths.Map() {
		for _, o := range item.Operations() {
			operations[o.OperationID] = o
		}
	}
	schemaOf := func(t *testing.T, name string) *openapi3.Schema {
		what, which, _ := strings.Cut(name, ".")
		var s *openapi3.SchemaRef
		switch o := operations[what]; {
		case what == "message":
			s = doc.Components.Schemas[which]
		case o == nil:
		case which == "request":
			s = o.RequestBody.Value.Content["application/json"].Schema
		default:
			s = o.Responses.Value(which).Value.Content["application/json"].Schema
		}
		if s == nil {
			t.Fatalf("the document has nothing for %s", name)
		}
		return s.Value
	}
	files, err := filepath.Glob("testdata/contract/*.json")
	if err != nil || len(files) < 14 {
		t.Fatalf("%d examples, %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var v any
			if err := json.Unmarshal(text, &v); err != nil {
				t.Fatal(err)
			}
			s := schemaOf(t, name)
			if err := s.VisitJSON(v, openapi3.EnableFormatValidation()); err != nil {
				t.Error(err)
			}
			if err := s.VisitJSON(v, openapi3.EnableJSONSchema2020()); err != nil {
				t.Error(err)
			}
			v.(map[string]any)["novelty"] = 1
			if s.VisitJSON(v) == nil {
				t.Error("with a field too many it passes, too")
			}
		})
	}
}

// The JSON has all that the YAML has, in its order.
func TestJSON(t *testing.T) {
	text, err := JSON()
	if err != nil {
		t.Fatal(err)
	}
	var written, meant any
	if err := json.Unmarshal(text, &written); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(document, &meant); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(meant)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(again, &meant); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(written, meant) {
		t.Error("they differ")
	}
	at := 0
	for _, name := range []string{`"openapi"`, `"info"`, `"listContainers"`, `"createContainer"`, `"components"`} {
		i := strings.Index(string(text), name)
		if i < at {
			t.Errorf("%s is at %d, before what it follows", name, i)
		}
		at = i
	}
}

func TestJSONRefusesWhatYAMLGuesses(t *testing.T) {
	for _, text := range []string{
		"at: 2026-01-15", "a: &x 1\nb: *x", "200: ok", "true: 1", "n: 0x10", "n: .inf", "n: +1", "n: 1_000", "b: ~", "{[1]: 2}",
		"v: !!binary eA==",
	} {
		var n yaml.Node
		if err := yaml.Unmarshal([]byte(text), &n); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if got, err := toJSON(&n); err == nil {
			t.Errorf("%q is written as %s", text, got)
		}
	}
	var n yaml.Node
	if err := yaml.Unmarshal([]byte("a: [1, -2.5e3, true, null, \"<é\\n\\\"\", {}, []]\nb: {c: d}\n"), &n); err != nil {
		t.Fatal(err)
	}
	if got, err := toJSON(&n); err != nil || string(got) != `{"a":[1,-2.5e3,true,null,"<é\n\"",{},[]],"b":{"c":"d"}}` {
		t.Errorf("%s, %v", got, err)
	}
	want := "{\n  \"a\": [1, -2.5e3, true, null, \"<é\\n\\\"\", {}, []],\n  \"b\": {\"c\": \"d\"}\n}"
	if got, err := example(&n); err != nil || got != want {
		t.Errorf("%s, %v", got, err)
	}
}

// The types write their fields in the document's order: a person reads an id first.
func TestTypesKeepTheOrder(t *testing.T) {
	var doc openAPI
	if err := yaml.Unmarshal(document, &doc); err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{
		Container{},
		ContainerList{},
		SSHKey{},
		SSHKeyList{},
		SSHAccess{},
		IngressRule{},
		IngressRuleList{},
		MountPaths{},
		MountPathsChanged{},
		Deleted{},
		FeedContainers{},
		FeedStatus{},
		FeedStatusData{},
		Problem{},
	} {
		typ := reflect.TypeOf(v)
		s, ok := doc.Components.Schemas.get(typ.Name())
		if !ok {
			t.Fatalf("there is no schema %s", typ.Name())
		}
		var want, got []string
		for _, p := range s.Properties {
			want = append(want, p.key)
		}
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			got = append(got, name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s is written as %v, described as %v", typ.Name(), got, want)
		}
	}
}
