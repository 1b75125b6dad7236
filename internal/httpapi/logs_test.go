package httpapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	openapi "berth/api"
	"berth/internal/auth"
	"berth/internal/compute"
)

// talker is a cell whose container has a command of its own, which writes, waits for word, and writes more.
type talker struct {
	*cell
	proceed func() // is the word; the command's shell reads it with "go"
}

func newTalker(t *testing.T, line string, edits ...func(*Config)) *talker {
	t.Helper()
	c := newCell(t, edits...)
	c.path = strings.TrimSuffix(c.path, "exec") + "logs"
	fifo, begun := filepath.Join(c.dir, "word"), filepath.Join(c.dir, "begun")
	if err := errors.Join(syscall.Mkfifo(fifo, 0o600), syscall.Mkfifo(begun, 0o600)); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(fifo, os.O_RDWR, 0) // does not wait for anybody (fifo(7))
	if err != nil {
		t.Fatal(err)
	}
	talk := &talker{c, func() {
		if _, err := f.WriteString("\n"); err != nil {
			t.Error(err)
		}
	}}
	c.agent.RunImage([]string{"sh", "-c", "echo $$ >" + begun + "; go() { read x <" + fifo + "; }; " + line})
	pid := readPID(t, begun)
	t.Cleanup(func() {
		defer f.Close()
		for range strings.Count(line, "go") {
			talk.proceed()
		}
		ended(t, pid)
	})
	return talk
}

// reader is a client that reads a log.
type reader struct {
	t testing.TB
	*bufio.Reader
	resp  *http.Response
	leave func()
}

func (c *cell) read(token, query string) reader {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	c.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", c.url+c.path+query, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := c.client.Transport.RoundTrip(req)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { resp.Body.Close() })
	h := resp.Header
	if resp.StatusCode != 200 || h.Get("Content-Type") != "text/plain; charset=utf-8" || h.Get("Cache-Control") != "no-store" ||
		h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Content-Security-Policy") != nothingElse {
		c.t.Fatalf("%d, %v", resp.StatusCode, h)
	}
	return reader{c.t, bufio.NewReader(resp.Body), resp, cancel}
}

func (r reader) line(want string) {
	r.t.Helper()
	if got, err := r.ReadString('\n'); err != nil || got != want+"\n" {
		r.t.Fatalf("%q, %v, want %q", got, err, want)
	}
}

// rest reads to the end, which must be a proper one.
func (r reader) rest() string {
	r.t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		r.t.Fatalf("%v after %q", err, b)
	}
	return string(b)
}

func TestLogs(t *testing.T) {
	c := newTalker(t, `echo one; printf 'two <b>\377'; go; echo; echo three; exit 3`)
	follows := c.read(c.adaToken, "?follow=true")
	follows.line("berth: started sh")
	follows.line("one")
	if b, err := follows.Peek(8); err != nil || string(b) != "two <b>\xff" {
		t.Fatalf("%q, %v", b, err)
	}
	later := c.read(c.adaToken, "?tail=0&follow=true")
	for query, want := range map[string]string{
		"":                          "berth: started sh\none\ntwo <b>\xff",
		"?follow=false":             "berth: started sh\none\ntwo <b>\xff",
		"?tail=1":                   "two <b>\xff",
		"?tail=2&follow=false":      "one\ntwo <b>\xff",
		"?tail=0":                   "",
		"?tail=9223372036854775807": "berth: started sh\none\ntwo <b>\xff",
	} {
		if r := c.do("GET", c.path+query, c.adaToken, ""); r.status != 200 || r.body != want {
			t.Errorf("%s: %d, %q, want %q", query, r.status, r.body, want)
		}
	}
	// Whether anybody may enter is another question than what is written in there.
	c.do("PUT", "/compute/containers/"+string(c.id)+"/ssh", c.adaToken, `{"ssh_enabled":false}`).into(t, 200, &openapi.SSHAccess{})
	if r := c.do("GET", c.path+"?tail=2", c.adaToken, ""); r.body != "one\ntwo <b>\xff" {
		t.Errorf("with SSH off: %+v", r)
	}
	c.proceed()
	end := "\nthree\nberth: sh exited with status 3\n"
	if got := follows.rest(); got != "two <b>\xff"+end {
		t.Errorf("it goes on with %q", got)
	}
	if got := later.rest(); got != end {
		t.Errorf("from then on: %q", got)
	}
	c.clients(0)
	// Nothing more can come: who follows now is told so by the end.
	if r := c.do("GET", c.path+"?tail=1&follow=true", c.adaToken, ""); r.body != "berth: sh exited with status 3\n" {
		t.Errorf("%+v", r)
	}
	c.expectAudit(c.adaToken, "?action=readLogs")
}

