package httpapi

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	openapi "berth/api"
	"berth/internal/compute"
)

// eachOperation calls f for every operation of the document.
func eachOperation(t *testing.T, f func(route string, o *openapi3.Operation)) {
	t.Helper()
	doc, err := document()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range slices.Sorted(maps.Keys(doc.Paths.Map())) {
		for method, o := range doc.Paths.Value(path).Operations() {
			f(method+" "+path, o)
		}
	}
}

// Of requests the document says only what is checked here, and for every field that must be there it has the words for
// whoever leaves it out.
func TestDocumentSaysWhatIsChecked(t *testing.T) {
	known := []string{
		"$ref", "type", "format", "description", "default", "enum", "items", "properties", "required", "additionalProperties",
		xMissing,
	}
	var walk func(where string, s *openapi3.Schema)
	walk = func(where string, s *openapi3.Schema) {
		text, err := s.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		for keyword := range keys(t, string(text)) {
			if !slices.Contains(known, keyword) {
				t.Errorf("%s: %s is not checked", where, keyword)
			}
		}
		if s.Format != "" && s.Format != "int64" {
			t.Errorf("%s: the format %s has no words", where, s.Format)
		}
		if noun(s) == "value" {
			t.Errorf("%s has no type", where)
		}
		if s.Type.Includes(openapi3.TypeObject) && (s.AdditionalProperties.Has == nil || *s.AdditionalProperties.Has) {
			t.Errorf("%s lets unknown fields pass", where)
		}
		for name, p := range s.Properties {
			words, _ := p.Value.Extensions[xMissing].(string)
			if slices.Contains(s.Required, name) != strings.HasSuffix(words, ".") {
				t.Errorf("%s.%s: required, and what is said when it is missing: %q", where, name, words)
			}
			walk(where+"."+name, p.Value)
		}
		if s.Items != nil {
			walk(where+"[]", s.Items.Value)
		}
	}
	bodies := 0
	eachOperation(t, func(route string, o *openapi3.Operation) {
		for _, p := range o.Parameters {
			if p.Value.In == openapi3.ParameterInQuery {
				walk(route+"?"+p.Value.Name, p.Value.Schema.Value)
			}
		}
		if o.RequestBody == nil {
			return
		}
		bodies++
		content := o.RequestBody.Value.Content
		if !o.RequestBody.Value.Required || len(content) != 1 || content[fiber.MIMEApplicationJSON] == nil {
			t.Fatalf("%s: a body is required, and JSON", route)
		}
		walk(route, content[fiber.MIMEApplicationJSON].Schema.Value)
	})
	if bodies < 5 {
		t.Errorf("only %d bodies", bodies)
	}
}

func keys(t *testing.T, text string) map[string]any {
	t.Helper()
	m, err := decode([]byte(text))
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return m
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
		err := describe(method, route).checkBody([]byte(tc.body))
		if err == nil { // what the type cannot hold
			_, err = typed[openapi.ContainerRequest]([]byte(tc.body))
		}
		e := compute.AsError(err)
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
	doc, err := document()
	if err != nil {
		t.Fatal(err)
	}
	for field, err := range map[string]error{
		"ContainerRequest.name": noName, "ContainerRequest.ssh_key_ids": noKeys, "SSHKeyRequest.public_key": noKey,
		"IngressRuleRequest.port": noPort,
	} {
		schema, name, _ := strings.Cut(field, ".")
		said := doc.Components.Schemas[schema].Value.Properties[name].Value.Extensions[xMissing]
		if e := compute.AsError(err); e == nil || e.Field != name || e.Message != said {
			t.Errorf("%s: the document says %q, the domain %+v", field, said, e)
		}
	}
}

// A name deep inside does not grow the answer with every level.
func TestDeepBodies(t *testing.T) {
	deep := strings.Repeat(`{"abcdefgh":`, 4000) + `{"a":1,"a":2}` + strings.Repeat("}", 4000)
	e := compute.AsError(describe("POST", "/compute/containers").checkBody([]byte(deep)))
	if e == nil || e.Code != compute.CodeInvalid || len(e.Field) > 200 || len(e.Message) > 300 {
		t.Errorf("%+v", e)
	}
}

// terminal is described as one that takes a query, of every type that there is.
const terminal = `{"parameters": [
	{"name": "cols", "in": "query", "schema": {"type": "integer"}},
	{"name": "raw", "in": "query", "schema": {"type": "boolean"}},
	{"name": "as", "in": "query", "required": true, "schema": {"type": "string", "enum": ["root", "alice"]}},
	{"name": "token", "in": "query", "schema": {"type": "string"}}
], "responses": {}}`

func TestQueries(t *testing.T) {
	var described openapi3.Operation
	if err := described.UnmarshalJSON([]byte(terminal)); err != nil {
		t.Fatal(err)
	}
	o := newOperation(&described)
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
	bodies := map[string]string{
		"POST /compute/containers":              `{"name":"b","ssh_key_ids":[1]}`,
		"POST /compute/ssh-keys":                string(encode(map[string]string{"name": "n", "public_key": newKey(t, "")})),
		"PUT /compute/containers/{id}/ssh":      `{"ssh_enabled":true}`,
		"POST /compute/containers/{id}/ingress": `{"port":80}`,
		"PUT /compute/containers/{id}/mounts":   `{"mount_paths":[]}`,
		"POST /compute/tokens":                  `{"name":"t","scopes":["all"]}`,
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
		r := a.do(method, good+"?x=SECRET", a.adaToken, bodies[route])
		if said := r.isProblem(t, http.StatusBadRequest, compute.CodeInvalid, "x"); strings.Contains(said, "SECRET") {
			t.Errorf("%s: %s", route, said)
		}
		for _, name := range []string{"{id}", "{port}"} {
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
		if said, _ := recover().(string); !strings.Contains(said, "does not describe PUT /compute/containers/:id/start") {
			t.Errorf("it says %q", said)
		}
	}()
	describe("PUT", "/compute/containers/:id/start")
}
