package httpapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	"berth/internal/auth"
	"berth/internal/compute"
)

// request is what is known of one request beside fiber's own view of it.
type request struct {
	ctx   context.Context
	id    string
	began time.Time

	grant auth.Grant // what the request's credential proves, once it has

	route string // the pattern that took the request; empty while none has

	// For the log. The token itself is nowhere here.
	user      compute.UserID
	tokenID   string
	badToken  bool // a token was there, and refused
	badOrigin bool // the page that asks may not
	err       error
}

type requestKey struct{}

func requestOf(fctx *fasthttp.RequestCtx) *request { return fctx.UserValue(requestKey{}).(*request) }

// requestID is what is taken over from a client or a proxy before us, so that one id runs through all logs.
var requestID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func newRequest(ctx context.Context, fctx *fasthttp.RequestCtx) *request {
	r := &request{ctx: ctx, began: time.Now(), id: string(fctx.Request.Header.Peek("X-Request-Id"))}
	if !requestID.MatchString(r.id) {
		r.id = rand.Text()
	}
	fctx.SetUserValue(requestKey{}, r)
	return r
}

// serve is around fiber: what holds for every request holds here, also for paths and methods that no route has.
func (s *Server) serve(fctx *fasthttp.RequestCtx) {
	if !s.begin() {
		r := newRequest(s.base, fctx)
		fctx.SetConnectionClose()
		s.fail(fctx, errStopped)
		s.finish(fctx, r)
		return
	}
	defer s.inflight.Done()
	ctx, cancel := context.WithTimeout(s.base, s.timeout)
	defer cancel()
	r := newRequest(ctx, fctx)
	s.route(fctx, r)
	s.finish(fctx, r)
}

func (s *Server) route(fctx *fasthttp.RequestCtx, r *request) {
	defer func() {
		if v := recover(); v != nil {
			fctx.Response.Reset()
			s.fail(fctx, compute.Internal("panic", fmt.Errorf("%v\n%s", v, debug.Stack())))
		}
	}()
	switch {
	case !slices.Contains(fiber.DefaultMethods, string(fctx.Method())):
		s.fail(fctx, errUnknown)
	case ambiguous(&fctx.Request.Header):
		fctx.SetConnectionClose()
		s.fail(fctx, errLength)
	default:
		s.next(fctx)
	}
}

// ambiguous says whether the request has two lengths: a proxy before us may have believed the other one (RFC 9112,
// section 6.1). It reads the headers as they came, since fasthttp has put one length in place of both.
func ambiguous(h *fasthttp.RequestHeader) bool {
	var length, coding bool
	for line := range bytes.Lines(h.RawHeaders()) {
		name, _, _ := bytes.Cut(line, []byte(":"))
		length = length || bytes.EqualFold(name, []byte(fiber.HeaderContentLength))
		coding = coding || bytes.EqualFold(name, []byte(fiber.HeaderTransferEncoding))
	}
	return length && coding
}

// nothingElse is the policy of answers that are no pages, and the beginning of that of a page.
const nothingElse = "default-src 'none'; frame-ancestors 'none'"

// finish sets the headers that every answer has, and writes the log's line.
func (s *Server) finish(fctx *fasthttp.RequestCtx, r *request) {
	h := &fctx.Response.Header
	h.Set("X-Request-Id", r.id)
	h.Set("X-Content-Type-Options", "nosniff")
	for name, value := range map[string]string{"Cache-Control": "no-store", "Content-Security-Policy": nothingElse} {
		if len(h.Peek(name)) == 0 { // the document has its own
			h.Set(name, value)
		}
	}

	s.tell(fctx, r)
	s.recordStranger(fctx, r)
	status := fctx.Response.StatusCode()
	path := string(fctx.URI().PathOriginal()) // never the query, which may hold a token
	level := slog.LevelInfo
	switch {
	case status == http.StatusInternalServerError:
		level = slog.LevelError
	case isProbe(path):
		level = slog.LevelDebug
	case status > http.StatusInternalServerError:
		level = slog.LevelWarn
	case r.user == 0:
		level = slog.LevelDebug // what anybody may send as often as they like
	}
	if !s.log.Enabled(r.ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("id", r.id), slog.String("method", clip(string(fctx.Method()), 16)), slog.String("path", clip(path, 128)),
		slog.Int("status", status), slog.Duration("took", time.Since(r.began)),
		slog.String("remote", fctx.RemoteAddr().String()),
	}
	if r.user != 0 {
		attrs = append(attrs, slog.Int64("user", int64(r.user)), slog.String("token", r.tokenID))
	}
	if r.err != nil {
		attrs = append(attrs, slog.Any("err", r.err))
	}
	s.log.LogAttrs(r.ctx, level, "request", attrs...)
}

// clip bounds a text that a client made up, at a whole character.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
