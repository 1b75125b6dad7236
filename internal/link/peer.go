package link

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"berth/internal/compute"
)

const (
	// window is how many ends and pings may wait for their answers: a gateway whose disk is slow gets fewer and larger
	// changes.
	window = 8
	// changeEvents bounds what one change may be about, and pageSize what one look at the database returns.
	changeEvents = 256
	pageSize     = 512
	// installFactor is how much longer than for a change a gateway may take for a snapshot.
	installFactor = 6
)

// errSlow is returned for gateways that do not keep up: they are not waited for.
var errSlow = byeError{Code: byeSlow, Reason: "this gateway does not keep up"}

// peer is a gateway that is connected. One goroutine writes to it, one reads.
type peer struct {
	s       *Server
	conn    *tls.Conn
	remote  string
	in      *frameReader
	socket  *boundedWriter
	out     *bufio.Writer
	w       *writer
	gateway compute.Gateway
	greeted bool // its hello was looked at

	cancel context.CancelCauseFunc
	hint   chan struct{}
	ready  chan struct{} // an answer came

	records chan batch // that the gateway sent; nil where it has none to send
	stored  chan int64 // the number to tell it next

	mu   sync.Mutex // guards what follows
	sent []sent     // what waits for an answer, in order
}

// sent is an end or a ping that was sent.
type sent struct {
	seq int64
	due time.Time
}

func newPeer(s *Server, conn *tls.Conn) *peer {
	remote := conn.RemoteAddr().String()
	if conn.RemoteAddr().Network() == "unix" {
		remote = "this machine"
	}
	p := &peer{
		s: s, conn: conn, remote: remote, in: newFrameReader(conn, maxGatewayFrame),
		socket: &boundedWriter{conn: conn, timeout: s.o.Timeout},
		hint:   make(chan struct{}, 1), ready: make(chan struct{}, 1),
	}
	p.out = bufio.NewWriterSize(p.socket, 64<<10)
	p.w = newWriter(p.out)
	return p
}

// boundedWriter bounds the time of every write, and of all that come after the end together.
type boundedWriter struct {
	conn    net.Conn
	timeout time.Duration

	mu    sync.Mutex // guards what follows, and that no deadline takes the place of the last
	ended bool
}

func (b *boundedWriter) Write(p []byte) (int, error) {
	if err := b.bound(); err != nil {
		return 0, err
	}
	return b.conn.Write(p)
}

func (b *boundedWriter) bound() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return nil
	}
	return b.conn.SetWriteDeadline(time.Now().Add(b.timeout))
}

// end leaves time for a last word alone, in both directions.
func (b *boundedWriter) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ended {
		b.ended = true
		_ = b.conn.SetDeadline(time.Now().Add(byeTimeout))
	}
}

func (p *peer) wake() { notify(p.hint) }

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // one is due already
	}
}

// serve streams to the gateway until something ends it.
func (p *peer) serve(h hello) {
	ctx, cancel := context.WithCancelCause(p.s.ctx)
	defer cancel(nil)
	p.cancel = cancel
	if err := p.s.enter(p); err != nil {
		p.part(err)
		return
	}
	defer p.s.leave(p)
	stop := context.AfterFunc(ctx, p.socket.end)
	defer stop()
	var reader sync.WaitGroup
	if p.s.o.Trail != nil && h.Queue != "" {
		p.records, p.stored, p.in.limit = make(chan batch, 1), make(chan int64, 1), maxRecords
		reader.Go(func() { p.keepRecords(ctx, h.Queue) })
	}
	reader.Go(func() { cancel(p.readAnswers()) })
	p.s.log.Info("gateway connected", "gateway", p.gateway.Name, "remote", p.remote)
	err := p.stream(ctx, h.Version)
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		err = errSlow
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cancel(err)
	if errors.Is(err, errSlow) {
		p.s.dropped.Add(1)
	}
	p.part(err)
	reader.Wait()
	p.see(context.WithoutCancel(ctx))
	p.s.log.Info("gateway disconnected", "gateway", p.gateway.Name, "remote", p.remote, "why", err)
}

// part tells the gateway why its connection ends, where there is something to tell. What the gateway still sends is read,
// since a socket that is closed over unread bytes takes back what was written to it.
func (p *peer) part(err error) {
	p.socket.end()
	defer p.conn.NetConn().Close()
	var b byeError
	if !errors.As(err, &b) || p.w.send(kindBye, bye(b)) != nil || p.out.Flush() != nil || p.conn.CloseWrite() != nil {
		return
	}
	_, _ = io.Copy(io.Discard, p.conn.NetConn()) // until the gateway closes, or the deadline
}

// stream sends what the gateway at version v lacks, and then what changes, until ctx or the gateway ends.
func (p *peer) stream(ctx context.Context, v wireVersion) error {
	tick := time.NewTicker(p.s.o.Heartbeat)
	defer tick.Stop()
	seen := time.Now()
	p.see(ctx)
	beat := true
	for {
		if err := p.inForce(ctx); err != nil {
			return err
		}
		ready := p.ready
		if p.room() {
			next, err := p.advance(ctx, v, beat)
			if err != nil {
				return err
			}
			beat = false
			if next != v {
				v = next
				continue // there may be more
			}
			ready = nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.hint:
		case <-ready:
		case last := <-p.stored:
			if err := errors.Join(p.w.send(kindRecorded, recorded{Last: last}), p.out.Flush()); err != nil {
				return err
			}
		case now := <-tick.C:
			if p.late(now) {
				return errSlow
			}
			if beat = true; now.Sub(seen) >= noteInterval {
				seen = now
				p.see(ctx)
			}
		}
	}
}

