package httpapi

import (
	"context"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
)

const (
	// headerUnacknowledged names the gateways that may not know of what was just revoked.
	headerUnacknowledged = "Berth-Unacknowledged"
	// revokeWait is how long a revoking answer waits for them.
	revokeWait = time.Second
)

// revoked is called before the answer to a change that takes something from somebody.
func (s *Server) revoked(ctx context.Context, c *fiber.Ctx) {
	if s.gateways == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, revokeWait)
	defer cancel()
	if names := s.gateways.Unacknowledged(ctx); len(names) > 0 {
		c.Set(headerUnacknowledged, strings.Join(names, ", "))
	}
}
