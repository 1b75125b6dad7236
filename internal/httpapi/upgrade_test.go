package httpapi

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	wire "github.com/fasthttp/websocket"

	"berth/internal/auth"
	"berth/internal/compute"
)

// handshakeOf is a handshake's text with some of its lines replaced, or left out where they are empty. The token is ada's
// where {token} stands.
func (a *api) handshakeOf(edit map[string]string) string {
	lines := []string{
		"GET /compute/ws HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Authorization: Bearer {token}",
	}
	var text strings.Builder
	for _, line := range lines {
		name, _, _ := strings.Cut(line, " ")
		if with, ok := edit[name]; ok {
			line = with
		}
		if line != "" {
			text.WriteString(line + "\r\n")
		}
	}
	return strings.ReplaceAll(text.String(), "{token}", a.adaToken) + "\r\n"
}

// answerTo sends a handshake and reads the answer's head.
func (a *api) answerTo(edit map[string]string) reply {
	a.t.Helper()
	r, err := raw(a.addr, a.handshakeOf(edit))
	if err != nil {
		a.t.Fatalf("%v: %v", edit, err)
	}
	return r
}

func TestHandshake(t *testing.T) {
	a := newAPI(t, nil)
	for name, tc := range map[string]struct {
		edit   map[string]string
		status int
	}{
		"as it should be":        {nil, 101},
		"as Firefox does":        {map[string]string{"Connection:": "Connection: keep-alive, Upgrade"}, 101},
		"in two lines":           {map[string]string{"Connection:": "Connection: keep-alive\r\nConnection: upgrade"}, 101},
		"in other case":          {map[string]string{"Upgrade:": "upgrade: WebSocket"}, 101},
		"with others":            {map[string]string{"Upgrade:": "Upgrade: h2c, websocket"}, 101},
		"with extensions":        {map[string]string{"Host:": "Host: x\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"}, 101},
		"with a subprotocol":     {map[string]string{"Host:": "Host: x\r\nSec-WebSocket-Protocol: berth.feed"}, 101},
		"with a long path":       {map[string]string{"GET": "GET /compute/ws?x=" + strings.Repeat("y", 8000) + " HTTP/1.1"}, 101},
		"a plain GET":            {map[string]string{"Connection:": "", "Upgrade:": ""}, 426},
		"no Connection":          {map[string]string{"Connection:": ""}, 426},
		"no Upgrade":             {map[string]string{"Upgrade:": ""}, 426},
		"another upgrade":        {map[string]string{"Upgrade:": "Upgrade: h2c"}, 426},
		"another word":           {map[string]string{"Upgrade:": "Upgrade: websockets"}, 426},
		"closing":                {map[string]string{"Connection:": "Connection: close"}, 426},
		"HTTP/1.0":               {map[string]string{"GET": "GET /compute/ws HTTP/1.0"}, 426},
		"plain, without a token": {map[string]string{"Upgrade:": "", "Authorization:": ""}, 426},
		"no version":             {map[string]string{"Sec-WebSocket-Version:": ""}, 400},
		"an old version":         {map[string]string{"Sec-WebSocket-Version:": "Sec-WebSocket-Version: 8"}, 400},
		"two versions":           {map[string]string{"Sec-WebSocket-Version:": "Sec-WebSocket-Version: 13, 8"}, 400},
		"no key":                 {map[string]string{"Sec-WebSocket-Key:": ""}, 400},
		"a short key":            {map[string]string{"Sec-WebSocket-Key:": "Sec-WebSocket-Key: AAAA"}, 400},
		"a key of no base64":     {map[string]string{"Sec-WebSocket-Key:": "Sec-WebSocket-Key: {}{}{}{}{}{}{}{}{}{}{}{}"}, 400},
		"two keys":               {map[string]string{"Host:": "Host: x\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}, 400},
		"no token":               {map[string]string{"Authorization:": ""}, 401},
		"a bad token":            {map[string]string{"Authorization:": "Authorization: Bearer x"}, 401},
	} {
		t.Run(name, func(t *testing.T) {
			r := a.answerTo(tc.edit)
			switch tc.status {
			case 101:
				if r.status != 101 || !strings.EqualFold(r.header.Get("Upgrade"), "websocket") ||
					r.header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" { // RFC 6455, section 1.3
					t.Errorf("%+v", r)
				}
				if r.header.Get("Sec-WebSocket-Extensions") != "" || r.header.Get("Sec-WebSocket-Protocol") != "" {
					t.Errorf("it agrees to more than it can do: %+v", r.header)
				}
			case 426:
				r.isProblem(t, 426, codeUpgrade, "")
				if r.header.Get("Upgrade") != "websocket" || r.header.Get("Connection") != "Upgrade" && !r.closes {
					t.Errorf("%+v", r.header)
				}
			case 400:
				r.isProblem(t, 400, codeBadRequest, "")
				if v := r.header.Get("Sec-WebSocket-Version"); (v == "13") != strings.Contains(name, "version") {
					t.Errorf("version %q", v)
				}
			case 401:
				r.isProblem(t, 401, compute.CodeUnauthenticated, "")
			}
		})
	}
	if r := a.do("HEAD", "/compute/ws", a.adaToken, ""); r.status != 426 || r.header.Get("Upgrade") != "websocket" {
		t.Errorf("HEAD: %+v", r)
	}
	a.do("POST", "/compute/ws", a.adaToken, "").isProblem(t, 405, compute.CodeMethod, "")
	a.do("GET", "/compute/ws/", a.adaToken, "").isProblem(t, 404, compute.CodeNotFound, "")
	// Plain, a token in the query is none, and nothing is asked of it.
	a.do("GET", "/compute/ws?token="+a.adaToken, "", "").isProblem(t, 426, codeUpgrade, "")
}

// What came before or comes with the handshake on the same connection is no trouble.
func TestHandshakeOnAUsedConnection(t *testing.T) {
	a := newAPI(t, nil)
	c := a.dial()
	if r, err := rawOn(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil || r.status != 200 {
		t.Fatalf("%+v, %v", r, err)
	}
	ping := "\x89\x80\x00\x00\x00\x00" // sent before the answer is there, which a hasty client may do
	if r, err := rawOn(c, a.handshakeOf(nil)+ping); err != nil || r.status != 101 {
		t.Fatalf("%+v, %v", r, err)
	}
}

// The ways to bring a token to a handshake; elsewhere the query is no way.
func TestHandshakeCredentials(t *testing.T) {
	a := newAPI(t, nil)
	ticket := func() string {
		var v struct{ Ticket string }
		a.do("POST", "/compute/ws-ticket", a.adaToken, "").into(t, 201, &v)
		return v.Ticket
	}
	bearer := http.Header{"Authorization": {"Bearer " + a.adaToken}}
	dial := func(path string, h http.Header) int {
		ws, resp, err := wire.DefaultDialer.DialContext(t.Context(), "ws://"+a.addr+path, h)
		if err == nil {
			defer ws.Close()
			(&watcher{t, ws}).list()
		}
		if resp == nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	used := ticket()
	keys, err := a.tokens.Issue(a.ada, time.Hour, auth.ScopeKeysRead)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		path   string
		h      http.Header
		status int
	}{
		"header":             {"/compute/ws", bearer, 101},
		"token":              {"/compute/ws?token=" + a.adaToken, nil, 101},
		"ticket":             {"/compute/ws?ticket=" + used, nil, 101},
		"with other words":   {"/compute/ws?x=1&token=" + a.adaToken + "&y", nil, 101},
		"cookie":             {"/compute/ws", http.Header{"Cookie": {"berth=" + a.adaToken}, "Origin": {a.url}}, 101},
		"token and cookie":   {"/compute/ws?token=" + a.adaToken, http.Header{"Cookie": {"berth=x"}}, 101},
		"nothing":            {"/compute/ws", nil, 401},
		"empty token":        {"/compute/ws?token=", nil, 401},
		"bad token":          {"/compute/ws?token=x", nil, 401},
		"odd token":          {"/compute/ws?token=%00" + a.adaToken, nil, 401},
		"bad ticket":         {"/compute/ws?ticket=x", nil, 401},
		"two tokens":         {"/compute/ws?token=" + a.adaToken + "&token=" + a.adaToken, nil, 401},
		"token and ticket":   {"/compute/ws?token=" + a.adaToken + "&ticket=" + ticket(), nil, 401},
		"header and token":   {"/compute/ws?token=" + a.adaToken, bearer, 401},
		"another name":       {"/compute/ws?access_token=" + a.adaToken, nil, 401},
		"in capitals":        {"/compute/ws?TOKEN=" + a.adaToken, nil, 401},
		"a token for a key":  {"/compute/ws?ticket=" + a.adaToken, nil, 401},
		"bad header, cookie": {"/compute/ws", http.Header{"Cookie": {"berth=" + a.adaToken}, "Origin": {a.url}, "Authorization": {"Basic eA=="}}, 401},
		"without the scope":  {"/compute/ws?token=" + keys, nil, 403},
	} {
		if got := dial(tc.path, tc.h); got != tc.status {
			t.Errorf("%s: %d, want %d", name, got, tc.status)
		}
	}
	if got := dial("/compute/ws?ticket="+used, nil); got != 401 {
		t.Errorf("a used ticket: %d", got)
	}
	// On a route that is no WebSocket, a handshake makes the query no credential.
	for _, path := range []string{"/compute/containers", "/compute/ssh-keys"} {
		for _, query := range []string{"?token=" + a.adaToken, "?ticket=" + ticket()} {
			if got := dial(path+query, nil); got != 401 {
				t.Errorf("%s: %d", path, got)
			}
		}
	}
}

// Beyond the limits clients are refused before the upgrade, and when one leaves there is room.
func TestFeedLimits(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.MaxFeeds, c.MaxFeedsPerUser, c.MaxConns = 3, 2, 3 })
	var held []*watcher
	for range 2 {
		held = append(held, a.watch(a.adaToken))
	}
	r := a.answerTo(nil)
	r.isProblem(t, 429, codeTooMany, "")
	if r.header.Get("Retry-After") == "" {
		t.Errorf("%+v", r.header)
	}
	his := a.watch(a.bobToken)
	r = a.answerTo(map[string]string{"Authorization:": "Authorization: Bearer " + a.bobToken})
	r.isProblem(t, 503, compute.CodeUnavailable, "")
	if got := a.server.Feeds(); got.Clients != 3 || got.Refused != 2 {
		t.Errorf("%+v", got)
	}
	// They take no place from REST, which has three: the two that were refused may linger on theirs.
	for range 2 {
		if r := a.do("GET", "/healthz", "", ""); r.status != 200 {
			t.Errorf("%+v", r)
		}
	}
	for _, w := range held {
		w.list()
		w.ws.Close()
	}
	deadline := time.Now().Add(patience)
	for a.server.Feeds().Clients != 1 { // the server learns of the closes in its own time
		if time.Now().After(deadline) {
			t.Fatalf("%+v", a.server.Feeds())
		}
		a.do("GET", "/healthz", "", "")
	}
	a.watch(a.adaToken).list()
	his.list()
}

