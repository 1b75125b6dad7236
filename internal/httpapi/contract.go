package httpapi

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	openapi "berth/api"
	"berth/internal/compute"
)

// document is api/openapi.yaml, by which requests are checked before a handler sees them. It is read once, and never
// changed.
var document = sync.OnceValues(func() (*openapi3.T, error) {
	text, err := openapi.JSON()
	if err != nil {
		return nil, err
	}
	return openapi3.NewLoader().LoadFromData(text)
})

// operation is what the document says that a request may have. The path is not in it: what an id or a port must look like
// is for whoever looks it up, since one that cannot exist is answered as one that does not.
type operation struct {
	query map[string]*openapi3.Parameter
	body  *openapi3.Schema // nil: a body is not read
}

// describe finds a route's operation. A route without one is a mistake of ours, which every start and every test meets.
func describe(method, route string) operation {
	doc, err := document()
	if err != nil {
		panic(fmt.Sprintf("httpapi: api/openapi.yaml: %v", err))
	}
	item := doc.Paths.Value(template(route))
	if item == nil || item.GetOperation(method) == nil {
		panic(fmt.Sprintf("httpapi: api/openapi.yaml does not describe %s %s", method, route))
	}
	return newOperation(item.GetOperation(method))
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

func newOperation(described *openapi3.Operation) operation {
	o := operation{query: map[string]*openapi3.Parameter{}}
	for _, p := range described.Parameters {
		if p.Value.In == openapi3.ParameterInQuery {
			o.query[p.Value.Name] = p.Value
		}
	}
	if described.RequestBody != nil {
		o.body = described.RequestBody.Value.Content[fiber.MIMEApplicationJSON].Schema.Value
	}
	return o
}

// check holds a request against the document. Its errors are for the client.
func (o operation) check(c *fiber.Ctx) error {
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
	return inWords(o.body.VisitJSON(v))
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
		if o.query[name].Required && !seen[name] {
			return compute.Invalid(name, "The query parameter %s is missing.", name)
		}
	}
	return nil
}

// checkParameter checks one parameter of a query. The answer quotes its name, never its value: it may be a token in the
// wrong place.
func (o operation) checkParameter(name, value string) error {
	p := o.query[name]
	if p == nil {
		name = clip(name, 64)
		if len(o.query) == 0 {
			return compute.Invalid(name, "There is no query parameter %q here; this path takes none.", name)
		}
		known := strings.Join(slices.Sorted(maps.Keys(o.query)), ", ")
		return compute.Invalid(name, "There is no query parameter %q here; the parameters are %s.", name, known)
	}
	schema := p.Schema.Value
	var v any = value
	switch {
	case schema.Type.Is(openapi3.TypeInteger):
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || strconv.FormatInt(n, 10) != value {
			return compute.Invalid(name, "%s is a whole number.", name)
		}
		v = n
	case schema.Type.Is(openapi3.TypeBoolean):
		if value != "true" && value != "false" {
			return compute.Invalid(name, "%s is true or false.", name)
		}
		v = value == "true"
	}
	return inWords(schema.VisitJSON(v), name)
}
