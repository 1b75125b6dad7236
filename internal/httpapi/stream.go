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
	"sync"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	"berth/internal/auth"
	"berth/internal/compute"
)

// errOver is why a stream ends that has told everything.
var errOver = errors.New("there is no more to tell")

// stream is an answer that goes on until there is no more to tell, its client leaves, or its credential is not good any more.
// It takes the connection from the HTTP server. One goroutine writes, another guards the credential.
type stream struct {
	s     *Server
	cred  credential
	what  string // it is, for the log
	log   *slog.Logger
	conn  *conn
	leave func()

	w    *bufio.Writer
	body io.Writer // into w
}

// handleStream registers f, which begins a stream, unless all that is asked for is the head of it.
func (s *Server) handleStream(path string, f func(context.Context, *fiber.Ctx, credential) error) {
	described := describe(fiber.MethodGet, path)
	checked := s.audited(described, func(ctx context.Context, c *fiber.Ctx) (answer, error) {
		cred, err := s.admit(ctx, c, auth.ScopeContainersRead, headerOrCookie)
		if err == nil {
			err = described.check(c)
		}
		if err == nil {
			err = f(ctx, c, cred)
		}
		return answer{}, err
	})
	s.app.Get(path, func(c *fiber.Ctx) error {
		_, err := checked(requestOf(c.Context()).ctx, c)
		return err
	})
}

// newStream takes a seat for a stream about a container. Take the connection for it, or leave.
func (s *Server) newStream(
	fctx *fasthttp.RequestCtx, cred credential, what string, id compute.ContainerID,
) (*stream, error) {
	nc, ok := fctx.Conn().(*conn)
	if !ok {
		return nil, compute.Internal("open "+what, fmt.Errorf("on a %T", fctx.Conn()))
	}
	leave, err := s.feeds.reserve(cred.User)
	if err != nil {
		return nil, err
	}
	log := s.log.With("id", requestOf(fctx).id, "user", int64(cred.User), "token", cred.TokenID, "container", id)
	return &stream{s: s, cred: cred, what: what, log: log, conn: nc, leave: leave}, nil
}

// teller is what a stream tells.
type teller interface {
	// tell sends until there is no more, which is errOver, or ctx ends.
	tell(ctx context.Context) error
	// look says why the client must hear no more, or nil: it is asked after every change of the account's containers.
	look(ctx context.Context) error
	// goodbye tells the client why the stream ends before there is no more.
	goodbye(ctx context.Context, why *compute.Error) error
}

// take takes the connection from the HTTP server, which answers nothing itself.
func (st *stream) take(fctx *fasthttp.RequestCtx, t teller) {
	st.s.conns.take(st.conn, st.leave)
	h := &fctx.Response.Header
	h.Set("X-Accel-Buffering", "no") // proxies would keep back what is to be told at once
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
		st.run(t, head, chunked)
	})
}

// run serves the client until it is to go.
func (st *stream) run(t teller, head []byte, chunked bool) {
	began := time.Now()
	ctx, end := context.WithCancelCause(st.s.feeds.base)
	defer end(nil)
	defer context.AfterFunc(ctx, func() { _ = st.conn.SetWriteDeadline(time.Now().Add(hurry)) })()
	var guarding sync.WaitGroup
	guarding.Go(func() {
		if err := guarded(func() error { return st.s.guard(ctx, st.cred, auth.ScopeContainersRead, t.look) }); err != nil {
			end(err)
		}
	})
	stopWatch := st.conn.whenGone(func() { end(errGone) })
	st.w = bufio.NewWriterSize(st.conn, writeBuffer)
	st.body = st.w
	end(guarded(func() error {
		if _, err := st.w.Write(head); err != nil {
			return err
		}
		if chunked {
			st.body = httputil.NewChunkedWriter(st.w)
		}
		return t.tell(ctx)
	}))
	guarding.Wait()
	stopWatch()
	cause := context.Cause(ctx)
	st.end(cause, t)
	st.log.Log(st.s.base, levelOf(cause), st.what+" ended", "why", cause, "took", time.Since(began))
}

// levelOf is the level at which the end of what lasted is logged: faults of ours stand out.
func levelOf(cause error) slog.Level {
	if e := compute.AsError(cause); e != nil && e.Code == compute.CodeInternal {
		return slog.LevelError
	}
	return slog.LevelInfo
}

// send waits until the client's machine takes it, but not long.
func (st *stream) send(ctx context.Context, text []byte) error {
	_ = st.conn.SetWriteDeadline(time.Now().Add(st.s.feeds.times.write))
	if ctx.Err() != nil {
		_ = st.conn.SetWriteDeadline(time.Now().Add(hurry))
	}
	_, err := st.body.Write(text)
	if err == nil {
		err = st.w.Flush()
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

// end tells the client why the stream ends, and ends it.
func (st *stream) end(cause error, t teller) {
	var going *closing
	said := compute.AsError(cause)
	switch {
	case errors.Is(cause, errNotTaken):
		st.s.feeds.slow.Add(1)
		_ = st.conn.Conn.Close() // it takes nothing
		return
	case errors.Is(cause, errGone):
		return
	case errors.Is(cause, errOver):
		said = nil
	case errors.As(cause, &going):
		said = errStopped
	case said == nil:
		said = compute.Internal("tell "+st.what, cause)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // in a hurry
	if said != nil {
		if said.Code == compute.CodeUnauthenticated || said.Code == compute.CodeForbidden {
			st.s.feeds.forbidden.Add(1)
		}
		if t.goodbye(ctx, said) != nil {
			return
		}
	}
	if chunks, ok := st.body.(io.Closer); ok {
		_ = chunks.Close()
		_, _ = st.w.WriteString("\r\n")
		_ = st.w.Flush()
	}
	st.conn.linger.Store(true)
}
