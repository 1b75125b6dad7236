package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	openapi "berth/api"
	"berth/internal/compute"
)

// document is the part of api/openapi.yaml by which requests are checked before a handler sees them.
type document struct {
	Paths map[string]map[string]json.RawMessage // by path; then by method in lower case, beside the path's parameters

	Components struct {
		Schemas    map[string]json.RawMessage
		Parameters map[string]parameter
	}
}

// parameter is what the document says of one.
type parameter struct {
	Ref      string `json:"$ref"`
	Name, In string
	Required bool
	Schema   json.RawMessage
}

// readDocument reads the document once; nothing changes it.
var readDocument = sync.OnceValues(func() (*document, error) {
	text, err := openapi.JSON()
	if err != nil {
		return nil, err
	}
	d := new(document)
	return d, json.Unmarshal(text, d)
})

// hasOperation says whether the document describes an operation of that name.
func (d *document) hasOperation(id string) bool {
	for _, item := range d.Paths {
		for _, text := range item {
			var o struct{ OperationID string }
			if err := json.Unmarshal(text, &o); err == nil && o.OperationID == id {
				return true
			}
		}
	}
	return false
}

// operation is what the document says that a request may have. The path is not in it: what an id or a port must look like
// is for whoever looks it up, since one that cannot exist is answered as one that does not.
type operation struct {
	id      string // operationId
	query   map[string]queryParameter
	body    *schema // nil: a body is not read
	ifMatch bool    // it takes the condition; others refuse it, rather than do what was not to be done
}

type queryParameter struct {
	required bool
	schema   *schema
}

// describe finds a route's operation. A route that the document does not describe, or not in terms that are checked, is a
// mistake of ours, which every start and every test meets.
func describe(method, route string) operation {
	d, err := readDocument()
	if err != nil {
		panic(fmt.Sprintf("httpapi: api/openapi.yaml: %v", err))
	}
	o, err := d.operation(method, template(route))
	if err != nil {
		panic(fmt.Sprintf("httpapi: api/openapi.yaml: %s %s: %v", method, route, err))
	}
	return o
}

// template spells a route as the document does: /compute/containers/{id} for /compute/containers/:id.
func template(route string) string {
	segments := strings.Split(route, "/")
	for i, s := range segments {
		if name, ok := strings.CutPrefix(s, ":"); ok {
			segments[i] = "{" + name + "}"
		}
	}
	return strings.Join(segments, "/")
}

// operation reads what the document says of a method of a path.
func (d *document) operation(method, path string) (operation, error) {
	o := operation{query: map[string]queryParameter{}}
	item := d.Paths[path]
	text, ok := item[strings.ToLower(method)]
	if !ok {
		return o, errors.New("it is not described")
	}
	var described struct {
		OperationID string
		Parameters  []parameter
		RequestBody *struct {
			Required bool
			Content  map[string]struct{ Schema json.RawMessage }
		}
	}
	if err := json.Unmarshal(text, &described); err != nil {
		return o, err
	}
	o.id = described.OperationID
	var shared []parameter
	if text, ok := item["parameters"]; ok {
		if err := json.Unmarshal(text, &shared); err != nil {
			return o, err
		}
	}
	for _, p := range slices.Concat(shared, described.Parameters) {
		if err := d.addParameter(&o, p); err != nil {
			return o, err
		}
	}
	if b := described.RequestBody; b != nil {
		content, ok := b.Content[fiber.MIMEApplicationJSON]
		if !ok || len(b.Content) != 1 || !b.Required {
			return o, errors.New("a body is required, and JSON")
		}
		var err error
		if o.body, err = d.schema(content.Schema); err != nil {
			return o, fmt.Errorf("the body: %w", err)
		}
		if o.body.kind() != "object" || o.body.nullable() {
			return o, errors.New("a body is an object")
		}
	}
	return o, nil
}

// addParameter adds p to what a request may have.
func (d *document) addParameter(o *operation, p parameter) error {
	if p.Ref != "" {
		p = d.Components.Parameters[strings.TrimPrefix(p.Ref, "#/components/parameters/")]
	}
	switch p.In {
	case "query":
	case "header":
		o.ifMatch = o.ifMatch || p.Name == fiber.HeaderIfMatch
		return nil
	case "path", "cookie":
		return nil
	default:
		return errors.New("a parameter has no place")
	}
	s, err := d.schema(p.Schema)
	if err == nil && (!s.scalar() || s.nullable()) {
		err = errors.New("it is a string, a whole number or a boolean")
	}
	if err != nil {
		return fmt.Errorf("the query parameter %s: %w", p.Name, err)
	}
	o.query[p.Name] = queryParameter{p.Required, s}
	return nil
}

// schema reads a schema, and what it refers to.
func (d *document) schema(text json.RawMessage) (*schema, error) {
	s := new(schema)
	if err := readStrictly(text, s); err != nil {
		return nil, err
	}
	return s, s.link(d.Components.Schemas, 0)
}

// check holds a request against the document. Its errors are for the client.
func (o operation) check(c *fiber.Ctx) error {
	if !o.ifMatch && !safe(c.Method()) && len(c.Request().Header.Peek(fiber.HeaderIfMatch)) > 0 {
		return compute.Errorf(compute.CodeInvalid, "This path takes no If-Match, and nothing was done; send it without.")
	}
	if err := o.checkQuery(c.Context().QueryArgs()); err != nil || o.body == nil {
		return err
	}
	h := &c.Request().Header
	if err := checkType(string(h.ContentType()), string(h.ContentEncoding())); err != nil {
		return err
	}
	return o.checkBody(c.Request().Body()) // not c.Body, which would decompress without a bound
}

func (o operation) checkBody(text []byte) error {
	v, err := decode(text)
	if err != nil {
		return err
	}
	return o.body.check("", v)
}

func (o operation) checkQuery(args *fasthttp.Args) error {
	seen := map[string]bool{}
	var err error // of the first that is wrong
	args.VisitAll(func(key, value []byte) {
		name := strings.ToValidUTF8(string(key), "\ufffd")
		switch {
		case err != nil:
		case seen[name]:
			err = compute.Invalid(name, "The query parameter %s is there twice.", name)
		default:
			seen[name] = true
			err = o.checkParameter(name, string(value))
		}
	})
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(o.query)) {
		if o.query[name].required && !seen[name] {
			return compute.Invalid(name, "The query parameter %s is missing.", name)
		}
	}
	return nil
}

// checkParameter checks one parameter of a query. The answer quotes its name, never its value: it may be a token in the
// wrong place.
func (o operation) checkParameter(name, value string) error {
	p, ok := o.query[name]
	if !ok {
		name = clip(name, maxName)
		if len(o.query) == 0 {
			return compute.Invalid(name, "There is no query parameter %q here; this path takes none.", name)
		}
		known := strings.Join(slices.Sorted(maps.Keys(o.query)), ", ")
		return compute.Invalid(name, "There is no query parameter %q here; the parameters are %s.", name, known)
	}
	switch p.schema.kind() {
	case "integer":
		if n, err := strconv.ParseInt(value, 10, 64); err != nil || strconv.FormatInt(n, 10) != value {
			return compute.Invalid(name, "%s is a whole number.", name)
		}
		return nil
	case "boolean":
		if value != "true" && value != "false" {
			return compute.Invalid(name, "%s is true or false.", name)
		}
		return nil
	default:
		if !utf8.ValidString(value) {
			return compute.Invalid(name, "%s is not UTF-8.", name)
		}
		return p.schema.checkEnum(name, value)
	}
}
