package httpapi

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"regexp"

	"github.com/gofiber/fiber/v2"

	"berth/internal/compute"
)

// Once remembers requests that are to be carried out once, and what they were answered with.
type Once interface {
	// BeginOnce is asked before one is carried out. It returns the answer of one that was; CodeConflict when the key is another
	// request's, or one's of which the end is not known.
	BeginOnce(ctx context.Context, owner compute.UserID, key string, request [32]byte) (*compute.SavedAnswer, error)
	FinishOnce(ctx context.Context, owner compute.UserID, key string, a compute.SavedAnswer) error
	ForgetOnce(ctx context.Context, owner compute.UserID, key string) error
}

const (
	headerIdempotencyKey = "Idempotency-Key"
	headerReplayed       = "Idempotency-Replayed"
)

// idempotencyKey is a key as it is, or as a structured field's string, which is the same one.
var idempotencyKey = regexp.MustCompile(`^(?:"([!#-\[\]-~]{1,255})"|([!#-\[\]-~]{1,255}))$`)

// handler answers what a principal asks.
type handler func(context.Context, *fiber.Ctx, compute.Principal) (answer, error)

// once has f carry out a request with an Idempotency-Key once, however often it comes, and answers the others as the first
// (IETF draft-ietf-httpapi-idempotency-key-header-07, with 409 in place of 422: see docs/adr/0007).
func (s *Server) once(f handler) handler {
	return func(ctx context.Context, c *fiber.Ctx, p compute.Principal) (answer, error) {
		keys := c.Request().Header.PeekAll(headerIdempotencyKey)
		if len(keys) == 0 {
			return f(ctx, c, p)
		}
		match := idempotencyKey.FindSubmatch(keys[0])
		if len(keys) > 1 || match == nil {
			return answer{}, compute.Errorf(compute.CodeInvalid,
				"An Idempotency-Key is 1 to 255 letters, digits and signs, without spaces; a UUID is a good one.")
		}
		key := string(match[1]) + string(match[2])
		request := sha256.Sum256(append([]byte(c.Method()+" "+c.Path()+"\n"), c.Request().Body()...))
		saved, err := s.saved.BeginOnce(ctx, p.User, key, request)
		if err != nil {
			return answer{}, err
		}
		if saved != nil {
			c.Set(headerReplayed, "true")
			if saved.Location != "" {
				c.Set(fiber.HeaderLocation, saved.Location)
			}
			return answer{saved.Status, json.RawMessage(saved.Body)}, nil
		}
		a, err := f(ctx, c, p)
		ctx = context.WithoutCancel(ctx) // what was done is to be remembered
		if err != nil {
			switch compute.CodeOf(err) {
			case compute.CodeInternal, compute.CodeUnavailable: // perhaps after it was done
			default:
				err = s.forgotten(ctx, p, key, err)
			}
			return answer{}, err
		}
		done := compute.SavedAnswer{Status: a.status, Location: c.GetRespHeader(fiber.HeaderLocation), Body: encode(a.body)}
		if err := s.saved.FinishOnce(ctx, p.User, key, done); err != nil {
			s.log.Warn("remember an answer; the request is not carried out again", "err", err)
		}
		return a, nil
	}
}

// forgotten forgets a request that was refused with err, which it returns.
func (s *Server) forgotten(ctx context.Context, p compute.Principal, key string, err error) error {
	if ferr := s.saved.ForgetOnce(ctx, p.User, key); ferr != nil {
		s.log.Warn("forget a request that was refused; it is not tried again", "err", ferr)
	}
	return err
}
