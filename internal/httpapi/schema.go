package httpapi

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"berth/internal/compute"
)

// schema is what the document may say of a value in a request: the part of JSON Schema that is checked here, with words for
// whoever gets it wrong. A document that says more of one is not read: what it promises would not be so.
type schema struct {
	Ref        string             `json:"$ref"`
	Types      types              `json:"type"`
	Format     string             `json:"format"` // int64, which every whole number is held to
	Enum       []string           `json:"enum"`
	Items      *schema            `json:"items"`
	Properties map[string]*schema `json:"properties"`
	Required   []string           `json:"required"`
	Open       *bool              `json:"additionalProperties"`
	Missing    string             `json:"x-missing"` // what is said to who leaves the value out

	// For people.
	Description string `json:"description"`
	Default     any    `json:"default"`
}

// types is the type of a schema: a name, or a list of them.
type types []string

// UnmarshalJSON reads either form.
func (t *types) UnmarshalJSON(text []byte) error {
	if text[0] != '"' {
		return json.Unmarshal(text, (*[]string)(t))
	}
	*t = types{""}
	return json.Unmarshal(text, &(*t)[0])
}

// maxDepth bounds how deep schemas lie in one another: without end, where one holds itself.
const maxDepth = 16

// link puts in what s and the schemas in it refer to, and makes sure that all they say is checked.
func (s *schema) link(named map[string]json.RawMessage, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("it is more than %d deep", maxDepth)
	}
	if s.Ref != "" {
		from := *s
		if !reflect.DeepEqual(from, schema{Ref: from.Ref, Missing: from.Missing, Description: from.Description}) {
			return fmt.Errorf("what stands beside %s is not read", s.Ref)
		}
		*s = schema{}
		if err := readStrictly(named[strings.TrimPrefix(from.Ref, "#/components/schemas/")], s); err != nil {
			return fmt.Errorf("%s: %w", from.Ref, err)
		}
		s.Missing = cmp.Or(from.Missing, s.Missing)
		return s.link(named, depth+1)
	}
	for name, p := range s.Properties {
		if err := p.link(named, depth+1); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if slices.Contains(s.Required, name) != (p.Missing != "") {
			return fmt.Errorf("%s: either it is required and has x-missing, or neither", name)
		}
	}
	if s.Items != nil {
		if err := s.Items.link(named, depth+1); err != nil {
			return fmt.Errorf("items: %w", err)
		}
	}
	return s.checkable()
}

// checkable says whether there are words for all that s says.
func (s *schema) checkable() error {
	switch kind := s.kind(); {
	case !slices.Contains([]string{"string", "integer", "boolean", "array", "object"}, kind) || len(s.Types) > 2 ||
		len(s.Types) == 2 && !s.nullable():
		return fmt.Errorf("the type %v is not checked", s.Types)
	case s.Format != "" && (s.Format != "int64" || kind != "integer"):
		return fmt.Errorf("the format %s is not checked", s.Format)
	case s.Enum != nil && (kind != "string" || slices.Contains(s.Enum, "")):
		return errors.New("an enum is of words")
	case (kind == "array") != (s.Items != nil) || s.Items != nil && (!s.Items.scalar() || s.Items.nullable()):
		return errors.New("an array is of strings, numbers or booleans")
	case (kind == "object") != (s.Properties != nil) || kind == "object" && (s.Open == nil || *s.Open):
		return errors.New("an object has properties, and additionalProperties: false")
	}
	for _, name := range s.Required {
		if s.Properties[name] == nil {
			return fmt.Errorf("%s is required, and no property", name)
		}
	}
	return nil
}

// kind is the type that s wants, null aside.
func (s *schema) kind() string {
	for _, t := range s.Types {
		if t != "null" {
			return t
		}
	}
	return ""
}

func (s *schema) nullable() bool { return slices.Contains(s.Types, "null") }

func (s *schema) scalar() bool { return s.Items == nil && s.Properties == nil }

