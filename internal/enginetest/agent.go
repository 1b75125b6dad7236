package enginetest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"

	"berth/internal/agentproto"
)

// BuildAgent builds the product's agent.
func BuildAgent(path string) error {
	cmd := exec.Command("go", "build", "-o", path, "berth/cmd/agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the agent: %w: %s", err, out)
	}
	return nil
}

// Shell runs a script as root by way of the agent at the other end of nc, as a gateway does.
func Shell(ctx context.Context, nc net.Conn, script string) (out string, status int, err error) {
	conn, err := agentproto.Dial(ctx, nc, agentproto.Config{Hello: agentproto.Hello{Software: "test"}})
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	at, err := conn.Attach(ctx, agentproto.Attach{User: "root"})
	if err != nil {
		return "", 0, err
	}
	ch, err := at.Open(ctx, "session", nil)
	if err != nil {
		return "", 0, err
	}
	defer ch.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	payload := append(binary.BigEndian.AppendUint32(nil, uint32(len(script))), script...) // RFC 4254, section 6.5
	if ok, err := ch.Request(ctx, "exec", true, payload); err != nil || !ok {
		return "", 0, fmt.Errorf("exec: refused (%v)", err)
	}
	if err := ch.CloseWrite(); err != nil {
		return "", 0, err
	}
	read := make(chan error, 1)
	var b []byte
	go func() {
		var err error
		b, err = io.ReadAll(ch)
		read <- err
	}()
	if _, err := io.Copy(io.Discard, ch.Stderr()); err != nil {
		return "", 0, errors.Join(err, <-read)
	}
	if err := <-read; err != nil {
		return string(b), 0, err
	}
	for {
		select {
		case r, ok := <-ch.Requests():
			switch {
			case !ok:
				return string(b), 0, errors.New("the session ended without an exit status")
			case r.Name == "exit-status" && len(r.Payload) == 4:
				return string(b), int(binary.BigEndian.Uint32(r.Payload)), nil
			case r.Name == "exit-signal":
				return string(b), 128, nil
			}
		case <-ctx.Done():
			return string(b), 0, context.Cause(ctx)
		}
	}
}
