package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/fasthttp/websocket"
	"golang.org/x/sync/errgroup"

	"berth/internal/compute"
	"berth/internal/control"
)

// watcher is a client of the feed.
type watcher struct {
	t  testing.TB
	ws *wire.Conn
}

// watch opens the feed as a program with a header does.
func (a *api) watch(token string) *watcher {
	a.t.Helper()
	return a.watchBy("/compute/ws", http.Header{"Authorization": {"Bearer " + token}})
}

func (a *api) watchBy(path string, h http.Header) *watcher {
	a.t.Helper()
	ws, resp, err := wire.DefaultDialer.DialContext(a.t.Context(), "ws://"+a.addr+path, h)
	if err != nil {
		a.t.Fatalf("dial the feed: %v (%+v)", err, resp)
	}
	a.t.Cleanup(func() { ws.Close() })
	return &watcher{a.t, ws}
}

// saying is one message of the feed.
type saying struct {
	Type string
	Data json.RawMessage
}

// read returns the next message.
func (w *watcher) read() (m saying, err error) {
	if err := w.ws.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return m, err
	}
	kind, text, err := w.ws.ReadMessage()
	if err != nil {
		return m, err
	}
	if kind != wire.TextMessage {
		return m, fmt.Errorf("a message of kind %d", kind)
	}
	if err := isMessage(text); err != nil {
		return m, fmt.Errorf("%s: %w", text, err)
	}
	return m, json.Unmarshal(text, &m)
}

func (w *watcher) next() saying {
	w.t.Helper()
	m, err := w.read()
	if err != nil {
		w.t.Fatalf("read the feed: %v", err)
	}
	return m
}

// list reads a message that must be a list.
func (w *watcher) list() []container {
	w.t.Helper()
	m := w.next()
	var list []container
	if m.Type != "containers" || json.Unmarshal(m.Data, &list) != nil || list == nil {
		w.t.Fatalf("got %s %s, want a list", m.Type, m.Data)
	}
	return list
}

// status reads a message that must be about one container.
func (w *watcher) status() containerStatus {
	w.t.Helper()
	m := w.next()
	var s containerStatus
	if m.Type != "container_status" || json.Unmarshal(m.Data, &s) != nil || s.ContainerID == "" {
		w.t.Fatalf("got %s %s, want a status", m.Type, m.Data)
	}
	return s
}

// ends reads up to the end and returns the close frame's code and reason.
func (w *watcher) ends() (code int, reason string) {
	w.t.Helper()
	for {
		_, err := w.read()
		if ce, ok := err.(*wire.CloseError); ok {
			return ce.Code, ce.Text
		}
		if err != nil {
			w.t.Fatalf("the feed ended without a word: %v", err)
		}
	}
}

