package sshproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/pires/go-proxyproto"
)

// proxied is a connection that a load balancer hands on. It has the addresses that its client sees, which the balancer tells in
// a header before the client's first byte (HAProxy's PROXY protocol, versions 1 and 2).
type proxied struct {
	*net.TCPConn
	remote, local net.Addr
	ahead         *bufio.Reader // the client's bytes that came with the header; nil once they are handed on
}

// restore reads the header, which must be there within the timeout. It closes tcp when it returns an error, or when ctx ends.
func restore(ctx context.Context, tcp *net.TCPConn, timeout time.Duration) (_ net.Conn, err error) {
	release := context.AfterFunc(ctx, func() { _ = tcp.Close() })
	defer func() {
		if !release() || err != nil {
			_ = tcp.Close()
		}
	}()
	if err := tcp.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	p := &proxied{TCPConn: tcp, remote: tcp.RemoteAddr(), local: tcp.LocalAddr(), ahead: bufio.NewReader(tcp)}
	if _, err := p.ahead.Peek(1); err != nil {
		return nil, err
	}
	header, err := proxyproto.Read(p.ahead)
	if err != nil {
		return nil, err
	}
	if !header.Command.IsLocal() { // which is the balancer's own, to see whether somebody answers
		source, destination, ok := header.TCPAddrs()
		if !ok {
			return nil, fmt.Errorf("it hands on %v", header.TransportProtocol)
		}
		p.remote, p.local = source, destination
	}
	return p, tcp.SetReadDeadline(time.Time{})
}

func (p *proxied) RemoteAddr() net.Addr { return p.remote }
func (p *proxied) LocalAddr() net.Addr  { return p.local }

func (p *proxied) Read(b []byte) (int, error) {
	if p.ahead != nil && p.ahead.Buffered() > 0 {
		return p.ahead.Read(b)
	}
	p.ahead = nil
	return p.TCPConn.Read(b)
}

// tcpOf returns the socket that nc's bytes go through, or nil where there is none.
func tcpOf(nc net.Conn) *net.TCPConn {
	switch nc := nc.(type) {
	case *net.TCPConn:
		return nc
	case *proxied:
		return nc.TCPConn
	}
	return nil
}

// balances says whether a connection from a comes from a load balancer that is believed.
func (g *Gateway) balances(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return false
	}
	from := tcp.AddrPort().Addr().Unmap().WithZone("")
	for _, p := range g.o.Balancers {
		if p.Contains(from) {
			return true
		}
	}
	return false
}

// handOn begins a connection of a load balancer once it is known whose it is.
func (g *Gateway) handOn(tcp *net.TCPConn) {
	nc, err := restore(g.ctx, tcp, g.o.Limits.KexTimeout)
	switch {
	case err == nil:
		g.begin(nc)
	case g.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
	case errors.Is(err, io.EOF): // it only looked whether somebody answers, as balancers do all the time
	default:
		g.log.Warn("refused: a load balancer's connection without a PROXY protocol header", "remote", tcp.RemoteAddr(), "err", err)
	}
}
