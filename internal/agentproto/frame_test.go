package agentproto

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func FuzzReadFrame(f *testing.F) {
	f.Add(appendFrame(nil, frameData, []byte("hello")))
	f.Add([]byte{6, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, payload, err := readFrame(bytes.NewReader(b))
		if err == nil && !bytes.HasPrefix(b, appendFrame(nil, kind, payload)) {
			t.Errorf("%x reads as %d %x", b, kind, payload)
		}
	})
}

func FuzzOpen(f *testing.F) {
	seed, _ := open{attachment: 3, kind: "session", payload: []byte("x")}.encode()
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := decodeOpen(b)
		if err != nil {
			return
		}
		if again, err := o.encode(); len(b) <= MaxPayload && (err != nil || !bytes.Equal(again, b)) {
			t.Errorf("%x reads as %+v, %v", b, o, err)
		}
	})
}

func FuzzRequest(f *testing.F) {
	seed, _ := encodeRequest("exec", true, []byte("x"))
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		name, want, payload, err := decodeRequest(b)
		if err != nil {
			return
		}
		if again, err := encodeRequest(name, want, payload); len(b) <= MaxRequest && (err != nil || !bytes.Equal(again, b)) {
			t.Errorf("%x reads as %q %v %x, %v", b, name, want, payload, err)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add([]byte(`{"min":1,"max":2,"features":["a"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := decodeHello(b); err == nil && (h.Min == 0 || h.Max < h.Min || len(h.Features) > maxFeatures) {
			t.Errorf("%s reads as %+v", b, h)
		}
	})
}

func FuzzAttach(f *testing.F) {
	f.Add([]byte(`{"id":1,"user":"root"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := decodeAttach(b); err == nil && len(b) > maxAttach {
			t.Errorf("%d bytes are accepted", len(b))
		}
	})
}

func FuzzReject(f *testing.F) {
	f.Add((&OpenError{Reason: 2, Message: "no"}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := decodeReject(b); err == nil && (e.Reason == 0 || e.Reason > maxReason || len(e.Message) > maxMessage) {
			t.Errorf("%x reads as %+v", b, e)
		}
	})
}

func TestNamesAreBounded(t *testing.T) {
	if _, err := encodeRequest(strings.Repeat("x", 65), false, nil); err == nil {
		t.Error("a long name is sent")
	}
	if _, err := (open{kind: "", payload: nil}).encode(); err == nil {
		t.Error("a channel without a kind is opened")
	}
	if _, err := encodeRequest("env", false, make([]byte, MaxRequest)); err == nil {
		t.Error("a long payload is sent")
	}
}

// A flood of tiny frames costs about as much memory as its bytes.
func TestQueueJoinsTinyPayloads(t *testing.T) {
	var q queue
	for range 100_000 {
		q.push(chunk{data: []byte{1}})
	}
	if n := len(q.chunks); n > 100_000/joined+1 {
		t.Errorf("%d chunks", n)
	}
	got := make([]byte, 200_000)
	if n := q.read(got); n != 100_000 || !q.empty() {
		t.Errorf("%d bytes came back", n)
	}
}

// hostile returns a channel whose peer is the test itself.
func hostile(t *testing.T) (*Channel, net.Conn, chan bool) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	released := make(chan bool, 1)
	c := newChannel(ends[0], nil, func(broken bool) { released <- broken })
	go c.receive()
	t.Cleanup(func() {
		ends[1].Close()
		c.Close()
	})
	return c, ends[1], released
}

func TestAPeerThatBreaksTheProtocolLosesTheChannel(t *testing.T) {
	request, err := encodeRequest("window-change", false, nil)
	if err != nil {
		t.Fatal(err)
	}
	huge := appendFrame(nil, frameWindow, binary.BigEndian.AppendUint32(nil, 1<<32-1))
	for name, frames := range map[string][]byte{
		"more data than credit":        bytes.Repeat(appendFrame(nil, frameData, make([]byte, MaxPayload)), 3),
		"more stderr than credit":      bytes.Repeat(appendFrame(nil, frameStderr, make([]byte, MaxPayload)), 3),
		"data after EOF":               append(appendFrame(nil, frameEOF, nil), appendFrame(nil, frameData, []byte("x"))...),
		"a flood of requests":          bytes.Repeat(appendFrame(nil, frameRequest, request), maxRequests+1),
		"a reply to nothing":           appendFrame(nil, frameReply, []byte{1}),
		"credit without end":           append(huge, huge...),
		"a frame that is too long":     {byte(frameData), 0xff, 0xff, 0xff},
		"an unknown frame":             appendFrame(nil, 99, nil),
		"a hello in the middle":        appendFrame(nil, frameHello, []byte("{}")),
		"a request without a name":     appendFrame(nil, frameRequest, []byte{1, 0}),
		"a name that is not printable": appendFrame(nil, frameRequest, []byte{0, 2, 'a', 0x1b}),
	} {
		t.Run(name, func(t *testing.T) {
			c, peer, released := hostile(t)
			go func() { _, _ = peer.Write(frames) }()
			select {
			case broken := <-released:
				if !broken {
					t.Error("it is not called broken")
				}
			case <-time.After(20 * time.Second):
				t.Fatal("the channel goes on")
			}
			if _, err := c.Write([]byte("x")); err == nil {
				t.Error("it can still be written")
			}
			if _, err := c.Request(context.Background(), "x", true, nil); err == nil || errors.Is(err, context.Canceled) {
				t.Errorf("a request gives %v", err)
			}
		})
	}
}

// A gateway sends command lines as long as clients do; what an agent sends it stays short.
func TestLongRequestsGoToAgentsAlone(t *testing.T) {
	frame := appendFrame(nil, frameRequest, make([]byte, MaxRequest))
	for _, tt := range []struct {
		longest int
		ok      bool
	}{{MaxRequest, true}, {MaxRequest - 1, false}, {MaxPayload, false}} {
		_, n, err := readHeader(bytes.NewReader(frame), make([]byte, headerLen), tt.longest)
		if tt.ok != (err == nil) || tt.ok && n != MaxRequest {
			t.Errorf("where %d bytes are allowed: %d, %v", tt.longest, n, err)
		}
	}
	if _, _, err := readHeader(bytes.NewReader(appendFrame(nil, frameData, make([]byte, MaxPayload+1))), make([]byte, headerLen), MaxRequest); err == nil {
		t.Error("a frame of data is as long as a request")
	}
}
