package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"berth/internal/compute"
)

// inWords says for the client what the library found. The value that was looked at is called prefix; a body has no name.
func inWords(err error, prefix ...string) error {
	if err == nil {
		return nil
	}
	var e *openapi3.SchemaError
	if !errors.As(err, &e) {
		return compute.Internal("check a request", err)
	}
	path := slices.Concat(prefix, e.JSONPointer())
	field, place := locate(path)
	switch e.SchemaField {
	case "required":
		return missing(field, e.Schema.Properties[path[len(path)-1]].Value)
	case "properties":
		return unknown(e, path)
	case "enum":
		return compute.Invalid(field, "%s is one of %s.", field, oneOf(e.Schema.Enum))
	case "nullable":
		if place == 0 && e.Schema.Extensions[xMissing] != nil {
			return missing(field, e.Schema) // a null is a field that is not there
		}
		return wrongType(field, place, e)
	case "type":
		return wrongType(field, place, e)
	case "format": // of numbers
		return outOfRange(field)
	default: // the document says nothing else of requests: a test holds it to that
		return compute.Internal("check a request", fmt.Errorf("%s: %s", e.SchemaField, e.Reason))
	}
}

// locate splits the path to a value into the field that it is in and, where that is an array, the place in it, from 1.
func locate(path []string) (field string, place int) {
	if n := len(path); n > 1 {
		if i, err := strconv.Atoi(path[n-1]); err == nil {
			path, place = path[:n-1], i+1
		}
	}
	return strings.Join(path, "."), place
}

// xMissing is where the document has the words for whoever leaves a field out: better ones than could be made here.
const xMissing = "x-missing"

func missing(field string, s *openapi3.Schema) error {
	if words, ok := s.Extensions[xMissing].(string); ok {
		return compute.Invalid(field, "%s", words)
	}
	return compute.Invalid(field, "%s is missing.", field)
}

// unknown names the first field that the document does not have. It is a mistake: a typing error would otherwise make a
// container other than the one that was meant, such as one that forgets a mount path.
func unknown(e *openapi3.SchemaError, path []string) error {
	object, _ := e.Value.(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(object)) {
		if e.Schema.Properties[name] == nil {
			name = clip(name, 64)
			known := strings.Join(slices.Sorted(maps.Keys(e.Schema.Properties)), ", ")
			return compute.Invalid(strings.Join(append(path, name), "."),
				"There is no field %q here; the fields are %s.", name, known)
		}
	}
	return compute.Internal("check a request", errors.New(e.Reason))
}

func oneOf(values []any) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = fmt.Sprint(v)
	}
	return strings.Join(words, ", ")
}

func wrongType(field string, place int, e *openapi3.SchemaError) error {
	got, want := kind(e.Value), noun(e.Schema)
	switch {
	case got == "a number" && e.Schema.Type.Includes(openapi3.TypeInteger):
		return notWhole(field, fmt.Sprint(e.Value))
	case place > 0:
		return compute.Invalid(field, "%s is an array of %ss; number %d in it is %s.", field, want, place, got)
	case want == "boolean":
		return compute.Invalid(field, "%s is true or false, not %s.", field, got)
	case want == "array":
		return compute.Invalid(field, "%s is an array of %ss, not %s.", field, noun(e.Schema.Items.Value), got)
	case field == "":
		return compute.Invalid("", "The body is a JSON object, not %s.", got)
	default:
		return compute.Invalid(field, "%s is %s, not %s.", field, article(want), got)
	}
}

// notWhole is about a number where a whole one is wanted, as it was written.
func notWhole(field, number string) error {
	if _, err := strconv.ParseInt(number, 10, 64); errors.Is(err, strconv.ErrRange) {
		return outOfRange(field)
	}
	return compute.Invalid(field, "%s wants whole numbers, written without a point or an exponent.", field)
}

func outOfRange(field string) error {
	return compute.Invalid(field, "A number in %s is far out of range.", field)
}

// noun names what a schema wants, a null aside.
func noun(s *openapi3.Schema) string {
	for _, t := range s.Type.Slice() {
		switch t {
		case openapi3.TypeNull:
		case openapi3.TypeInteger:
			return "whole number"
		default:
			return t
		}
	}
	return "value"
}

func article(noun string) string {
	if strings.ContainsAny(noun[:1], "aeiou") {
		return "an " + noun
	}
	return "a " + noun
}

// kind names the type of a value of JSON.
func kind(v any) string {
	switch v.(type) {
	case map[string]any:
		return "an object"
	case []any:
		return "an array"
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case json.Number, float64, int64:
		return "a number"
	default:
		return "null"
	}
}
