package sshproxy

import (
	"bytes"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// The gateway waits for a near client's KEXINIT before it sends its own: it comes at once, or as soon as a busy machine lets
// it, and tells exactly which ciphers the client has. A far client, to whom that would cost a round trip, is judged by its
// identification string.
const (
	nearRTT     = 20 * time.Millisecond
	kexInitWait = time.Second
)

var errNotSSH = errors.New("the client does not speak SSH 2")

// wire is the byte stream under one SSH connection: a client's socket, or a channel of a jump. It exchanges the
// identification strings itself, before x/crypto does, to know the client before the algorithms are chosen.
type wire struct {
	net.Conn
	quick quickAck

	ident  string // the client's identification string
	ahead  []byte // what was read of the client and not yet handed on
	sent   []byte // our identification line, which x/crypto will want to send again
	offers struct{ gcm, known bool }

	large *[largeRead]byte // where ahead lies while the client sends much
	much  bool             // the last read into it brought much

	join joiner

	// onWrite, once set, is called after the next write that succeeds.
	onWrite atomic.Pointer[func()]
}

// openWire exchanges identification strings on nc. It blocks until the client's is there: close nc to end it.
func openWire(nc net.Conn, version string) (*wire, error) {
	w := &wire{Conn: nc, sent: []byte("SSH-2.0-" + version + "\r\n")}
	if tcp := tcpOf(nc); tcp != nil {
		w.quick.init(tcp)
	}
	w.quick.arm()
	if _, err := nc.Write(w.sent); err != nil {
		return nil, err
	}
	buf := make([]byte, 0, 4096)
	for {
		line, complete, bad := identification(buf)
		if bad {
			return nil, errNotSSH
		}
		if complete {
			w.ident = line
			break
		}
		n, err := nc.Read(buf[len(buf):cap(buf)])
		if err != nil {
			return nil, err
		}
		buf = buf[:len(buf)+n]
		w.quick.arm()
	}
	w.ahead = buf
	// Behind a load balancer, the kernel measured the way to that.
	if tcp, direct := nc.(*net.TCPConn); direct && roundTrip(tcp) < nearRTT {
		return w, w.peekKexInit(tcp)
	}
	return w, nil
}

// roundTrip returns what the kernel measured so far, at the least in the TCP handshake (tcp(7), TCP_INFO).
func roundTrip(tcp *net.TCPConn) time.Duration {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nearRTT
	}
	rtt := nearRTT
	if err := raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			rtt = time.Duration(info.Rtt) * time.Microsecond
		}
	}); err != nil {
		return nearRTT
	}
	return rtt
}

// peekKexInit looks at the client's KEXINIT if it comes in time. What it read stays to be read.
func (w *wire) peekKexInit(tcp *net.TCPConn) error {
	if err := tcp.SetReadDeadline(time.Now().Add(kexInitWait)); err != nil {
		return err
	}
	start := bytes.IndexByte(w.ahead, '\n') + 1
	for {
		w.offers.gcm, w.offers.known = offersGCM(w.ahead[start:])
		if w.offers.known || len(w.ahead) == cap(w.ahead) {
			break
		}
		n, err := tcp.Read(w.ahead[len(w.ahead):cap(w.ahead)])
		w.ahead = w.ahead[:len(w.ahead)+n]
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return err
		}
		w.quick.arm()
	}
	return tcp.SetReadDeadline(time.Time{})
}

// Sizes of reads while a client sends much. x/crypto asks for a packet in pieces of its own buffer, and each of them would be
// a system call, or, on the channel of a jump, a packet that adjusts the window: a fifth of an upload's work.
const (
	largeRead = 128 << 10
	muchRead  = 32 << 10 // a read that brings less shows that the stream has slowed down
)

var largeReads = sync.Pool{New: func() any { return new([largeRead]byte) }}

// Read reads what was read ahead, then from the connection. It holds no buffer once the client has slowed down.
func (w *wire) Read(p []byte) (int, error) {
	if len(w.ahead) == 0 {
		if w.large == nil {
			n, err := w.Conn.Read(p)
			w.quick.arm()
			if n == len(p) && n >= cryptoBuffer {
				w.large = largeReads.Get().(*[largeRead]byte)
			}
			return n, err
		}
		n, err := w.Conn.Read(w.large[:])
		w.quick.arm()
		if n == 0 {
			return 0, err
		}
		w.ahead, w.much = w.large[:n], n >= muchRead // an error comes again at the next read
	}
	n := copy(p, w.ahead)
	if w.ahead = w.ahead[n:]; len(w.ahead) == 0 {
		w.ahead = nil
		if w.large != nil && !w.much {
			largeReads.Put(w.large)
			w.large = nil
		}
	}
	return n, nil
}

// Write writes to the connection, but for the identification string, which is there already.
func (w *wire) Write(p []byte) (int, error) {
	if w.sent != nil {
		if !bytes.Equal(p, w.sent) {
			return 0, errors.New("the first line to the client is not the one that was sent")
		}
		w.sent = nil
		return len(p), nil
	}
	n, err := w.join.write(w.Conn, p)
	if err == nil {
		if f := w.onWrite.Load(); f != nil && w.onWrite.CompareAndSwap(f, nil) {
			(*f)()
		}
	}
	return n, err
}

// cryptoBuffer is the size of the buffer through which x/crypto writes. A packet that is longer comes in two writes:
// the buffer, full, and the rest.
const cryptoBuffer = 4096

// joiner makes one system call, and one segment, of such a packet's two writes.
type joiner struct {
	// on is set once no packet can be just as long as the buffer, so that a full one is the first of two writes: those of
	// AES-GCM and chacha20-poly1305 have 4 bytes more than a multiple of 8.
	on    atomic.Bool
	first []byte // the first of two writes
	space []byte // where it lies
	parts [2][]byte
	bufs  net.Buffers
}

func (j *joiner) write(c net.Conn, p []byte) (int, error) {
	switch {
	case j.first == nil && len(p) == cryptoBuffer && j.on.Load():
		j.space = append(j.space[:0], p...)
		j.first = j.space
		return len(p), nil
	case j.first == nil:
		return c.Write(p)
	}
	j.parts = [2][]byte{j.first, p}
	j.first, j.bufs = nil, j.parts[:]
	n, err := j.bufs.WriteTo(c)
	return max(int(n)-cryptoBuffer, 0), err
}

// joinWrites says which cipher the connection has.
func (w *wire) joinWrites(cipher string) {
	w.join.on.Store(w.quick.raw != nil && (slices.Contains(gcm(), cipher) || cipher == gossh.CipherChaCha20Poly1305))
}

// SetDeadline does nothing: charmbracelet/ssh calls it before every read and write to take away deadlines that it was
// not asked for. What must end in time here is ended by closing the connection.
func (w *wire) SetDeadline(time.Time) error { return nil }

// quickAck asks the kernel to acknowledge what a client sends at once. A stock client runs its handshake with Nagle's
// algorithm on: each delayed acknowledgement makes it wait for 40 ms. The kernel forgets the wish, so it is told again
// after every read (tcp(7), TCP_QUICKACK).
type quickAck struct {
	raw syscall.RawConn // nil where there is no TCP
	set func(fd uintptr)
}

func (q *quickAck) init(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	q.raw = raw
	q.set = func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) }
}

func (q *quickAck) arm() {
	if q.raw != nil {
		_ = q.raw.Control(q.set) // a connection that is gone tells at the next read
	}
}
