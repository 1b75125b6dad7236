// Package agentproto is the wire between a gateway and the agent of one container: what travels, in which order, and
// within which bounds. Both ends use the same code.
//
// One transport (any net.Conn) carries frames. The first one each way is hello. An attachment, one client's presence,
// is a stream of frames; every SSH channel of that client is a stream too, which names the attachment when it opens.
// Calls belong to the connection and to no stream.
//
// Data and stderr travel within credit that the receiver gives, and a receiver always reads: so a request, a reply or a
// close is never stuck behind output that nobody takes, and a peer that exceeds its credit loses that channel alone.
// Payloads of opens and requests are those of RFC 4254, untouched. Nothing is encrypted: the transport is private
// already.
//
// The package trusts its peer with nothing, and knows neither SSH connections nor processes.
package agentproto

import (
	"encoding/binary"
	"errors"
	"fmt"
)

type frameType byte

// The frames. A stream's number is that of the frame that opened it: odd ones are the gateway's, even ones the agent's,
// both grow, none is used again. It is free once both ends have sent close, or the opening was refused. Adding a frame
// needs a new version or a feature: a receiver ends the connection on one that it does not know.
const (
	frameHello   frameType = 1  // JSON of Hello; first, both ways; stream 0
	frameAttach  frameType = 2  // JSON of Attach; opens an attachment's stream
	frameOpen    frameType = 3  // credit, attachment's stream (4 bytes each), kind (1 byte length), payload; opens a channel's
	frameAccept  frameType = 4  // answers attach and open; credit (4 bytes)
	frameReject  frameType = 5  // answers attach and open; reason (4 bytes), message
	frameData    frameType = 6  // within credit
	frameStderr  frameType = 7  // within credit, the same as data's
	frameEOF     frameType = 8  // no data or stderr follows
	frameWindow  frameType = 9  // more credit (4 bytes)
	frameRequest frameType = 10 // reply wanted (1 byte), name (1 byte length), payload
	frameReply   frameType = 11 // ok (1 byte), payload; answers requests in their order
	frameClose   frameType = 12 // nothing follows; is answered with a close
	frameCall    frameType = 13 // number (4 bytes), name (1 byte length), payload; stream 0
	frameAnswer  frameType = 14 // number (4 bytes), ok (1 byte), payload; stream 0
	framePing    frameType = 15 // is answered with a pong; stream 0
	framePong    frameType = 16 // stream 0
)

const (
	headerLen = 8 // type (1 byte), length of the payload (3 bytes), stream (4 bytes); all numbers are big endian

	// MaxPayload is the longest payload of a frame, and so of an open.
	MaxPayload = 32 << 10
	// MaxRequest is the longest payload of a request to an agent: a command line may be as long as OpenSSH's longest
	// packet. To a gateway, which trusts no agent, it is MaxPayload.
	MaxRequest = 256 << 10
	// MaxAnswer is the longest answer to a call.
	MaxAnswer  = MaxPayload - 5
	maxName    = 64 // of a kind of channel or a request (RFC 4250, section 4.6.1, allows 64 characters)
	maxMessage = 512
)

var errFrame = errors.New("malformed frame")

type header struct {
	kind   frameType
	length int
	stream uint32
}

func appendHeader(b []byte, t frameType, stream uint32, length int) []byte {
	b = append(b, byte(t), byte(length>>16), byte(length>>8), byte(length))
	return binary.BigEndian.AppendUint32(b, stream)
}

// appendFrame appends a frame to b.
func appendFrame(b []byte, t frameType, stream uint32, payload []byte) []byte {
	return append(appendHeader(b, t, stream, len(payload)), payload...)
}

// decodeHeader reads a header; the payload of a request is at most longest.
func decodeHeader(b []byte, longest int) (header, error) {
	h := header{
		kind: frameType(b[0]), length: int(b[1])<<16 | int(b[2])<<8 | int(b[3]),
		stream: binary.BigEndian.Uint32(b[4:headerLen]),
	}
	if h.kind != frameRequest {
		longest = MaxPayload
	}
	if h.length > longest {
		return header{}, fmt.Errorf("%w: %d bytes of payload", errFrame, h.length)
	}
	return h, nil
}

// cutUint32 splits a number off payload.
func cutUint32(payload []byte) (n uint32, rest []byte, err error) {
	if len(payload) < 4 {
		return 0, nil, errFrame
	}
	return binary.BigEndian.Uint32(payload), payload[4:], nil
}

