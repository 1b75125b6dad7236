package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	openapi "berth/api"
	"berth/internal/auth"
	"berth/internal/compute"
)

// sse is a client of a stream of events, as WHATWG HTML, section 9.2.6, has it.
type sse struct {
	t      testing.TB
	cancel context.CancelFunc
	body   io.Closer
	lines  *bufio.Reader
	lastID string
}

// told is one event.
type told struct {
	kind string
	seq  int64 // of its own id; 0 where it has none
	openapi.ContainerEvent
	openapi.StreamEnd
	openapi.EventsMissed
}

// follow opens a stream, with headers in pairs.
func (a *api) follow(token string, id compute.ContainerID, query string, headers ...string) *sse {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), patience)
	a.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", a.url+"/compute/containers/"+string(id)+"/events"+query, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := a.client.Transport.RoundTrip(req)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { resp.Body.Close() })
	if h := resp.Header; resp.StatusCode != 200 || h.Get("Content-Type") != "text/event-stream" || h.Get("Cache-Control") != "no-store" ||
		h.Get("X-Request-Id") == "" {
		a.t.Fatalf("%d, %v", resp.StatusCode, resp.Header)
	}
	return &sse{a.t, cancel, resp.Body, bufio.NewReader(resp.Body), ""}
}

// read returns the next event, or why there is none.
func (s *sse) read() (e told, err error) {
	var data []string
	id := ""
	for {
		line, err := s.lines.ReadString('\n')
		if err != nil {
			return e, err
		}
		line = strings.TrimSuffix(line, "\n")
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "" && data == nil:
			e, id = told{}, ""
		case line == "":
			text := []byte(strings.Join(data, "\n"))
			if id != "" {
				s.lastID = id
				if e.seq, err = strconv.ParseInt(id, 10, 64); err != nil {
					return e, err
				}
			}
			return e, s.decode(&e, text)
		case field == "data":
			data = append(data, value)
		case field == "event":
			e.kind = value
		case field == "id":
			id = value
		case field == "retry", field == "":
		default:
			return e, fmt.Errorf("the line %q", line)
		}
	}
}

// decode reads an event's data, which is as the document has it.
func (s *sse) decode(e *told, text []byte) error {
	kind := map[string]struct {
		name string
		into any
	}{
		"status": {"ContainerEvent", &e.ContainerEvent}, "deleted": {"ContainerEvent", &e.ContainerEvent},
		"missed": {"EventsMissed", &e.EventsMissed}, "end": {"StreamEnd", &e.StreamEnd},
	}[e.kind]
	doc, err := described()
	if err != nil {
		return err
	}
	v, err := decode(text)
	if err != nil {
		return fmt.Errorf("%s: %w", text, err)
	}
	if kind.into == nil {
		return fmt.Errorf("an event %q", e.kind)
	}
	if err := doc.Components.Schemas[kind.name].Value.VisitJSON(v, openapi3.EnableFormatValidation()); err != nil {
		return err
	}
	return json.Unmarshal(text, kind.into)
}

func (s *sse) next(kind string) told {
	s.t.Helper()
	e, err := s.read()
	if err != nil || e.kind != kind {
		s.t.Fatalf("got %+v, %v; want %s", e, err, kind)
	}
	return e
}

// statuses reads until a status, and returns all up to it.
func (s *sse) statuses(last compute.Status) (list []compute.Status) {
	s.t.Helper()
	for len(list) == 0 || list[len(list)-1] != last {
		list = append(list, s.next("status").Status)
	}
	return list
}

// ends reads the end of the stream, which must be a proper one.
func (s *sse) ends() {
	s.t.Helper()
	if e, err := s.read(); !errors.Is(err, io.EOF) {
		s.t.Errorf("got %+v, %v; want the end", e, err)
	}
}

// leave ends the stream from the client's side.
func (s *sse) leave() {
	s.cancel()
	s.body.Close()
}

// clients waits until the server has so many clients.
func (a *api) clients(n int) {
	a.t.Helper()
	for deadline := time.Now().Add(patience); a.server.Feeds().Clients != n; {
		if time.Now().After(deadline) {
			a.t.Fatalf("%+v, want %d clients", a.server.Feeds(), n)
		}
		a.do("GET", "/healthz", "", "")
	}
}

