// Package agentproto is the wire between a gateway and the agent of one container: what travels, in which order, and within
// which bounds. Both ends use the same code.
//
// One transport (any net.Conn) carries yamux streams. The first, opened by the gateway, is the control stream: hello both
// ways, then calls. An attachment, one client's presence, is a stream; every SSH channel of that client is a stream too,
// whose first frame names the attachment. After its first frame is answered, a stream carries the frames below.
//
// Data and stderr travel within credit that the receiver gives, and a receiver always reads: so a request, a reply or a
// close is never stuck behind output that nobody takes, and a peer that exceeds its credit loses that channel alone.
// Payloads of opens and requests are those of RFC 4254, untouched. Nothing is encrypted: the transport is private already.
//
// The package trusts its peer with nothing, and knows neither SSH connections nor processes.
package agentproto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

type frameType byte

// The frames. Adding one needs a new version or feature; a receiver ends a stream on one it does not know.
const (
	frameHello   frameType = 1  // JSON of Hello; first on the control stream, both ways
	frameAttach  frameType = 2  // JSON of attachRequest; first on an attachment's stream
	frameOpen    frameType = 3  // attachment (8 bytes), kind (1 byte length), payload; first on a channel's stream
	frameAccept  frameType = 4  // answers attach and open; initial credit (4 bytes)
	frameReject  frameType = 5  // answers attach and open; reason (4 bytes), message
	frameData    frameType = 6  // within credit
	frameStderr  frameType = 7  // within credit, the same as data's
	frameEOF     frameType = 8  // no data or stderr follows
	frameWindow  frameType = 9  // more credit (4 bytes)
	frameRequest frameType = 10 // reply wanted (1 byte), name (1 byte length), payload
	frameReply   frameType = 11 // ok (1 byte), payload; answers requests in their order
	frameClose   frameType = 12 // nothing follows
)

const (
	headerLen = 4 // type (1 byte), length of the payload (3 bytes, big endian)

	// MaxPayload is the longest payload of a frame, and so of an open.
	MaxPayload = 32 << 10
	// MaxRequest is the longest payload of a request to an agent: a command line may be as long as OpenSSH's longest packet. To
	// a gateway, which trusts no agent, it is MaxPayload.
	MaxRequest = 256 << 10
	maxName    = 64 // of a kind of channel or a request (RFC 4250, section 4.6.1, allows 64 characters)
	maxMessage = 512
)

var errFrame = errors.New("malformed frame")

// appendFrame appends a frame to b.
func appendFrame(b []byte, t frameType, payload []byte) []byte {
	b = appendHeader(b, t, len(payload))
	return append(b, payload...)
}

func appendHeader(b []byte, t frameType, n int) []byte {
	return append(b, byte(t), byte(n>>16), byte(n>>8), byte(n))
}

// readHeader reads the header of a frame, and checks its length; that of a request is at most longest.
func readHeader(r io.Reader, scratch []byte, longest int) (frameType, int, error) {
	h := scratch[:headerLen]
	if _, err := io.ReadFull(r, h); err != nil {
		return 0, 0, err
	}
	n := int(h[1])<<16 | int(h[2])<<8 | int(h[3])
	t := frameType(h[0])
	if t != frameRequest {
		longest = MaxPayload
	}
	if n > longest {
		return 0, 0, fmt.Errorf("%w: %d bytes of payload", errFrame, n)
	}
	return t, n, nil
}