// advance takes the gateway one step on from version v, and returns where it then is. Where there is no step to take, it
// sends a ping if it is to.
func (p *peer) advance(ctx context.Context, v wireVersion, beat bool) (wireVersion, error) {
	c, ok, err := p.s.o.Source.ChangesSince(ctx, v.version(), changeEvents)
	if err != nil {
		return v, err
	}
	if !p.greeted {
		p.greeted = true
		if ok { // then the gateway has what it said
			p.s.acknowledge(p, v.Seq)
		}
	}
	if !ok {
		return p.sendSnapshot(ctx)
	}
	to := toWireVersion(c.To)
	switch {
	case to != v:
		err = p.sendChange(v, to, c)
	case beat:
		p.expect(v.Seq, p.s.o.Timeout)
		err = p.w.send(kindPing, ping{Version: v})
	}
	return to, errors.Join(err, p.out.Flush())
}

func (p *peer) sendChange(from, to wireVersion, c compute.Changes) error {
	if err := p.w.begin(begin{From: from, To: to}); err != nil {
		return err
	}
	for _, a := range c.Accounts {
		if err := p.w.account(toWireAccount(a)); err != nil {
			return err
		}
	}
	for _, b := range c.Containers {
		if err := p.w.container(toWireContainer(b)); err != nil {
			return err
		}
	}
	for _, id := range c.Gone {
		if err := p.w.container(wireContainer{ID: string(id), Gone: true}); err != nil {
			return err
		}
	}
	p.expect(to.Seq, p.s.o.Timeout)
	return p.w.end()
}

// sendSnapshot sends all there is, page by page. Its version is read before the first page.
func (p *peer) sendSnapshot(ctx context.Context) (wireVersion, error) {
	began := time.Now()
	src := p.s.o.Source
	version, err := src.Version(ctx)
	if err != nil {
		return wireVersion{}, err
	}
	to := toWireVersion(version)
	if err := p.w.begin(begin{Full: true, To: to}); err != nil {
		return to, err
	}
	err = sendPages(ctx, p, src.AccountsAfter, func(a compute.Account) (compute.UserID, error) {
		return a.ID, p.w.account(toWireAccount(a))
	})
	if err != nil {
		return to, err
	}
	err = sendPages(ctx, p, src.ContainersAfter, func(b compute.Container) (compute.ContainerID, error) {
		return b.ID, p.w.container(toWireContainer(b))
	})
	if err != nil {
		return to, err
	}
	p.expect(to.Seq, installFactor*p.s.o.Timeout)
	err = errors.Join(p.w.end(), p.out.Flush())
	p.s.log.Info("snapshot sent", "gateway", p.gateway.Name, "seq", to.Seq, "accounts", p.w.counts.Accounts,
		"containers", p.w.counts.Containers, "took", time.Since(began), "err", err)
	return to, err
}

// sendPages reads pages until there are no more, and sends what is in them. A gateway may take its time to read: one that is
// revoked meanwhile learns no more.
func sendPages[ID, T any](
	ctx context.Context, p *peer, read func(ctx context.Context, after ID, limit int) ([]T, error), send func(T) (ID, error),
) error {
	var after ID
	for {
		list, err := read(ctx, after, pageSize)
		if err != nil || len(list) == 0 {
			return err
		}
		if err := p.inForce(ctx); err != nil {
			return err
		}
		for _, v := range list {
			if after, err = send(v); err != nil {
				return err
			}
		}
	}
}

// inForce returns why the gateway is one no more, if so.
func (p *peer) inForce(ctx context.Context) error {
	_, err := p.s.credential(ctx, p.gateway.Fingerprint, p.gateway.Name)
	return err
}

// see records that the gateway is connected. That it cannot be recorded is no reason to end the connection.
func (p *peer) see(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, p.s.o.Timeout)
	defer cancel()
	if err := p.s.o.Source.SeeGateway(ctx, p.gateway.Fingerprint); err != nil && ctx.Err() == nil {
		p.s.log.Warn("record that a gateway is connected", "gateway", p.gateway.Name, "err", err)
	}
}

// expect notes that an answer is due.
func (p *peer) expect(seq int64, within time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = append(p.sent, sent{seq: seq, due: time.Now().Add(within)})
}

func (p *peer) room() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sent) < window
}

func (p *peer) late(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sent) > 0 && now.After(p.sent[0].due)
}

// readAnswers takes the gateway's answers, and its records, until it sends something else, or nothing more.
func (p *peer) readAnswers() error {
	for {
		fr, err := p.in.next()
		if errors.Is(err, io.EOF) {
			return errGone
		}
		if err != nil {
			return err
		}
		if fr.kind == kindRecords && p.records != nil {
			if err := p.takeRecords(fr.payload); err != nil {
				return err
			}
			continue
		}
		var a answer
		if fr.kind != kindAnswer {
			return errOrder
		}
		if err := p.w.codec.read(fr.payload, &a); err != nil {
			return err
		}
		if err := p.take(a.Seq); err != nil {
			return err
		}
		p.s.acknowledge(p, a.Seq)
		notify(p.ready)
	}
}

var errGone = errors.New("the gateway closed the connection")

// take matches an answer with what it is to. What comes next has its time from now on: it may have waited behind this.
func (p *peer) take(seq int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.sent) == 0 || seq < 0 || seq > p.sent[0].seq {
		return errOrder
	}
	p.sent = p.sent[1:]
	if next := time.Now().Add(p.s.o.Timeout); len(p.sent) > 0 && p.sent[0].due.Before(next) {
		p.sent[0].due = next
	}
	return nil
}
