package httpapi

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	openapi "berth/api"
	"berth/internal/auth"
	"berth/internal/compute"
)

// What tests call the API's objects.
type (
	container       = openapi.Container
	containerStatus = openapi.FeedStatusData
	sshKey          = openapi.SSHKey
	ingressRule     = openapi.IngressRule
	token           = openapi.Token
	identity        = openapi.Identity
	problem         = openapi.Problem
)

// described is the API's document, made strict: users skip fields that they do not know, and these tests do not.
var described = sync.OnceValues(func() (*openapi3.T, error) {
	text, err := openapi.JSON()
	if err != nil {
		return nil, err
	}
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		return nil, err
	}
	for _, s := range doc.Components.Schemas {
		no := false
		s.Value.AdditionalProperties.Has = &no
	}
	return doc, nil
})

func description(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := described()
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// notServedYet says whether an operation is only promised.
func notServedYet(o *openapi3.Operation) bool { return o.Extensions["x-not-served-yet"] == true }

// find returns the operation that a request is for; nil where the document has none.
func find(doc *openapi3.T, method, target string) *openapi3.Operation {
	if method == http.MethodHead {
		method = http.MethodGet
	}
	path, _, _ := strings.Cut(target, "?")
	segments := strings.Split(path, "/")
	for _, template := range doc.Paths.InMatchingOrder() {
		if slices.EqualFunc(strings.Split(template, "/"), segments, func(want, got string) bool {
			return want == got || strings.HasPrefix(want, "{") && got != ""
		}) {
			return doc.Paths.Value(template).GetOperation(method)
		}
	}
	return nil
}

// conforms holds an answer against the document. What is answered where no operation is must be a Problem.
func (r reply) conforms(t *testing.T, method, target string) {
	t.Helper()
	if err := r.check(method, target); err != nil {
		t.Errorf("%s %.80s answered %d, which the document does not know: %v: %.300s", method, target, r.status, err, r.body)
	}
}

func (r reply) check(method, target string) error {
	doc, err := described()
	if err != nil {
		return err
	}
	response := doc.Components.Responses["Problem"].Value
	if o := find(doc, method, target); o != nil {
		ref := o.Responses.Status(r.status)
		if ref == nil {
			ref = o.Responses.Default()
		}
		response = ref.Value
	}
	if _, errors := response.Content["application/problem+json"]; errors && r.status < http.StatusBadRequest {
		return fmt.Errorf("no such status")
	}
	for name, h := range response.Headers {
		value := r.header.Get(name)
		if value == "" && !h.Value.Required {
			continue
		}
		if value == "" || h.Value.Schema.Value.VisitJSON(value) != nil {
			return fmt.Errorf("the header %s is %q", name, value)
		}
	}
	if method == http.MethodHead || r.status == http.StatusNotModified {
		if r.body != "" {
			return fmt.Errorf("it has a body")
		}
		return nil
	}
	media, _, err := mime.ParseMediaType(r.header.Get("Content-Type"))
	if err != nil || response.Content[media] == nil {
		return fmt.Errorf("its type is %q (%v)", media, err)
	}
	var v any = r.body
	if strings.HasSuffix(media, "json") {
		if err := json.Unmarshal([]byte(r.body), &v); err != nil {
			return err
		}
	}
	schema := response.Content[media].Schema.Value
	return schema.VisitJSON(v, openapi3.EnableFormatValidation(), openapi3.DisableSchemaErrorDetails())
}

// isMessage says whether a text is a message of the feed as the document has them.
func isMessage(text []byte) error {
	doc, err := described()
	if err != nil {
		return err
	}
	v, err := decode(text)
	if err != nil {
		return err
	}
	name := map[any]string{"containers": "FeedContainers", "container_status": "FeedStatus"}[v["type"]]
	if name == "" {
		return fmt.Errorf("the document has no message %v", v["type"])
	}
	schema := doc.Components.Schemas[name].Value
	return schema.VisitJSON(v, openapi3.EnableFormatValidation(), openapi3.DisableSchemaErrorDetails())
}

// The check that every test's answers go through sees what is wrong.
func TestAnswersAreChecked(t *testing.T) {
	a := newAPI(t, nil)
	c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	path := "/compute/containers/" + string(c.ID)
	good := a.do("GET", path, a.adaToken, "")
	if err := good.check("GET", path); err != nil {
		t.Fatal(err)
	}
	edit := func(f func(*reply)) reply {
		r := good
		r.header = maps.Clone(good.header)
		f(&r)
		return r
	}
	for name, r := range map[string]reply{
		"status":        edit(func(r *reply) { r.status = 201 }),
		"error":         edit(func(r *reply) { r.status = 404 }),
		"type":          edit(func(r *reply) { r.header.Set("Content-Type", "text/plain") }),
		"no type":       edit(func(r *reply) { r.header.Del("Content-Type") }),
		"no JSON":       edit(func(r *reply) { r.body = r.body[1:] }),
		"missing field": edit(func(r *reply) { r.body = strings.Replace(r.body, `,"https_enabled":false`, "", 1) }),
		"wrong type":    edit(func(r *reply) { r.body = strings.Replace(r.body, `"memory_mb":512`, `"memory_mb":"512"`, 1) }),
		"new field":     edit(func(r *reply) { r.body = strings.Replace(r.body, `{`, `{"novelty":1,`, 1) }),
		"wrong status":  edit(func(r *reply) { r.body = strings.Replace(r.body, `"status":"`, `"status":"un`, 1) }),
		"wrong id":      edit(func(r *reply) { r.body = strings.Replace(r.body, string(c.ID), "box", 1) }),
		"wrong time":    edit(func(r *reply) { r.body = strings.Replace(r.body, "T", " ", 1) }),
	} {
		if r.body == good.body && r.status == good.status && maps.EqualFunc(r.header, good.header, slices.Equal) {
			t.Errorf("%s: nothing was changed", name)
		}
		if err := r.check("GET", path); err == nil {
			t.Errorf("%s passes", name)
		}
	}
	unauthenticated := a.do("GET", path, "", "")
	unauthenticated.header.Del("WWW-Authenticate")
	if unauthenticated.check("GET", path) == nil {
		t.Error("a missing header passes")
	}
	if err := good.check("GET", "/nowhere"); err == nil {
		t.Error("an answer from nowhere passes")
	}
}

// Every route is described, and every operation is served unless the document says that it is not yet.
func TestRoutesAreDescribed(t *testing.T) {
	doc := description(t)
	s := New(Config{Zone: zone})
	served := map[string]bool{}
	for _, r := range s.app.GetRoutes(true) {
		if r.Method == http.MethodHead {
			continue
		}
		route := r.Method + " " + template(r.Path)
		served[route] = true
		switch o := find(doc, r.Method, template(r.Path)); {
		case o == nil:
			t.Errorf("api/openapi.yaml does not describe %s", route)
		case notServedYet(o):
			t.Errorf("api/openapi.yaml says that %s is not served yet: take x-not-served-yet out", route)
		}
	}
	for path, item := range doc.Paths.Map() {
		for method, o := range item.Operations() {
			if !served[method+" "+path] && !notServedYet(o) {
				t.Errorf("api/openapi.yaml describes %s %s, and nothing serves it", method, path)
			}
		}
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// The codes of the document are those of the table, each with its status.
func TestCodesAreDescribed(t *testing.T) {
	schema := description(t).Components.Schemas["Code"].Value
	means, _ := schema.Extensions["x-enumDescriptions"].(map[string]any)
	var codes []compute.Code
	for _, v := range schema.Enum {
		code := compute.Code(v.(string))
		codes = append(codes, code)
		if text, _ := means[string(code)].(string); !strings.HasPrefix(text, strconv.Itoa(statuses[code])+": ") {
			t.Errorf("%s is %d; it is described as %q", code, statuses[code], text)
		}
	}
	slices.Sort(codes)
	if want := slices.Sorted(maps.Keys(statuses)); !slices.Equal(codes, want) {
		t.Errorf("the document has %v, the table %v", codes, want)
	}
	if len(means) != len(codes) {
		t.Errorf("%d codes, %d descriptions", len(codes), len(means))
	}
}

// A token that lacks the scope that the document names is refused, and told that scope; where none is named, none is
// asked for.
func TestScopesAreAsDescribed(t *testing.T) {
	a := newAPI(t, nil)
	token, err := a.tokens.Issue(a.ada, time.Hour, auth.ScopeAdmin) // worth nothing to ada
	if err != nil {
		t.Fatal(err)
	}
	doc := description(t)
	for path, item := range doc.Paths.Map() {
		for method, o := range item.Operations() {
			if notServedYet(o) || o.Responses.Value("101") != nil { // WebSockets look at the handshake first: upgrade_test.go
				continue
			}
			if o.Security == nil {
				t.Errorf("%s %s does not say which scope it needs", method, path)
				continue
			}
			target := strings.NewReplacer("{id}", "a1b2c3d4", "{port}", "8080").Replace(path)
			if len(*o.Security) == 0 {
				if r := a.do(method, target, "", ""); r.status != http.StatusOK {
					t.Errorf("%s without a token: %+v", path, r)
				}
				continue
			}
			a.do(method, target, "", "").isProblem(t, 401, compute.CodeUnauthenticated, "")
			scopes := (*o.Security)[0]["bearer"]
			if len(scopes) == 0 {
				if r := a.do(method, target, token, ""); r.status >= http.StatusMultipleChoices {
					t.Errorf("%s with any token: %+v", path, r)
				}
				continue
			}
			if scopes[0] == string(auth.ScopeAdmin) && len(scopes) == 1 { // hidden from whoever is no administrator
				a.do(method, target, token, "").isProblem(t, 404, compute.CodeNotFound, "")
				continue
			}
			said := a.do(method, target, token, "").isProblem(t, 403, compute.CodeForbidden, "")
			if len(scopes) != 1 || !strings.HasSuffix(said, " "+scopes[0]+".") {
				t.Errorf("%s %s: the document says %v, the server: %s", method, path, scopes, said)
			}
		}
	}
	described := doc.Components.SecuritySchemes["bearer"].Value.Description
	for _, scope := range []auth.Scope{
		auth.ScopeAll, auth.ScopeContainersRead, auth.ScopeContainersWrite, auth.ScopeContainersExec, auth.ScopeKeysRead,
		auth.ScopeKeysWrite, auth.ScopeTokensRead, auth.ScopeTokensWrite, auth.ScopeAuditRead, auth.ScopeAdmin,
	} {
		if !strings.Contains(described, "`"+string(scope)+"`") {
			t.Errorf("the document does not explain %s", scope)
		}
	}
}

// The document and its page are for everybody, and are sent again only when they have changed.
func TestDocumentIsServed(t *testing.T) {
	a := newAPI(t, nil)
	for path, want := range map[string]struct{ contentType, policy, text string }{
		"/openapi.json": {"application/json", nothingElse, `{"openapi":"3.1.0","info":{"title":"Berth"`},
		"/docs":         {"text/html; charset=utf-8", nothingElse + "; style-src 'sha256-", "<!DOCTYPE html>"},
	} {
		r := a.do("GET", path, "", "")
		if r.status != 200 || !strings.HasPrefix(r.body, want.text) || r.header.Get("Content-Type") != want.contentType {
			t.Errorf("%s: %d, %q, %.60s", path, r.status, r.header.Get("Content-Type"), r.body)
		}
		policy := r.header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, want.policy) || strings.Contains(policy, "unsafe") {
			t.Errorf("%s: policy %q", path, policy)
		}
		tag := r.header.Get("ETag")
		if !regexp.MustCompile(`^"[0-9a-f]{32}"$`).MatchString(tag) || r.header.Get("Cache-Control") != "no-cache" {
			t.Errorf("%s: tag %s, %v", path, tag, r.header)
		}
		head := a.do("HEAD", path, "", "")
		length := head.header.Get("Content-Length")
		if head.status != 200 || head.body != "" || head.header.Get("ETag") != tag || length != strconv.Itoa(len(r.body)) {
			t.Errorf("HEAD %s: %+v", path, head)
		}
		for sent, status := range map[string]int{
			tag: 304, `"x", W/` + tag: 304, `"x"`: 200, "": 200, tag[:len(tag)-2] + `"`: 200,
		} {
			got := a.send("GET", path, "", func(r *http.Request) {
				if sent != "" {
					r.Header.Set("If-None-Match", sent)
				}
			})
			if got.status != status || (got.body == "") != (status == 304) || got.header.Get("ETag") != tag {
				t.Errorf("%s with If-None-Match %s: %d", path, sent, got.status)
			}
			if now := got.header.Get("Content-Security-Policy"); now != policy { // a browser would take it for the page it kept
				t.Errorf("%s with If-None-Match %s: policy %q", path, sent, now)
			}
		}
		// A token is no obstacle, not even a bad one.
		if r := a.do("GET", path, "nonsense", ""); r.status != 200 {
			t.Errorf("%s with a token: %d", path, r.status)
		}
	}
}

// A form that cannot be made is a fault of ours, and its reason is for the log alone.
func TestDocumentThatFails(t *testing.T) {
	s := New(Config{Zone: zone})
	s.app.Get("/broken", serveForm(func() (form, error) { return form{}, io.ErrUnexpectedEOF }))
	s.next = s.app.Handler()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	r, err := raw(ln.Addr().String(), "GET /broken HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	if said := r.isProblem(t, 500, compute.CodeInternal, ""); strings.Contains(said, "EOF") {
		t.Errorf("it tells %s", said)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
