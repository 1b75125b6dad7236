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
	"net/http/httputil"
	"strconv"
	"sync"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	openapi "berth/api"
	"berth/internal/auth"
	"berth/internal/compute"
)

const (
	eventsPath        = "/compute/containers/:id/events"
	headerLastEventID = "Last-Event-ID"
	eventPage         = 256  // events that are read at once
	reconnectMillis   = 3000 // after which a client that lost the stream comes again
)

var errDeleted = errors.New("the container was deleted")

// eventStream is one client that is told of one container (WHATWG HTML, section 9.2, server-sent events). One goroutine
// follows the events and writes; a client that is slow to take them misses some on the bus, and is told them from the
// database. Another guards the credential.
type eventStream struct {
	s    *Server
	cred credential
	conn *conn
	log  *slog.Logger
	id   compute.ContainerID

	told  bool  // after is what the client knows
	after int64 // the number of the last event that it knows of

	w    *bufio.Writer
	body io.Writer // into w
}

// openEvents is GET /compute/containers/:id/events.
func (s *Server) openEvents(described operation) fiber.Handler {
	return func(c *fiber.Ctx) error {
		fctx := c.Context()
		r := requestOf(fctx)
		cred, err := s.admit(r.ctx, c, auth.ScopeContainersRead, headerOrCookie)
		if err != nil {
			return err
		}
		if err := described.check(c); err != nil {
			return err
		}
		e := &eventStream{s: s, cred: cred, log: s.log.With("id", r.id, "user", int64(cred.User), "token", cred.TokenID)}
		if e.after, e.told, err = lastEvent(c); err != nil {
			return err
		}
		if e.id, err = containerID(c); err != nil {
			return err
		}
		if _, err := s.service.ContainerHistory(r.ctx, cred.Principal, e.id, e.after, 0); err != nil {
			return err
		}
		h := &fctx.Response.Header
		h.SetContentType("text/event-stream")
		h.Set("X-Accel-Buffering", "no") // proxies would keep back what is to be told at once
		if fctx.IsHead() {
			return nil
		}
		return e.take(fctx)
	}
}

// take takes the connection from the HTTP server, which answers nothing itself.
func (e *eventStream) take(fctx *fasthttp.RequestCtx) error {
	var ok bool
	if e.conn, ok = fctx.Conn().(*conn); !ok {
		return compute.Internal("open a stream of events", fmt.Errorf("on a %T", fctx.Conn()))
	}
	leave, err := e.s.feeds.reserve(e.cred.User)
	if err != nil {
		return err
	}
	e.s.conns.take(e.conn, leave)
	h := &fctx.Response.Header
	h.SetConnectionClose()
	chunked := fctx.Request.Header.IsHTTP11()
	if chunked {
		h.SetContentLength(-1)
	}
	fctx.HijackSetNoResponse(true)
	fctx.Hijack(func(net.Conn) {
		head := bytes.Clone(fctx.Response.Header.Header())
		// The HTTP server keeps these until the stream ends, and nobody needs them any more.
		fctx.Request, fctx.Response = fasthttp.Request{}, fasthttp.Response{}
		e.run(head, chunked)
	})
	return nil
}

// lastEvent returns the number of the last event that the client knows of, if it says. A browser that connects again has it
// in the header, and the address is still the one that it began with.
func lastEvent(c *fiber.Ctx) (after int64, told bool, err error) {
	field, text := headerLastEventID, c.Get(headerLastEventID)
	if text == "" {
		field, text = "after", c.Query("after")
	}
	if text == "" {
		return 0, false, nil
	}
	after, err = strconv.ParseInt(text, 10, 64)
	if err != nil || after < 0 {
		return 0, false, compute.Invalid(field, "%s is the number of an event: the id of the last one that you were told.", field)
	}
	return after, true, nil
}

// run serves the client until it is to go.
func (e *eventStream) run(head []byte, chunked bool) {
	began := time.Now()
	ctx, end := context.WithCancelCause(e.s.feeds.base)
	defer end(nil)
	defer context.AfterFunc(ctx, func() { _ = e.conn.SetWriteDeadline(time.Now().Add(hurry)) })()
	var guarding sync.WaitGroup
	guarding.Go(func() {
		if err := guarded(func() error { return e.s.guard(ctx, e.cred, auth.ScopeContainersRead, nil) }); err != nil {
			end(err)
		}
	})
	stopWatch := e.conn.whenGone(func() { end(errGone) })
	e.w = bufio.NewWriterSize(e.conn, writeBuffer)
	e.body = e.w
	end(guarded(func() error {
		if _, err := e.w.Write(head); err != nil {
			return err
		}
		if chunked {
			e.body = httputil.NewChunkedWriter(e.w)
		}
		return e.lead(ctx)
	}))
	guarding.Wait()
	stopWatch()
	cause := context.Cause(ctx)
	e.sayGoodbye(cause)
	e.log.Log(e.s.base, levelOf(cause), "stream of events ended", "container", e.id, "why", cause, "took", time.Since(began))
}

// levelOf is the level at which the end of what lasted is logged: faults of ours stand out.
func levelOf(cause error) slog.Level {
	if e := compute.AsError(cause); e != nil && e.Code == compute.CodeInternal {
		return slog.LevelError
	}
	return slog.LevelInfo
}

