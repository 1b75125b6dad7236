package httpapi

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"berth/internal/compute"
)

// The contract's example, word for word, and what follows from it.
func TestIngress(t *testing.T) {
	a := newAPI(t, nil)
	c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	path := "/compute/containers/" + string(c.ID)
	if r := a.do("GET", path+"/ingress", a.adaToken, ""); r.status != 200 || r.body != `{"rules":[]}`+"\n" {
		t.Errorf("at first: %+v", r)
	}
	r := a.do("POST", path+"/ingress", a.adaToken, `{
  "port": 8080,
  "target_port": 8080
}`)
	var first ingressRule
	r.into(t, 201, &first)
	fields(t, r.body, "id port target_port created_at")
	if first.ID != 1 || first.Port != 8080 || first.TargetPort != 8080 || time.Since(time.Unix(first.CreatedAt, 0)).Abs() > time.Minute {
		t.Errorf("%+v", first)
	}
	var web, tls ingressRule
	a.do("POST", path+"/ingress", a.adaToken, `{"port":80,"target_port":3000}`).into(t, 201, &web)
	a.do("POST", path+"/ingress", a.adaToken, `{"port":443,"target_port":null}`).into(t, 201, &tls)
	if web.Port != 80 || web.TargetPort != 3000 || tls.TargetPort != 443 {
		t.Errorf("%+v, %+v", web, tls)
	}
	list := func() []ingressRule {
		t.Helper()
		var list struct{ Rules []ingressRule }
		a.do("GET", path+"/ingress", a.adaToken, "").into(t, 200, &list)
		return list.Rules
	}
	https := func() bool {
		t.Helper()
		var c container
		a.do("GET", path, a.adaToken, "").into(t, 200, &c)
		return c.HTTPSEnabled
	}
	if got := list(); len(got) != 3 || got[0] != first || got[1] != web || got[2] != tls {
		t.Errorf("listed %+v", got)
	}
	if !https() {
		t.Error("HTTPS is off with a rule for port 443")
	}
	if r := a.do("DELETE", path+"/ingress/443", a.adaToken, ""); r.status != 200 || r.body != `{"status":"ok"}`+"\n" {
		t.Errorf("%+v", r)
	}
	a.do("DELETE", path+"/ingress/443", a.adaToken, "").isProblem(t, 404, compute.CodeNotFound, "")
	if https() {
		t.Error("HTTPS is on without a rule for port 443")
	}
	// Only the exact port names a rule.
	for _, port := range []string{"0", "-80", "+80", "080", "80.0", "8e1", "0x50", "65616", "18446744073709551696", "x", "%38%30", "80%20", "%00", "22"} {
		a.do("DELETE", path+"/ingress/"+port, a.adaToken, "").isProblem(t, 404, compute.CodeNotFound, "")
	}
	if got := list(); len(got) != 2 {
		t.Errorf("listed %+v", got)
	}
	a.do("DELETE", path, a.adaToken, "").into(t, 200, &struct{}{})
	a.do("GET", path+"/ingress", a.adaToken, "").isProblem(t, 404, compute.CodeNotFound, "")
	a.do("POST", path+"/ingress", a.adaToken, `{"port":443}`).isProblem(t, 404, compute.CodeNotFound, "")
	a.do("DELETE", path+"/ingress/80", a.adaToken, "").isProblem(t, 404, compute.CodeNotFound, "")
}

func TestAddIngressRefuses(t *testing.T) {
	a := newAPI(t, nil)
	c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	path := "/compute/containers/" + string(c.ID) + "/ingress"
	for body, field := range map[string]string{
		`{}`: "port", `{"port":null}`: "port", `{"target_port":80}`: "port", `{"port":"80"}`: "port", `{"port":80.0}`: "port",
		`{"port":8e1}`: "port", `{"port":[80]}`: "port", `{"port":true}`: "port", `{"port":80,"port":443}`: "port",
		`{"port":0}`: "port", `{"port":-80}`: "port", `{"port":22}`: "port", `{"port":81}`: "port", `{"port":7999}`: "port",
		`{"port":9000}`: "port", `{"port":65535}`: "port", `{"port":65536}`: "port", `{"port":65616}`: "port",
		`{"port":18446744073709551696}`: "port", `{"port":22,"target_port":0}`: "port",
		`{"port":80,"target_port":0}`: "target_port", `{"port":80,"target_port":-1}`: "target_port",
		`{"port":80,"target_port":65536}`: "target_port", `{"port":80,"target_port":"80"}`: "target_port",
		`{"port":80,"target":80}`: "target", `{"Port":80}`: "Port", `{"port":80,"protocol":"udp"}`: "protocol",
		`[]`: "", `80`: "", `{"port":80`: "",
	} {
		a.do("POST", path, a.adaToken, body).isProblem(t, 400, compute.CodeInvalid, field)
	}
	said := a.do("POST", path, a.adaToken, `{"port":22}`).isProblem(t, 400, compute.CodeInvalid, "port")
	if want := "The external ports are 80, 443 and 8000 to 8999; choose one of them, and any target_port."; said != want {
		t.Errorf("it says %q", said)
	}
	a.send("POST", path, `{"port":80}`, func(r *http.Request) {
		r.Header.Set("Authorization", "Bearer "+a.adaToken)
		r.Header.Set("Content-Type", "text/plain")
	}).isProblem(t, 415, compute.CodeUnsupportedMedia, "")
	if r := a.do("GET", path, a.adaToken, ""); r.body != `{"rules":[]}`+"\n" {
		t.Errorf("what was refused left %s", r.body)
	}
	a.do("POST", path, a.adaToken, `{"port":80}`).into(t, 201, &ingressRule{})
	a.do("POST", path, a.adaToken, `{"port":80,"target_port":8080}`).isProblem(t, 409, compute.CodeConflict, "port")
	for i := range compute.DefaultLimits().RulesPerContainer - 1 {
		a.do("POST", path, a.adaToken, fmt.Sprintf(`{"port":%d}`, 8000+i)).into(t, 201, &ingressRule{})
	}
	a.do("POST", path, a.adaToken, `{"port":443}`).isProblem(t, 409, compute.CodeLimit, "")
	a.do("POST", path, a.adaToken, `{"port":80}`).isProblem(t, 409, compute.CodeConflict, "port")
}

// One of many that want a port at once gets it.
func TestIngressAtOnce(t *testing.T) {
	a := newAPI(t, nil)
	c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	statuses := a.atOnce(30, func(int) (method, path, body string) {
		return "POST", "/compute/containers/" + string(c.ID) + "/ingress", `{"port":443}`
	})
	if statuses[201] != 1 || statuses[409] != 29 {
		t.Errorf("statuses %v", statuses)
	}
}

// atOnce sends n requests of ada's together, and counts the answers by status.
func (a *api) atOnce(n int, request func(i int) (method, path, body string)) map[int]int {
	a.t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	statuses := map[int]int{}
	for i := range n {
		method, path, body := request(i)
		wg.Go(func() {
			r, err := a.try(method, path, body, func(r *http.Request) {
				r.Header.Set("Authorization", "Bearer "+a.adaToken)
				r.Header.Set("Content-Type", "application/json")
			})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				a.t.Error(err)
			}
			statuses[r.status]++
		})
	}
	wg.Wait()
	return statuses
}
