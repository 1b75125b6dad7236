package sshproxy

import (
	"net"
	"os"
	"sync"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"berth/internal/compute"
)

// linger is how long a client may take to agree to the end of a jump's channel. x/crypto frees nothing before it does.
const linger = time.Minute

// serveJump serves the inner SSH connection of a jump on a direct-tcpip channel (RFC 4254, section 7.2). The gateway
// never dials: any other destination is refused.
func (c *conn) serveJump(nc gossh.NewChannel) {
	var dest struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	if err := gossh.Unmarshal(nc.ExtraData(), &dest); err != nil {
		_ = nc.Reject(gossh.ConnectionFailed, "malformed request")
		return
	}
	id, err := c.g.o.Zone.Jump(dest.Host, dest.Port)
	if err != nil {
		_ = nc.Reject(gossh.Prohibited, compute.UserMessage(err))
		return
	}
	release, ok := c.g.startups.admit(sourceOf(c.nc.RemoteAddr()))
	if !ok {
		_ = nc.Reject(gossh.ResourceShortage, "too many connections from you are logging in; try again in a moment")
		return
	}
	ch, reqs, err := nc.Accept()
	if err != nil {
		release()
		return
	}
	cc := &channelConn{Channel: ch, input: c.backlog.counted(ch), outer: c, gone: make(chan struct{})}
	defer cc.input.finish()
	inner := newConn(c.g, cc, release)
	inner.jump = id
	c.work(func() {
		gossh.DiscardRequests(reqs)
		close(cc.gone)
	})
	if !c.g.add(inner) {
		inner.finish()
		return
	}
	defer c.g.remove(inner)
	inner.serve()
	<-cc.gone // until then it counts as one of the client's channels
}

// channelConn is the channel of a jump as the stream under the inner connection. It has no deadlines: what must end in
// time is closed.
type channelConn struct {
	gossh.Channel
	input *counted
	outer *conn
	gone  chan struct{} // closed once the client has closed the channel, too
	once  sync.Once
}

func (cc *channelConn) Read(p []byte) (int, error) { return cc.input.Read(p) }

// Close asks the client to close the channel, which ends reads and writes that wait. It does not wait itself: the
// message may have to wait for a client that reads nothing. A client that does not agree in time loses its whole
// connection.
func (cc *channelConn) Close() error {
	cc.once.Do(func() {
		cc.outer.work(func() { _ = cc.Channel.Close() })
		cc.outer.work(func() {
			t := time.NewTimer(linger)
			defer t.Stop()
			select {
			case <-cc.gone:
			case <-t.C:
				cc.outer.abort(errGone)
			}
		})
	})
	return nil
}

func (cc *channelConn) LocalAddr() net.Addr              { return cc.outer.nc.LocalAddr() }
func (cc *channelConn) RemoteAddr() net.Addr             { return cc.outer.nc.RemoteAddr() }
func (cc *channelConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (cc *channelConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (cc *channelConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
