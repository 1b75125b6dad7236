package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	openapi "berth/api"
	"berth/internal/compute"
)

// Codes of this edge alone: what goes wrong before a request means anything.
const (
	codeBadRequest    compute.Code = "bad_request"       // not HTTP as it should be
	codeHeaderTooLong compute.Code = "headers_too_large" // over maxHeader
	codeSlow          compute.Code = "request_timeout"   // not all of it came in time
	codeUnknownMethod compute.Code = "method_not_known"  // no method of HTTP
	codeUpgrade       compute.Code = "upgrade_required"  // the path is a WebSocket's
	codeTooMany       compute.Code = "too_many_requests" // of one account, just now
	problemType                    = "application/problem+json"
	retryAfter                     = "5" // seconds
)

// statuses is the one table from codes to statuses. 400 is the status of every value that is not as it should be,
// whether it cannot be read or is out of range: docs/adr/0007 says why not 422.
var statuses = map[compute.Code]int{
	compute.CodeInvalid:          http.StatusBadRequest,
	compute.CodeUnauthenticated:  http.StatusUnauthorized,
	compute.CodeForbidden:        http.StatusForbidden,
	compute.CodeNotFound:         http.StatusNotFound,
	compute.CodeConflict:         http.StatusConflict,
	compute.CodeLimit:            http.StatusConflict,
	compute.CodeNotRunning:       http.StatusConflict,
	compute.CodeSSHDisabled:      http.StatusConflict,
	compute.CodeStorageMissing:   http.StatusConflict,
	compute.CodePrecondition:     http.StatusPreconditionFailed,
	compute.CodeMethod:           http.StatusMethodNotAllowed,
	compute.CodeTooLarge:         http.StatusRequestEntityTooLarge,
	compute.CodeUnsupportedMedia: http.StatusUnsupportedMediaType,
	compute.CodeInternal:         http.StatusInternalServerError,
	compute.CodeCapacity:         http.StatusServiceUnavailable,
	compute.CodeUnavailable:      http.StatusServiceUnavailable,

	codeBadRequest:    http.StatusBadRequest,
	codeHeaderTooLong: http.StatusRequestHeaderFieldsTooLarge,
	codeSlow:          http.StatusRequestTimeout,
	codeUnknownMethod: http.StatusNotImplemented,
	codeUpgrade:       http.StatusUpgradeRequired,
	codeTooMany:       http.StatusTooManyRequests,
}

// What is said where no handler is reached.
var (
	errNoPath = compute.Errorf(compute.CodeNotFound,
		"There is no such path; paths are exact, in lower case and without a slash at the end.")
	errMethod = compute.Errorf(compute.CodeMethod,
		"This path does not take that method; the Allow header lists those it does.")
	errBadRequest = compute.Errorf(codeBadRequest, "That is not a well-formed HTTP request.")
	errTooLarge   = compute.Errorf(compute.CodeTooLarge,
		"The body is over %d kB; nothing here needs that much.", maxBody>>10)
	errHeader = compute.Errorf(codeHeaderTooLong,
		"The request line and headers are over %d kB together; send fewer or shorter ones.", maxHeader>>10)
	errSlow    = compute.Errorf(codeSlow, "The request did not arrive in time; send it again.")
	errUnknown = compute.Errorf(codeUnknownMethod, "HTTP has no such method.")
	errLength  = compute.Errorf(codeBadRequest, "A request has a Content-Length or a Transfer-Encoding, not both.")
	errCrowded = compute.Errorf(compute.CodeUnavailable, "There are too many connections; try again in a moment.")
	errStopped = compute.Errorf(compute.CodeUnavailable, "The server is stopping; try again in a moment.")
)

// newProblem is the body of every error (RFC 9457, section 3.1). The type is about:blank, so that the title is the
// status's own phrase; programs match on the code.
func newProblem(e *compute.Error) openapi.Problem {
	status, ok := statuses[e.Code]
	if !ok {
		status = http.StatusInternalServerError
	}
	return openapi.Problem{
		Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: e.Message, Code: e.Code, Field: e.Field,
	}
}

// domainError finds what a client may read of err.
func domainError(err error) *compute.Error {
	var fe *fiber.Error
	e := compute.AsError(err)
	ours := e == nil || e.Code == compute.CodeInternal
	switch {
	case ours && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)):
		return &compute.Error{
			Code: compute.CodeUnavailable, Cause: err,
			Message: "That took too long and was given up, perhaps after it was done; look before you try again.",
		}
	case e != nil:
		return e
	case errors.As(err, &fe) && fe.Code == http.StatusNotFound:
		return errNoPath
	case errors.As(err, &fe) && fe.Code == http.StatusMethodNotAllowed:
		return errMethod
	default:
		return compute.Internal("answer a request", err)
	}
}

// fail answers with err and leaves it for the log.
func (s *Server) fail(fctx *fasthttp.RequestCtx, err error) {
	r := requestOf(fctx)
	r.err = err
	e := domainError(err)
	p := newProblem(e)
	h := &fctx.Response.Header
	switch p.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		if text := s.challenge(r, p.Status); text != "" {
			h.Set("WWW-Authenticate", text)
		}
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		if len(h.Peek("Retry-After")) == 0 { // or it is known better
			h.Set("Retry-After", retryAfter)
		}
	}
	if p.Status >= http.StatusInternalServerError {
		p.RequestID = r.id
	}
	if err := writeJSON(fctx, p.Status, problemType, p); err != nil {
		panic(err) // a problem is made of strings and numbers
	}
}

// unreadable answers what fasthttp could not read as a request, for which no handler runs; the connection ends after
// it. Its error is for nobody: it quotes the request, which may hold a token.
func (s *Server) unreadable(fctx *fasthttp.RequestCtx, err error) {
	var (
		small *fasthttp.ErrSmallBuffer
		ne    net.Error
		said  = errBadRequest
	)
	switch {
	case errors.As(err, &small):
		said = errHeader
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		said = errTooLarge
	case errors.Is(err, fasthttp.ErrTimeout), errors.As(err, &ne) && ne.Timeout():
		said = errSlow
	}
	if c, ok := fctx.Conn().(*conn); ok {
		c.linger.Store(true)
	}
	r := newRequest(s.base, fctx)
	s.fail(fctx, said)
	s.finish(fctx, r)
}

// encode writes v as JSON without the escapes that HTML needs.
func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil
	}
	return b.Bytes()
}

func writeJSON(fctx *fasthttp.RequestCtx, status int, contentType string, v any) error {
	body := encode(v)
	if body == nil {
		return compute.Internal("encode an answer", errors.New("not JSON"))
	}
	fctx.Response.SetStatusCode(status)
	fctx.Response.Header.SetContentType(contentType)
	fctx.Response.SetBody(body)
	return nil
}
