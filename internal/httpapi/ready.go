package httpapi

import (
	"net/http"
	"slices"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// isProbe says whether a path is one that machines ask again and again.
func isProbe(path string) bool { return path == "/healthz" || path == "/readyz" }

// readyz is GET /readyz.
func (s *Server) readyz(c *fiber.Ctx) error {
	if s.ready != nil {
		if err := s.ready(requestOf(c.Context()).ctx); err != nil {
			return err
		}
	}
	return c.SendString("ok")
}

// Observation is what is told of one answer. Both names are of sets that do not depend on what clients send.
type Observation struct {
	Method string // HEAD and what else the routes know; "other" where HTTP has no such method
	Route  string // the pattern that was registered; "none" where no route took the request
	Status int
	Took   time.Duration
}

// noRoute and otherMethod stand for everything that has no name of its own.
const (
	noRoute     = "none"
	otherMethod = "other"
)

// noteRoute goes around all routes and remembers the one that took the request.
func (s *Server) noteRoute(c *fiber.Ctx) error {
	own := c.Route()
	defer func() { // also when the handler panics
		if r := c.Route(); r != own {
			requestOf(c.Context()).route = r.Path
		}
	}()
	return c.Next()
}

// tell observes an answer that is about to be sent.
func (s *Server) tell(fctx *fasthttp.RequestCtx, r *request) {
	if s.observe == nil {
		return
	}
	o := Observation{Method: string(fctx.Method()), Route: r.route, Status: fctx.Response.StatusCode(), Took: time.Since(r.began)}
	if !slices.Contains(fiber.DefaultMethods, o.Method) {
		o.Method = otherMethod
	}
	if o.Route == "" {
		o.Route = noRoute
	}
	if o.Status < http.StatusContinue || o.Status > 599 {
		o.Status = http.StatusInternalServerError
	}
	s.observe(o)
}
