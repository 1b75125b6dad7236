package httpapi

import (
	"container/list"
	"context"
	"crypto/rand"
	"net/http"
	"sync"
	"time"

	"github.com/gofiber/fiber/v2"

	openapi "berth/api"
	"berth/internal/compute"
)

// Bounds of tickets: a page needs one for each WebSocket that it opens, at once.
const (
	ticketLife        = 30 * time.Second
	maxTickets        = 10_000
	maxTicketsPerUser = 32
)

// tickets are short-lived stand-ins for tokens, for the address of a WebSocket's handshake: a ticket that ends up in a log
// has been used, or has expired. They live in memory alone.
type tickets struct {
	now func() time.Time

	mu      sync.Mutex
	order   *list.List // of *ticket, the oldest first; guarded by mu, as what follows
	byText  map[string]*list.Element
	ofUsers map[compute.UserID]int
}

type ticket struct {
	text    string
	token   string // what it stands for
	user    compute.UserID
	expires time.Time
}

func newTickets(now func() time.Time) *tickets {
	return &tickets{
		now: now, order: list.New(), byText: make(map[string]*list.Element), ofUsers: make(map[compute.UserID]int),
	}
}

// issue returns a new ticket for the user's token.
func (t *tickets) issue(user compute.UserID, token string) (string, error) {
	now, text := t.now(), rand.Text() // 130 bits
	t.mu.Lock()
	defer t.mu.Unlock()
	for oldest := t.order.Front(); oldest != nil && !now.Before(oldest.Value.(*ticket).expires); oldest = t.order.Front() {
		t.remove(oldest)
	}
	switch {
	case t.ofUsers[user] >= maxTicketsPerUser:
		return "", compute.Errorf(codeTooMany, "You have many tickets that are not used; use them, or wait half a minute.")
	case t.order.Len() >= maxTickets:
		return "", compute.Errorf(compute.CodeUnavailable, "There are too many tickets just now; try again in a moment.")
	}
	t.byText[text] = t.order.PushBack(&ticket{text, token, user, now.Add(ticketLife)})
	t.ofUsers[user]++
	return text, nil
}

// remove forgets a ticket. t.mu is held.
func (t *tickets) remove(e *list.Element) *ticket {
	k := t.order.Remove(e).(*ticket)
	delete(t.byText, k.text)
	if t.ofUsers[k.user]--; t.ofUsers[k.user] == 0 {
		delete(t.ofUsers, k.user)
	}
	return k
}

// redeem returns the token that a ticket stands for, once.
func (t *tickets) redeem(text string) (string, error) {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.byText[text]; ok {
		if k := t.remove(e); now.Before(k.expires) {
			return k.token, nil
		}
	}
	return "", compute.Errorf(compute.CodeUnauthenticated, "The ticket is not valid: it was used, or its %d seconds are over.",
		int(ticketLife.Seconds()))
}

// issueTicket answers with a ticket for whoever asks.
func (s *Server) issueTicket(ctx context.Context, c *fiber.Ctx, described operation) (answer, error) {
	cred, err := s.admit(ctx, c, anyScope, headerOrCookie)
	if err != nil {
		return answer{}, err
	}
	if err := described.check(c); err != nil {
		return answer{}, err
	}
	text, err := s.tickets.issue(cred.User, cred.token)
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusCreated, openapi.Ticket{Ticket: text, ExpiresIn: int(ticketLife.Seconds())}}, nil
}
