package k8s

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/httpstream/spdy"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"berth/internal/compute"
)

// execer runs the agent's commands in pods by way of the API server, over SPDY or over a WebSocket of the protocol's version 5
// (docs/adr/0027).
type execer struct {
	config *rest.Config
	core   rest.Interface
}

// protocol is a way to carry a command's streams.
type protocol func(execer, context.Context, *url.URL, remotecommand.StreamOptions) error

// fast is SPDY; what it was refused on the way is tried over a WebSocket.
func fast() [2]protocol { return [2]protocol{execer.overSPDY, execer.overWebSocket} }

// exact is the other way round: client-go takes the loss of a SPDY connection for the orderly end of a command.
func exact() [2]protocol { return [2]protocol{execer.overWebSocket, execer.overSPDY} }

// run runs a command to its end and returns what it printed, at most limit bytes of it.
func (x execer) run(ctx context.Context, r compute.Ref, limit int, command ...string) ([]byte, error) {
	out, said := &head{limit: limit}, &head{limit: maxComplaint}
	err := x.stream(ctx, ctx, exact(), r, command, remotecommand.StreamOptions{Stdout: out, Stderr: said})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return out.bytes(), said.explain(err)
}

// dial returns a connection to the standard input and output of a command. It lives until it is closed or life ends; ctx
// bounds the dialling alone.
func (x execer) dial(ctx, life context.Context, r compute.Ref, command ...string) (net.Conn, error) {
	life, cancel := context.WithCancel(life)
	near, far := net.Pipe()
	c := &conn{Conn: near, cancel: cancel, ended: make(chan struct{})}
	input := &beginning{r: far, begun: make(chan struct{})}
	go func() {
		said := &head{limit: maxComplaint}
		c.err = said.explain(x.stream(ctx, life, fast(), r, command, remotecommand.StreamOptions{Stdin: input, Stdout: far, Stderr: said}))
		far.Close()
		close(c.ended)
	}()
	var err error
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

// stream runs a command until it or life ends. While the API server says that it has too much to do, it is asked again, as late
// as it says, until ctx ends.
func (x execer) stream(ctx, life context.Context, by [2]protocol, r compute.Ref, command []string, o remotecommand.StreamOptions) error {
	to := x.command(r.String(), podName(r), command, o.Stdin != nil)
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		var refused *refusedError
		err := by[0](x, life, to, o)
		if errors.As(err, &refused) && !refused.busy {
			err = by[1](x, life, to, o)
		}
		if !errors.As(err, &refused) || !refused.busy {
			return err
		}
		again := time.NewTimer(max(wait, refused.after) + rand.N(wait)) // not all at once
		select {
		case <-again.C:
		case <-ctx.Done():
			return err
		case <-life.Done():
			return err
		}
	}
}

// command is where a pod's main container runs one.
func (x execer) command(namespace, pod string, command []string, stdin bool) *url.URL {
	return x.core.Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: nameMain, Command: command, Stdin: stdin, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec).URL()
}

// Times between attempts while the API server is busy, where it does not say.
const (
	firstWait   = 250 * time.Millisecond
	longestWait = 4 * time.Second
)

// refusedError is an HTTP answer to an upgrade other than the API server's own words about the request, which are errors of
// apimachinery.
type refusedError struct {
	busy  bool          // too many requests
	after time.Duration // to wait before the next one, if it says
	cause error
}

func (e *refusedError) Error() string { return e.cause.Error() }
func (e *refusedError) Unwrap() error { return e.cause }

func (x execer) overSPDY(ctx context.Context, to *url.URL, o remotecommand.StreamOptions) error {
	tlsConfig, err := rest.TLSConfigFor(x.config)
	if err != nil {
		return err
	}
	dialer, err := spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{TLS: tlsConfig, Proxier: x.config.Proxy})
	if err != nil {
		return err
	}
	up := &upgrade{dialer: dialer}
	defer context.AfterFunc(ctx, up.wires.cut)()
	wrapped, err := rest.HTTPWrappersForConfig(x.config, up)
	if err != nil {
		return err
	}
	ex, err := remotecommand.NewSPDYExecutorForTransports(wrapped, up, http.MethodPost, to)
	if err != nil {
		return err
	}
	err = ex.StreamWithContext(ctx, o)
	busy := up.code == http.StatusTooManyRequests
	if status := apierrors.APIStatus(nil); err == nil || up.code == 0 || up.code == http.StatusSwitchingProtocols ||
		errors.As(err, &status) && !busy {
		return err
	}
	return &refusedError{busy, up.after, err}
}

func (x execer) overWebSocket(ctx context.Context, to *url.URL, o remotecommand.StreamOptions) error {
	ex, err := remotecommand.NewWebSocketExecutor(x.config, http.MethodGet, to.String())
	if err != nil {
		return err
	}
	w := &wires{}
	defer context.AfterFunc(ctx, w.cut)()
	err = ex.StreamWithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) { w.add(func() { _ = i.Conn.Close() }) },
	}), o)
	var upgrade *httpstream.UpgradeFailureError
	if !errors.As(err, &upgrade) {
		return err
	}
	seconds, _ := apierrors.SuggestsClientDelay(upgrade.Cause)
	// Of an answer that is not in the API's own words client-go keeps only the text.
	busy := apierrors.IsTooManyRequests(upgrade.Cause) || strings.Contains(upgrade.Cause.Error(), "(429 ")
	if status := apierrors.APIStatus(nil); errors.As(upgrade.Cause, &status) && !busy {
		return upgrade.Cause
	}
	return &refusedError{busy, time.Duration(seconds) * time.Second, err}
}

// wires are the sockets below an executor. What client-go reads from and writes to them waits for as long as the peer likes,
// even once its context has ended.
type wires struct {
	mu   sync.Mutex // guards what follows
	over bool
	cuts []func()
}

func (w *wires) add(cut func()) {
	w.mu.Lock()
	over := w.over
	if !over {
		w.cuts = append(w.cuts, cut)
	}
	w.mu.Unlock()
	if over {
		cut()
	}
}

// cut ends all that is read from and written to them.
func (w *wires) cut() {
	w.mu.Lock()
	cuts := w.cuts
	w.over, w.cuts = true, nil
	w.mu.Unlock()
	for _, cut := range cuts {
		cut()
	}
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
	return b.r.Read(p[:min(len(p), spdyChunk)])
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
