package agentproto

import "sync"

// Windows of a channel: how many bytes of data and stderr together a peer may have on their way to a reader.
const (
	initialWindow = 32 << 10
	maxWindow     = 8 << 20

	// maxExtra bounds what the channels of one connection have beyond their initial windows, all together: a container
	// whose clients read nothing holds that much of its gateway's memory.
	maxExtra = 32 << 20
)

// Budget bounds the bytes that channels of many connections may hold, all together. A channel that is opened beyond it
// is refused; none that is open is harmed. Half of it is for initial windows, so that those who read fast cannot keep
// others out. A nil Budget has no bound.
type Budget struct {
	limit int64

	mu      sync.Mutex // guards what follows
	initial int64
	extra   int64
}

// NewBudget returns a Budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// Used returns how many bytes are taken.
func (b *Budget) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.initial + b.extra
}

// take takes initial windows and what goes beyond them, or nothing.
func (b *Budget) take(initial, extra int64) bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.initial+b.extra+initial+extra > b.limit || extra > 0 && extra > share(b.limit/2-b.extra) {
		return false
	}
	b.initial += initial
	b.extra += extra
	return true
}

// share is as much of what is left as one window may grow by. So those who come late get less, and never next to nothing.
func share(left int64) int64 { return left / 4 }

func (b *Budget) give(initial, extra int64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.initial -= initial
	b.extra -= extra
}

// Memory for payloads. What a payload holds is at most twice its length, unless its reader is waiting for it: then
// there is one such payload.
const (
	smallPayload  = 2 << 10 // up to here, memory of the payload's own size
	mediumPayload = 8 << 10
	joined        = 4 << 10 // small payloads share memory up to this size, so that tiny ones cost no more than their bytes
	readAhead     = 256     // room behind a payload for the header that follows it, so that a frame is one read
)

// block is memory that is used again.
type block struct{ mem []byte }

func newBlock(size int) func() any { return func() any { return &block{make([]byte, size+readAhead)} } }

var (
	mediumBlocks = sync.Pool{New: newBlock(mediumPayload)}
	largeBlocks  = sync.Pool{New: newBlock(MaxPayload)}
)

// chunk is received payload that waits for its reader.
type chunk struct {
	data  []byte
	block *block // where data lies, if in memory that is used again
}

// newChunk returns memory for n bytes. Awaited says that its reader is waiting.
func newChunk(n int, awaited bool) chunk {
	var b *block
	switch {
	case n > smallPayload && n <= mediumPayload && (awaited || n > mediumPayload/2):
		b = mediumBlocks.Get().(*block)
	case n > mediumPayload && (awaited || n > MaxPayload/2):
		b = largeBlocks.Get().(*block)
	default:
		return chunk{data: make([]byte, n)}
	}
	return chunk{data: b.mem[:n], block: b}
}

func (c chunk) release() {
	switch {
	case c.block == nil:
	case len(c.block.mem) == MaxPayload+readAhead:
		largeBlocks.Put(c.block)
	default:
		mediumBlocks.Put(c.block)
	}
}

// queue is received payload in order.
type queue struct {
	chunks []chunk
	head   int // those before it were read
	off    int // read of the one at head
}

func (q *queue) empty() bool { return q.head == len(q.chunks) }

func (q *queue) push(c chunk) {
	if len(c.data) == 0 {
		c.release()
		return
	}
	if !q.empty() && c.block == nil {
		if last := &q.chunks[len(q.chunks)-1]; last.block == nil && len(last.data)+len(c.data) <= joined {
			last.data = append(last.data, c.data...)
			return
		}
	}
	if len(q.chunks) == cap(q.chunks) && q.head > 0 {
		n := copy(q.chunks, q.chunks[q.head:])
		clear(q.chunks[n:])
		q.chunks, q.head = q.chunks[:n], 0
	}
	q.chunks = append(q.chunks, c)
}

// pop takes the first chunk, less what was read of it. The queue is not empty.
func (q *queue) pop() chunk {
	c := q.chunks[q.head]
	c.data = c.data[q.off:]
	q.advance()
	return c
}

// read moves bytes to p. The queue is not empty.
func (q *queue) read(p []byte) int {
	n := 0
	for n < len(p) && !q.empty() {
		c := q.chunks[q.head]
		m := copy(p[n:], c.data[q.off:])
		n += m
		if q.off += m; q.off == len(c.data) {
			c.release()
			q.advance()
		}
	}
	return n
}

// keptChunks is how long an empty queue's list may be to be kept.
const keptChunks = 8

// advance drops the first chunk.
func (q *queue) advance() {
	q.chunks[q.head] = chunk{}
	q.head++
	q.off = 0
	if q.empty() {
		q.chunks, q.head = q.chunks[:0], 0
		if cap(q.chunks) > keptChunks {
			q.chunks = nil
		}
	}
}

func (q *queue) clear() {
	for _, c := range q.chunks[q.head:] {
		c.release()
	}
	*q = queue{}
}
