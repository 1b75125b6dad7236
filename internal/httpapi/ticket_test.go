package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	wire "github.com/fasthttp/websocket"

	"berth/internal/auth"
	"berth/internal/compute"
)

// generous takes every token for ada's.
type generous struct{ Verifier }

func (*generous) Verify(context.Context, string) (auth.Grant, error) {
	return auth.Grant{Principal: compute.Principal{User: 1}, Scopes: []auth.Scope{auth.ScopeAll}, Expires: time.Now().Add(time.Hour)}, nil
}

func TestTickets(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	k := newTickets(func() time.Time { return now })
	take := func(user compute.UserID) string {
		t.Helper()
		text, err := k.issue(user, fmt.Sprint("token of ", user))
		if err != nil || len(text) < 22 { // 128 bits in base64
			t.Fatalf("%q, %v", text, err)
		}
		return text
	}
	first, second := take(1), take(2)
	if token, err := k.redeem(second); err != nil || token != "token of 2" {
		t.Errorf("%q, %v", token, err)
	}
	for _, text := range []string{second, "", "x", first + "x", first[1:]} {
		if token, err := k.redeem(text); compute.CodeOf(err) != compute.CodeUnauthenticated || token != "" {
			t.Errorf("%q redeems %q, %v", text, token, err)
		}
	}
	now = now.Add(ticketLife - 1)
	third := take(1)
	if _, err := k.redeem(first); err != nil {
		t.Errorf("in its last nanosecond: %v", err)
	}
	now = now.Add(ticketLife)
	if _, err := k.redeem(third); compute.CodeOf(err) != compute.CodeUnauthenticated {
		t.Errorf("at its end: %v", err)
	}

	// One account's tickets are bounded, and so are all; those that expire or are used make room.
	var mine []string
	for range maxTicketsPerUser {
		mine = append(mine, take(1))
	}
	if _, err := k.issue(1, "x"); compute.CodeOf(err) != codeTooMany {
		t.Errorf("one too many of a user's: %v", err)
	}
	if _, err := k.redeem(mine[7]); err != nil {
		t.Error(err)
	}
	take(1)
	for n := k.order.Len(); n < maxTickets; n++ {
		take(compute.UserID(100 + n))
	}
	if _, err := k.issue(2, "x"); compute.CodeOf(err) != compute.CodeUnavailable {
		t.Errorf("one too many: %v", err)
	}
	now = now.Add(ticketLife)
	take(1)
	if k.order.Len() != 1 || len(k.byText) != 1 || len(k.ofUsers) != 1 {
		t.Errorf("expired ones are kept: %d, %d, %d", k.order.Len(), len(k.byText), len(k.ofUsers))
	}
}

// However many try at once, a ticket is good for one.
func TestTicketOnce(t *testing.T) {
	a := newAPI(t, nil)
	ticket := a.ticket()
	var wg sync.WaitGroup
	var mu sync.Mutex
	statuses := map[int]int{}
	for range 10 {
		wg.Go(func() {
			ws, resp, err := wire.DefaultDialer.DialContext(t.Context(), "ws://"+a.addr+"/compute/ws?ticket="+ticket, nil)
			if err == nil {
				ws.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			if resp != nil {
				statuses[resp.StatusCode]++
			}
		})
	}
	wg.Wait()
	if statuses[101] != 1 || statuses[401] != 9 {
		t.Errorf("%v", statuses)
	}
}

// A ticket is worth what its token is worth when it is used: not more scopes, and nothing once the account is disabled.
func TestTicketCarriesItsToken(t *testing.T) {
	a := newAPI(t, nil)
	r := a.do("POST", "/compute/ws-ticket", a.adaToken, "")
	var v struct {
		Ticket    string
		ExpiresIn int `json:"expires_in"`
	}
	r.into(t, 201, &v)
	fields(t, r.body, "ticket expires_in")
	if v.ExpiresIn != 30 {
		t.Errorf("%+v", v)
	}
	a.do("POST", "/compute/ws-ticket", "", "").isProblem(t, 401, compute.CodeUnauthenticated, "")
	a.send("POST", "/compute/ws-ticket?ticket="+v.Ticket, "", nil).isProblem(t, 401, compute.CodeUnauthenticated, "")

	keys, err := a.tokens.Issue(a.ada, time.Hour, auth.ScopeKeysRead)
	if err != nil {
		t.Fatal(err)
	}
	var limited struct{ Ticket string }
	a.do("POST", "/compute/ws-ticket", keys, "").into(t, 201, &limited)
	edit := map[string]string{"GET": "GET /compute/ws?ticket=" + limited.Ticket + " HTTP/1.1", "Authorization:": ""}
	a.answerTo(edit).isProblem(t, http.StatusForbidden, compute.CodeForbidden, "")

	if _, err := a.store.SetUserDisabled(t.Context(), a.ada.ID, true); err != nil {
		t.Fatal(err)
	}
	edit["GET"] = "GET /compute/ws?ticket=" + v.Ticket + " HTTP/1.1"
	a.answerTo(edit).isProblem(t, http.StatusUnauthorized, compute.CodeUnauthenticated, "")
}
