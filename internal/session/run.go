package session

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"regexp"
	"sync"
	"time"

	"berth/internal/agentproto"
	"berth/internal/compute"
)

// Command is a program to run in a container, without a terminal.
type Command struct {
	Argv  []string // the program, a path or a name to find in PATH, and its arguments: no shell reads them
	Env   []string // NAME=value
	Dir   string   // absolute; empty: the user's home
	Stdin []byte
}

// Result is how a command ended.
type Result struct {
	Ended          bool   // it was heard to end
	ExitCode       int    // 128 and the signal's number when a signal ended it, as in shells
	Signal         string // its name, without SIG; empty when it ended by itself
	Stdout, Stderr Output
}

// Output is what a command wrote, up to a limit.
type Output struct {
	Bytes     []byte
	Truncated bool // there was more
}

// mercy is how long a command whose time is over has after each signal: TERM, then KILL.
const mercy = 2 * time.Second

// beginning is how long an agent has to begin a command.
const beginning = 15 * time.Second

var errRunLost = compute.Errorf(compute.CodeUnavailable,
	"The connection to the container was lost; did it stop or restart? The command may have done its work.")

// Run runs a command for a client and collects up to limit bytes of each of its outputs; what is beyond is read and dropped.
// When ctx ends before it does, it is ended, and the result comes with ctx's cause. A command has ended once its process has,
// and everything else that has its outputs open.
func (m *Multiplexer) Run(ctx context.Context, r compute.Ref, c Client, cmd Command, limit int) (Result, error) {
	payload, err := agentproto.Exec{Argv: cmd.Argv, Env: cmd.Env, Dir: cmd.Dir}.Encode()
	if err != nil {
		return Result{}, compute.Invalid("command", "That is no command that could be run; it may be too long.")
	}
	att, err := m.Attach(ctx, r, c)
	if err != nil {
		return Result{}, err
	}
	defer att.Close()
	ch, err := att.Open(ctx, "session", nil)
	var refused *agentproto.OpenError
	switch {
	case errors.As(err, &refused) && refused.Reason == agentproto.ReasonProhibited:
		return Result{}, compute.Invalid("user", "There is no user %q in the container.", c.User)
	case err != nil:
		return Result{}, err
	}
	// Not by ctx: a command that may have begun is to be ended as one, not left with a hang-up.
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), beginning)
	defer cancel()
	ok, err := ch.Request(asking, agentproto.RequestExec, true, payload)
	if err != nil || !ok {
		_ = ch.Close()
		if err == nil {
			return Result{}, compute.Errorf(compute.CodeConflict,
				"The container runs with parts from before commands could be run this way; stop it and start it.")
		}
		return Result{}, unavailable(asking, "run a command", err)
	}
	return collect(ctx, ch, cmd.Stdin, limit)
}

// collect feeds a command that was begun, and returns how it ended.
func collect(ctx context.Context, ch Channel, stdin []byte, limit int) (Result, error) {
	stdout, stderr := capture{limit: limit}, capture{limit: limit}
	var copying sync.WaitGroup
	read := make(chan struct{})
	copying.Go(func() {
		defer close(read)
		var both sync.WaitGroup
		both.Go(func() { _, _ = io.Copy(&stderr, ch.Stderr()) })
		_, _ = io.Copy(&stdout, ch)
		both.Wait()
	})
	copying.Go(func() { // a command may end without reading it
		if _, err := ch.Write(stdin); err == nil {
			_ = ch.CloseWrite()
		}
	})
	end, err := await(ctx, ch, read)
	_ = ch.Close()
	copying.Wait()
	end.Stdout, end.Stderr = stdout.out, stderr.out
	return end, err
}

// await returns how a command ended once its output was read. When ctx ends first, it ends the command.
func await(ctx context.Context, ch Channel, read <-chan struct{}) (end Result, err error) {
	var (
		told    bool
		over    = ctx.Done()
		reqs    = ch.Requests()
		patient <-chan time.Time
		signals = []string{"TERM", "KILL"}
	)
	for reqs != nil || read != nil {
		select {
		case r, ok := <-reqs:
			if !ok {
				reqs = nil
				continue
			}
			e, ok := exitOf(r)
			_ = r.Reply(ok && !told, nil)
			if ok && !told {
				told, end = true, e
			}
		case <-read:
			read = nil
		case <-over:
			over, err = nil, context.Cause(ctx)
			if told { // only the outputs are held open, by what the command left behind
				return end, err
			}
			patient = signal(ch, signals[0])
		case <-patient:
			if signals = signals[1:]; len(signals) == 0 {
				return Result{}, err
			}
			patient = signal(ch, signals[0])
		}
	}
	if !told && err == nil {
		err = errRunLost
	}
	return end, err
}

// signal sends a signal to a command, and returns what ends the wait for its effect.
func signal(ch Channel, name string) <-chan time.Time {
	ctx, cancel := context.WithTimeout(context.Background(), mercy)
	defer cancel()
	payload := append(binary.BigEndian.AppendUint32(nil, uint32(len(name))), name...)
	_, _ = ch.Request(ctx, "signal", false, payload) // what does not take it is hung up on
	return time.After(mercy)
}

// signalNumbers are those of the signals of RFC 4254, section 6.10, on Linux.
func signalNumbers() map[string]int {
	return map[string]int{
		"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "ABRT": 6, "FPE": 8, "KILL": 9, "USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13,
		"ALRM": 14, "TERM": 15,
	}
}

// exitOther is told of a command that a signal ended which has no name there.
const exitOther = 255

var signalName = regexp.MustCompile(`^[A-Za-z0-9@.-]{1,64}$`)

// exitOf reads a request that tells of a command's end (RFC 4254, section 6.10); false for any other.
func exitOf(r *Request) (Result, bool) {
	switch {
	case r.Name == "exit-status" && len(r.Payload) == 4:
		return Result{Ended: true, ExitCode: int(min(binary.BigEndian.Uint32(r.Payload), exitOther))}, true
	case r.Name == "exit-signal" && len(r.Payload) >= 4:
		n, rest := binary.BigEndian.Uint32(r.Payload), r.Payload[4:]
		if uint64(n) > uint64(len(rest)) || !signalName.Match(rest[:n]) {
			return Result{}, false
		}
		end := Result{Ended: true, Signal: string(rest[:n]), ExitCode: exitOther}
		if number := signalNumbers()[end.Signal]; number > 0 {
			end.ExitCode = 128 + number
		}
		return end, true
	}
	return Result{}, false
}

// capture keeps the beginning of what is written to it.
type capture struct {
	limit int
	out   Output
}

func (c *capture) Write(p []byte) (int, error) {
	room := min(c.limit-len(c.out.Bytes), len(p))
	c.out.Bytes = append(c.out.Bytes, p[:room]...)
	c.out.Truncated = c.out.Truncated || room < len(p)
	return len(p), nil
}
