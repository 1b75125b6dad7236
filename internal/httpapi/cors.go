package httpapi

import (
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/cors"
)

// preflightLife is how long a browser may remember what it was allowed.
const preflightLife = 10 * time.Minute

// shareWithPages lets browsers hand answers to the pages that the operator trusts, also those to requests with a session. To
// every other page, and to programs, the API answers as if there were no such thing: their browser keeps the answer from them.
func (s *Server) shareWithPages() fiber.Handler {
	return cors.New(cors.Config{
		Next: func(c *fiber.Ctx) bool {
			values := c.Request().Header.PeekAll(fiber.HeaderOrigin)
			return len(values) != 1 || !s.origins.permits(string(values[0]), "")
		},
		AllowOriginsFunc: func(string) bool { return true }, // Next has looked
		AllowCredentials: true,
		AllowMethods:     "GET,HEAD,POST,PUT,PATCH,DELETE",
		AllowHeaders: strings.Join([]string{
			fiber.HeaderAuthorization, fiber.HeaderContentType, fiber.HeaderIfMatch, headerIdempotencyKey, headerLastEventID, "X-Request-Id",
		}, ","),
		ExposeHeaders: strings.Join([]string{
			fiber.HeaderETag, fiber.HeaderLocation, fiber.HeaderRetryAfter, fiber.HeaderWWWAuthenticate, "RateLimit", "RateLimit-Policy",
			"X-Request-Id", headerUnacknowledged,
		}, ","),
		MaxAge: int(preflightLife.Seconds()),
	})
}
