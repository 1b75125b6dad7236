package sshproxy

import (
	"io"
	"sync"
)

// Sizes of the buffers that streams are copied through. An idle session holds small ones; one that moves data has large
// ones, of the size of an SSH packet's data.
const (
	smallBuffer = 512
	largeBuffer = 32 << 10
)

var largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// copyStream copies src to dst until EOF, and returns nil then. The large buffer goes back to the pool before a wait for
// more, once the stream has slowed down.
func copyStream(dst io.Writer, src io.Reader) error {
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
