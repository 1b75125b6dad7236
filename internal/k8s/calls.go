package k8s

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"berth/internal/compute"
)

// caller sends requests to the API server. It bounds how long an answer may take to begin, and logs as a step what was
// changed; tests cut a run off at every one of them.
type caller struct {
	next http.RoundTripper
	log  *slog.Logger
}

var errSlowAnswer = fmt.Errorf("the API server did not begin to answer within %s", callTimeout)

func (c caller) RoundTrip(q *http.Request) (*http.Response, error) {
	if strings.HasSuffix(q.URL.Path, "/exec") { // its stream lives as long as its own context
		return c.next.RoundTrip(q)
	}
	ctx, cancel := context.WithCancelCause(q.Context())
	timer := time.AfterFunc(callTimeout, func() { cancel(errSlowAnswer) })
	a, err := c.next.RoundTrip(q.WithContext(ctx))
	if !timer.Stop() && err == nil {
		a.Body.Close()
		err = errSlowAnswer
	}
	if err != nil {
		if context.Cause(ctx) == errSlowAnswer {
			err = errSlowAnswer
		}
		cancel(nil)
		return nil, err
	}
	a.Body = &body{a.Body, func() { cancel(nil) }}
	if q.Method != http.MethodGet && a.StatusCode < http.StatusMultipleChoices {
		c.log.Debug("step", "asked", q.Method+" "+q.URL.Path)
	}
	return a, nil
}

// body lets its request's context go when it is closed.
type body struct {
	io.ReadCloser
	done func()
}

func (b *body) Close() error {
	defer b.done()
	return b.ReadCloser.Close()
}

func (e *Engine) explain(ctx context.Context, op string, err error) error {
	return explain(ctx, op, err)
}

// explain gives an owner words for what the API server answers. What it lacks in rights is in the cause, for the operator.
func explain(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if own := compute.AsError(err); own != nil {
		return err
	}
	cause := fmt.Errorf("%s: %w", op, err)
	var status apierrors.APIStatus
	switch {
	case overQuota(err.Error()):
		return &compute.Error{Code: compute.CodeCapacity, Cause: cause, Message: quotaMessage}
	case refused(err):
		return refusal(cause)
	case errors.As(err, &status) && status.Status().Code != 0 && status.Status().Code < http.StatusInternalServerError &&
		!apierrors.IsTooManyRequests(err) && !apierrors.IsTimeout(err):
		return compute.Internal(op, err)
	}
	return unreachable(op, err)
}

const quotaMessage = "The cluster's quota has no room for it now; ask your operator for more, or ask for less. It is tried again."

func overQuota(why string) bool { return strings.Contains(why, "exceeded quota") }

// refused says whether the API server will not do something, for want of rights or because a policy says so.
func refused(err error) bool {
	var status apierrors.APIStatus
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) ||
		errors.As(err, &status) && strings.Contains(status.Status().Message, " denied ") // by an admission policy or webhook
}

func refusal(cause error) *compute.Error {
	return &compute.Error{
		Code: compute.CodeUnavailable, Cause: cause,
		Message: "The cluster refuses what this needs; your operator can see why. It is tried again.",
	}
}

func unreachable(op string, err error) *compute.Error {
	return &compute.Error{
		Code: compute.CodeUnavailable, Cause: fmt.Errorf("%s: %w", op, timely(err)),
		Message: "The cluster does not answer at the moment; this is tried again.",
	}
}

// timely adds to what is wrong with a certificate's time what is most often the reason.
func timely(err error) error {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return fmt.Errorf("%w (is this machine's clock right, and the cluster's?)", err)
	}
	return err
}