// Nothing secret that a handshake brings is kept or logged, whether it succeeds or not.
func TestSecretsStayOutOfTheLog(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.ReadTimeout = time.Second }) // for what looks unfinished
	secrets := map[string]string{"ada's token": a.adaToken, "bob's token": a.bobToken}
	w := a.watchBy("/compute/ws?token="+a.adaToken, nil)
	w.list()
	var v struct{ Ticket string }
	a.do("POST", "/compute/ws-ticket", a.adaToken, "").into(t, 201, &v)
	secrets["a ticket"] = v.Ticket
	a.watchBy("/compute/ws?ticket="+v.Ticket, nil).list()
	a.watchBy("/compute/ws", http.Header{"Cookie": {"berth=" + a.bobToken}, "Origin": {a.url}}).list()
	a.do("POST", "/compute/session", a.adaToken, "").into(t, 200, &struct{}{})
	a.do("GET", "/compute/ws?token="+a.adaToken, "", "")
	a.do("GET", "/compute/containers?token="+a.adaToken, "", "")
	a.do("GET", "/nowhere?token="+a.adaToken, "", "")
	for _, text := range []string{ // such as fasthttp cannot read, and quotes in its errors
		"GET /compute/ws?token=" + a.adaToken + "\r\n\r\n",
		"GET /compute/ws?token=" + a.adaToken + " HTTP/1.1\r\nno header\r\n\r\n",
		"G\x00T /compute/ws?token=" + a.adaToken + " HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
		a.handshakeOf(map[string]string{"GET": "GET /compute/ws?token=" + a.adaToken + "&ticket=" + a.bobToken + " HTTP/1.1"}),
		a.handshakeOf(map[string]string{"GET": "GET /compute/ws?token=" + a.adaToken + "x HTTP/1.1", "Authorization:": ""}),
		a.handshakeOf(map[string]string{"Host:": "Host: x\r\nOrigin: https://" + a.adaToken + ".example"}),
		a.handshakeOf(map[string]string{"Sec-WebSocket-Key:": "Sec-WebSocket-Key: " + a.adaToken}),
	} {
		if r, err := raw(a.addr, text); err == nil && strings.Contains(fmt.Sprint(r), a.adaToken) {
			t.Errorf("an answer quotes the token: %+v", r)
		}
	}
	w.ws.Close()
	a.until(`"msg":"feed ended"`)
	for name, secret := range secrets {
		if strings.Contains(a.log.String(), secret) || strings.Contains(a.log.String(), secret[len(secret)-20:]) {
			t.Errorf("%s is in the log", name)
		}
	}
	if !strings.Contains(a.log.String(), `"path":"/compute/ws"`) || !strings.Contains(a.log.String(), `"status":101`) {
		t.Error("the log lacks the handshakes")
	}
}
