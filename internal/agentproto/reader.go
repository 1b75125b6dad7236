package agentproto

import (
	"errors"
	"io"
)

// readBuffer holds small frames; those that are longer than it are read past it.
const readBuffer = 4 << 10

// reader reads frames. The payload of data goes straight into the memory in which its channel keeps it.
type reader struct {
	src     io.Reader
	longest int // payload of a request
	buf     []byte
	r, w    int // what is read of src and not yet used is buf[r:w]
}

func newReader(src io.Reader, longest int) *reader {
	return &reader{src: src, longest: longest, buf: make([]byte, readBuffer)}
}

// fill reads until n bytes, at most readBuffer, are there.
func (r *reader) fill(n int) error {
	if r.r == r.w {
		r.r, r.w = 0, 0
	}
	if r.r+n > len(r.buf) {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	for r.w-r.r < n {
		m, err := r.src.Read(r.buf[r.w:])
		r.w += m
		if err != nil && r.w-r.r < n {
			return err
		}
	}
	return nil
}

// header reads the header of a frame. It returns io.EOF only between frames.
func (r *reader) header() (header, error) {
	if err := r.fill(headerLen); err != nil {
		if r.r != r.w {
			err = unexpected(err)
		}
		return header{}, err
	}
	h, err := decodeHeader(r.buf[r.r:r.w], r.longest)
	r.r += headerLen
	return h, err
}

// payload reads n bytes into memory of their own.
func (r *reader) payload(n int) ([]byte, error) {
	p := make([]byte, n)
	have := copy(p, r.buf[r.r:r.w])
	r.r += have
	if _, err := io.ReadFull(r.src, p[have:]); err != nil {
		return nil, unexpected(err)
	}
	return p, nil
}

// chunk reads n bytes of data. Awaited says that their reader is waiting.
func (r *reader) chunk(n int, awaited bool) (chunk, error) {
	c := newChunk(n, awaited)
	if n <= smallPayload {
		if err := r.fill(n); err != nil {
			c.release()
			return chunk{}, unexpected(err)
		}
	}
	have := copy(c.data, r.buf[r.r:r.w])
	r.r += have
	room := c.data
	if c.block != nil {
		room = c.block.mem[:n+readAhead]
	}
	for have < n {
		m, err := r.src.Read(room[have:])
		have += m
		if err != nil && have < n {
			c.release()
			return chunk{}, unexpected(err)
		}
	}
	if have > n {
		r.r, r.w = 0, copy(r.buf, room[n:have])
	}
	return c, nil
}

// discard reads n bytes and drops them.
func (r *reader) discard(n int) error {
	for n > 0 {
		if r.r == r.w {
			if err := r.fill(1); err != nil {
				return unexpected(err)
			}
		}
		m := min(n, r.w-r.r)
		r.r += m
		n -= m
	}
	return nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
