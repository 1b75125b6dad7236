package sshproxy

import (
	"sync"

	gossh "golang.org/x/crypto/ssh"
)

// Bounds of what a client may ask of one session before the container has answered. An environment of some hundred
// variables fits.
const (
	maxQueuedRequests = 1024
	maxQueuedBytes    = 1 << 20
)

// requestQueue holds a session's requests from the client until they can be answered, in order: replies carry no
// number. It never makes the sender wait, since that would hold up every other session of the connection.
type requestQueue struct {
	wake chan struct{} // has a token when there may be something to take

	mu    sync.Mutex
	list  []*gossh.Request
	bytes int
	ended bool
}

func newRequestQueue() *requestQueue { return &requestQueue{wake: make(chan struct{}, 1)} }

// push appends a request; false means that there are too many. Of several sizes of the window, only the last one
// counts.
func (q *requestQueue) push(r *gossh.Request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := len(q.list); n > 0 && isResize(r) && isResize(q.list[n-1]) {
		q.bytes += len(r.Payload) - len(q.list[n-1].Payload)
		q.list[n-1] = r
		return q.bytes <= maxQueuedBytes
	}
	if len(q.list) >= maxQueuedRequests || q.bytes+len(r.Payload) > maxQueuedBytes {
		return false
	}
	q.list = append(q.list, r)
	q.bytes += len(r.Payload)
	q.signal()
	return true
}

func isResize(r *gossh.Request) bool { return r.Type == "window-change" && !r.WantReply }

// end says that no more will come.
func (q *requestQueue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.signal()
}

func (q *requestQueue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take returns the next request; nil when there is none now. Ended says that none will come.
func (q *requestQueue) take() (r *gossh.Request, ended bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.list) == 0 {
		return nil, q.ended
	}
	r = q.list[0]
	q.list[0] = nil
	if q.list = q.list[1:]; len(q.list) == 0 {
		q.list = nil
	}
	q.bytes -= len(r.Payload)
	return r, false
}

// next waits for a request until stop is closed; nil when none will come.
func (q *requestQueue) next(stop <-chan struct{}) *gossh.Request {
	for {
		r, ended := q.take()
		if r != nil || ended {
			return r
		}
		select {
		case <-q.wake:
		case <-stop:
			return nil
		}
	}
}
