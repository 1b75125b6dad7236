package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/gofiber/fiber/v2"

	"berth/internal/compute"
	"berth/internal/session"
)

// logPiece is how much of a log is sent at a time: a client must take as much within the time for one message.
const logPiece = 16 << 10

// logStream is one client that reads what a container's command writes. What a slow one does not take waits in the container,
// as far as that keeps it.
type logStream struct {
	*stream
	id   compute.ContainerID
	text io.ReadCloser

	within bool // what was sent last ended within a line
}

// openLogs is GET /compute/containers/:id/logs.
func (s *Server) openLogs(ctx context.Context, c *fiber.Ctx, cred credential) (err error) {
	var q session.LogQuery
	if q.Tail, err = wantedLines(c); err != nil {
		return err
	}
	q.Follow = c.Query("follow") == "true"
	var l logStream
	if l.id, err = containerID(c); err != nil {
		return err
	}
	box, err := s.service.RunningContainer(ctx, cred.Principal, l.id)
	if err != nil {
		return err
	}
	fctx := c.Context()
	fctx.Response.Header.SetContentType("text/plain; charset=utf-8")
	if fctx.IsHead() {
		return nil
	}
	if l.stream, err = s.newStream(fctx, cred, "log", l.id); err != nil {
		return err
	}
	client := session.Client{User: "root", Remote: fctx.RemoteAddr().String(), Local: fctx.LocalAddr().String()}
	if l.text, err = s.sessions.Logs(ctx, box.Ref(), client, q); err != nil {
		l.leave()
		return err
	}
	l.take(fctx, &l)
	return nil
}

// wantedLines returns how many of the last lines are asked for; nil: all.
func wantedLines(c *fiber.Ctx) (*int64, error) {
	text := c.Query("tail")
	if text == "" {
		return nil, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return nil, compute.Invalid("tail", "tail is a number of lines, 0 or more.")
	}
	return &n, nil
}

// tell sends what the container gives.
func (l *logStream) tell(ctx context.Context) error {
	defer l.text.Close()
	defer context.AfterFunc(ctx, func() { _ = l.text.Close() })()
	piece := make([]byte, logPiece)
	if err := l.send(ctx, nil); err != nil { // the head, at once
		return err
	}
	for {
		n, err := l.text.Read(piece)
		if n > 0 {
			l.within = piece[n-1] != '\n'
			if err := l.send(ctx, piece[:n]); err != nil {
				return err
			}
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF):
			return errOver
		case err != nil:
			return err
		}
	}
}

// look is false to a container that is deleted. One that is told to stop says itself when there is no more.
func (l *logStream) look(ctx context.Context) error {
	_, err := l.s.service.RunningContainer(ctx, l.cred.Principal, l.id)
	if err != nil && compute.CodeOf(err) == compute.CodeNotRunning {
		return nil
	}
	return err
}

// goodbye is in a line of its own.
func (l *logStream) goodbye(ctx context.Context, why *compute.Error) error {
	text := fmt.Sprintf("berth: the log ends here: %s\n", why.Message)
	if l.within {
		text = "\n" + text
	}
	return l.send(ctx, []byte(text))
}
