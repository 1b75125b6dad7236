package httpapi

import (
	"net/http"
	"strings"
	"testing"

	wire "github.com/fasthttp/websocket"

	"berth/internal/compute"
)

// Which pages may act for a user: by the cookie on anything but a read and on every handshake, by a token on a handshake.
func TestOrigins(t *testing.T) {
	const dash = "https://dash.example.org"
	byHost := newAPI(t, func(c *Config) { c.AllowedOrigins = []string{dash} })
	configured := newAPI(t, func(c *Config) { c.PublicURL, c.AllowedOrigins = "https://"+zone+":443", []string{dash} })
	for name, tc := range map[string]struct {
		a       *api
		origins []string // with the server's address for {addr}
		proto   string   // X-Forwarded-Proto
		page    bool     // a request with such an Origin may act
	}{
		"own":                   {byHost, []string{"http://{addr}"}, "", true},
		"own, in capitals":      {byHost, []string{"HTTP://{ADDR}"}, "", true},
		"allowed":               {byHost, []string{dash}, "", true},
		"allowed, default port": {byHost, []string{dash + ":443"}, "", true},
		"own behind TLS":        {byHost, []string{"https://{addr}"}, "https", true},
		"http page behind TLS":  {byHost, []string{"http://{addr}"}, "https", false},
		"https page, no TLS":    {byHost, []string{"https://{addr}"}, "", false},
		"another port":          {byHost, []string{"http://127.0.0.1:1"}, "", false},
		"null":                  {byHost, []string{"null"}, "", false},
		"empty":                 {byHost, []string{""}, "", false},
		"foreign":               {byHost, []string{"https://evil.example"}, "", false},
		"with a path":           {byHost, []string{"http://{addr}/"}, "", false},
		"with a user":           {byHost, []string{"http://x@{addr}"}, "", false},
		"two":                   {byHost, []string{"http://{addr}", "http://{addr}"}, "", false},
		"two in one":            {byHost, []string{"http://{addr}, https://evil.example"}, "", false},
		"longer name":           {byHost, []string{dash + ".evil.example"}, "", false},
		"tenant":                {byHost, []string{"https://a1b2c3d4." + zone}, "", false},
		"configured":            {configured, []string{"https://" + zone}, "", true}, // the apex is not special
		"configured, with dot":  {configured, []string{"https://" + zone + "."}, "", true},
		"configured, by http":   {configured, []string{"http://" + zone}, "", false},
		"Host is nothing then":  {configured, []string{"http://{addr}"}, "", false},
		"tenant's":              {configured, []string{"https://a1b2c3d4." + zone}, "", false},
		"tenant's, in capitals": {configured, []string{"HTTPS://A1B2C3D4." + strings.ToUpper(zone) + ".:8443"}, "", false},
		"any name of the zone":  {configured, []string{"https://x.y." + zone}, "", false},
		"null again":            {configured, []string{"null"}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			a := tc.a
			a.dropTickets()
			cookie := "berth"
			if a == configured || tc.proto == "https" {
				cookie = "__Host-berth"
			}
			headers := func(credential ...string) http.Header {
				h := http.Header{}
				for _, origin := range tc.origins {
					h.Add("Origin", strings.NewReplacer("{addr}", a.addr, "{ADDR}", strings.ToUpper(a.addr)).Replace(origin))
				}
				if tc.proto != "" {
					h.Set("X-Forwarded-Proto", tc.proto)
				}
				for i := 0; i < len(credential); i += 2 {
					h.Set(credential[i], credential[i+1])
				}
				return h
			}
			withCookie := headers("Cookie", cookie+"="+a.adaToken)
			withToken := headers("Authorization", "Bearer "+a.adaToken)
			withBoth := headers("Cookie", cookie+"="+a.adaToken, "Authorization", "Bearer "+a.adaToken)
			send := func(method, path, body string, h http.Header) reply {
				return a.send(method, path, body, func(r *http.Request) {
					r.Header = h.Clone()
					if body != "" {
						r.Header.Set("Content-Type", "application/json")
					}
				})
			}
			// A read needs no Origin: the answer is for no other page to see but one that the operator lists.
			shared := ""
			if strings.HasPrefix(name, "allowed") {
				shared = tc.origins[0]
			}
			if r := send("GET", "/compute/containers", "", withCookie); r.status != 200 || r.header.Get("Access-Control-Allow-Origin") != shared {
				t.Errorf("GET by the cookie: %+v", r)
			}
			if r := send("HEAD", "/compute/containers", "", withCookie); r.status != 200 {
				t.Errorf("HEAD by the cookie: %+v", r)
			}
			for _, call := range [][3]string{
				{"POST", "/compute/ssh-keys", `{"name":"x"}`},
				{"DELETE", "/compute/containers/00000000", ""},
				{"PUT", "/compute/containers/00000000/ssh", `{"ssh_enabled":true}`},
				{"POST", "/compute/ws-ticket", ""},
				{"DELETE", "/compute/session", ""},
			} {
				r := send(call[0], call[1], call[2], withCookie)
				if forbidden := r.status == 403; forbidden == tc.page || r.status == 401 {
					t.Errorf("%s %s by the cookie: %+v", call[0], call[1], r)
				}
				if r.status == 403 {
					r.isProblem(t, 403, compute.CodeForbidden, "")
					if h := r.header.Get("WWW-Authenticate"); h != "" {
						t.Errorf("it asks for %q, as if another token would help", h)
					}
				}
				for _, h := range []http.Header{withToken, withBoth} { // a page cannot make a browser send that header
					if r := send(call[0], call[1], call[2], h); r.status == 403 || r.status == 401 {
						t.Errorf("%s %s by the header: %+v", call[0], call[1], r)
					}
				}
			}
			for path, h := range map[string]http.Header{
				"/compute/ws": withCookie, "/compute/ws?": withToken, "/compute/ws?&": withBoth, "/compute/ws?token=" + a.adaToken: headers(),
				"/compute/ws?&token=" + a.adaToken: withCookie, "/compute/ws?ticket=" + a.ticket(): headers(),
			} {
				ws, resp, err := wire.DefaultDialer.DialContext(t.Context(), "ws://"+a.addr+path, h)
				if err == nil {
					ws.Close()
				}
				if (err == nil) != tc.page || resp == nil || !tc.page && resp.StatusCode != 403 {
					t.Errorf("a handshake at %.20s…: %v", path, err)
				}
			}
		})
	}
}

