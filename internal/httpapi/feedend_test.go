package httpapi

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/fasthttp/websocket"

	"berth/internal/auth"
	"berth/internal/compute"
)

// moody verifies as the real one does, then lets the test have its say.
type moody struct {
	Verifier
	n    atomic.Int64 // verifications so far
	then func(n int64, g auth.Grant) (auth.Grant, error)
}

func (m *moody) Verify(ctx context.Context, token string) (auth.Grant, error) {
	g, err := m.Verifier.Verify(ctx, token)
	if err != nil {
		return g, err
	}
	return m.then(m.n.Add(1), g)
}

func withMood(then func(n int64, g auth.Grant) (auth.Grant, error)) func(*Config) {
	return func(c *Config) { c.Verifier = &moody{Verifier: c.Verifier, then: then} }
}

// until waits for a line in the log.
func (a *api) until(line string) {
	a.t.Helper()
	deadline := time.After(patience)
	for !strings.Contains(a.log.String(), line) {
		select {
		case <-a.log.wrote:
		case <-deadline:
			a.t.Fatalf("the log does not say %q: %s", line, a.log.String())
		}
	}
}

func (w *watcher) mustEnd(code int, says string) {
	w.t.Helper()
	if got, reason := w.ends(); got != code || !strings.Contains(reason, says) {
		w.t.Errorf("it ends with %d %q, want %d and %q", got, reason, code, says)
	}
}

func TestFeedEndsWithTheToken(t *testing.T) {
	a := newAPI(t, withMood(func(_ int64, g auth.Grant) (auth.Grant, error) {
		g.Expires = time.Now().Add(300 * time.Millisecond)
		return g, nil
	}))
	w := a.watch(a.adaToken)
	w.list()
	w.mustEnd(wire.ClosePolicyViolation, "expired")
	a.until(`"msg":"feed ended"`)
	if got := a.server.Feeds(); got.Forbidden != 1 {
		t.Errorf("%+v", got)
	}
}

// A disabled account's clients go at once, and others stay.
func TestFeedEndsWithTheAccount(t *testing.T) {
	a := newAPI(t, nil)
	first, second, his := a.watch(a.adaToken), a.watch(a.adaToken), a.watch(a.bobToken)
	for _, w := range []*watcher{first, second, his} {
		w.list()
	}
	if _, err := a.store.SetUserDisabled(t.Context(), a.ada.ID, true); err != nil {
		t.Fatal(err)
	}
	first.mustEnd(wire.ClosePolicyViolation, "disabled")
	second.mustEnd(wire.ClosePolicyViolation, "disabled")
	a.create(a.bobToken, "box", a.addKey(a.bobToken, "laptop"))
	if list := his.list(); len(list) != 1 {
		t.Errorf("bob sees %+v", list)
	}
}

// A token that was revoked, or lost the scope, ends its feed at the next event about the account; a database that is away
// ends it too, and says that it is not the token's fault.
func TestFeedLooksAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(*auth.Grant) error
		code int
		says string
	}{
		"revoked":      {func(*auth.Grant) error { return compute.Errorf(compute.CodeUnauthenticated, "It was revoked.") }, 1008, "revoked"},
		"other scope":  {func(g *auth.Grant) error { g.Scopes = []auth.Scope{auth.ScopeKeysRead}; return nil }, 1008, "not for that"},
		"another user": {func(g *auth.Grant) error { g.User++; return nil }, 1008, "not for that"},
		"no database":  {func(*auth.Grant) error { return compute.Internal("read", errors.New("secret of the disk")) }, 1011, "our side"},
		"a panic":      {func(*auth.Grant) error { panic("secret of the code") }, 1011, "our side"},
	} {
		t.Run(name, func(t *testing.T) {
			var armed atomic.Bool
			a := newAPI(t, withMood(func(_ int64, g auth.Grant) (auth.Grant, error) {
				if armed.Load() {
					return g, tc.edit(&g)
				}
				return g, nil
			}))
			key := newKey(t, "")
			w := a.watch(a.adaToken)
			w.list()
			armed.Store(true)
			if _, err := a.store.AddKey(t.Context(), compute.SSHKey{Owner: a.ada.ID, Name: "x", PublicKey: key, Fingerprint: "x"}, 10); err != nil {
				t.Fatal(err)
			}
			w.mustEnd(tc.code, tc.says)
			a.until(`"msg":"feed ended"`)
			if secret := strings.Contains(a.log.String(), "secret"); secret != (tc.code == 1011) {
				t.Errorf("a fault of ours in the log: %v", secret)
			}
		})
	}
}

