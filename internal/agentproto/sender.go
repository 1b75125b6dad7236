package agentproto

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	// Bounds on frames that wait to be written, without data: those of users of this package wait for room below the
	// first one; what answers the peer never waits, and a peer that has answers grow to the second one is not served
	// any more.
	softPending = 64 << 10
	hardPending = 512 << 10
	keptPending = 4 << 10 // memory that is kept for later

	maxBatch    = 2           // frames of data in one write: an echo waits for no more than that
	joinedWrite = 4 << 10     // data up to here is copied behind its header; more goes out from where it is
	lastWords   = time.Second // for what waits when this end closes the connection, or when the peer has
)

var (
	errFull  = errors.New("too many frames wait")
	errStuck = errors.New("the peer takes nothing")
)

// sender writes frames. Data is written by who sends it, with the token. All other frames are appended to pending,
// which never waits for the peer, and go out before the next data, or by flush. So frames go out in the order in which
// they were handed over.
type sender struct {
	nc     net.Conn
	vector bool          // nc takes several pieces in one system call
	token  chan struct{} // of capacity 1; who waits for it is served in order
	wake   chan struct{} // of capacity 1: there may be something pending

	mu      sync.Mutex // guards what follows, and what channels have sent (their out)
	pending []byte
	spare   []byte
	room    chan struct{} // closed when pending was taken; nil while nobody waits for that
	writes  uint64        // how many have begun
	writing bool

	// With the token.
	headers [maxBatch][headerLen]byte
	pieces  [1 + 2*maxBatch][]byte
	buffers net.Buffers
}

// flats are for frames that are joined to go out in one piece.
var flats = sync.Pool{New: func() any { return new([]byte) }}

func newSender(nc net.Conn) *sender {
	s := &sender{nc: nc, token: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
	switch nc.(type) {
	case *net.UnixConn, *net.TCPConn:
		s.vector = true
	}
	return s
}

// outgoing is what a stream has sent.
type outgoing struct {
	eof, closed bool
}

// queue hands a frame over that answers the peer or gives it credit. It never waits.
func (s *sender) queue(t frameType, stream uint32, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.append(hardPending, t, stream, payload)
}

// append is with s.mu held.
func (s *sender) append(limit int, t frameType, stream uint32, payload []byte) error {
	if !s.fits(limit, len(payload)) {
		return errFull
	}
	s.pending = appendFrame(s.pending, t, stream, payload)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

// fits is with s.mu held.
func (s *sender) fits(limit, payload int) bool {
	return len(s.pending) == 0 || len(s.pending)+headerLen+payload <= limit
}

// await waits until there may be room again.
func (s *sender) await(ctx context.Context, done, over <-chan struct{}) error {
	s.mu.Lock()
	if len(s.pending) == 0 {
		s.mu.Unlock()
		return nil
	}
	if s.room == nil {
		s.room = make(chan struct{})
	}
	room := s.room
	s.mu.Unlock()
	select {
	case <-room:
		return nil
	case <-done:
		return ErrClosed
	case <-over:
		return errLost
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// take returns what is pending. The token and s.mu are held.
func (s *sender) take() []byte {
	p := s.pending
	s.pending, s.spare = s.spare[:0], nil
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
	s.writes++
	s.writing = true
	return p
}

// written is called after each take, with the token.
func (s *sender) written(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing = false
	if cap(p) <= keptPending {
		s.spare = p
	}
}

// progress says how many writes have begun, and whether one is under way.
func (s *sender) progress() (writes uint64, writing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes, s.writing
}

// flush writes what is pending. The token is held.
func (s *sender) flush() error {
	s.mu.Lock()
	p := s.take()
	s.mu.Unlock()
	defer s.written(p)
	if len(p) == 0 {
		return nil
	}
	_, err := s.nc.Write(p)
	return err
}

// data writes p, at most maxBatch frames of it, for a stream, unless that has sent its end.
func (s *sender) data(t frameType, stream uint32, out *outgoing, p []byte) error {
	s.mu.Lock()
	pending := s.take()
	over := out.eof || out.closed
	s.mu.Unlock()
	defer s.written(pending)
	var err error
	switch {
	case over:
		if len(pending) > 0 {
			_, err = s.nc.Write(pending)
		}
		if err == nil {
			return ErrClosed
		}
	case !s.vector || len(p) <= joinedWrite:
		err = s.writeJoined(t, stream, pending, p)
	default:
		err = s.writePieces(t, stream, pending, p)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errLost, err)
	}
	return nil
}

// writeJoined writes everything in one piece.
func (s *sender) writeJoined(t frameType, stream uint32, pending, p []byte) error {
	flat := flats.Get().(*[]byte)
	defer flats.Put(flat)
	b := append((*flat)[:0], pending...)
	for len(p) > 0 {
		n := min(len(p), MaxPayload)
		b = appendFrame(b, t, stream, p[:n])
		p = p[n:]
	}
	*flat = b
	_, err := s.nc.Write(b)
	return err
}

// writePieces writes everything from where it is.
func (s *sender) writePieces(t frameType, stream uint32, pending, p []byte) error {
	pieces := s.pieces[:0]
	if len(pending) > 0 {
		pieces = append(pieces, pending)
	}
	for i := 0; len(p) > 0; i++ {
		n := min(len(p), MaxPayload)
		pieces = append(pieces, appendHeader(s.headers[i][:0], t, stream, n), p[:n])
		p = p[n:]
	}
	s.buffers = pieces
	_, err := s.buffers.WriteTo(s.nc)
	clear(s.pieces[:])
	return err
}
