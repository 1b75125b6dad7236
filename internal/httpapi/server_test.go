package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/internal/compute"
	"berth/internal/control"
)

// odd is a control plane with one method that the test replaces.
type odd struct {
	Service
	list func(context.Context) ([]control.ContainerView, error)
}

func (o odd) ListContainers(ctx context.Context, _ compute.Principal) ([]control.ContainerView, error) {
	return o.list(ctx)
}

func withList(list func(context.Context) ([]control.ContainerView, error)) func(*Config) {
	return func(c *Config) { c.Service = odd{c.Service, list} }
}

// A panic costs its own request alone, and tells the client nothing.
func TestPanic(t *testing.T) {
	a := newAPI(t, withList(func(context.Context) ([]control.ContainerView, error) { panic("the secret of /srv/data") }))
	for range 3 {
		r := a.do("GET", "/compute/containers", a.adaToken, "")
		r.isProblem(t, 500, compute.CodeInternal, "")
		if strings.Contains(r.body, "secret") || strings.Contains(r.body, "goroutine") {
			t.Errorf("it tells %s", r.body)
		}
		if id := r.header.Get("X-Request-Id"); id == "" || !strings.Contains(r.body, id) || !strings.Contains(a.log.String(), id) {
			t.Errorf("request id %q is not in both the body and the log", id)
		}
		if r.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Error("the headers are gone")
		}
	}
	if log := a.log.String(); !strings.Contains(log, "the secret of /srv/data") || !strings.Contains(log, "server_test.go") {
		t.Error("the log lacks the panic or its stack")
	}
	if r := a.do("GET", "/healthz", "", ""); r.status != 200 {
		t.Errorf("%+v", r)
	}
}

func TestErrorsAreMapped(t *testing.T) {
	var next error
	a := newAPI(t, withList(func(context.Context) ([]control.ContainerView, error) { return nil, next }))
	for _, tc := range []struct {
		err    error
		status int
		code   compute.Code
	}{
		{errors.New("secret of the database"), 500, compute.CodeInternal},
		{compute.Internal("read", errors.New("secret of the database")), 500, compute.CodeInternal},
		{compute.Errorf(compute.CodeForbidden, "That is not for you."), 403, compute.CodeForbidden},
		{compute.Errorf(compute.CodeConflict, "That is there already."), 409, compute.CodeConflict},
		{compute.Errorf(compute.CodeLimit, "You have three already."), 409, compute.CodeLimit},
		{compute.Errorf(compute.CodeNotRunning, "It does not run now."), 409, compute.CodeNotRunning},
		{compute.Errorf(compute.CodeSSHDisabled, "SSH is off for it."), 409, compute.CodeSSHDisabled},
		{compute.Errorf(compute.CodeStorageMissing, "Its storage is missing."), 409, compute.CodeStorageMissing},
		{compute.Errorf(compute.CodeCapacity, "There is no room for it."), 503, compute.CodeCapacity},
		{compute.Errorf(compute.CodeUnavailable, "The engine is away for now."), 503, compute.CodeUnavailable},
		{compute.Internal("read", context.DeadlineExceeded), 503, compute.CodeUnavailable},
		{context.Canceled, 503, compute.CodeUnavailable},
		{compute.Errorf("new_code_of_the_domain", "Something that the table lacks."), 500, "new_code_of_the_domain"},
	} {
		next = tc.err
		a.undescribed = tc.code == "new_code_of_the_domain"
		r := a.do("GET", "/compute/containers", a.adaToken, "")
		r.isProblem(t, tc.status, tc.code, "")
		if strings.Contains(r.body, "secret") {
			t.Errorf("%v: it tells %s", tc.err, r.body)
		}
	}
}

// Every code of the domain has a status: one that is forgotten would be a 500.
func TestEveryCodeHasAStatus(t *testing.T) {
	source, err := os.ReadFile("../compute/error.go")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range bytes.Lines(source) {
		before, after, ok := bytes.Cut(line, []byte(` Code = "`))
		if !ok {
			before, after, ok = bytes.Cut(line, []byte(`Code = "`))
		}
		if !ok || !bytes.Contains(before, []byte("Code")) {
			continue
		}
		value, _, _ := bytes.Cut(after, []byte(`"`))
		if n++; statuses[compute.Code(value)] == 0 {
			t.Errorf("code %q has no status", value)
		}
	}
	if n < 15 {
		t.Errorf("found only %d codes", n)
	}
}