// What happens to the account between the handshake and the subscription is not missed.
func TestFeedDisabledMeanwhile(t *testing.T) {
	var a *api
	a = newAPI(t, withMood(func(n int64, g auth.Grant) (auth.Grant, error) {
		if n > 1 {
			return g, nil
		}
		_, err := a.store.SetUserDisabled(context.WithoutCancel(t.Context()), g.User, true)
		return g, err
	}))
	w := a.watch(a.adaToken)
	if m, err := w.read(); !wire.IsCloseError(err, wire.ClosePolicyViolation) {
		t.Errorf("told %+v, %v", m, err)
	}
}

// Shutdown says goodbye to all and waits for them, those too that do not answer, and lets nobody else in.
func TestFeedShutdown(t *testing.T) {
	a := newAPI(t, nil)
	var watchers []*watcher
	for range 5 {
		w := a.watch(a.adaToken)
		w.list()
		watchers = append(watchers, w)
	}
	deaf := a.watch(a.bobToken) // reads nothing, its goodbye neither
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := a.server.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if got := a.server.Feeds(); got.Clients != 0 {
		t.Errorf("shutdown returned with %+v", got)
	}
	for _, w := range watchers {
		w.mustEnd(wire.CloseGoingAway, "stopping")
	}
	deaf.mustEnd(wire.CloseGoingAway, "stopping")
	if leave, err := a.server.feeds.reserve(a.ada.ID); err == nil {
		leave()
		t.Error("it lets in a client after its end")
	}
}

// A shutdown that cannot wait cuts them off.
func TestFeedShutdownIsBounded(t *testing.T) {
	a := newAPI(t, nil)
	w := a.watch(a.adaToken)
	w.list()
	w.ws.SetCloseHandler(func(int, string) error { return nil })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.server.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: %v", err)
	}
	if got := a.server.Feeds(); got.Clients != 0 {
		t.Errorf("shutdown returned with %+v", got)
	}
	for {
		if _, err := w.read(); err != nil {
			return // however it ends
		}
	}
}

// The bus ends before the server only when all ends: clients are told so.
func TestFeedWithoutEvents(t *testing.T) {
	a := newAPI(t, nil)
	w := a.watch(a.adaToken)
	w.list()
	a.stopBus()
	w.mustEnd(wire.CloseGoingAway, "stopping")
}