// readStrictly reads JSON into v, which must have a place for every name in it.
func readStrictly(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// check holds a value, as decode returns it, against the schema. The value is called field; a body has no name. Its errors
// are for the client: the first mistake, in the order of names, and after all others what is missing.
func (s *schema) check(field string, value any) error {
	if !s.takes(value) {
		if value == nil && s.Missing != "" { // a null is a field that is not there
			return compute.Invalid(field, "%s", s.Missing)
		}
		return s.wrongType(field, value)
	}
	switch v := value.(type) {
	case string:
		return s.checkEnum(field, v)
	case json.Number:
		return checkWhole(field, string(v))
	case []any:
		return s.checkElements(field, v)
	case map[string]any:
		return s.checkFields(field, v)
	default:
		return nil
	}
}

// takes says whether a value is of the type that s wants.
func (s *schema) takes(value any) bool {
	switch got := kindOf(value); got {
	case "null":
		return s.nullable()
	case "number":
		return s.kind() == "integer"
	default:
		return s.kind() == got
	}
}

func (s *schema) checkEnum(field, v string) error {
	if s.Enum != nil && !slices.Contains(s.Enum, v) {
		return compute.Invalid(field, "%s is one of %s.", field, strings.Join(s.Enum, ", "))
	}
	return nil
}

// checkWhole wants a whole number written as one: JSON Schema would take 512.0, and 1e3. What it costs is bounded by the
// number's text, whatever its exponent.
func checkWhole(field, number string) error {
	_, err := strconv.ParseInt(number, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return compute.Invalid(field, "A number in %s is far out of range.", field)
	case err != nil:
		return compute.Invalid(field, "%s wants whole numbers, written without a point or an exponent.", field)
	}
	return nil
}

func (s *schema) checkElements(field string, list []any) error {
	for i, v := range list {
		if !s.Items.takes(v) {
			return compute.Invalid(field, "%s is %s; number %d in it is %s.", field, s.noun(), i+1, article(kindOf(v)))
		}
		if err := s.Items.check(field, v); err != nil {
			return err
		}
	}
	return nil
}

// checkFields refuses a field that the document does not have: a typing error would otherwise make a container other than
// the one that was meant, such as one that forgets a mount path.
func (s *schema) checkFields(outer string, object map[string]any) error {
	for _, name := range slices.Sorted(maps.Keys(object)) {
		field := within(outer, name)
		p := s.Properties[name]
		if p == nil {
			known := strings.Join(slices.Sorted(maps.Keys(s.Properties)), ", ")
			return compute.Invalid(field, "There is no field %q here; the fields are %s.", clip(name, maxName), known)
		}
		if err := p.check(field, object[name]); err != nil {
			return err
		}
	}
	for _, name := range s.Required {
		if _, given := object[name]; !given {
			return compute.Invalid(within(outer, name), "%s", s.Properties[name].Missing)
		}
	}
	return nil
}

func (s *schema) wrongType(field string, value any) error {
	got := article(kindOf(value))
	if field == "" {
		return compute.Invalid("", "The body is a JSON object, not %s.", got)
	}
	return compute.Invalid(field, "%s is %s, not %s.", field, s.noun(), got)
}

// noun says what s wants.
func (s *schema) noun() string {
	switch kind := s.kind(); {
	case kind == "boolean":
		return "true or false"
	case kind == "integer":
		return "a whole number"
	case kind == "array" && s.Items.kind() == "integer":
		return "an array of whole numbers"
	case kind == "array":
		return "an array of " + s.Items.kind() + "s"
	default:
		return article(kind)
	}
}

// kindOf names the type of a value of JSON.
func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case string:
		return "string"
	case json.Number:
		return "number"
	case bool:
		return "boolean"
	case []any:
		return "array"
	default:
		return "object"
	}
}

func article(kind string) string {
	switch {
	case kind == "null":
		return kind
	case strings.ContainsAny(kind[:1], "aeiou"):
		return "an " + kind
	default:
		return "a " + kind
	}
}
