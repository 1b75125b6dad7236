package session

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"berth/internal/agentproto"
	"berth/internal/compute"
)

// logKeeper is an agent that does f with channels for its log.
func logKeeper(f func(c *agentproto.Conn, q agentproto.Logs, ch *agentproto.Channel)) func(*agentproto.Conn) {
	return func(c *agentproto.Conn) {
		for {
			a, err := c.AcceptAttachment(context.Background())
			if err != nil {
				return
			}
			n, err := a.AcceptChannel(context.Background())
			if err != nil {
				return
			}
			q, err := agentproto.DecodeLogs(n.Payload)
			if n.Kind != agentproto.KindLogs || err != nil || q.Tail != nil && *q.Tail == 13 {
				_ = n.Reject(agentproto.ReasonUnknownKind, "this agent opens sessions alone")
				continue
			}
			if ch, err := n.Accept(); err == nil {
				f(c, q, ch)
			}
		}
	}
}

func TestLogs(t *testing.T) {
	long := strings.Repeat("a line\n", 300_000)
	m := start(t, Options{Dialer: newHost(t, logKeeper(func(c *agentproto.Conn, q agentproto.Logs, ch *agentproto.Channel) {
		switch {
		case q.Follow:
			_, _ = io.WriteString(ch, "lost")
			_ = c.Close()
		case q.Tail == nil:
			_, _ = io.WriteString(ch, long)
		}
		_ = ch.CloseWrite()
		_ = ch.Close()
	}))})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	none, unlucky, negative := int64(0), int64(13), int64(-1)
	for _, tc := range []struct {
		q    LogQuery
		want string
		code compute.Code // of the reading
	}{
		{LogQuery{}, long, ""},
		{LogQuery{Tail: &none}, "", ""},
		{LogQuery{Follow: true}, "lost", compute.CodeUnavailable},
	} {
		l, err := m.Logs(ctx, box, Client{User: "root"}, tc.q)
		if err != nil {
			t.Fatalf("%+v: %v", tc.q, err)
		}
		text, err := io.ReadAll(l)
		// What was on its way when the connection broke may be lost.
		if (err == nil) != (tc.code == "") || tc.code != "" && compute.CodeOf(err) != tc.code ||
			string(text) != tc.want && !(tc.q.Follow && len(text) == 0) {
			t.Errorf("%+v: %.100q, %v", tc.q, text, err)
		}
		if err := l.Close(); err != nil && !tc.q.Follow {
			t.Error(err)
		}
	}
	for _, tc := range []struct {
		q    LogQuery
		code compute.Code
	}{{LogQuery{Tail: &unlucky}, compute.CodeConflict}, {LogQuery{Tail: &negative}, compute.CodeInvalid}} {
		if l, err := m.Logs(ctx, box, Client{User: "root"}, tc.q); compute.CodeOf(err) != tc.code || l != nil {
			t.Errorf("%+v: %v; want %s", tc.q, err, tc.code)
		}
	}
}

// Who waits for a log that says nothing is let go by Close, and nothing of it stays.
func TestLogsClose(t *testing.T) {
	over := make(chan struct{})
	m := start(t, Options{Dialer: newHost(t, logKeeper(func(_ *agentproto.Conn, _ agentproto.Logs, ch *agentproto.Channel) {
		_, _ = io.WriteString(ch, "x")
		<-ch.Done()
		_ = ch.Close()
		close(over)
	}))})
	l, err := m.Logs(t.Context(), box, Client{User: "root"}, LogQuery{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(l, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := l.Read(make([]byte, 1))
		read <- err
	}()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-over:
	case <-time.After(10 * time.Second):
		t.Fatal("the agent's end goes on")
	}
	if err := <-read; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the read ended with %v", err)
	}
}