// A container's life as the feed tells it, message by message.
func TestFeed(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.ExternalIP = "192.0.2.1" })
	bobs := a.create(a.bobToken, "bobs", a.addKey(a.bobToken, "laptop"))
	a.await(a.bobToken, bobs.ID, compute.StatusRunning)
	key := a.addKey(a.adaToken, "laptop")

	w, his := a.watch(a.adaToken), a.watch(a.bobToken)
	if m := w.next(); m.Type != "containers" || string(m.Data) != "[]" {
		t.Errorf("at first %s %s", m.Type, m.Data)
	}
	if list := his.list(); len(list) != 1 || list[0].ID != bobs.ID {
		t.Errorf("bob's at first: %+v", list)
	}
	c := a.create(a.adaToken, "dev-box", key)
	if list := w.list(); len(list) != 1 || list[0] != c {
		t.Errorf("listed %+v, want what the create answered: %+v", list, c)
	}
	statuses := func(want ...compute.Status) {
		t.Helper()
		for _, s := range want {
			m := w.next()
			// Exactly these fields: no message where there is no reason.
			text := fmt.Sprintf(`{"container_id":"%s","status":"%s","external_ip":"192.0.2.1"}`, c.ID, s)
			if m.Type != "container_status" || string(m.Data) != text {
				t.Errorf("told %s %s, want %s", m.Type, m.Data, text)
			}
		}
	}
	statuses(compute.StatusPending, compute.StatusInitializing, compute.StatusRunning)
	path := "/compute/containers/" + string(c.ID)
	a.do("PUT", path+"/ssh", a.adaToken, `{"ssh_enabled":true}`).into(t, 200, &struct{}{}) // no message
	a.do("POST", path+"/stop", a.adaToken, "").into(t, 200, &c)
	statuses(compute.StatusStopped)
	a.do("POST", path+"/start", a.adaToken, "").into(t, 200, &c)
	statuses(compute.StatusPending, compute.StatusInitializing, compute.StatusRunning)

	// A later client's list is the REST answer, byte for byte.
	m := a.watch(a.adaToken).next()
	rest := a.do("GET", "/compute/containers", a.adaToken, "")
	if want := fmt.Sprintf(`{"containers":%s}`, m.Data); strings.TrimSpace(rest.body) != want {
		t.Errorf("the feed's list makes %s, REST says %s", want, rest.body)
	}
	second := a.create(a.adaToken, "second", key)
	if list := w.list(); len(list) != 2 || list[0].ID != c.ID || list[0].Status != compute.StatusRunning || list[1] != second {
		t.Errorf("with a second one: %+v", list)
	}
	for _, want := range []compute.Status{compute.StatusPending, compute.StatusInitializing, compute.StatusRunning} {
		if s := w.status(); s.ContainerID != second.ID || s.Status != want {
			t.Errorf("told %+v, want %s", s, want)
		}
	}
	a.do("DELETE", path, a.adaToken, "").into(t, 200, &struct{}{})
	if list := w.list(); len(list) != 1 || list[0].ID != second.ID {
		t.Errorf("after a delete: %+v", list)
	}
	a.do("DELETE", "/compute/containers/"+string(second.ID), a.adaToken, "").into(t, 200, &struct{}{})
	if m := w.next(); m.Type != "containers" || string(m.Data) != "[]" {
		t.Errorf("at last %s %s", m.Type, m.Data)
	}
	// Bob has heard nothing of it: the next he hears is his own.
	a.do("POST", "/compute/containers/"+string(bobs.ID)+"/stop", a.bobToken, "").into(t, 200, &bobs)
	if s := his.status(); s.ContainerID != bobs.ID || s.Status != compute.StatusStopped || s.ExternalIP != "192.0.2.1" {
		t.Errorf("bob is told %+v", s)
	}
}

// A reason is told with its status; an address that nobody knows is not.
func TestFeedStatusMessage(t *testing.T) {
	a := newAPI(t, nil)
	c := a.create(a.adaToken, "dev-box", a.addKey(a.adaToken, "laptop"))
	a.await(a.adaToken, c.ID, compute.StatusRunning)
	w := a.watch(a.adaToken)
	w.list()
	if err := a.store.SetStatus(t.Context(), c.ID, 1, compute.StatusFailed, "no arm64 node"); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`{"container_id":"%s","status":"failed","status_message":"no arm64 node"}`, c.ID)
	if m := w.next(); string(m.Data) != want {
		t.Errorf("told %s, want %s", m.Data, want)
	}
}

// late is a control plane that reads a list for the feed only when the test lets it.
type late struct {
	Service
	read func(n int, list func() ([]control.ContainerView, int64, error)) ([]control.ContainerView, int64, error)

	mu sync.Mutex
	n  int // reads so far
}

func (l *late) ListContainersAt(ctx context.Context, p compute.Principal) ([]control.ContainerView, int64, error) {
	l.mu.Lock()
	n := l.n
	l.n++
	l.mu.Unlock()
	return l.read(n, func() ([]control.ContainerView, int64, error) { return l.Service.ListContainersAt(ctx, p) })
}

// A list that is read long after the event that asked for it still shows the container as it began, and no state is
// skipped; one that is read after events that wait in the subscription shows them, and they are not told again.
func TestFeedListIsLate(t *testing.T) {
	var a *api
	var key int64
	made := make(chan compute.ContainerID, 2)
	a = newAPI(t, func(c *Config) {
		c.Service = &late{Service: c.Service, read: func(n int, list func() ([]control.ContainerView, int64, error)) ([]control.ContainerView, int64, error) {
			switch n {
			case 0: // between the subscription and the first list
				c := a.create(a.adaToken, "first", key)
				a.await(a.adaToken, c.ID, compute.StatusRunning)
				made <- c.ID
			case 1: // between an event and the list that it asks for
				a.await(a.adaToken, <-made, compute.StatusRunning)
			}
			return list()
		}}
	})
	key = a.addKey(a.adaToken, "laptop")
	w := a.watch(a.adaToken)
	first := <-made
	if list := w.list(); len(list) != 1 || list[0].ID != first || list[0].Status != compute.StatusRunning || list[0].MemoryUsedMB != 128 {
		t.Errorf("at first %+v", list)
	}
	second := a.create(a.adaToken, "second", key)
	made <- second.ID
	list := w.list()
	if len(list) != 2 || list[0].Status != compute.StatusRunning || list[1].ID != second.ID || list[1].Status != compute.StatusPending || list[1].MemoryUsedMB != 0 {
		t.Errorf("with a second one: %+v", list)
	}
	for _, want := range []compute.Status{compute.StatusPending, compute.StatusInitializing, compute.StatusRunning} {
		if s := w.status(); s.ContainerID != second.ID || s.Status != want {
			t.Errorf("told %+v, want %s of %s", s, want, second.ID)
		}
	}
}