// An answer that takes too long is given up, by way of its context.
func TestRequestTimeout(t *testing.T) {
	a := newAPI(t, func(c *Config) {
		withList(func(ctx context.Context) ([]control.ContainerView, error) {
			<-ctx.Done()
			return nil, compute.Internal("list", ctx.Err())
		})(c)
		c.RequestTimeout = 50 * time.Millisecond
	})
	r := a.do("GET", "/compute/containers", a.adaToken, "")
	r.isProblem(t, 503, compute.CodeUnavailable, "")
	if r.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

// A client that is slow to say what it wants is told so and let go.
func TestSlowClients(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.ReadTimeout = 100 * time.Millisecond })
	for name, text := range map[string]string{
		"nothing": "", "part of a header": "GET /healthz HTTP/1.1\r\nHo",
		"part of a body": "POST /compute/containers HTTP/1.1\r\nContent-Length: 100\r\n\r\n{",
	} {
		r, err := raw(a.addr, text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		r.isProblem(t, 408, codeSlow, "")
	}
}

func TestIdleConnectionsEnd(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.IdleTimeout = 100 * time.Millisecond })
	c := a.dial()
	if r, err := rawOn(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil || r.status != 200 {
		t.Fatalf("%+v, %v", r, err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("%d, %v; want the end of the connection", n, err)
	}
}

func (a *api) dial() net.Conn {
	a.t.Helper()
	c, err := net.Dial("tcp", a.addr)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		a.t.Fatal(err)
	}
	return c
}

// Requests sent in one go are answered in order, each with what is its own.
func TestPipelining(t *testing.T) {
	a := newAPI(t, nil)
	c := a.dial()
	one := "GET /compute/ssh-keys HTTP/1.1\r\nHost: x\r\nX-Request-Id: one\r\nAuthorization: Bearer " + a.adaToken + "\r\n\r\n"
	two := "GET /compute/ssh-keys HTTP/1.1\r\nHost: x\r\nX-Request-Id: two\r\n\r\n"
	if _, err := io.WriteString(c, one+two+one); err != nil {
		t.Fatal(err)
	}
	b := bufio.NewReader(c)
	for i, want := range []int{200, 401, 200} {
		r, err := readReply(b)
		if err != nil || r.status != want || (r.header.Get("X-Request-Id") == "two") != (want == 401) {
			t.Errorf("answer %d: %+v, %v", i, r, err)
		}
	}
}