func uint32Of(payload []byte) (uint32, error) {
	n, rest, err := cutUint32(payload)
	if len(rest) > 0 {
		return 0, errFrame
	}
	return n, err
}

// cutBool splits a truth value off payload.
func cutBool(payload []byte) (v bool, rest []byte, err error) {
	if len(payload) < 1 || payload[0] > 1 {
		return false, nil, errFrame
	}
	return payload[0] == 1, payload[1:], nil
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
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

// appendNamed appends a name and what follows it to b, the begin of a payload of at most longest bytes.
func appendNamed(b []byte, name string, payload []byte, longest int) ([]byte, error) {
	if len(name) == 0 || len(name) > maxName {
		return nil, fmt.Errorf("a name of %d bytes", len(name))
	}
	b = append(append(b, byte(len(name))), name...)
	if len(b)+len(payload) > longest {
		return nil, fmt.Errorf("a payload of %d bytes is too long", len(payload))
	}
	return append(b, payload...), nil
}

// open is the payload of the first frame of a channel.
type open struct {
	credit     uint32
	attachment uint32
	kind       string
	payload    []byte
}

func (o open) encode() ([]byte, error) {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 9+len(o.kind)+len(o.payload)), o.credit)
	return appendNamed(binary.BigEndian.AppendUint32(b, o.attachment), o.kind, o.payload, MaxPayload)
}

func decodeOpen(b []byte) (o open, err error) {
	if o.credit, b, err = cutUint32(b); err != nil {
		return o, err
	}
	if o.attachment, b, err = cutUint32(b); err != nil {
		return o, err
	}
	o.kind, o.payload, err = cutName(b)
	return o, err
}

// encodeRequest writes the payload of a request frame, at most longest bytes.
func encodeRequest(name string, wantReply bool, payload []byte, longest int) ([]byte, error) {
	return appendNamed(appendBool(make([]byte, 0, 2+len(name)+len(payload)), wantReply), name, payload, longest)
}

func decodeRequest(b []byte) (name string, wantReply bool, payload []byte, err error) {
	if wantReply, b, err = cutBool(b); err != nil {
		return "", false, nil, err
	}
	name, payload, err = cutName(b)
	return name, wantReply, payload, err
}

// call is the payload of a call.
type call struct {
	number  uint32
	name    string
	payload []byte
}

func (c call) encode() ([]byte, error) {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 5+len(c.name)+len(c.payload)), c.number)
	return appendNamed(b, c.name, c.payload, MaxPayload)
}

func decodeCall(b []byte) (c call, err error) {
	if c.number, b, err = cutUint32(b); err != nil {
		return c, err
	}
	c.name, c.payload, err = cutName(b)
	return c, err
}

// answer is the payload of a call's answer.
type answer struct {
	number  uint32
	ok      bool
	payload []byte
}

func (a answer) encode() []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 5+len(a.payload)), a.number)
	return append(appendBool(b, a.ok), a.payload...)
}

func decodeAnswer(b []byte) (a answer, err error) {
	if a.number, b, err = cutUint32(b); err != nil {
		return a, err
	}
	a.ok, a.payload, err = cutBool(b)
	return a, err
}

// OpenError is the refusal of a channel or an attachment.
type OpenError struct {
	Reason  uint32 // of RFC 4254, section 5.1
	Message string // from the peer: foreign text
}

// The reasons of RFC 4254, section 5.1.
const (
	ReasonProhibited    uint32 = 1
	ReasonConnectFailed uint32 = 2
	ReasonUnknownKind   uint32 = 3
	ReasonShortOfSupply uint32 = 4
	maxReason                  = ReasonShortOfSupply
)

// Refusals of our own.
var (
	refuseNoAttachment = &OpenError{Reason: ReasonProhibited, Message: "there is no such attachment"}
	refuseTooMany      = &OpenError{Reason: ReasonShortOfSupply, Message: "too many channels"}
	refuseBudget       = &OpenError{Reason: ReasonShortOfSupply, Message: "too much data is on its way"}
)

func (e *OpenError) Error() string {
	return fmt.Sprintf("open refused (reason %d): %q", e.Reason, e.Message)
}

func (e *OpenError) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, e.Reason)
	return append(b, e.Message[:min(len(e.Message), maxMessage)]...)
}

func decodeReject(b []byte) (*OpenError, error) {
	reason, message, err := cutUint32(b)
	if err != nil || len(message) > maxMessage {
		return nil, errFrame
	}
	if reason == 0 || reason > maxReason {
		reason = ReasonConnectFailed
	}
	return &OpenError{Reason: reason, Message: string(message)}, nil
}
