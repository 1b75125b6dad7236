package containerd

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
)

func buildAgent(dir string) (string, error) { return "/tmp/ctest/agent.bin", nil }

func shell(ctx context.Context, nc net.Conn, script string) (string, int, error) {
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	fmt.Fprintln(nc, strings.ReplaceAll(script, "\n", " "))
	b, err := io.ReadAll(nc)
	if err != nil {
		return "", 0, err
	}
	s := string(b)
	i := strings.LastIndex(s, "[")
	if i < 0 {
		return s, 0, io.ErrUnexpectedEOF
	}
	tail := s[i:]
	s = s[:i]
	if tail == "[<nil>]\n" {
		return s, 0, nil
	}
	var st int
	fmt.Sscanf(tail, "[exit status %d]", &st)
	return s, max(st, 1), nil
}
