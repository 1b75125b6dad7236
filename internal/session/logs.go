package session

import (
	"context"
	"errors"
	"io"

	"berth/internal/agentproto"
	"berth/internal/compute"
)

// LogQuery selects what to read of a log.
type LogQuery struct {
	Tail   *int64 // at most so many of the last lines; nil: all that is kept
	Follow bool   // go on with what is written from now on
}

var errLogLost = compute.Errorf(compute.CodeUnavailable,
	"The connection to the container was lost; did it stop or restart?")

// Logs reads what a container keeps of the output of its command. Reading ends with io.EOF once that was all, with another
// error when the container is lost; it may be slow, which holds up nobody. Close ends a read that waits.
func (m *Multiplexer) Logs(ctx context.Context, r compute.Ref, c Client, q LogQuery) (io.ReadCloser, error) {
	payload, err := agentproto.Logs{Tail: q.Tail, Follow: q.Follow}.Encode()
	if err != nil {
		return nil, compute.Invalid("tail", "tail is a number of lines.")
	}
	att, err := m.Attach(ctx, r, c)
	if err != nil {
		return nil, err
	}
	ch, err := att.Open(ctx, agentproto.KindLogs, payload)
	if err != nil {
		_ = att.Close()
		var refused *agentproto.OpenError
		if errors.As(err, &refused) && refused.Reason == agentproto.ReasonUnknownKind {
			return nil, compute.Errorf(compute.CodeConflict,
				"The container runs with parts from before logs could be read; stop it and start it.")
		}
		return nil, err
	}
	return &logs{att, ch}, nil
}

// logs is a log that is read.
type logs struct {
	att *Attachment
	ch  Channel
}

func (l *logs) Read(p []byte) (int, error) {
	n, err := l.ch.Read(p)
	if err != nil && err != io.EOF {
		err = errLogLost
	}
	return n, err
}

func (l *logs) Close() error { return errors.Join(l.ch.Close(), l.att.Close()) }
