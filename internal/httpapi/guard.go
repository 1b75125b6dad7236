package httpapi

import (
	"context"
	"errors"
	"time"

	"berth/internal/auth"
	"berth/internal/compute"
)

// What ends a request that lasts.
var (
	errNoLonger = compute.Errorf(compute.CodeForbidden, "The token is not for that any more; get a new one.")
	errPast     = compute.Errorf(compute.CodeUnauthenticated, "The token has expired; get a new one.")
)

// verifyAgain says why a credential that was good is so no more, or nil.
func (s *Server) verifyAgain(ctx context.Context, cred credential, scope auth.Scope) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	g, err := s.verifier.Verify(ctx, cred.token)
	switch {
	case err != nil:
		return err
	case g.User != cred.User || !g.Allows(scope):
		return errNoLonger
	}
	return nil
}

// guardEvents is how many events may wait for a guard.
const guardEvents = 16

// guard watches over a request that lasts: it returns why the request must end, once its credential is not good any more or
// look, if there is one, which is asked again after every change of the account's containers, says so; nil when ctx ends before
// that.
func (s *Server) guard(ctx context.Context, cred credential, scope auth.Scope, look func(context.Context) error) error {
	expiry := time.NewTimer(time.Until(cred.Expires))
	defer expiry.Stop()
	for {
		err := s.guardOnce(ctx, cred, scope, expiry.C, look)
		switch {
		case ctx.Err() != nil:
			return nil
		case !errors.Is(err, errBehind):
			return err
		}
	}
}

// guardOnce guards until its subscription is lost. It subscribes first and then looks: nothing falls between.
func (s *Server) guardOnce(
	ctx context.Context, cred credential, scope auth.Scope, expiry <-chan time.Time, look func(context.Context) error,
) error {
	sub := s.events.Subscribe(cred.User, guardEvents)
	defer sub.Close()
	if look == nil {
		look = func(context.Context) error { return nil }
	}
	err := s.verifyAgain(ctx, cred, scope)
	if err == nil {
		err = look(ctx)
	}
	for {
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-expiry:
			return errPast
		case e, ok := <-sub.C:
			switch {
			case !ok && sub.Lost():
				return errBehind
			case !ok:
				return errStopped
			case e.Container != "":
				err = look(ctx)
			default:
				err = s.verifyAgain(ctx, cred, scope)
			}
		}
	}
}
