package sshproxy

import (
	"io"
	"sync"
)

// Sizes of the buffers that streams are copied through. An idle session holds a small one. One that moves data has a
// large one, of many SSH packets: x/crypto answers each read of a busy channel with a packet that adjusts the window,
// and reads of one packet each made that a seventh of an upload's work.
const (
	smallBuffer = 512
	largeBuffer = 256 << 10
)

var largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// copyStream copies src to dst until EOF, and returns nil then. The large buffer goes back to the pool before a wait
// for more, once the stream has slowed down. A source that can write its own buffers needs none of ours.
func copyStream(dst io.Writer, src io.Reader) error {
	if own, ok := src.(io.WriterTo); ok {
		_, err := own.WriteTo(dst)
		return err
	}
	small := make([]byte, smallBuffer)
	var large *[largeBuffer]byte
	defer func() {
		if large != nil {
			largeBuffers.Put(large)
		}
	}()
	slow := 0
	for {
		buf := small
		if large != nil {
			buf = large[:]
		}
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case large == nil && n == len(small):
			large = largeBuffers.Get().(*[largeBuffer]byte)
			slow = 0
		case large != nil && n <= smallBuffer:
			if slow++; slow > 4 {
				largeBuffers.Put(large)
				large = nil
			}
		default:
			slow = 0
		}
	}
}