// One connection too many is told so; when one ends there is room again.
func TestConnectionLimit(t *testing.T) {
	a := newAPI(t, func(c *Config) { c.MaxConns = 3 })
	var held []net.Conn
	for range 3 {
		c := a.dial()
		if r, err := rawOn(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil || r.status != 200 {
			t.Fatalf("%+v, %v", r, err)
		}
		held = append(held, c)
	}
	for range 5 {
		r, err := raw(a.addr, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		if err != nil {
			t.Fatal(err)
		}
		r.isProblem(t, 503, compute.CodeUnavailable, "")
		if r.header.Get("Retry-After") == "" || !r.closes {
			t.Errorf("%+v", r)
		}
	}
	for _, c := range held {
		if r, err := rawOn(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil || r.status != 200 {
			t.Errorf("a connection from before suffers: %+v, %v", r, err)
		}
		c.Close()
	}
	// The server learns of the closes in its own time.
	deadline := time.Now().Add(patience)
	for {
		r, err := raw(a.addr, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if err == nil && r.status == 200 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no room although the others ended: %+v, %v", r, err)
		}
	}
}

// Shutdown lets a request finish, ends idle and silent connections at once, and accepts nothing more.
func TestShutdownIsGraceful(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	a := newAPI(t, withList(func(context.Context) ([]control.ContainerView, error) {
		close(entered)
		<-leave
		return nil, nil
	}))
	silent, idle := a.dial(), a.dial()
	if r, err := rawOn(idle, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil || r.status != 200 {
		t.Fatalf("%+v, %v", r, err)
	}
	answers := make(chan error, 1)
	go func() {
		r, err := raw(a.addr, "GET /compute/containers HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+a.adaToken+"\r\n\r\n")
		if err == nil && (r.status != 200 || !r.closes) {
			err = errors.New(r.body)
		}
		answers <- err
	}()
	<-entered
	down := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		down <- a.server.Shutdown(ctx)
	}()
	for name, c := range map[string]net.Conn{"silent": silent, "idle": idle} {
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("the %s connection goes on: %d, %v", name, n, err)
		}
	}
	if c, err := net.Dial("tcp", a.addr); err == nil {
		c.Close()
		t.Error("it still accepts")
	}
	select {
	case err := <-down:
		t.Fatalf("shutdown returned %v while a request was under way", err)
	default:
	}
	close(leave)
	if err := <-answers; err != nil {
		t.Errorf("the request under way: %v", err)
	}
	if err := <-down; err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

// When Shutdown's patience ends, so do the requests, by their context.
func TestShutdownIsBounded(t *testing.T) {
	entered, left := make(chan struct{}), make(chan error, 1)
	a := newAPI(t, withList(func(ctx context.Context) ([]control.ContainerView, error) {
		close(entered)
		<-ctx.Done()
		left <- context.Cause(ctx)
		return nil, ctx.Err()
	}))
	// newAPI's cleanup shuts its own server down; this one is the test's.
	second := &api{t: t, log: a.log}
	served := second.serve(Config{Service: odd{a.server.service, a.server.service.(odd).list}, Verifier: a.tokens, Zone: zone})
	broken := make(chan error, 1)
	go func() {
		r, err := raw(second.addr, "GET /compute/containers HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+a.adaToken+"\r\n\r\n")
		if err == nil && r.status != 503 {
			broken <- fmt.Errorf("it was answered %+v", r)
		}
		close(broken)
	}()
	half := second.dial()
	if _, err := io.WriteString(half, "GET /healthz HTTP/1.1\r\nHo"); err != nil {
		t.Fatal(err)
	}
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := second.server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v, want DeadlineExceeded", err)
	}
	select {
	case err := <-left:
		if !errors.Is(err, errStopping) {
			t.Errorf("the request's cause is %v", err)
		}
	default:
		t.Error("shutdown returned while the request was under way")
	}
	if err := <-broken; err != nil { // it may just be told 503, or see the connection end
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestServeAfterShutdown(t *testing.T) {
	s := New(Config{Zone: zone})
	for range 2 {
		if err := s.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(ln); err != nil {
		t.Errorf("serve: %v", err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is open: %v", err)
	}
}

// Shutdown in the middle of Serve's start ends it too.
func TestShutdownWhileStarting(t *testing.T) {
	for range 50 {
		s := New(Config{Zone: zone})
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.Serve(ln); err != nil {
				t.Errorf("serve: %v", err)
			}
		})
		wg.Go(func() {
			if err := s.Shutdown(t.Context()); err != nil {
				t.Errorf("shutdown: %v", err)
			}
		})
		wg.Wait()
	}
}

// scarce is a listener that runs out of descriptors for a while, and later fails for good.
type scarce struct {
	net.Listener
	errs chan error
}

func (l scarce) Accept() (net.Conn, error) {
	select {
	case err := <-l.errs:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", err)}
	default:
		return l.Listener.Accept()
	}
}

func TestAcceptOutlivesAShortage(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := scarce{ln, make(chan error, 3)}
	l.errs <- syscall.EMFILE
	l.errs <- syscall.ECONNABORTED
	l.errs <- syscall.ENOBUFS
	var log lockedBuffer
	s := New(Config{Zone: zone, Log: slog.New(slog.NewTextHandler(&log, nil))})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	if r, err := raw(ln.Addr().String(), "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil || r.status != 200 {
		t.Errorf("%+v, %v", r, err)
	}
	if !strings.Contains(log.String(), "too many open files") {
		t.Errorf("the log says nothing of it: %s", log.String())
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestAcceptFailsForGood(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l := scarce{ln, make(chan error, 1)}
	l.errs <- syscall.EINVAL
	s := New(Config{Zone: zone})
	if err := s.Serve(l); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("serve: %v, want EINVAL", err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// Several listeners are one server, as with both loopback addresses.
func TestTwoListeners(t *testing.T) {
	s := New(Config{Zone: zone})
	served := make(chan error, 2)
	for range 2 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { served <- s.Serve(ln) }()
		if r, err := raw(ln.Addr().String(), "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil || r.status != http.StatusOK {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}