func TestFeedPings(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.feedTimes = feedTimes{pingEvery: 20 * time.Millisecond, pongWait: patience} })
	w := a.watch(a.adaToken)
	w.list()
	pings := make(chan struct{}, 100)
	answer := w.ws.PingHandler()
	w.ws.SetPingHandler(func(text string) error {
		pings <- struct{}{}
		return answer(text)
	})
	pongs := make(chan string, 1)
	w.ws.SetPongHandler(func(text string) error {
		pongs <- text
		return nil
	})
	ended := make(chan error, 1)
	go func() {
		_, err := w.read()
		ended <- err
	}()
	for range 5 {
		select {
		case <-pings:
		case err := <-ended:
			t.Fatal(err)
		}
	}
	// Ours are answered too, with what they say.
	if err := w.ws.WriteControl(wire.PingMessage, []byte("are you there?"), time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	select {
	case text := <-pongs:
		if text != "are you there?" {
			t.Errorf("answered %q", text)
		}
	case err := <-ended:
		t.Fatal(err)
	}
	// A goodbye is answered with the same code.
	bye := wire.FormatCloseMessage(wire.CloseNormalClosure, "enough")
	if err := w.ws.WriteControl(wire.CloseMessage, bye, time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !wire.IsCloseError(err, wire.CloseNormalClosure) {
		t.Errorf("answered %v", err)
	}
}

// A client that is there but answers no ping goes, whatever else it sends.
func TestFeedSilent(t *testing.T) {
	a := newAPI(t, func(c *Config) {
		c.feedTimes = feedTimes{pingEvery: 50 * time.Millisecond, pongWait: 500 * time.Millisecond}
	})
	w := a.watch(a.adaToken)
	w.ws.SetPingHandler(func(string) error {
		return w.ws.WriteMessage(wire.TextMessage, []byte("I am here"))
	})
	w.mustEnd(wire.ClosePolicyViolation, "ping")
	a.until(`"msg":"feed ended"`)
	if got := a.server.Feeds(); got.Silent != 1 {
		t.Errorf("%+v", got)
	}
}

// What clients send is ignored while it is small, and ends the feed with the right code when it is not as it should be.
func TestFeedHears(t *testing.T) {
	a := newAPI(t, nil)
	frame := func(first byte, text string) []byte { // masked with zeros (RFC 6455, section 5.2)
		return append([]byte{first, 0x80 | byte(len(text)), 0, 0, 0, 0}, text...)
	}
	for name, tc := range map[string]struct {
		send []byte
		code int
	}{
		"small":              {nil, 0},
		"too big":            {[]byte{0x81, 0x80 | 126, 0x04, 0x01, 0, 0, 0, 0}, 1009},
		"huge":               {[]byte{0x82, 0x80 | 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, 1009},
		"impossible":         {[]byte{0x82, 0x80 | 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, 1009},
		"too big in parts":   {append(append([]byte{0x01, 0x80 | 126, 0x04, 0x00, 0, 0, 0, 0}, make([]byte, 1024)...), frame(0x80, "x")...), 1009},
		"not UTF-8":          {frame(0x81, "a\xff"), 1007},
		"half a character":   {frame(0x81, "\xe2\x98"), 1007},
		"not UTF-8 in parts": {append(frame(0x01, "a\xe2"), frame(0x80, "\x98\xff")...), 1007},
		"not masked":         {[]byte{0x81, 0x01, 'x'}, 1002},
		"a reserved bit":     {frame(0xc1, "x"), 1002},
		"unknown opcode":     {frame(0x83, "x"), 1002},
		"a long ping":        {append([]byte{0x89, 0x80 | 126, 0, 200, 0, 0, 0, 0}, make([]byte, 200)...), 1002},
		"a ping in parts":    {frame(0x09, "x"), 1002},
		"an odd beginning":   {frame(0x80, "x"), 1002},
		"a bad goodbye":      {frame(0x88, "\x00\x01"), 1002},
		"too much":           {[]byte(strings.Repeat(string(frame(0x81, "x")), maxChatter+1)), 1008},
		"too many pongs":     {[]byte(strings.Repeat(string(frame(0x8a, "")), maxChatter+1)), 1008},
	} {
		t.Run(name, func(t *testing.T) {
			w := a.watch(a.adaToken)
			w.t = t
			w.list()
			if tc.code == 0 {
				for _, text := range []string{"", "hello", `{"type":"ping"}`, strings.Repeat("x", maxHeard), "☃"} {
					if err := w.ws.WriteMessage(wire.TextMessage, []byte(text)); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.ws.WriteMessage(wire.BinaryMessage, []byte{0xff, 0xfe}); err != nil {
					t.Fatal(err)
				}
				a.alive(w)
				return
			}
			if _, err := w.ws.NetConn().Write(tc.send); err != nil {
				t.Fatal(err)
			}
			w.mustEnd(tc.code, "")
		})
	}
}

// alive checks that a client of ada's still gets what happens.
func (a *api) alive(w *watcher) {
	w.t.Helper()
	var key int64
	keys, err := a.store.Keys(w.t.Context(), a.ada.ID)
	if err == nil && len(keys) > 0 {
		key = keys[0].ID
	} else {
		key = a.addKey(a.adaToken, "laptop")
	}
	c := a.create(a.adaToken, "box", key)
	for w.next().Type != "containers" {
	}
	a.do("DELETE", "/compute/containers/"+string(c.ID), a.adaToken, "")
	for {
		if m := w.next(); m.Type == "containers" && string(m.Data) == "[]" {
			return
		}
	}
}

// narrowing makes the sockets of connections small while it is on, so that a client that does not read is soon in the way.
type narrowing struct {
	net.Listener
	on *atomic.Bool
}

func (l narrowing) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil && l.on.Load() {
		err = c.(*net.TCPConn).SetWriteBuffer(16 << 10)
	}
	return c, err
}

// lazy opens the feed on a small socket, and reads nothing yet.
func (a *api) lazy(token string) *watcher {
	a.t.Helper()
	a.narrow.Store(true)
	defer a.narrow.Store(false)
	d := wire.Dialer{NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(16 << 10)
		}
		return c, err
	}}
	ws, _, err := d.DialContext(a.t.Context(), "ws://"+a.addr+"/compute/ws", http.Header{"Authorization": {"Bearer " + token}})
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { ws.Close() })
	return &watcher{a.t, ws}
}

