package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"berth/internal/compute"
)

// Bounds on what may connect. A gateway counts once, whatever it does.
const (
	maxOpening       = 64 // connections that have not proven to be a gateway's
	maxGateways      = 512
	handshakeTimeout = 10 * time.Second
	byeTimeout       = time.Second
)

// ServerOptions are what a Server is made of. All but Source and Authority may be left out.
type ServerOptions struct {
	Source    Source
	Trail     Trail // nil: gateways keep their records
	Authority *Authority
	// MaxStale is that of the gateways: one that was not connected for so long admits nobody.
	MaxStale  time.Duration
	Heartbeat time.Duration
	Timeout   time.Duration // without an answer, a gateway is gone
	Log       *slog.Logger
}

// Server is the control plane's side. Make one with NewServer; Serve it on listeners; Shutdown ends it.
type Server struct {
	o       ServerOptions
	log     *slog.Logger
	tls     *tls.Config
	dropped atomic.Uint64
	forged  atomic.Uint64

	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // connections

	mu        sync.Mutex // guards what follows; no I/O under it
	closing   bool
	listeners map[net.Listener]struct{}
	opening   []net.Conn       // that have not proven to be a gateway's, the oldest first
	peers     map[string]*peer // by the credential's fingerprint
	acked     map[string]int64 // the newest number that each has durably, those that left too
	changed   chan struct{}    // closed, and made anew, when acked or peers change
}

// NewServer returns a Server. It does no I/O.
func NewServer(o ServerOptions) (*Server, error) {
	if o.MaxStale <= 0 {
		o.MaxStale = DefaultMaxStale
	}
	if o.Heartbeat <= 0 {
		o.Heartbeat = defaultHeartbeat
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	config, err := o.Authority.serverConfig()
	if err != nil {
		return nil, err
	}
	s := &Server{
		o: o, log: o.Log, tls: config, listeners: make(map[net.Listener]struct{}), peers: make(map[string]*peer),
		acked: make(map[string]int64), changed: make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s, nil
}

// Hint says that something was committed. It never blocks, and may come too often or be lost: gateways then learn of it at
// the next heartbeat.
func (s *Server) Hint() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		p.wake()
	}
}

// Dropped counts the gateways that were cut off because they did not keep up.
func (s *Server) Dropped() uint64 { return s.dropped.Load() }

// Forged counts the audit records that gateways sent and that none may send.
func (s *Server) Forged() uint64 { return s.forged.Load() }

// Status is what is known of a gateway that is connected.
type Status struct {
	Remote string
	Seq    int64 // the newest event that it has durably
}

// Connected returns the gateways that are connected, by the fingerprints of their credentials.
func (s *Server) Connected() map[string]Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make(map[string]Status, len(s.peers))
	for fingerprint, p := range s.peers {
		list[fingerprint] = Status{Remote: p.remote, Seq: s.acked[fingerprint]}
	}
	return list
}

// Unacknowledged waits until every connected gateway has acknowledged the event of that number, or ctx ends. It returns the
// names of those that have not, and of those that are not connected and may still admit what they last knew. With an error,
// the latter are not known.
func (s *Server) Unacknowledged(ctx context.Context, seq int64) ([]string, error) {
	for {
		s.mu.Lock()
		changed, behind := s.changed, false
		for fingerprint := range s.peers {
			behind = behind || s.acked[fingerprint] < seq
		}
		s.mu.Unlock()
		if !behind {
			break
		}
		select {
		case <-changed:
			continue
		case <-ctx.Done():
		}
		break
	}
	list, err := s.o.Source.Gateways(context.WithoutCancel(ctx)) // ctx may have ended just now
	now := time.Now()
	var names []string
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		if s.acked[p.gateway.Fingerprint] < seq {
			names = append(names, p.gateway.Name)
		}
	}
	for _, g := range list {
		if s.peers[g.Fingerprint] == nil && MayAdmit(g, s.o.MaxStale, now) && s.acked[g.Fingerprint] < seq {
			names = append(names, g.Name)
		}
	}
	slices.Sort(names)
	return names, err
}

// MayAdmit says whether a gateway that is not connected may still admit what it last knew.
func MayAdmit(g compute.Gateway, maxStale time.Duration, now time.Time) bool {
	return !g.Revoked() && !g.SeenAt.IsZero() && now.Sub(g.SeenAt) < maxStale+2*noteInterval
}

// acknowledge records what a gateway has durably.
func (s *Server) acknowledge(p *peer, seq int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peers[p.gateway.Fingerprint] == p && s.acked[p.gateway.Fingerprint] != seq {
		s.acked[p.gateway.Fingerprint] = seq
		s.announce()
	}
}