// lead follows the events, from one subscription to the next, until the client is to go.
func (e *eventStream) lead(ctx context.Context) error {
	if err := e.send(ctx, fmt.Sprintf("retry: %d\n\n", reconnectMillis)); err != nil {
		return err
	}
	alive := time.NewTicker(e.s.feeds.times.pingEvery)
	defer alive.Stop()
	for {
		if err := e.follow(ctx, alive.C); !errors.Is(err, errBehind) {
			return err
		}
		e.s.feeds.relisted.Add(1)
	}
}

// follow subscribes first and then reads: what happened before that is in the database, and what comes after is an event.
func (e *eventStream) follow(ctx context.Context, alive <-chan time.Time) error {
	sub := e.s.events.Subscribe(e.cred.User, feedEvents)
	defer sub.Close()
	if err := e.catchUp(ctx); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-alive:
			if err := e.send(ctx, ": still here\n\n"); err != nil {
				return err
			}
		case ev, ok := <-sub.C:
			switch {
			case !ok && sub.Lost():
				return errBehind
			case !ok:
				return errGoingAway
			case ev.Container != e.id || ev.Seq <= e.after:
				continue
			}
			if err := e.tell(ctx, ev); err != nil {
				return err
			}
		}
	}
}

// catchUp tells what is in the database and the client does not know. To one that knows nothing, or that asks for what is
// gone, that is how the container is now.
func (e *eventStream) catchUp(ctx context.Context) error {
	for {
		h, err := e.history(ctx)
		switch {
		case compute.CodeOf(err) == compute.CodeNotFound: // it was there when the stream was opened
			return errors.Join(e.sendEvent(ctx, 0, "deleted", openapi.ContainerEvent{ContainerID: e.id}), errDeleted)
		case err != nil:
			return err
		case !e.told || h.Missed:
			return e.begin(ctx, h)
		}
		for _, ev := range h.Events {
			if err := e.tell(ctx, ev); err != nil {
				return err
			}
		}
		if len(h.Events) < eventPage {
			e.after = h.Seq
			return nil
		}
	}
}

func (e *eventStream) history(ctx context.Context) (compute.History, error) {
	ctx, cancel := context.WithTimeout(ctx, e.s.timeout)
	defer cancel()
	return e.s.service.ContainerHistory(ctx, e.cred.Principal, e.id, e.after, eventPage)
}

// begin tells how the container is now and, if the client wanted to know what was before, that it cannot.
func (e *eventStream) begin(ctx context.Context, h compute.History) error {
	if e.told {
		if err := e.sendEvent(ctx, 0, "missed", openapi.EventsMissed{After: e.after}); err != nil {
			return err
		}
	}
	e.told, e.after = true, h.Seq
	return e.sendEvent(ctx, h.Seq, "status", openapi.ContainerEvent{
		ContainerID: e.id, Status: h.Container.Status, StatusMessage: h.Container.StatusMessage,
	})
}

// tell tells an event.
func (e *eventStream) tell(ctx context.Context, ev compute.Event) error {
	e.after = ev.Seq
	about := openapi.ContainerEvent{ContainerID: e.id, At: ev.At.UTC().Format(time.RFC3339)}
	switch ev.Kind {
	case compute.EventContainerStatus:
		about.Status, about.StatusMessage = ev.Status, ev.StatusMessage
		return e.sendEvent(ctx, ev.Seq, "status", about)
	case compute.EventContainerDeleted:
		if err := e.sendEvent(ctx, ev.Seq, "deleted", about); err != nil {
			return err
		}
		return errDeleted
	default:
		return nil
	}
}

// sendEvent sends an event; the number 0 leaves the client's as it is.
func (e *eventStream) sendEvent(ctx context.Context, seq int64, kind string, data any) error {
	id := ""
	if seq > 0 {
		id = fmt.Sprintf("id: %d\n", seq)
	}
	return e.send(ctx, fmt.Sprintf("%sevent: %s\ndata: %s\n\n", id, kind, bytes.TrimSpace(encode(data))))
}

// send waits until the client's machine takes it, but not long.
func (e *eventStream) send(ctx context.Context, text string) error {
	_ = e.conn.SetWriteDeadline(time.Now().Add(e.s.feeds.times.write))
	if ctx.Err() != nil {
		_ = e.conn.SetWriteDeadline(time.Now().Add(hurry))
	}
	_, err := io.WriteString(e.body, text)
	if err == nil {
		err = e.w.Flush()
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() == nil && timedOut(err):
		return errNotTaken
	default:
		return errGone
	}
}

// sayGoodbye tells the client why the stream ends, and ends it.
func (e *eventStream) sayGoodbye(cause error) {
	var going *closing
	said := compute.AsError(cause)
	switch {
	case errors.Is(cause, errNotTaken):
		e.s.feeds.slow.Add(1)
		_ = e.conn.Conn.Close() // it takes nothing
		return
	case errors.Is(cause, errGone):
		return
	case errors.Is(cause, errDeleted):
		said = nil
	case errors.As(cause, &going):
		said = errStopped
	case said == nil:
		said = compute.Internal("tell events", cause)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // in a hurry
	if said != nil {
		if said.Code == compute.CodeUnauthenticated || said.Code == compute.CodeForbidden {
			e.s.feeds.forbidden.Add(1)
		}
		if e.sendEvent(ctx, 0, "end", openapi.StreamEnd{Code: said.Code, Detail: said.Message}) != nil {
			return
		}
	}
	if chunks, ok := e.body.(io.Closer); ok {
		_ = chunks.Close()
		_, _ = e.w.WriteString("\r\n")
		_ = e.w.Flush()
	}
	e.conn.linger.Store(true)
}
