package k8s

import (
	"bufio"
	"encoding/binary"
	"net"
	"net/http"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/httpstream/spdy"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// upgrade makes a connection of SPDY for client-go. It does as apimachinery's SpdyRoundTripper, which keeps its socket and the
// answer to itself, and sends no pings: the agent's wire has its own, which go all the way.
type upgrade struct {
	dialer *spdy.SpdyRoundTripper
	wires  wires
	conn   net.Conn
	code   int           // of the answer; 0 before there is one
	after  time.Duration // in which to ask again, if the answer says so
}

// RoundTrip asks for the upgrade.
func (u *upgrade) RoundTrip(q *http.Request) (*http.Response, error) {
	q = utilnet.CloneRequest(q)
	q.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	q.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	conn, err := u.dialer.Dial(q)
	if err != nil {
		return nil, err
	}
	u.wires.add(func() { _ = conn.Close() })
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	u.conn, u.code = conn, resp.StatusCode
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 { // the API server gives seconds, not a date
		u.after = min(time.Duration(n)*time.Second, time.Minute)
	}
	return resp, nil
}

// NewConnection begins SPDY after an answer that agreed.
func (u *upgrade) NewConnection(resp *http.Response) (httpstream.Connection, error) {
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer u.conn.Close()
		return u.dialer.NewConnection(resp) // an error, which it has words for
	}
	return spdy.NewClientConnection(&wholeFrames{Conn: u.conn})
}

// wholeFrames writes each frame in one piece. spdystream writes the two halves of a header and the data apart, which makes three
// records of TLS, and the same again at the API server and the kubelet, who pass on what they read.
type wholeFrames struct {
	net.Conn
	frame []byte // what there is of one
}

const (
	spdyHeader = 8 // of data frames and control frames: 4 bytes, flags (1 byte), length (3 bytes)
	// spdyChunk is as much data as makes, with its header, two full records of TLS.
	spdyChunk = 2*16<<10 - spdyHeader
)

// Write is called by one at a time, as all of a framer.
func (w *wholeFrames) Write(p []byte) (int, error) {
	w.frame = append(w.frame, p...)
	if len(w.frame) < spdyHeader || len(w.frame)-spdyHeader < int(binary.BigEndian.Uint32(w.frame[4:])&0xffffff) {
		return len(p), nil
	}
	_, err := w.Conn.Write(w.frame)
	w.frame = w.frame[:0]
	if err != nil {
		return 0, err
	}
	return len(p), nil
}
