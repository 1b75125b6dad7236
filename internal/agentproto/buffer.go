package agentproto

import (
	"io"
	"sync"
	"sync/atomic"
)

// Windows of a channel: how many bytes of data and stderr together a peer may have on their way to a reader.
const (
	initialWindow = 64 << 10
	maxWindow     = 1 << 20
)

// Budget bounds the bytes that channels may hold beyond their initial windows, all together. Channels that find it used up
// stay at their size, and so at a lower speed over long distances. A nil Budget has no bound.
type Budget struct {
	limit int64
	used  atomic.Int64
}

// NewBudget returns a Budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

func (b *Budget) take(n int64) bool {
	if b == nil {
		return true
	}
	if b.used.Add(n) > b.limit {
		b.used.Add(-n)
		return false
	}
	return true
}

func (b *Budget) give(n int64) {
	if b != nil {
		b.used.Add(-n)
	}
}

// Used returns how many bytes are taken.
func (b *Budget) Used() int64 { return b.used.Load() }

// frames holds memory for one whole frame each.
var frames = sync.Pool{New: func() any { return new([headerLen + MaxPayload]byte) }}

// smallChunk is the longest payload that is kept in memory of its own size.
const smallChunk = 16 << 10

// joined is the size up to which short payloads share memory, so that a flood of tiny frames costs no more than their bytes.
const joined = 4 << 10

// chunk is received payload that waits for its reader.
type chunk struct {
	data   []byte
	pooled *[headerLen + MaxPayload]byte // where data lies, if in pooled memory
}

// readChunk reads n bytes of payload.
func readChunk(r io.Reader, n int) (chunk, error) {
	var c chunk
	if n <= smallChunk {
		c.data = make([]byte, n)
	} else {
		c.pooled = frames.Get().(*[headerLen + MaxPayload]byte)
		c.data = c.pooled[:n]
	}
	if _, err := io.ReadFull(r, c.data); err != nil {
		c.release()
		return chunk{}, unexpected(err)
	}
	return c, nil
}

func (c chunk) release() {
	if c.pooled != nil {
		frames.Put(c.pooled)
	}
}

// queue is received payload in order.
type queue struct {
	chunks []chunk
	off    int // read of the first one
}

func (q *queue) push(c chunk) {
	if n := len(q.chunks); n > 0 && c.pooled == nil {
		if last := &q.chunks[n-1]; last.pooled == nil && len(last.data)+len(c.data) <= joined {
			last.data = append(last.data, c.data...)
			return
		}
	}
	if len(c.data) > 0 {
		q.chunks = append(q.chunks, c)
	} else {
		c.release()
	}
}

func (q *queue) empty() bool { return len(q.chunks) == 0 }

// read moves bytes to p; the queue is not empty.
func (q *queue) read(p []byte) int {
	n := 0
	for n < len(p) && !q.empty() {
		c := q.chunks[0]
		m := copy(p[n:], c.data[q.off:])
		n += m
		if q.off += m; q.off == len(c.data) {
			c.release()
			q.chunks[0] = chunk{}
			q.chunks, q.off = q.chunks[1:], 0
		}
	}
	if q.empty() {
		q.chunks = nil // lets the memory behind it go
	}
	return n
}

func (q *queue) clear() {
	for _, c := range q.chunks {
		c.release()
	}
	q.chunks, q.off = nil, 0
}
