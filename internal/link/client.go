package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// How long a Client waits before it connects again: from firstRetry, doubled up to longestRetry; refusedRetry where the
// control plane has turned it away.
const (
	firstRetry   = 50 * time.Millisecond
	longestRetry = 2 * time.Second
	refusedRetry = 10 * time.Second
)

// ClientOptions are what a Client is made of. Spool, Timeout and Log may be left out.
type ClientOptions struct {
	Replica    *Replica
	Spool      *Spool                                      // what is in it is brought to the control plane
	Credential func() (Credential, error)                  // for each connection, so that it may be changed
	Dial       func(ctx context.Context) (net.Conn, error) // to the control plane
	Timeout    time.Duration                               // without a word from it, it is gone
	Log        *slog.Logger
}

// Client keeps a Replica in step with the control plane.
type Client struct {
	o   ClientOptions
	log *slog.Logger
}

// NewClient returns a Client. It does no I/O.
func NewClient(o ClientOptions) *Client {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Client{o: o, log: o.Log}
}

// Run keeps a connection until ctx ends, and returns nil then. It is called once.
func (c *Client) Run(ctx context.Context) error {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval, retry.Multiplier = firstRetry, longestRetry, 2
	last := ""
	for {
		heard, err := c.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if heard {
			retry.Reset()
			last = ""
		}
		wait := retry.NextBackOff()
		if refused := c.judge(err); refused {
			wait = refusedRetry
		}
		if text := err.Error(); text != last { // not a line for every attempt
			last = text
			c.log.Warn("no connection to the control plane; what is known so far holds", "err", err)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// judge draws the conclusions of a connection's end, and says whether the control plane does not want this gateway.
func (c *Client) judge(err error) (refused bool) {
	r := c.o.Replica
	var b byeError
	if errors.As(err, &b) {
		switch b.Code {
		case byeRevoked:
			r.forget()
			return true
		case byeUnknown, byeReplaced:
			return true
		}
		return false
	}
	for _, fault := range []error{errLost, errOrder, errMalformed, errChecksum, errFrameSize} {
		if errors.Is(err, fault) {
			r.suspect = true
		}
	}
	return false
}

// follow keeps one connection. Heard says whether the control plane said something of use.
func (c *Client) follow(ctx context.Context) (heard bool, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.NetConn().Close() })
	defer stop()

	in := newFrameReader(conn, maxFrame)
	out := newWriter(conn)
	f := newFeed(c.o.Replica)
	defer f.abandon()
	var courier courier
	if c.o.Spool != nil {
		courier = newCourier(c, conn)
	}
	if err := c.send(conn, out, kindHello, hello{Version: f.at, Queue: courier.queue}); err != nil {
		return false, err
	}
	defer courier.start()()
	for {
		if err := conn.SetReadDeadline(time.Now().Add(c.o.Timeout)); err != nil {
			return heard, err
		}
		fr, err := in.next()
		if errors.Is(err, io.EOF) {
			err = errors.New("the control plane closed the connection")
		}
		if err != nil {
			return heard, err
		}
		if fr.kind == kindRecorded {
			if err := courier.recorded(c.o.Replica.codec, fr); err != nil {
				return heard, err
			}
			continue
		}
		ends, err := f.frame(fr)
		if err != nil {
			return heard, err
		}
		if !ends {
			continue
		}
		if !heard {
			heard = true
			c.log.Info("in step with the control plane", "epoch", f.at.Epoch, "seq", f.at.Seq)
		}
		if err := c.send(conn, out, kindAnswer, answer{Seq: c.durable(f.at)}); err != nil {
			return heard, err
		}
	}
}

// durable is the number that may be acknowledged.
func (c *Client) durable(at wireVersion) int64 {
	d := c.o.Replica.durable
	if d.Installation != at.Installation || d.Epoch != at.Epoch {
		return 0
	}
	return d.Seq
}

func (c *Client) send(conn net.Conn, w *writer, k kind, v any) error {
	if err := conn.SetWriteDeadline(time.Now().Add(c.o.Timeout)); err != nil {
		return err
	}
	return w.send(k, v)
}

func (c *Client) connect(ctx context.Context) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	credential, err := c.o.Credential()
	if err != nil {
		return nil, err
	}
	nc, err := c.o.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	conn := tls.Client(nc, credential.config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("handshake: %w", err), nc.Close())
	}
	return conn, nil
}