// announce wakes whoever waits for a change of acked or peers. s.mu is held.
func (s *Server) announce() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Serve accepts gateways on l until Shutdown, and then returns nil. It closes l.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return nil
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			s.accept(nc)
		case s.ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("link: %w", err)
		default:
			s.log.Warn("accept a gateway", "err", err)
			select {
			case <-time.After(100 * time.Millisecond): // out of file descriptors, most likely
			case <-s.ctx.Done():
			}
		}
	}
}

func (s *Server) accept(nc net.Conn) {
	if !s.beginOpening(nc) {
		_ = nc.Close()
		return
	}
	go func() {
		defer s.wg.Done()
		defer nc.Close()
		stop := context.AfterFunc(s.ctx, func() { _ = nc.SetDeadline(time.Now().Add(byeTimeout)) })
		defer stop()
		p, h, err := s.open(nc)
		s.endOpening(nc)
		var b byeError
		switch {
		case err == nil:
			p.serve(h)
		case errors.As(err, &b):
			s.log.Warn("a gateway was turned away", "remote", nc.RemoteAddr(), "gateway", p.gateway.Name, "why", err)
		default:
			s.log.Debug("no gateway", "remote", nc.RemoteAddr(), "err", err)
		}
	}()
}

// beginOpening makes room for one more, at the cost of the one that has taken longest: who has a credential needs no time,
// so that a crowd of strangers does not keep gateways out.
func (s *Server) beginOpening(nc net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	if len(s.opening) >= maxOpening {
		_ = s.opening[0].Close() // which does not wait
		s.opening = slices.Delete(s.opening, 0, 1)
	}
	s.opening = append(s.opening, nc)
	s.wg.Add(1)
	return true
}

func (s *Server) endOpening(nc net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opening = slices.DeleteFunc(s.opening, func(o net.Conn) bool { return o == nc })
}

// open lets a gateway prove itself and say where it stands.
func (s *Server) open(nc net.Conn) (*peer, hello, error) {
	ctx, cancel := context.WithTimeout(s.ctx, handshakeTimeout)
	defer cancel()
	conn := tls.Server(nc, s.tls)
	p := newPeer(s, conn)
	if err := nc.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return p, hello{}, err
	}
	err := conn.HandshakeContext(ctx)
	if err != nil {
		return p, hello{}, fmt.Errorf("handshake: %w", err)
	}
	cert := conn.ConnectionState().PeerCertificates[0]
	if p.gateway, err = s.credential(ctx, fingerprintOf(cert.Raw), cert.Subject.CommonName); err != nil {
		p.part(err)
		return p, hello{}, err
	}
	fr, err := p.in.next()
	if err != nil {
		return p, hello{}, fmt.Errorf("hello: %w", err)
	}
	var h hello
	if err := p.w.codec.read(fr.payload, &h); err != nil || fr.kind != kindHello || !validQueue(h.Queue) {
		return p, hello{}, errors.Join(errOrder, err)
	}
	return p, h, conn.SetDeadline(time.Time{})
}

// credential returns the gateway of a certificate, if it is one in force.
func (s *Server) credential(ctx context.Context, fingerprint, name string) (compute.Gateway, error) {
	g, err := s.o.Source.Gateway(ctx, fingerprint)
	switch {
	case err != nil && compute.CodeOf(err) == compute.CodeNotFound, err == nil && g.Name != name:
		err = byeError{
			Code:   byeUnknown,
			Reason: "the control plane does not know this gateway's credential; `berth gateway add` makes one",
		}
	case err == nil && g.Revoked():
		err = byeError{Code: byeRevoked, Reason: "this gateway's credential was revoked"}
	}
	return g, err
}

// enter makes p the one connection of its gateway.
func (s *Server) enter(p *peer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errStopping
	}
	fingerprint := p.gateway.Fingerprint
	if old := s.peers[fingerprint]; old != nil {
		why := "another connection came with this gateway's credential, from " + p.remote
		old.cancel(byeError{Code: byeReplaced, Reason: why})
	} else if len(s.peers) >= maxGateways {
		return fmt.Errorf("there are %d gateways already", maxGateways)
	}
	s.peers[fingerprint] = p
	delete(s.acked, fingerprint) // until it is known that the numbers are of this history
	s.announce()
	return nil
}

func (s *Server) leave(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peers[p.gateway.Fingerprint] == p {
		delete(s.peers, p.gateway.Fingerprint)
		s.announce()
	}
}

var errStopping = byeError{Code: byeStopping, Reason: "the control plane is stopping"}

// Shutdown stops accepting, tells every gateway, closes all connections and waits for what served them. When ctx ends before
// that it stops waiting and returns its error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.cancel(errStopping)
	s.mu.Lock()
	s.closing = true
	for l := range s.listeners {
		_ = l.Close()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