// A client that missed events, because reading took so long, is told the list anew rather than dropped.
func TestFeedMissesEvents(t *testing.T) {
	reading, go_on := make(chan struct{}), make(chan struct{})
	a := newAPI(t, func(c *Config) {
		c.Service = &late{Service: c.Service, read: func(n int, list func() ([]control.ContainerView, int64, error)) ([]control.ContainerView, int64, error) {
			views, seq, err := list()
			if n == 0 {
				close(reading)
				<-go_on
			}
			return views, seq, err
		}}
	})
	c := a.create(a.adaToken, "dev-box", a.addKey(a.adaToken, "laptop"))
	a.await(a.adaToken, c.ID, compute.StatusRunning)
	w := a.watch(a.adaToken)
	<-reading
	all := a.bus.Load().Subscribe(0, 1000)
	defer all.Close()
	const more = 3 * feedEvents
	for i := range more {
		if err := a.store.SetStatus(t.Context(), c.ID, 1, compute.StatusFailed, fmt.Sprint("reason ", i)); err != nil {
			t.Fatal(err)
		}
	}
	for range more {
		select {
		case <-all.C:
		case <-time.After(patience):
			t.Fatal("the bus is stuck")
		}
	}
	close(go_on)
	if list := w.list(); len(list) != 1 || list[0].Status != compute.StatusRunning {
		t.Errorf("at first %+v", list)
	}
	for i := 0; ; i++ { // those that were not missed, then a list
		m := w.next()
		if m.Type == "containers" {
			if want := fmt.Sprint("reason ", more-1); !strings.Contains(string(m.Data), want) || i > feedEvents {
				t.Errorf("after %d statuses the list is %s, want one with %q", i, m.Data, want)
			}
			break
		}
	}
	if got := a.server.Feeds(); got.Relisted == 0 || got.Slow != 0 || got.Clients != 1 {
		t.Errorf("%+v", got)
	}
	if err := a.store.SetStatus(t.Context(), c.ID, 1, compute.StatusStopped, ""); err != nil {
		t.Fatal(err)
	}
	if s := w.status(); s.Status != compute.StatusStopped {
		t.Errorf("told %+v afterwards", s)
	}
}

// story is what one client has seen, held against what it may see.
type story struct {
	at   map[compute.ContainerID]condition
	lost func() bool         // a client fell behind, as some do on a busy machine, and was told a list in place of what it missed
	last compute.ContainerID // the one of that name
}

// over says whether the container named last runs, and no other is left.
func (s *story) over() bool {
	return s.last != "" && len(s.at) == 1 && s.at[s.last].status == compute.StatusRunning
}

// hear takes a message. From one state to the next a container goes without skipping any, and a list moves none.
func (s *story) hear(m saying) error {
	if m.Type == "containers" {
		var list []container
		if err := json.Unmarshal(m.Data, &list); err != nil {
			return err
		}
		next := map[compute.ContainerID]condition{}
		for _, c := range list {
			now := condition{c.Status, c.StatusMessage}
			before, known := s.at[c.ID]
			if s.at != nil && known && now != before && !s.lost() {
				return fmt.Errorf("a list moves %s from %v to %v", c.ID, before, now)
			}
			if s.at != nil && !known && now.status != compute.StatusPending && !s.lost() {
				return fmt.Errorf("%s begins as %s", c.ID, now.status)
			}
			if c.Status != compute.StatusRunning && c.MemoryUsedMB != 0 {
				return fmt.Errorf("%s is %s and uses %d MB", c.ID, c.Status, c.MemoryUsedMB)
			}
			if next[c.ID] = now; c.Name == "last" {
				s.last = c.ID
			}
		}
		s.at = next
		return nil
	}
	var e containerStatus
	if err := json.Unmarshal(m.Data, &e); err != nil {
		return err
	}
	before, known := s.at[e.ContainerID]
	if !known {
		return fmt.Errorf("a status of %s, which is in no list", e.ContainerID)
	}
	if path := compute.Between(before.status, e.Status); len(path) > 1 {
		return fmt.Errorf("%s goes from %s to %s", e.ContainerID, before.status, e.Status)
	}
	s.at[e.ContainerID] = condition{e.Status, e.StatusMessage}
	return nil
}