// A container's life, followed, and told again from any point of it.
func TestEvents(t *testing.T) {
	a := newAPI(t, nil)
	key := a.addKey(a.adaToken, "laptop")
	c := a.create(a.adaToken, "box", key)
	path := "/compute/containers/" + string(c.ID)
	a.await(a.adaToken, c.ID, compute.StatusRunning)
	s := a.follow(a.adaToken, c.ID, "")
	now := s.next("status")
	if now.Status != compute.StatusRunning || now.seq == 0 || now.At != "" || now.ContainerID != c.ID {
		t.Errorf("%+v", now)
	}
	other := a.create(a.adaToken, "another", key) // which is nothing to it
	a.await(a.adaToken, other.ID, compute.StatusRunning)
	a.do("POST", path+"/stop", a.adaToken, "").into(t, 200, &container{})
	stopped := s.next("status")
	if stopped.Status != compute.StatusStopped || stopped.seq <= now.seq || stopped.At == "" {
		t.Errorf("%+v after %+v", stopped, now)
	}
	a.do("POST", path+"/start", a.adaToken, "").into(t, 200, &container{})
	life := []compute.Status{compute.StatusPending, compute.StatusInitializing, compute.StatusRunning}
	if got := s.statuses(compute.StatusRunning); !slices.Equal(got, life) {
		t.Errorf("started: %v", got)
	}

	// From the beginning, and from where another stopped; the header goes before the query.
	all := a.follow(a.adaToken, c.ID, "?after=0")
	whole := slices.Concat(life, []compute.Status{compute.StatusStopped}, life)
	if got := slices.Concat(all.statuses(compute.StatusStopped), all.statuses(compute.StatusRunning)); !slices.Equal(got, whole) {
		t.Errorf("all: %v", got)
	}
	for _, again := range []*sse{
		a.follow(a.adaToken, c.ID, fmt.Sprintf("?after=%d", stopped.seq)),
		a.follow(a.adaToken, c.ID, "", "Last-Event-ID", strconv.FormatInt(stopped.seq, 10)),
		a.follow(a.adaToken, c.ID, "?after=0", "Last-Event-ID", strconv.FormatInt(stopped.seq, 10)),
	} {
		if got := again.statuses(compute.StatusRunning); !slices.Equal(got, life) {
			t.Errorf("after the stop: %v", got)
		}
		if again.lastID != s.lastID {
			t.Errorf("its last is %s, the other's %s", again.lastID, s.lastID)
		}
	}
	upToDate := a.follow(a.adaToken, c.ID, "?after="+s.lastID)
	a.do("DELETE", path, a.adaToken, "").into(t, 200, &openapi.Deleted{})
	for _, each := range []*sse{s, all, upToDate} {
		if e := each.next("deleted"); e.ContainerID != c.ID || (e.At == "") != (e.seq == 0) { // without: it was just being read
			t.Errorf("%+v", e)
		}
		each.ends()
	}
	a.do("GET", path+"/events?after=0", a.adaToken, "").isProblem(t, 404, compute.CodeNotFound, "")
	a.clients(0)
}

// forgetful is a control plane that kept less than was asked for.
type forgetful struct{ Service }

func (f forgetful) ContainerHistory(
	ctx context.Context, p compute.Principal, id compute.ContainerID, after int64, limit int,
) (compute.History, error) {
	h, err := f.Service.ContainerHistory(ctx, p, id, after, limit)
	h.Missed = h.Missed || after < 2
	return h, err
}

// Who asks for what is gone, or for what is to come, is told so, and how things are.
func TestEventsMissed(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.Service = forgetful{c.Service} })
	c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	a.await(a.adaToken, c.ID, compute.StatusRunning)
	for _, after := range []string{"1", "9223372036854775807"} {
		s := a.follow(a.adaToken, c.ID, "?after="+after)
		if e := s.next("missed"); e.seq != 0 || strconv.FormatInt(e.After, 10) != after {
			t.Errorf("%+v", e)
		}
		if e := s.next("status"); e.Status != compute.StatusRunning || e.seq == 0 {
			t.Errorf("%+v", e)
		}
		a.do("POST", "/compute/containers/"+string(c.ID)+"/stop", a.adaToken, "").into(t, 200, &container{})
		s.next("status")
		a.do("POST", "/compute/containers/"+string(c.ID)+"/start", a.adaToken, "").into(t, 200, &container{})
		s.statuses(compute.StatusRunning)
	}
}

func TestEventsRefused(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.MaxFeedsPerUser = 2 })
	c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	path := "/compute/containers/" + string(c.ID) + "/events"
	for query, field := range map[string]string{
		"?after=x": "after", "?after=-1": "after", "?after=": "after", "?after=1.5": "after", "?after=9223372036854775808": "after",
		"?since=1": "since", "?after=1&after=2": "after",
	} {
		a.do("GET", path+query, a.adaToken, "").isProblem(t, 400, compute.CodeInvalid, field)
	}
	for _, id := range []string{"x", "-1", "1 2"} {
		a.send("GET", path, "", func(r *http.Request) {
			r.Header.Set("Authorization", "Bearer "+a.adaToken)
			r.Header.Set("Last-Event-ID", id)
		}).isProblem(t, 400, compute.CodeInvalid, "Last-Event-ID")
	}
	a.do("GET", path, a.bobToken, "").isProblem(t, 404, compute.CodeNotFound, "")
	a.do("GET", path+"?token="+a.adaToken, "", "").isProblem(t, 401, compute.CodeUnauthenticated, "")
	if r := a.do("HEAD", path, a.adaToken, ""); r.status != 200 || r.body != "" {
		t.Errorf("%+v", r)
	}
	a.clients(0)
	first, _ := a.follow(a.adaToken, c.ID, ""), a.follow(a.adaToken, c.ID, "")
	a.do("GET", path, a.adaToken, "").isProblem(t, 429, codeTooMany, "")
	first.leave() // which is noticed although nothing is told
	a.clients(1)
	a.follow(a.adaToken, c.ID, "").next("status")
}