// readFrame reads a whole frame into memory of its own.
func readFrame(r io.Reader) (frameType, []byte, error) {
	var scratch [headerLen]byte
	t, n, err := readHeader(r, scratch[:], MaxPayload)
	if err != nil {
		return 0, nil, err
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, unexpected(err)
	}
	return t, payload, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func uint32Of(payload []byte) (uint32, error) {
	if len(payload) != 4 {
		return 0, errFrame
	}
	return binary.BigEndian.Uint32(payload), nil
}

// cutName splits a name, with its length in the first byte, off payload.
func cutName(payload []byte) (name string, rest []byte, err error) {
	if len(payload) < 1 {
		return "", nil, errFrame
	}
	n := int(payload[0])
	if n == 0 || n > maxName || len(payload) < 1+n {
		return "", nil, fmt.Errorf("%w: a name of %d bytes", errFrame, n)
	}
	for _, c := range payload[1 : 1+n] {
		if c <= ' ' || c > '~' { // RFC 4250, section 4.6.1
			return "", nil, fmt.Errorf("%w: a name that is not printable", errFrame)
		}
	}
	return string(payload[1 : 1+n]), payload[1+n:], nil
}

func appendName(b []byte, name string) ([]byte, error) {
	if len(name) == 0 || len(name) > maxName {
		return nil, fmt.Errorf("a name of %d bytes", len(name))
	}
	return append(append(b, byte(len(name))), name...), nil
}

// open is the first frame of a channel.
type open struct {
	attachment uint64
	kind       string
	payload    []byte
}

func (o open) encode() ([]byte, error) {
	b, err := appendName(binary.BigEndian.AppendUint64(nil, o.attachment), o.kind)
	if err != nil {
		return nil, fmt.Errorf("kind of channel: %w", err)
	}
	if len(b)+len(o.payload) > MaxPayload {
		return nil, fmt.Errorf("payload of %d bytes is too long", len(o.payload))
	}
	return append(b, o.payload...), nil
}

func decodeOpen(b []byte) (o open, err error) {
	if len(b) < 8 {
		return o, errFrame
	}
	o.attachment = binary.BigEndian.Uint64(b)
	o.kind, o.payload, err = cutName(b[8:])
	return o, err
}

// encodeRequest writes the payload of a request frame.
func encodeRequest(name string, wantReply bool, payload []byte) ([]byte, error) {
	b := make([]byte, 1, 2+len(name)+len(payload))
	if wantReply {
		b[0] = 1
	}
	b, err := appendName(b, name)
	if err != nil {
		return nil, fmt.Errorf("name of request: %w", err)
	}
	if len(b)+len(payload) > MaxRequest {
		return nil, fmt.Errorf("payload of %d bytes is too long", len(payload))
	}
	return append(b, payload...), nil
}

func decodeRequest(b []byte) (name string, wantReply bool, payload []byte, err error) {
	if len(b) < 1 || b[0] > 1 {
		return "", false, nil, errFrame
	}
	name, payload, err = cutName(b[1:])
	return name, b[0] == 1, payload, err
}

// OpenError is the refusal of a channel or an attachment.
type OpenError struct {
	Reason  uint32 // of RFC 4254, section 5.1
	Message string // from the peer: foreign text
}

// The reasons of RFC 4254, section 5.1.
const (
	ReasonProhibited     uint32 = 1
	ReasonConnectFailed  uint32 = 2
	ReasonUnknownKind    uint32 = 3
	ReasonShortOfSupply  uint32 = 4
	maxReason                   = ReasonShortOfSupply
	messageNoAttachment         = "there is no such attachment"
	messageTooMany              = "too many channels"
	messageUnexpectedOne        = "this end opens no channels of that kind"
)

func (e *OpenError) Error() string {
	return fmt.Sprintf("open refused (reason %d): %q", e.Reason, e.Message)
}

func (e *OpenError) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, e.Reason)
	return append(b, e.Message[:min(len(e.Message), maxMessage)]...)
}

func decodeReject(b []byte) (*OpenError, error) {
	if len(b) < 4 || len(b) > 4+maxMessage {
		return nil, errFrame
	}
	e := &OpenError{Reason: binary.BigEndian.Uint32(b), Message: string(b[4:])}
	if e.Reason == 0 || e.Reason > maxReason {
		e.Reason = ReasonConnectFailed
	}
	return e, nil
}
