package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/gofiber/fiber/v2"

	openapi "berth/api"
	"berth/internal/compute"
)

const (
	headerLastEventID = "Last-Event-ID"
	eventPage         = 256  // events that are read at once
	reconnectMillis   = 3000 // after which a client that lost the stream comes again
)

var errDeleted = fmt.Errorf("the container was deleted: %w", errOver)

// eventStream is one client that is told of one container (WHATWG HTML, section 9.2, server-sent events). A client that is
// slow to take events misses some on the bus, and is told them from the database.
type eventStream struct {
	*stream
	id compute.ContainerID

	told  bool  // after is what the client knows
	after int64 // the number of the last event that it knows of
}

// openEvents is GET /compute/containers/:id/events.
func (s *Server) openEvents(ctx context.Context, c *fiber.Ctx, cred credential) (err error) {
	var e eventStream
	if e.after, e.told, err = lastEvent(c); err != nil {
		return err
	}
	if e.id, err = containerID(c); err != nil {
		return err
	}
	if _, err := s.service.ContainerHistory(ctx, cred.Principal, e.id, e.after, 0); err != nil {
		return err
	}
	c.Context().Response.Header.SetContentType("text/event-stream")
	if c.Context().IsHead() {
		return nil
	}
	if e.stream, err = s.newStream(c.Context(), cred, "stream of events", e.id); err != nil {
		return err
	}
	e.take(c.Context(), &e)
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

// look has nothing to look for: the end of the container is an event.
func (e *eventStream) look(context.Context) error { return nil }

// tell follows the events, from one subscription to the next, until the client is to go.
func (e *eventStream) tell(ctx context.Context) error {
	if err := e.send(ctx, fmt.Appendf(nil, "retry: %d\n\n", reconnectMillis)); err != nil {
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
			if err := e.send(ctx, []byte(": still here\n\n")); err != nil {
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
			if err := e.pass(ctx, ev); err != nil {
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
			if err := e.pass(ctx, ev); err != nil {
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

// pass tells an event.
func (e *eventStream) pass(ctx context.Context, ev compute.Event) error {
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
	return e.send(ctx, fmt.Appendf(nil, "%sevent: %s\ndata: %s\n\n", id, kind, bytes.TrimSpace(encode(data))))
}

func (e *eventStream) goodbye(ctx context.Context, why *compute.Error) error {
	return e.sendEvent(ctx, 0, "end", openapi.StreamEnd{Code: why.Code, Detail: why.Message})
}