// Whoever is shut out hears so at once, and so does who stays when the server stops.
func TestEventsEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		mood func(*Config)
		end  func(a *api, token string)
		code compute.Code
	}{
		"revoked": {nil, func(a *api, token string) {
			g, err := a.server.verifier.Verify(a.t.Context(), token)
			if err != nil {
				a.t.Fatal(err)
			}
			a.do("DELETE", "/compute/tokens/"+g.TokenID, a.adaToken, "").into(a.t, 200, &openapi.Deleted{})
		}, compute.CodeUnauthenticated},
		"disabled": {nil, func(a *api, _ string) {
			if _, err := a.store.SetUserDisabled(a.t.Context(), a.ada.ID, true); err != nil {
				a.t.Fatal(err)
			}
		}, compute.CodeUnauthenticated},
		"expired": {shortLived(2 * time.Second), func(*api, string) {}, compute.CodeUnauthenticated},
		"stopped": {nil, func(a *api, _ string) {
			ctx, cancel := context.WithTimeout(a.t.Context(), patience)
			defer cancel()
			if err := a.server.Shutdown(ctx); err != nil {
				a.t.Error(err)
			}
		}, compute.CodeUnavailable},
		"no more events": {nil, func(a *api, _ string) { a.stopBus() }, compute.CodeUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, tc.mood)
			c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
			a.await(a.adaToken, c.ID, compute.StatusRunning)
			token, err := a.tokens.Issue(a.ada, time.Hour, auth.ScopeContainersRead)
			if err != nil {
				t.Fatal(err)
			}
			s := a.follow(token, c.ID, "")
			s.next("status")
			tc.end(a, token)
			if e := s.next("end"); e.Code != tc.code || !strings.HasSuffix(e.Detail, ".") {
				t.Errorf("%+v", e)
			}
			s.ends()
			if log := a.log.String(); strings.Contains(log, token) {
				t.Error("the token is in the log")
			}
		})
	}
}

// A client that takes nothing is dropped and counted; one that is only late is told everything.
func TestEventsToSlowClients(t *testing.T) {
	for name, write := range map[string]time.Duration{"dropped": 300 * time.Millisecond, "late": patience} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, func(c *Config) { c.feedTimes.write = write })
			a.narrow.Store(true)
			c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
			a.await(a.adaToken, c.ID, compute.StatusRunning)
			nc := a.dial()
			if err := nc.(*net.TCPConn).SetReadBuffer(16 << 10); err != nil {
				t.Fatal(err)
			}
			if _, err := fmt.Fprintf(nc, "GET /compute/containers/%s/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", c.ID, a.adaToken); err != nil {
				t.Fatal(err)
			}
			a.clients(1)
			const messages = 60 // of 60 kB each, of which the sockets hold little, and the bus 16
			var last string
			for i := range messages {
				last = strings.Repeat(string(rune('a'+i%26)), 60<<10) + strconv.Itoa(i)
				if err := a.store.SetStatus(t.Context(), c.ID, 1, compute.StatusFailed, last); err != nil {
					t.Fatal(err)
				}
			}
			if write < patience {
				a.until("it did not take a message in time")
				a.clients(0)
				if got := a.server.Feeds(); got.Slow != 1 {
					t.Errorf("%+v", got)
				}
				return
			}
			resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			s := &sse{t: t, lines: bufio.NewReader(resp.Body)}
			var seqs []int64
			for {
				e := s.next("status")
				if seqs = append(seqs, e.seq); e.StatusMessage == last {
					break
				}
			}
			if len(seqs) < messages || !slices.IsSorted(seqs) || len(slices.Compact(seqs)) != len(seqs) {
				t.Errorf("told %d: %v", len(seqs), seqs)
			}
		})
	}
}

// Comments keep the connection alive, and clients of HTTP/1.0 are told as well.
func TestEventsAreKeptAlive(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.feedTimes.pingEvery = 10 * time.Millisecond })
	c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	for version, chunked := range map[string]bool{"1.1": true, "1.0": false} {
		nc := a.dial()
		_, err := fmt.Fprintf(nc, "GET /compute/containers/%s/events HTTP/%s\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", c.ID, version, a.adaToken)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Contains(resp.TransferEncoding, "chunked"); got != chunked || !resp.Close {
			t.Errorf("HTTP/%s: %+v", version, resp)
		}
		var text bytes.Buffer
		for !bytes.Contains(text.Bytes(), []byte("\n\n: still here\n\n: still here\n\n")) {
			if _, err := io.CopyN(&text, resp.Body, 1); err != nil {
				t.Fatalf("%v after %q", err, text.String())
			}
		}
		if !strings.HasPrefix(text.String(), "retry: 3000\n\nid: ") {
			t.Errorf("it begins with %q", text.String())
		}
		nc.Close()
	}
	a.clients(0)
}
