package link

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A frame is a length of four bytes, that many bytes of body, and the body's CRC-32C; the body is a kind and a payload in
// CBOR. The file of a Replica holds the same frames as they came.

// kind says what a frame is.
type kind byte

const (
	// From the gateway.
	kindHello   kind = 1 // which version it has; once, at first
	kindAnswer  kind = 2 // to each end and ping, in order: the version that is durable
	kindRecords kind = 9 // audit records, after each recorded
	// From the control plane.
	kindBegin      kind = 3 // of a snapshot or a change
	kindAccounts   kind = 4
	kindContainers kind = 5
	kindEnd        kind = 6
	kindPing       kind = 7  // there is nothing newer than this version
	kindBye        kind = 8  // why the connection ends
	kindRecorded   kind = 10 // to a hello that names a queue, and to each records: up to which number they are stored
)

// What a frame may have at most. Objects are packed up to chunk, so that a frame is larger only for one that is.
const (
	maxFrame        = 1 << 20
	maxGatewayFrame = 1 << 10
	maxRecords      = 64 << 10 // from a gateway that named a queue in its hello
	maxBatch        = 256      // records of a frame
	chunk           = 48 << 10
	frameOverhead   = 4 + 1 + 4
)

var (
	errFrameSize = errors.New("a frame has a size that none may have")
	errChecksum  = errors.New("a frame is not as it was sent")
)

// frame is one that was read. Its bytes are good until the next is read.
type frame struct {
	kind    kind
	payload []byte
	raw     []byte // all of it
}

// frameReader reads frames.
type frameReader struct {
	r     *bufio.Reader
	limit int
	buf   []byte
}

func newFrameReader(r io.Reader, limit int) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, min(limit, 64<<10)), limit: limit}
}

// next reads a frame. The error is io.EOF when the stream ended before it, io.ErrUnexpectedEOF when it ended within.
func (f *frameReader) next() (frame, error) {
	head, err := f.r.Peek(4)
	if len(head) < 4 {
		if len(head) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, err
	}
	n := int(binary.BigEndian.Uint32(head))
	if n < 1 || n > f.limit {
		return frame{}, fmt.Errorf("%w: %d bytes", errFrameSize, n)
	}
	if total := n + 8; cap(f.buf) < total {
		f.buf = make([]byte, max(total, min(2*cap(f.buf), f.limit+8)))
	}
	raw := f.buf[:n+8]
	if _, err := io.ReadFull(f.r, raw); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, err
	}
	return parseFrame(raw)
}

// parseFrame takes a frame apart whose length is right.
func parseFrame(raw []byte) (frame, error) {
	body := raw[4 : len(raw)-4]
	if crc(body) != binary.BigEndian.Uint32(raw[len(raw)-4:]) {
		return frame{}, errChecksum
	}
	return frame{kind: kind(body[0]), payload: body[1:], raw: raw}, nil
}

// frameAt reads the frame that begins at an offset.
func frameAt(r io.ReaderAt, at int64, limit int) (frame, error) {
	var head [4]byte
	if _, err := r.ReadAt(head[:], at); err != nil {
		return frame{}, err
	}
	n := int(binary.BigEndian.Uint32(head[:]))
	if n < 1 || n > limit {
		return frame{}, fmt.Errorf("%w: %d bytes", errFrameSize, n)
	}
	raw := make([]byte, n+8)
	if _, err := r.ReadAt(raw, at); err != nil {
		return frame{}, err
	}
	return parseFrame(raw)
}

// appendFrame appends a frame to b.
func appendFrame(b []byte, k kind, payload []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(1+len(payload)))
	body := len(b)
	b = append(append(b, byte(k)), payload...)
	return binary.BigEndian.AppendUint32(b, crc(b[body:]))
}

func crc(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