// A client that does not read never holds up another of the same user. While there is hope it is told the list when it
// reads again; after its time it is dropped, and counted.
func TestFeedSlow(t *testing.T) {
	for name, write := range map[string]time.Duration{"reads again": patience, "does not": 2 * time.Second} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, func(c *Config) { c.feedTimes.write = write })
			c := a.create(a.adaToken, "dev-box", a.addKey(a.adaToken, "laptop"))
			a.await(a.adaToken, c.ID, compute.StatusRunning)
			slow, fast := a.lazy(a.adaToken), a.watch(a.adaToken)
			fast.list()
			slow.list()
			last := ""
			const messages = 20
			for i := range messages { // 60 kB each, of which the sockets hold little
				last = strings.Repeat(string(rune('a'+i%26)), 60<<10)
				if err := a.store.SetStatus(t.Context(), c.ID, 1, compute.StatusFailed, last); err != nil {
					t.Fatal(err)
				}
				if s := fast.status(); s.StatusMessage != last {
					t.Fatalf("the fast one is told %.9s…", s.StatusMessage)
				}
			}
			if write < patience {
				a.until("it did not take a message in time")
				if got := a.server.Feeds(); got.Slow != 1 {
					t.Errorf("%+v", got)
				}
				for {
					if _, err := slow.read(); err != nil {
						return // broken, or cut off in the middle of a message
					}
				}
			}
			for n := 0; ; n++ {
				m := slow.next()
				if m.Type == "containers" {
					if !strings.Contains(string(m.Data), last) || n >= messages {
						t.Errorf("after %d messages its list is %.200s", n, m.Data)
					}
					break
				}
			}
			if got := a.server.Feeds(); got.Slow != 0 || got.Relisted == 0 || got.Clients != 2 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// Clients that vanish in the middle of the handshake leave no place taken.
func TestFeedHandshakesThatBreak(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.MaxFeedsPerUser = 3 })
	text := "GET /compute/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer " + a.adaToken + "\r\n\r\n"
	for range 50 {
		c := a.dial()
		if err := c.(*net.TCPConn).SetLinger(0); err != nil { // close is a reset
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	deadline := time.Now().Add(patience)
	for a.server.Feeds().Clients != 0 { // the server learns of it in its own time
		if time.Now().After(deadline) {
			t.Fatalf("%+v", a.server.Feeds())
		}
		a.do("GET", "/healthz", "", "")
	}
	a.watch(a.adaToken).list()
}
