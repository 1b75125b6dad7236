package httpapi

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/time/rate"

	"berth/internal/compute"
)

// paceWindow is in how many seconds the requests that may come at once are there again.
const paceWindow = 10

// paceAccounts is how many accounts' buckets are kept, beyond those that are not full. A full one is as good as none.
const paceAccounts = 1024

// pace bounds how fast one account's requests come: a token bucket for each.
type pace struct {
	limit rate.Limit // requests a second; 0: no bound
	burst int

	mu      sync.Mutex // guards all below
	buckets map[compute.UserID]*rate.Limiter
}

func newPace(perSecond int) *pace {
	return &pace{
		limit: rate.Limit(perSecond), burst: perSecond * paceWindow, buckets: make(map[compute.UserID]*rate.Limiter),
	}
}

// take takes a request of u's out of the bucket, and says so in the headers of the answer (IETF
// draft-ietf-httpapi-ratelimit-headers-10). The error is for one too many.
func (p *pace) take(u compute.UserID, now time.Time, h *fasthttp.ResponseHeader) error {
	if p.limit == 0 {
		return nil
	}
	b := p.bucket(u, now)
	ok := b.AllowN(now, 1)
	left := b.TokensAt(now)
	h.Set("RateLimit-Policy", fmt.Sprintf(`"account";q=%d;w=%d`, p.burst, paceWindow))
	h.Set("RateLimit", fmt.Sprintf(`"account";r=%d;t=%d`, max(0, int(left)), seconds((float64(p.burst)-left)/float64(p.limit))))
	if ok {
		return nil
	}
	wait := seconds((1 - left) / float64(p.limit))
	h.Set("Retry-After", fmt.Sprint(wait))
	return compute.Errorf(codeTooMany, "You sent over %d requests within %d seconds; wait %d, and then send them slower.",
		p.burst, paceWindow, wait)
}

func (p *pace) bucket(u compute.UserID, now time.Time) *rate.Limiter {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.buckets[u]
	if b != nil {
		return b
	}
	if len(p.buckets) >= paceAccounts {
		for u, b := range p.buckets {
			if b.TokensAt(now) >= float64(p.burst) {
				delete(p.buckets, u)
			}
		}
	}
	b = rate.NewLimiter(p.limit, p.burst)
	p.buckets[u] = b
	return b
}

func seconds(s float64) int { return max(1, int(math.Ceil(s))) }