// Several clients of two users watch while both make, stop, start and delete at once: every client's story is in order and
// without gaps, and ends where all do.
func TestFeedOrder(t *testing.T) {
	a := newAPI(t, nil)
	const watchers, rounds = 4, 2
	var clients, work errgroup.Group
	keys := map[string]int64{}
	for _, token := range []string{a.adaToken, a.bobToken} {
		keys[token] = a.addKey(token, "laptop")
		for range watchers {
			w := a.watch(token)
			clients.Go(func() error {
				s := story{lost: func() bool { return a.server.Feeds().Relisted > 0 }}
				for !s.over() {
					m, err := w.read()
					if err == nil {
						err = s.hear(m)
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
		}
		for range 2 {
			work.Go(func() error {
				for range rounds {
					if err := a.live(token, keys[token]); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
	for token, key := range keys {
		a.create(token, "last", key)
	}
	if err := clients.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%+v", a.server.Feeds())
}

// live is a container's life, with changes of mind.
func (a *api) live(token string, key int64) error {
	bearer := func(r *http.Request) {
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Content-Type", "application/json")
	}
	r, err := a.try("POST", "/compute/containers", fmt.Sprintf(`{"name":"box","ssh_key_ids":[%d]}`, key), bearer)
	if err != nil || r.status == http.StatusConflict {
		return err
	}
	var c container
	if err := json.Unmarshal([]byte(r.body), &c); err != nil || r.status != http.StatusCreated {
		return fmt.Errorf("%v: %+v", err, r)
	}
	for _, call := range []string{"POST /stop", "POST /start", "POST /start", "POST /stop", "POST /start", "DELETE "} {
		method, suffix, _ := strings.Cut(call, " ")
		if r, err := a.try(method, "/compute/containers/"+string(c.ID)+suffix, "", bearer); err != nil || r.status != 200 {
			return fmt.Errorf("%s: %v: %+v", call, err, r)
		}
	}
	return nil
}

// A container's own address is told when it gets one, to feeds that began before and after, and when it loses it.
func TestFeedAddress(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.ExternalIP = "192.0.2.1" })
	key := a.addKey(a.adaToken, "laptop")
	c := a.create(a.adaToken, "box", key)
	a.await(a.adaToken, c.ID, compute.StatusRunning)
	w, his := a.watch(a.adaToken), a.watch(a.bobToken)
	w.list()
	his.list()
	owner, err := a.store.ReconcileState(t.Context(), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	told := func(w *watcher, ip string) {
		t.Helper()
		want := fmt.Sprintf(`{"container_id":"%s","status":"running","external_ip":"%s"}`, c.ID, ip)
		if m := w.next(); m.Type != "container_status" || string(m.Data) != want {
			t.Errorf("told %s %s, want %s", m.Type, m.Data, want)
		}
	}
	a.server.SetExternalIP(owner.Ref(), netip.MustParseAddr("198.51.100.7"))
	told(w, "198.51.100.7")
	a.server.SetExternalIP(owner.Ref(), netip.MustParseAddr("198.51.100.7")) // no message
	later := a.watch(a.adaToken)
	later.list()
	told(later, "198.51.100.7")
	a.server.SetExternalIP(owner.Ref(), netip.Addr{})
	told(w, "192.0.2.1")
	told(later, "192.0.2.1")
	a.create(a.bobToken, "bobs", a.addKey(a.bobToken, "laptop"))
	his.list() // nothing of ada's came before
}

// An address that did not fit into what waits to be sent comes after the list that makes up for it.
func TestFeedAddressAfterOverflow(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.ExternalIP = "192.0.2.1" })
	c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	a.await(a.adaToken, c.ID, compute.StatusRunning)
	state, err := a.store.ReconcileState(t.Context(), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	f := &feed{s: a.server, out: make(chan frame), send: func() {}} // no room at all
	f.cred.User = state.Owner
	f.ledger.shown = map[compute.ContainerID]condition{c.ID: {status: compute.StatusRunning}}
	a.server.SetExternalIP(state.Ref(), netip.MustParseAddr("198.51.100.7"))
	if f.sayMoved(); !f.behind {
		t.Fatal("it had room")
	}
	f.out = make(chan frame, 2)
	if err := f.list(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(f.out) != 2 {
		t.Fatalf("it says %d things, want the list and the address", len(f.out))
	}
	<-f.out
	if said := string((<-f.out).data); !strings.Contains(said, `"external_ip":"198.51.100.7"`) {
		t.Errorf("after the list it says %s", said)
	}
}
