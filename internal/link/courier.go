package link

import (
	"context"
	"crypto/tls"
	"errors"
	"time"
)

// courier brings what is in a spool to the control plane, over one connection: one frame at a time, each once the one before is
// stored. The zero value has nothing to bring.
type courier struct {
	c     *Client
	conn  *tls.Conn
	queue string
	told  chan int64 // up to which number the control plane has stored
}

func newCourier(c *Client, conn *tls.Conn) courier {
	return courier{c: c, conn: conn, queue: c.o.Spool.begun(), told: make(chan int64, 1)}
}

// recorded takes the control plane's word, which it says once for each frame.
func (k *courier) recorded(c codec, fr frame) error {
	var r recorded
	if err := c.read(fr.payload, &r); err != nil {
		return err
	}
	if k.c == nil {
		return errOrder
	}
	select {
	case k.told <- r.Last:
		return nil
	default:
		return errOrder
	}
}

// start begins, and returns what ends it. A fault ends the connection.
func (k *courier) start() (stop func()) {
	if k.c == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := k.run(ctx); err != nil && ctx.Err() == nil {
			k.c.log.Warn("audit records wait for the next connection", "err", err)
			_ = k.conn.NetConn().Close()
		}
	}()
	return func() {
		cancel()
		_ = k.conn.NetConn().Close() // a write may be under way
		<-done
	}
}

func (k *courier) run(ctx context.Context) error {
	spool := k.c.o.Spool
	for {
		var last int64
		select {
		case last = <-k.told:
		case <-ctx.Done():
			return nil
		}
		if err := spool.judge(last); err != nil {
			return err
		}
		raw, err := k.next(ctx, last)
		if err != nil {
			return err
		}
		err = errors.Join(k.conn.SetWriteDeadline(time.Now().Add(k.c.o.Timeout)), ctx.Err())
		if err == nil {
			_, err = k.conn.Write(raw) // one frame in one call: those of others do not come between
		}
		if err != nil {
			return err
		}
	}
}

// next waits for a frame of what comes after the number.
func (k *courier) next(ctx context.Context, after int64) ([]byte, error) {
	for {
		news := k.c.o.Spool.news()
		raw, ok, err := k.c.o.Spool.oldest(after)
		if err != nil || ok {
			return raw, err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
