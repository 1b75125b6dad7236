package k8s

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"berth/internal/compute"
)

// execer runs the agent's commands in pods by way of the API server: over a WebSocket, of the protocol's version 5 alone,
// or over SPDY where something on the way does not pass WebSockets.
type execer struct {
	config *rest.Config
	core   rest.Interface
}

func (x execer) executor(r compute.Ref, stdin bool, command []string) (remotecommand.Executor, error) {
	to := x.core.Post().Resource("pods").Namespace(r.String()).Name(podName(r)).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: nameMain, Command: command, Stdin: stdin, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec).URL()
	spdy, err := remotecommand.NewSPDYExecutor(x.config, http.MethodPost, to)
	if err != nil {
		return nil, err
	}
	websocket, err := remotecommand.NewWebSocketExecutor(x.config, http.MethodGet, to.String())
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(websocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}

// run runs a command to its end and returns what it printed, at most limit bytes of it.
func (x execer) run(ctx context.Context, r compute.Ref, limit int, command ...string) ([]byte, error) {
	ex, err := x.executor(r, false, command)
	if err != nil {
		return nil, err
	}
	out, said := &head{limit: limit}, &head{limit: maxComplaint}
	err = ex.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: out, Stderr: said})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return out.bytes(), said.explain(err)
}

// dial returns a connection to the standard input and output of a command. It lives until it is closed or life ends; ctx
// bounds the dialling alone.
func (x execer) dial(ctx, life context.Context, r compute.Ref, command ...string) (net.Conn, error) {
	ex, err := x.executor(r, true, command)
	if err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(life)
	near, far := net.Pipe()
	c := &conn{Conn: near, cancel: cancel, ended: make(chan struct{})}
	input := &beginning{r: far, begun: make(chan struct{})}
	go func() {
		said := &head{limit: maxComplaint}
		c.err = said.explain(ex.StreamWithContext(life, remotecommand.StreamOptions{Stdin: input, Stdout: far, Stderr: said}))
		far.Close()
		close(c.ended)
	}()
	select {
	case <-input.begun: // the executor reads once both ends agreed
		return c, nil
	case <-c.ended:
		err = c.err
		if err == nil {
			err = errors.New("it ended at once")
		}
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	c.Close()
	return nil, err
}

// conn is a stream of pod exec. Deadlines are those of the pipe that it is our end of.
type conn struct {
	net.Conn
	cancel context.CancelFunc
	ended  chan struct{} // closed when the stream is over
	err    error         // why it is; read it after ended
}

// Read says why the stream ended, where that is not the command's own orderly end.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		<-c.ended
		if c.err != nil {
			err = c.err
		}
	}
	return n, closed(err)
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	return n, closed(err)
}

// closed calls a closed connection what other connections do.
func closed(err error) error {
	if errors.Is(err, io.ErrClosedPipe) {
		return net.ErrClosed
	}
	return err
}

func (c *conn) Close() error {
	err := c.Conn.Close()
	c.cancel()
	<-c.ended
	return err
}

// beginning tells when a reader is first read.
type beginning struct {
	r     io.Reader
	once  sync.Once
	begun chan struct{}
}

func (b *beginning) Read(p []byte) (int, error) {
	b.once.Do(func() { close(b.begun) })
	return b.r.Read(p)
}

const maxComplaint = 1 << 10 // of what a command says on standard error

// head keeps the beginning of what is written to it.
type head struct {
	limit int

	mu  sync.Mutex
	buf bytes.Buffer
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf.Write(p[:min(len(p), h.limit-h.buf.Len())])
	return len(p), nil
}

func (h *head) bytes() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return bytes.Clone(h.buf.Bytes())
}

// explain adds what the command said to its failure.
func (h *head) explain(err error) error {
	if said := strings.TrimSpace(string(h.bytes())); err != nil && said != "" {
		return fmt.Errorf("%w: %s", err, said)
	}
	return err
}
