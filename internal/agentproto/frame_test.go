package agentproto

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// FuzzFrames reads what a peer may send, in one piece and byte by byte: both must give the same frames.
func FuzzFrames(f *testing.F) {
	f.Add(appendFrame(appendFrame(nil, frameData, 1, []byte("hello")), frameClose, 1, nil))
	f.Add([]byte{6, 0xff, 0xff, 0xff, 0, 0, 0, 1})
	f.Add(appendFrame(appendFrame(nil, frameData, 3, make([]byte, 20000)), frameStderr, 3, make([]byte, 3000)))
	f.Fuzz(func(t *testing.T, b []byte) {
		frames, err := readAll(bytes.NewReader(b))
		again, err2 := readAll(iotest.OneByteReader(bytes.NewReader(b)))
		if (err == nil) != (err2 == nil) || !bytes.Equal(frames, again) {
			t.Errorf("%x reads as %x, %v and as %x, %v", b, frames, err, again, err2)
		}
		if !bytes.HasPrefix(b, frames) || err == nil && len(frames) != len(b) {
			t.Errorf("%x reads as %x, %v", b, frames, err)
		}
	})
}

// readAll reads frames and writes them again.
func readAll(src io.Reader) (out []byte, err error) {
	r := newReader(src, MaxPayload)
	for {
		h, err := r.header()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		var p []byte
		switch h.kind {
		case frameData, frameStderr:
			c, err := r.chunk(h.length, h.kind == frameData)
			if err != nil {
				return out, err
			}
			p = bytes.Clone(c.data)
			c.release()
		default:
			if p, err = r.payload(h.length); err != nil {
				return out, err
			}
		}
		out = appendFrame(out, h.kind, h.stream, p)
	}
}

func FuzzOpen(f *testing.F) {
	seed, _ := open{credit: 7, attachment: 3, kind: "session", payload: []byte("x")}.encode()
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
	seed, _ := encodeRequest("exec", true, []byte("x"), MaxPayload)
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		name, want, payload, err := decodeRequest(b)
		if err != nil {
			return
		}
		again, err := encodeRequest(name, want, payload, MaxRequest)
		if len(b) <= MaxRequest && (err != nil || !bytes.Equal(again, b)) {
			t.Errorf("%x reads as %q %v %x, %v", b, name, want, payload, err)
		}
	})
}

func FuzzCalls(f *testing.F) {
	seed, _ := call{number: 5, name: "stats", payload: []byte("x")}.encode()
	f.Add(seed)
	f.Add(answer{number: 5, ok: true, payload: []byte("x")}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeCall(b); err == nil {
			if again, err := c.encode(); len(b) <= MaxPayload && (err != nil || !bytes.Equal(again, b)) {
				t.Errorf("%x reads as %+v, %v", b, c, err)
			}
		}
		if a, err := decodeAnswer(b); err == nil && !bytes.Equal(a.encode(), b) {
			t.Errorf("%x reads as %+v", b, a)
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
		e, err := decodeReject(b)
		if err == nil && (e.Reason == 0 || e.Reason > maxReason || len(e.Message) > maxMessage) {
			t.Errorf("%x reads as %+v", b, e)
		}
	})
}

func TestNamesAreBounded(t *testing.T) {
	if _, err := encodeRequest(strings.Repeat("x", 65), false, nil, MaxPayload); err == nil {
		t.Error("a long name is sent")
	}
	if _, err := (open{kind: "", payload: nil}).encode(); err == nil {
		t.Error("a channel without a kind is opened")
	}
	if _, err := encodeRequest("env", false, make([]byte, MaxRequest), MaxRequest); err == nil {
		t.Error("a long payload is sent")
	}
}

// A gateway sends command lines as long as clients do; what an agent sends it stays short.
func TestLongRequestsGoToAgentsAlone(t *testing.T) {
	for _, tt := range []struct {
		kind            frameType
		length, longest int
		ok              bool
	}{
		{frameRequest, MaxRequest, MaxRequest, true},
		{frameRequest, MaxRequest, MaxRequest - 1, false},
		{frameRequest, MaxPayload + 1, longestRequest(false), false},
		{frameRequest, MaxRequest, longestRequest(true), true},
		{frameData, MaxPayload + 1, MaxRequest, false},
		{frameData, MaxPayload, MaxRequest, true},
	} {
		h, err := decodeHeader(appendHeader(nil, tt.kind, 1, tt.length), tt.longest)
		if tt.ok != (err == nil) || tt.ok && h.length != tt.length {
			t.Errorf("%+v: %+v, %v", tt, h, err)
		}
	}
}

// A flood of tiny frames costs about as much memory as its bytes, and so do frames of any size.
func TestQueueHoldsLittleMoreThanItsBytes(t *testing.T) {
	for _, size := range []int{
		1, 10, 1000, smallPayload, smallPayload + 1, mediumPayload/2 + 1, mediumPayload + 1, MaxPayload/2 + 1, MaxPayload,
	} {
		const total = 1 << 20
		var q queue
		for range total / size {
			c := newChunk(size, q.empty())
			q.push(c)
		}
		held := cap(q.chunks) * 40
		for _, c := range q.chunks {
			if held += cap(c.data); c.block != nil {
				held += len(c.block.mem) - cap(c.data)
			}
		}
		if held > 5*total/2 {
			t.Errorf("%d bytes of %d hold %d", total, size, held)
		}
		n := 0
		for p := make([]byte, 777); !q.empty(); {
			n += q.read(p)
		}
		if n != total/size*size {
			t.Errorf("%d bytes came back", n)
		}
	}
}
