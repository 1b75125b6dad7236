package k8s

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"testing"
)

type writes struct {
	net.Conn
	list [][]byte
	err  error
}

func (w *writes) Write(p []byte) (int, error) {
	w.list = append(w.list, bytes.Clone(p))
	return len(p), w.err
}

// However a frame is handed over, it goes out in one piece.
func TestWholeFrames(t *testing.T) {
	frame := func(first uint32, flags byte, n int) []byte {
		b := binary.BigEndian.AppendUint32(nil, first)
		b = binary.BigEndian.AppendUint32(b, uint32(flags)<<24|uint32(n))
		return append(b, bytes.Repeat([]byte{0xa5}, n)...)
	}
	frames := [][]byte{
		frame(1, 0, 100), frame(1, 1, 0), frame(0x80030001, 0, 300), frame(3, 0, spdyChunk), frame(0x80030006, 0xff, 4), frame(3, 0, 1<<17),
	}
	for _, piece := range []int{1, 3, 4, 8, 1000, 1 << 20} {
		to := &writes{}
		w := &wholeFrames{Conn: to}
		for _, f := range frames {
			for part := range slices.Chunk(f, piece) { // a framer's writes never span two frames
				if n, err := w.Write(part); n != len(part) || err != nil {
					t.Fatal(n, err)
				}
			}
			if n, err := w.Write(nil); n != 0 || err != nil { // data of no length
				t.Fatal(n, err)
			}
		}
		if !slices.EqualFunc(to.list, frames, bytes.Equal) {
			t.Errorf("in pieces of %d: %d writes", piece, len(to.list))
		}
	}
	broken := errors.New("broken")
	w := &wholeFrames{Conn: &writes{err: broken}}
	if _, err := w.Write(frames[0]); !errors.Is(err, broken) {
		t.Errorf("an error is %v", err)
	}
}