func TestLogsOfNoCommand(t *testing.T) {
	c := newCell(t)
	c.agent.RunImage(nil)
	for _, query := range []string{"", "?follow=true", "?tail=5"} {
		r := c.do("GET", "/compute/containers/"+string(c.id)+"/logs"+query, c.adaToken, "")
		if r.status != 200 || r.body != "" {
			t.Errorf("%+v", r)
		}
	}
}

func TestLogsRefused(t *testing.T) {
	c := newTalker(t, "go", func(c *Config) { c.MaxFeedsPerUser = 2 })
	c.read(c.adaToken, "?follow=true")
	for query, field := range map[string]string{
		"?tail=x": "tail", "?tail=-1": "tail", "?tail=": "tail", "?tail=1.5": "tail", "?tail=+1": "tail", "?tail=01": "tail",
		"?tail=9223372036854775808": "tail", "?tail=1&tail=2": "tail", "?follow=1": "follow", "?follow=": "follow", "?follow=TRUE": "follow",
		"?follow": "follow", "?lines=1": "lines", "?token=x": "token",
	} {
		c.do("GET", c.path+query, c.adaToken, "").isProblem(t, 400, compute.CodeInvalid, field)
	}
	c.do("GET", c.path, c.bobToken, "").isProblem(t, 404, compute.CodeNotFound, "")
	c.do("POST", c.path, c.adaToken, "").isProblem(t, 405, compute.CodeMethod, "")
	if r := c.do("HEAD", c.path, c.adaToken, ""); r.status != 200 || r.body != "" {
		t.Errorf("%+v", r)
	}
	narrow, err := c.tokens.Issue(c.ada, time.Hour, auth.ScopeContainersExec)
	if err != nil {
		t.Fatal(err)
	}
	c.do("GET", c.path, narrow, "").isProblem(t, 403, compute.CodeForbidden, "")
	c.expectAudit(c.adaToken, "?action=readLogs", "ada readLogs "+string(c.id)+" denied forbidden")

	second := c.read(c.adaToken, "?follow=true")
	c.do("GET", c.path, c.adaToken, "").isProblem(t, 429, codeTooMany, "")
	second.line("berth: started sh")
	second.leave() // which is noticed although nothing is told
	c.clients(1)
	if r := c.do("GET", c.path, c.adaToken, ""); r.body != "berth: started sh\n" {
		t.Errorf("%+v", r)
	}

	box := "/compute/containers/" + string(c.id)
	c.do("POST", box+"/stop", c.adaToken, "").into(t, 200, &container{})
	c.await(c.adaToken, c.id, compute.StatusStopped)
	c.do("GET", c.path, c.adaToken, "").isProblem(t, 409, compute.CodeNotRunning, "")
	if r := c.do("HEAD", c.path, c.adaToken, ""); r.status != 409 {
		t.Errorf("%+v", r)
	}
}