// dropTickets makes room: those that were refused for their Origin are not used.
func (a *api) dropTickets() {
	k := a.server.tickets
	k.mu.Lock()
	defer k.mu.Unlock()
	k.order.Init()
	clear(k.byText)
	clear(k.ofUsers)
}

func (a *api) ticket() string {
	a.t.Helper()
	var v struct{ Ticket string }
	a.do("POST", "/compute/ws-ticket", a.adaToken, "").into(a.t, 201, &v)
	return v.Ticket
}

// Without an Origin no page made the request: that is fine with a token or a ticket, and not enough with a cookie.
func TestNoOrigin(t *testing.T) {
	a := newAPI(t, nil)
	cookie := http.Header{"Cookie": {"berth=" + a.adaToken}}
	for path, h := range map[string]http.Header{
		"/compute/ws?token=" + a.adaToken: nil, "/compute/ws?ticket=" + a.ticket(): cookie, "/compute/ws?&token=" + a.adaToken: cookie,
		"/compute/ws": {"Authorization": {"Bearer " + a.adaToken}, "Cookie": {"berth=" + a.adaToken}},
	} {
		a.watchBy(path, h).list()
	}
	r := a.answerTo(map[string]string{"Authorization:": "Cookie: berth={token}"})
	if said := r.isProblem(t, 403, compute.CodeForbidden, ""); !strings.Contains(said, "Origin") {
		t.Errorf("it says %q", said)
	}
	for _, method := range []string{"POST", "PUT", "DELETE"} {
		path := map[string]string{"POST": "/compute/containers/00000000/stop", "PUT": "/compute/containers/00000000/ssh", "DELETE": "/compute/ssh-keys/1"}[method]
		a.send(method, path, "", func(r *http.Request) { r.Header = cookie.Clone() }).isProblem(t, 403, compute.CodeForbidden, "")
	}
}

func FuzzParseOrigin(f *testing.F) {
	for _, s := range []string{"https://a.example", "http://127.0.0.1:80", "http://[::1]:7080", "null", "", "https://a.example.:443", "https://A.example/x", "http://a\x00"} {
		f.Add(s)
	}
	o := newOrigins("https://"+zone, []string{"http://[::1]:5173"}, zone)
	f.Fuzz(func(t *testing.T, text string) {
		origin, host, ok := parseOrigin(text)
		if !ok {
			if o.permits(text, o.own) {
				t.Fatalf("%q is no origin, and permitted", text)
			}
			return
		}
		again, sameHost, ok := parseOrigin(origin)
		if !ok || again != origin || sameHost != host {
			t.Fatalf("%q gives %q, which gives %q", text, origin, again)
		}
		if o.permits(text, o.own) && origin != "https://"+zone && origin != "http://[::1]:5173" {
			t.Fatalf("%q is permitted", text)
		}
		if strings.HasSuffix(strings.ToLower(strings.TrimSuffix(host, ".")), "."+zone) && o.permits(text, origin) {
			t.Fatalf("the tenant %q is permitted", text)
		}
	})
}
