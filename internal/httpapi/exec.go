package httpapi

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gofiber/fiber/v2"

	openapi "berth/api"
	"berth/internal/auth"
	"berth/internal/compute"
	"berth/internal/session"
)

// Bounds of commands. An answer holds both outputs, at worst six bytes for each of theirs.
const (
	maxRuns        = 64
	maxRunsPerUser = 8
	maxOutput      = 256 << 10 // of each output
	maxArguments   = 1024
	maxVariables   = 128
	maxAccountName = 64

	defaultRunTime = time.Minute
	maxRunTime     = 15 * time.Minute
)

var (
	errRunTime    = errors.New("the command's time is over")
	errClientGone = errors.New("the client left")
)

// execCommand runs one command in a container and answers once it has ended. The command ends with the request: when the
// client leaves, when the credential is not good any more, when the container may not be entered any more.
func (s *Server) execCommand(ctx context.Context, c *fiber.Ctx, cred credential) (answer, error) {
	id, err := containerID(c)
	if err != nil {
		return answer{}, err
	}
	r, err := body[openapi.ExecRequest](c)
	if err != nil {
		return answer{}, err
	}
	cmd, err := wantedCommand(r)
	if err != nil {
		return answer{}, err
	}
	limit, err := wantedTime(r)
	if err != nil {
		return answer{}, err
	}
	client := session.Client{User: "root", Remote: c.Context().RemoteAddr().String(), Local: c.Context().LocalAddr().String()}
	if r.User != nil {
		client.User = *r.User
	}
	if client.User == "" || len(client.User) > maxAccountName {
		return answer{}, compute.Invalid("user",
			"user is the name of an account in the container, at most %d bytes.", maxAccountName)
	}
	box, err := s.service.EnterContainer(ctx, cred.Principal, id)
	if err != nil {
		return answer{}, err
	}
	leave, err := s.runs.reserve(cred.User)
	if err != nil {
		return answer{}, err
	}
	defer leave()
	s.recordBefore(ctx)
	run, end := s.lasting(c, cred, limit, func(ctx context.Context) error {
		_, err := s.service.EnterContainer(ctx, cred.Principal, id)
		return err
	})
	defer end()
	result, err := s.sessions.Run(run, box.Ref(), client, cmd, maxOutput)
	timedOut := errors.Is(err, errRunTime) && result.Ended
	switch {
	case timedOut:
	case s.base.Err() != nil:
		return answer{}, errStopped
	case errors.Is(err, errRunTime), errors.Is(err, errClientGone):
		return answer{}, &compute.Error{
			Code: compute.CodeUnavailable, Cause: err,
			Message: "The command did not end when it was told to; it may be running still.",
		}
	case err != nil:
		return answer{}, err
	}
	return answer{http.StatusOK, execResult(result, timedOut)}, nil
}

// lasting returns the context of a command, which outlasts other requests, and what must be called at its end.
func (s *Server) lasting(
	c *fiber.Ctx, cred credential, limit time.Duration, look func(context.Context) error,
) (ctx context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(s.base)
	timer := time.AfterFunc(limit, func() { cancel(errRunTime) })
	var guarding sync.WaitGroup
	guarding.Go(func() {
		err := guarded(func() error { return s.guard(ctx, cred, auth.ScopeContainersExec, look) })
		if err != nil {
			cancel(err)
		}
	})
	stopWatch := func() {}
	if nc, ok := c.Context().Conn().(*conn); ok {
		stopWatch = nc.whenGone(func() { cancel(errClientGone) })
	}
	return ctx, func() {
		timer.Stop()
		stopWatch()
		cancel(nil)
		guarding.Wait()
	}
}

func wantedCommand(r openapi.ExecRequest) (session.Command, error) {
	cmd := session.Command{Argv: r.Command, Env: r.Env, Dir: given(r.WorkingDirectory), Stdin: []byte(given(r.Stdin))}
	if len(cmd.Argv) == 0 || cmd.Argv[0] == "" || len(cmd.Argv) > maxArguments {
		return cmd, compute.Invalid("command",
			`command is a program and its arguments, at most %d, such as ["uname", "-a"].`, maxArguments)
	}
	for _, arg := range cmd.Argv {
		if strings.ContainsRune(arg, 0) {
			return cmd, compute.Invalid("command", "An argument has a NUL character, which no program can be given.")
		}
	}
	if len(cmd.Env) > maxVariables {
		return cmd, compute.Invalid("env", "env has at most %d variables.", maxVariables)
	}
	for _, setting := range cmd.Env {
		if strings.IndexByte(setting, '=') < 1 || strings.ContainsRune(setting, 0) {
			return cmd, compute.Invalid("env", `env is a list of variables, each NAME=value, such as ["LANG=C.UTF-8"].`)
		}
	}
	if r.WorkingDirectory != nil && (!strings.HasPrefix(cmd.Dir, "/") || strings.ContainsRune(cmd.Dir, 0)) {
		return cmd, compute.Invalid("working_directory", "working_directory is an absolute path, such as /srv.")
	}
	return cmd, nil
}

func wantedTime(r openapi.ExecRequest) (time.Duration, error) {
	if r.TimeoutSeconds == nil {
		return defaultRunTime, nil
	}
	if n := *r.TimeoutSeconds; n < 1 || int64(n) > int64(maxRunTime/time.Second) {
		return 0, compute.Invalid("timeout_seconds", "timeout_seconds is from 1 to %d.", maxRunTime/time.Second)
	}
	return time.Duration(*r.TimeoutSeconds) * time.Second, nil
}

func execResult(r session.Result, timedOut bool) openapi.ExecResult {
	out := openapi.ExecResult{
		ExitCode: r.ExitCode, Signal: r.Signal, Truncated: r.Stdout.Truncated || r.Stderr.Truncated, TimedOut: timedOut,
	}
	out.Stdout, out.StdoutBase64 = text(r.Stdout)
	out.Stderr, out.StderrBase64 = text(r.Stderr)
	return out
}

// text returns an output as text and, where that is not exactly what was written since it is no UTF-8, in base64 too. A
// character that the limit has cut in two is left out.
func text(o session.Output) (plain, exact string) {
	b := o.Bytes
	if o.Truncated {
		b = wholeCharacters(b)
	}
	if utf8.Valid(b) {
		return string(b), ""
	}
	return strings.ToValidUTF8(string(o.Bytes), "\ufffd"), base64.StdEncoding.EncodeToString(o.Bytes)
}

// wholeCharacters leaves out the beginning of a character at b's end.
func wholeCharacters(b []byte) []byte {
	for i := len(b) - 1; i >= max(0, len(b)-utf8.UTFMax+1); i-- {
		if utf8.RuneStart(b[i]) {
			if !utf8.FullRune(b[i:]) {
				return b[:i]
			}
			break
		}
	}
	return b
}