// Whoever is shut out hears so at once, in a line of its own, and so does who stays when the server stops.
func TestLogsEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		mood func(*Config)
		end  func(c *talker, token string)
		says string
	}{
		"revoked": {nil, func(c *talker, token string) {
			g, err := c.server.verifier.Verify(c.t.Context(), token)
			if err != nil {
				c.t.Fatal(err)
			}
			c.do("DELETE", "/compute/tokens/"+g.TokenID, c.adaToken, "").into(c.t, 200, &openapi.Deleted{})
		}, "revoked"},
		"disabled": {nil, func(c *talker, _ string) {
			if _, err := c.store.SetUserDisabled(c.t.Context(), c.ada.ID, true); err != nil {
				c.t.Fatal(err)
			}
		}, "disabled"},
		"expired": {shortLived(2 * time.Second), func(*talker, string) {}, "expired"},
		"deleted": {nil, func(c *talker, _ string) {
			c.do("DELETE", "/compute/containers/"+string(c.id), c.adaToken, "").into(c.t, 200, &openapi.Deleted{})
		}, "There is no"},
		"server stopped": {nil, func(c *talker, _ string) {
			ctx, cancel := context.WithTimeout(c.t.Context(), patience)
			defer cancel()
			if err := c.server.Shutdown(ctx); err != nil {
				c.t.Error(err)
			}
		}, "stopping"},
		"no more events": {nil, func(c *talker, _ string) { c.stopBus() }, "stopping"},
	} {
		t.Run(name, func(t *testing.T) {
			edits := []func(*Config){}
			if tc.mood != nil {
				edits = append(edits, tc.mood)
			}
			c := newTalker(t, "printf half; go", edits...)
			token, err := c.tokens.Issue(c.ada, time.Hour, auth.ScopeContainersRead)
			if err != nil {
				t.Fatal(err)
			}
			l := c.read(token, "?follow=true")
			l.line("berth: started sh")
			if _, err := l.Peek(len("half")); err != nil {
				t.Fatal(err)
			}
			tc.end(c, token)
			l.line("half")
			if got := l.rest(); !strings.HasPrefix(got, "berth: the log ends here: ") || !strings.HasSuffix(got, ".\n") ||
				!strings.Contains(got, tc.says) || strings.Count(got, "\n") != 1 {
				t.Errorf("%q, want it to say %q", got, tc.says)
			}
			if log := c.log.String(); strings.Contains(log, token) {
				t.Error("the token is in the log")
			}
		})
	}
}

// A client that takes nothing is dropped and counted; one that is only late is told how much it has missed. The command
// waits for neither.
func TestLogsToSlowClients(t *testing.T) {
	for name, write := range map[string]time.Duration{"dropped": 300 * time.Millisecond, "late": patience} {
		t.Run(name, func(t *testing.T) {
			const lines = 1_000_000 // of 10 bytes: the sockets, the gateway and the agent hold little of it
			c := newTalker(t, fmt.Sprintf("go; seq -f %%09.0f %d; echo over; go", lines), func(c *Config) { c.feedTimes.write = write })
			c.narrow.Store(true)
			nc := c.dial()
			if err := nc.(*net.TCPConn).SetReadBuffer(16 << 10); err != nil {
				t.Fatal(err)
			}
			request := "GET " + c.path + "?follow=true HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + c.adaToken + "\r\n\r\n"
			if _, err := io.WriteString(nc, request); err != nil {
				t.Fatal(err)
			}
			c.clients(1)
			c.narrow.Store(false)
			c.proceed()
			quick := c.read(c.adaToken, "?follow=true")
			for {
				if line, err := quick.ReadString('\n'); err != nil {
					t.Fatal(err)
				} else if line == "over\n" {
					break
				}
			}
			if write < patience {
				c.until("it did not take a message in time")
				if got := c.server.Feeds(); got.Slow != 1 {
					t.Errorf("%+v", got)
				}
				return
			}
			resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			c.proceed()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			text := string(b)
			if !strings.HasPrefix(text, "berth: started sh\n000000001\n") || !strings.HasSuffix(text, "\nover\nberth: sh exited with status 0\n") ||
				!strings.Contains(text, " bytes of the output are lost here\n") || len(text) > lines*5 {
				t.Errorf("%d bytes: %.100q … %.100q", len(text), text, text[max(0, len(text)-100):])
			}
		})
	}
}

// Clients of HTTP/1.0 read a log as well.
func TestLogsOfOldClients(t *testing.T) {
	c := newTalker(t, "echo out; go")
	follows := c.read(c.adaToken, "?follow=true")
	follows.line("berth: started sh")
	follows.line("out")
	for version, chunked := range map[string]bool{"1.1": true, "1.0": false} {
		nc := c.dial()
		if _, err := fmt.Fprintf(nc, "GET %s HTTP/%s\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", c.path, version, c.adaToken); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		if got := slices.Contains(resp.TransferEncoding, "chunked"); got != chunked || !resp.Close || err != nil || string(text) != "berth: started sh\nout\n" {
			t.Errorf("HTTP/%s: %+v, %q, %v", version, resp, text, err)
		}
		if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("HTTP/%s: after it: %v", version, err)
		}
	}
}
