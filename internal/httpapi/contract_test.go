package httpapi

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	"berth/internal/compute"
)

// eachOperation calls f for every operation of the document.
func eachOperation(t *testing.T, f func(route string, o *openapi3.Operation)) {
	t.Helper()
	doc := description(t)
	for _, path := range slices.Sorted(maps.Keys(doc.Paths.Map())) {
		for method, o := range doc.Paths.Value(path).Operations() {
			f(method+" "+path, o)
		}
	}
}

// A schema that says what is not checked, or for which there are no words, is not read.
func TestSchemasThatAreNotChecked(t *testing.T) {
	const named = `{
		"Role": {"type": "string", "enum": ["user", "admin"]}, "Mode": {"type": "string", "mode": 1},
		"Endless": {"type": "object", "additionalProperties": false, "properties": {"it": {"$ref": "#/components/schemas/Endless"}}}
	}`
	var d document
	if err := json.Unmarshal([]byte(named), &d.Components.Schemas); err != nil {
		t.Fatal(err)
	}
	// with returns an object that has a field.
	with := func(field string) string {
		return `{"type": "object", "additionalProperties": false, "required": ["a"], "properties": {"a": ` + field + `}}`
	}
	for text, fault := range map[string]string{
		with(`{"type": "string", "x-missing": "Give an a."}`):                                                           "",
		with(`{"$ref": "#/components/schemas/Role", "description": "d", "x-missing": "Give an a."}`):                    "",
		`{"type": ["integer", "null"], "format": "int64", "default": 5}`:                                                "",
		`{"type": ["array", "null"], "items": {"type": "string", "enum": ["a"]}}`:                                       "",
		`{"type": "object", "additionalProperties": false, "properties": {"a": {"$ref": "#/components/schemas/Role"}}}`: "",

		`{"type": "string", "pattern": "^(a+)+$"}`:                          "pattern",
		`{"type": "integer", "minimum": 1}`:                                 "minimum",
		`{"type": "array", "items": {"type": "string"}, "maxItems": 1}`:     "maxItems",
		`{"oneOf": [{"type": "string"}]}`:                                   "oneOf",
		with(`{"type": "string", "x-missing": "Give an a.", "const": "b"}`): "const",
		`{"$ref": "#/components/schemas/Mode"}`:                             "mode",

		`{}`:                                                          "type [] is not checked",
		`{"type": "null"}`:                                            "type [null] is not checked",
		`{"type": ["string", "integer"]}`:                             "type [string integer] is not checked",
		`{"type": "number"}`:                                          "type [number] is not checked",
		`{"type": true}`:                                              "cannot unmarshal",
		`{"type": "string", "format": "email"}`:                       "format email is not checked",
		`{"type": "string", "format": "int64"}`:                       "format int64 is not checked",
		`{"type": "integer", "format": "int32"}`:                      "format int32 is not checked",
		`{"type": "integer", "enum": ["1"]}`:                          "an enum is of words",
		`{"type": ["string", "null"], "enum": ["a", null]}`:           "an enum is of words",
		`{"type": "array"}`:                                           "an array is of",
		`{"type": "string", "items": {"type": "string"}}`:             "an array is of",
		`{"type": "array", "items": {"type": ["string", "null"]}}`:    "an array is of",
		`{"type": "array", "items": ` + with(`{"type": "string"}`):    "EOF",
		`{"type": "object", "properties": {"a": {"type": "string"}}}`: "additionalProperties: false",
		`{"type": "object", "additionalProperties": true, "properties": {"a": {"type": "string"}}}`: "additionalProperties: false",
		`{"type": "object", "additionalProperties": {"type": "string"}, "properties": {}}`:          "cannot unmarshal",
		`{"type": "object", "additionalProperties": false}`:                                         "properties",
		with(`{"type": "string"}`): "x-missing",
		`{"type": "object", "additionalProperties": false, "properties": {"a": {"type": "string", "x-missing": "A."}}}`: "x-missing",
		`{"type": "object", "additionalProperties": false, "properties": {"b": {"type": "string"}}, "required": ["a"]}`: "required",
		`{"$ref": "#/components/schemas/Role", "type": "string"}`:                                                       "beside",
		`{"$ref": "#/components/schemas/Nobody"}`:                                                                       "Nobody",
		`{"$ref": "#/components/schemas/Endless"}`:                                                                      "deep",
	} {
		_, err := d.schema([]byte(text))
		if fault == "" {
			if err != nil {
				t.Errorf("%s: %v", text, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), fault) {
			t.Errorf("%s: %v, want %s", text, err, fault)
		}
	}
}

// An operation whose body or query would be checked by halves is not read.
func TestOperationsThatAreNotChecked(t *testing.T) {
	const closed = `{"type": "object", "additionalProperties": false, "properties": {}}`
	body := func(rest string) string { return `{"post": {"requestBody": {` + rest + `}}}` }
	for item, fault := range map[string]string{
		body(`"required": true, "content": {"application/json": {"schema": ` + closed + `}}`):     "",
		body(`"content": {"application/json": {"schema": ` + closed + `}}`):                       "a body is required",
		body(`"required": true, "content": {"text/plain": {"schema": ` + closed + `}}`):           "a body is required",
		body(`"required": true, "content": {"text/plain": {}, "application/json": {}}`):           "a body is required",
		body(`"required": true, "content": {"application/json": {}}`):                             "the body: ",
		body(`"required": true, "content": {"application/json": {"schema": {"type": "string"}}}`): "a body is an object",
		`{"get": {}}`: "not described",
		`{"post": 1}`: "cannot unmarshal",
		`{"post": {}, "parameters": [{"name": "x", "in": "query"}]}`:                                              "the query parameter x: ",
		`{"post": {"parameters": [{"name": "x", "in": "query", "schema": {"type": ["string", "null"]}}]}}`:        "a boolean",
		`{"post": {"parameters": [{"name": "x", "in": "query", "schema": ` + closed + `}]}}`:                      "a boolean",
		`{"post": {"parameters": [{"$ref": "#/components/parameters/Nobody"}]}}`:                                  "no place",
		`{"post": {"parameters": [{"name": "x", "in": "header", "schema": {"type": "string", "pattern": "x"}}]}}`: "",
	} {
		var d document
		if err := json.Unmarshal([]byte(`{"paths": {"/x": `+item+`}}`), &d); err != nil {
			t.Fatal(err)
		}
		_, err := d.operation("POST", "/x")
		if fault == "" {
			if err != nil {
				t.Errorf("%s: %v", item, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), fault) {
			t.Errorf("%s: %v, want %s", item, err, fault)
		}
	}
}

// theirs returns the verdict of kin-openapi, which knows all of JSON Schema, on a request's body.
func theirs(t *testing.T, route string, v any) error {
	t.Helper()
	method, path, _ := strings.Cut(route, " ")
	content := find(description(t), method, template(path)).RequestBody.Value.Content
	return content[fiber.MIMEApplicationJSON].Schema.Value.VisitJSON(v)
}

// sameVerdict says whether kin-openapi says of a body what was said here. It alone takes 512.0 for a whole number, and
// numbers that no type of ours holds.
func sameVerdict(ours, theirs error) bool {
	e := compute.AsError(ours)
	aboutNumbers := e != nil && (strings.Contains(e.Message, "whole numbers, written") || strings.Contains(e.Message, "out of range"))
	return (ours == nil) == (theirs == nil) || aboutNumbers
}

// Whatever is put into whichever field, kin-openapi refuses what is refused here, and nothing else.
func TestVerdictsAreTheLibrarys(t *testing.T) {
	values := []string{
		"null", "true", "0", "-1", "7", "1.5", "512.0", "1e3", "9223372036854775807", "9223372036854775808", `""`, `"x"`, `"é"`,
		"[]", "[null]", "[1]", "[1,2.5]", `["/a"]`, `["/a",1]`, "[[]]", "[{}]", "[true]", "{}", `{"a":1}`, `{"name":"x"}`,
	}
	taken, refused := 0, 0
	eachOperation(t, func(route string, o *openapi3.Operation) {
		if o.RequestBody == nil {
			return
		}
		method, path, _ := strings.Cut(route, " ")
		described := describe(method, path)
		judge := func(object map[string]any) {
			ours, said := described.body.check("", object), theirs(t, route, object)
			if !sameVerdict(ours, said) {
				t.Errorf("%s: %v: %v, kin-openapi: %v", route, object, ours, said)
			}
			if ours == nil {
				taken++
			} else {
				refused++
			}
		}
		good := map[string]any{}
		for _, name := range described.body.Required {
			good[name] = map[string]any{
				"string": "x", "integer": json.Number("1"), "boolean": true, "array": []any{},
			}[described.body.Properties[name].kind()]
		}
		judge(good)
		for name := range good {
			less := maps.Clone(good)
			delete(less, name)
			judge(less)
		}
		for _, name := range append(slices.Sorted(maps.Keys(described.body.Properties)), "novelty", "Name", "") {
			for _, value := range values {
				object, err := decode([]byte(`{"value":` + value + `}`))
				if err != nil {
					t.Fatal(err)
				}
				changed := maps.Clone(good)
				changed[name] = object["value"]
				judge(changed)
			}
		}
	})
	if taken < 50 || refused < 300 {
		t.Errorf("%d taken, %d refused", taken, refused)
	}
}

// Every request that the document or the contract gives as an example is taken.
func TestExamplesAreTaken(t *testing.T) {
	contract := 0
	eachOperation(t, func(route string, o *openapi3.Operation) {
		if o.RequestBody == nil {
			return
		}
		text, err := json.Marshal(o.RequestBody.Value.Content[fiber.MIMEApplicationJSON].Example)
		if err != nil {
			t.Fatal(err)
		}
		examples := [][]byte{text}
		text, err = os.ReadFile("../../api/testdata/contract/" + o.OperationID + ".request.json")
		switch {
		case err == nil:
			examples = append(examples, text)
			contract++
		case !errors.Is(err, fs.ErrNotExist):
			t.Fatal(err)
		}
		method, path, _ := strings.Cut(route, " ")
		for _, example := range examples {
			if err := describe(method, path).checkBody(example); err != nil {
				t.Errorf("%s: %s: %v", route, example, err)
			}
		}
	})
	if contract != 5 {
		t.Errorf("%d examples of the contract", contract)
	}
}

// What is wrong with a body is told in words that say where and what to do.
func TestWordsAboutBodies(t *testing.T) {
	const (
		create    = "POST /compute/containers"
		ssh       = "PUT /compute/containers/:id/ssh"
		rules     = "POST /compute/containers/:id/ingress"
		mounts    = "PUT /compute/containers/:id/mounts"
		wantsInts = " wants whole numbers, written without a point or an exponent."
		sayName   = "Give a name of 1 to 64 characters."
		saySSH    = "Say whether SSH is to be on: ssh_enabled is true or false."
		fields    = "instance_type, memory_mb, mount_paths, name, ssh_enabled, ssh_key_ids, storage_gb"
	)
	nines := strings.Repeat("9", 400)
	for _, tc := range []struct{ route, body, field, words string }{
		{create, `{"ssh_key_ids":[1]}`, "name", sayName},
		{create, `{"name":null,"ssh_key_ids":[1]}`, "name", sayName},
		{create, `{"name":"x"}`, "ssh_key_ids", "Name at least one of your SSH keys; add one with POST /compute/ssh-keys."},
		{create, `{"name":5,"ssh_key_ids":[1]}`, "name", "name is a string, not a number."},
		{create, `{"name":{"a":[]},"ssh_key_ids":[1]}`, "name", "name is a string, not an object."},
		{create, `{"ssh_enabled":"yes"}`, "ssh_enabled", "ssh_enabled is true or false, not a string."},
		{create, `{"memory_mb":"512"}`, "memory_mb", "memory_mb is a whole number, not a string."},
		{create, `{"memory_mb":512.5}`, "memory_mb", "memory_mb" + wantsInts},
		{create, `{"memory_mb":1e999}`, "memory_mb", "memory_mb" + wantsInts},
		{create, `{"name":"x","ssh_key_ids":[1],"memory_mb":512.0}`, "memory_mb", "memory_mb" + wantsInts},
		{create, `{"name":"x","ssh_key_ids":[1,2.0]}`, "ssh_key_ids", "ssh_key_ids" + wantsInts},
		{
			create, `{"name":"x","ssh_key_ids":[1],"memory_mb":9223372036854775808}`, "memory_mb",
			"A number in memory_mb is far out of range.",
		},
		{create, `{"ssh_key_ids":[18446744073709551617]}`, "ssh_key_ids", "A number in ssh_key_ids is far out of range."},
		{create, `{"memory_mb":` + nines + `}`, "memory_mb", "A number in memory_mb is far out of range."},
		{create, `{"ssh_key_ids":1}`, "ssh_key_ids", "ssh_key_ids is an array of whole numbers, not a number."},
		{
			create, `{"ssh_key_ids":[1,"2"]}`, "ssh_key_ids",
			"ssh_key_ids is an array of whole numbers; number 2 in it is a string.",
		},
		{
			create, `{"mount_paths":[null]}`, "mount_paths",
			"mount_paths is an array of strings; number 1 in it is null.",
		},
		{create, `{"mount_path":["/data"]}`, "mount_path", `There is no field "mount_path" here; the fields are ` + fields + "."},
		{create, `{"name":"\ud83d"}`, "name", `name has a \u escape that is half a character.`},
		{create, `{"name":"a","name":"b"}`, "name", `The field "name" is there twice.`},
		{create, `{"name":{"a":1,"a":2}}`, "name.a", `The field "name.a" is there twice.`},
		{create, `{"mount_paths":["/a",["\udead"]]}`, "mount_paths", `mount_paths has a \u escape that is half a character.`},
		{
			"POST /compute/ssh-keys", `{}`, "public_key",
			"Give a public key: the one line of a file such as ~/.ssh/id_ed25519.pub.",
		},
		{ssh, `{}`, "ssh_enabled", saySSH},
		{ssh, `{"ssh_enabled":null}`, "ssh_enabled", saySSH},
		{rules, `{"target_port":1}`, "port", "Say which port to expose; the external ports are 80, 443 and 8000 to 8999."},
		{mounts, `{}`, "mount_paths", "Say which directories to keep: mount_paths is a list, [] for none."},
		{mounts, `[]`, "", "The body is a JSON object, not an array."},
		{mounts, ` `, "", "The body is empty; send a JSON object."},
	} {
		method, route, _ := strings.Cut(tc.route, " ")
		e := compute.AsError(describe(method, route).checkBody([]byte(tc.body)))
		if e == nil || e.Code != compute.CodeInvalid || e.Field != tc.field || e.Message != tc.words {
			t.Errorf("%s: %.100s: %+v", tc.route, tc.body, e)
		}
	}
}

// The document's words for what is missing are the domain's, which others read who come by other ways.
func TestWordsAreTheDomains(t *testing.T) {
	limits, types := compute.DefaultLimits(), compute.DefaultInstanceTypes()
	_, noName := compute.ContainerRequest{}.Validate(limits, types)
	_, noKeys := compute.ContainerRequest{Name: "x"}.Validate(limits, types)
	_, _, _, noKey := compute.ParsePublicKey("", limits)
	_, noPort := compute.IngressRequest{}.Validate()
	doc := description(t)
	for field, err := range map[string]error{
		"ContainerRequest.name": noName, "ContainerRequest.ssh_key_ids": noKeys, "SSHKeyRequest.public_key": noKey,
		"IngressRuleRequest.port": noPort,
	} {
		schema, name, _ := strings.Cut(field, ".")
		said := doc.Components.Schemas[schema].Value.Properties[name].Value.Extensions["x-missing"]
		if e := compute.AsError(err); e == nil || e.Field != name || e.Message != said {
			t.Errorf("%s: the document says %q, the domain %+v", field, said, e)
		}
	}
}

// terminal is described as one that takes a query, of every type that there is and from every place.
const terminal = `{
	"paths": {"/terminal": {
		"parameters": [{"name": "cols", "in": "query", "schema": {"type": "integer"}}],
		"get": {"parameters": [
			{"name": "raw", "in": "query", "schema": {"type": "boolean"}},
			{"name": "as", "in": "query", "required": true, "schema": {"type": "string", "enum": ["root", "alice"]}},
			{"name": "If-Match", "in": "header", "schema": {"type": "string"}},
			{"$ref": "#/components/parameters/Token"}
		]}
	}},
	"components": {"parameters": {"Token": {"name": "token", "in": "query", "schema": {"type": "string"}}}}
}`

func TestQueries(t *testing.T) {
	var d document
	if err := json.Unmarshal([]byte(terminal), &d); err != nil {
		t.Fatal(err)
	}
	o, err := d.operation("GET", "/terminal")
	if err != nil {
		t.Fatal(err)
	}
	const (
		number = "cols is a whole number."
		users  = "as is one of root, alice."
		others = " here; the parameters are as, cols, raw, token."
	)
	for query, want := range map[string]struct{ field, words string }{
		"as=root":                       {},
		"as=alice&cols=80&raw=true":     {},
		"as=root&token=&cols=-1":        {},
		"as=%72oot":                     {},
		"as=root&raw=false&token=a%26b": {},

		"":                                 {"as", "The query parameter as is missing."},
		"as=bob":                           {"as", users},
		"as":                               {"as", users},
		"as=root&as=root":                  {"as", "The query parameter as is there twice."},
		"as=root&cols=":                    {"cols", number},
		"as=root&cols=80.0":                {"cols", number},
		"as=root&cols=080":                 {"cols", number},
		"as=root&cols=9223372036854775808": {"cols", number},
		"as=root&cols=SECRET":              {"cols", number},
		"as=root&raw=1":                    {"raw", "raw is true or false."},
		"as=root&rows=1":                   {"rows", `There is no query parameter "rows"` + others},
		"as=root&Cols=1":                   {"Cols", `There is no query parameter "Cols"` + others},
		"as=root&%ff=1":                    {"\ufffd", "There is no query parameter \"\ufffd\"" + others},
		"as=root&token=SECRET%ff":          {"token", "token is not UTF-8."},
		"as=root&=1":                       {"", `There is no query parameter ""` + others},
	} {
		var args fasthttp.Args
		args.Parse(query)
		err := o.checkQuery(&args)
		e := compute.AsError(err)
		if want == (struct{ field, words string }{}) {
			if err != nil {
				t.Errorf("%s: %v", query, err)
			}
			continue
		}
		if e == nil || e.Code != compute.CodeInvalid || e.Field != want.field || e.Message != want.words {
			t.Errorf("%s: %+v", query, e)
		}
	}
}

// What a path cannot name is not there, whatever the document says that it looks like; and a query too many is refused
// before anything is done.
func TestEveryRouteRefuses(t *testing.T) {
	a := newAPI(t, nil)
	c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	if _, err := a.store.ChangeUser(t.Context(), a.ada.ID, compute.UserChange{Role: role(compute.RoleAdmin)}); err != nil {
		t.Fatal(err)
	}
	bodies := map[string]string{
		"POST /compute/containers":              `{"name":"b","ssh_key_ids":[1]}`,
		"POST /compute/ssh-keys":                string(encode(map[string]string{"name": "n", "public_key": newKey(t, "")})),
		"PATCH /compute/containers/{id}":        `{"name":"c"}`,
		"PUT /compute/containers/{id}/ssh":      `{"ssh_enabled":true}`,
		"PUT /compute/containers/{id}/ssh-keys": `{"ssh_key_ids":[1]}`,
		"POST /compute/containers/{id}/ingress": `{"port":80}`,
		"POST /compute/containers/{id}/exec":    `{"command":["true"]}`,
		"PUT /compute/containers/{id}/mounts":   `{"mount_paths":[]}`,
		"POST /compute/tokens":                  `{"name":"t","scopes":["all"]}`,
		"POST /compute/admin/users":             `{"username":"carol"}`,
		"PATCH /compute/admin/users/{id}":       `{"role":"user"}`,
	}
	eachOperation(t, func(route string, o *openapi3.Operation) {
		method, path, _ := strings.Cut(route, " ")
		if notServedYet(o) || !strings.HasPrefix(path, "/compute/") || o.Responses.Status(http.StatusSwitchingProtocols) != nil {
			return // a handshake passes over what it does not know
		}
		good := strings.NewReplacer("{id}", string(c.ID), "{port}", "80").Replace(path)
		if strings.Contains(path, "ssh-keys/") {
			good = "/compute/ssh-keys/1"
		}
		if strings.Contains(path, "users/") {
			good = "/compute/admin/users/1"
		}
		r := a.do(method, good+"?x=SECRET", a.adaToken, bodies[route])
		if said := r.isProblem(t, http.StatusBadRequest, compute.CodeInvalid, "x"); strings.Contains(said, "SECRET") {
			t.Errorf("%s: %s", route, said)
		}
		for _, name := range []string{"{id}", "{port}", "{ref}"} {
			if strings.Contains(path, name) {
				bad := strings.NewReplacer(name, "A-1", "{id}", string(c.ID), "{port}", "80").Replace(path)
				a.do(method, bad, a.adaToken, bodies[route]).isProblem(t, http.StatusNotFound, compute.CodeNotFound, "")
			}
		}
		if bodies[route] == "" {
			return
		}
		delete(bodies, route)
		for _, body := range []string{"", "null", `{"novelty":1}`, `[]`} {
			field := ""
			if strings.Contains(body, "novelty") {
				field = "novelty"
			}
			r := a.send(method, good, body, func(r *http.Request) {
				r.Header.Set("Authorization", "Bearer "+a.adaToken)
				r.Header.Set("Content-Type", "application/json")
			})
			r.isProblem(t, http.StatusBadRequest, compute.CodeInvalid, field)
		}
		r = a.send(method, good, "x", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+a.adaToken) })
		r.isProblem(t, http.StatusUnsupportedMediaType, compute.CodeUnsupportedMedia, "")
	})
	if len(bodies) != 0 {
		t.Errorf("nothing takes the bodies of %v", bodies)
	}
	a.unchanged(t, 1, 1)
	now, err := a.store.Container(t.Context(), a.ada.ID, c.ID)
	if err != nil || now.Generation != 1 || now.SSHEnabled {
		t.Errorf("what was refused left %+v, %v", now, err)
	}
}

// A route that is not described does not come to be served.
func TestUndescribedRoute(t *testing.T) {
	defer func() {
		if said, _ := recover().(string); !strings.Contains(said, "PUT /compute/containers/:id/start: it is not described") {
			t.Errorf("it says %q", said)
		}
	}()
	describe("PUT", "/compute/containers/:id/start")
}
