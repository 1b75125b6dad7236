package httpapi

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	wire "github.com/fasthttp/websocket"
	"github.com/gofiber/contrib/websocket"
	"github.com/gofiber/fiber/v2"

	openapi "berth/api"
	"berth/internal/auth"
	"berth/internal/compute"
	"berth/internal/control"
)

// Bounds of one client of the feed.
const (
	feedEvents   = 16   // events that wait for it
	feedMessages = 8    // messages that wait to be sent
	maxHeard     = 1024 // bytes of a message from it
	maxChatter   = 1000 // messages, pings and pongs from it between two pings of ours
	// hurry bounds the message that is being sent when the feed ends, and farewell the wait for the client's own close
	// frame after ours (RFC 6455, section 7.1.1).
	hurry    = time.Second
	farewell = lingerTime
	// maxReason is what fits into a close frame beside the code (RFC 6455, section 5.5).
	maxReason = 123
)

// closing is why a WebSocket ends: what its close frame says (RFC 6455, section 7.4.1). 1008 is for what the same token
// would meet again.
type closing struct {
	code   int
	reason string
}

func (c *closing) Error() string { return fmt.Sprintf("%d %s", c.code, c.reason) }

var (
	errGoingAway = &closing{websocket.CloseGoingAway, "The server is stopping; connect again."}
	errExpired   = &closing{websocket.ClosePolicyViolation, "The token has expired; get a new one."}
	errChatter   = &closing{websocket.ClosePolicyViolation, "Nothing that you send is read here, and you send too much."}
	errSilent    = &closing{websocket.ClosePolicyViolation, "No ping was answered in time."}
	errNotUTF8   = &closing{websocket.CloseInvalidFramePayloadData, "The text is not UTF-8."}
	errTooBig    = &closing{websocket.CloseMessageTooBig, fmt.Sprintf("A message is at most %d bytes.", maxHeard)}
	errNotTaken  = errors.New("it did not take a message in time")
	errGone      = errors.New("the client left")
	errBehind    = errors.New("it missed events")
)

// feed is one client of the live feed. Run's goroutine follows the events and never waits for the client, another reads
// what the client sends, and while there is something to send, one sends it.
type feed struct {
	s    *Server
	cred credential
	conn *conn
	log  *slog.Logger

	out   chan frame    // to be sent
	sent  chan struct{} // holds one when the sender found out empty, and ended
	heard atomic.Int64  // messages, pings and pongs since our last ping

	// Of the goroutine that follows the events alone.
	ledger  ledger
	told    map[compute.ContainerID]string // the address that was told last, where it is not the gateway's
	behind  bool                           // out was full: the list is due once all of it is sent
	sending bool                           // there is a sender
	send    func()
}

// frame is a message to send.
type frame struct {
	kind int
	data []byte
}

// openFeed is GET /compute/ws. Query parameters that it does not know are nothing to it: whoever misspells the token's is
// told that there is none.
func (s *Server) openFeed(c *fiber.Ctx) error {
	fctx := c.Context()
	r := requestOf(fctx)
	if err := checkHandshake(fctx); err != nil {
		return err
	}
	cred, err := s.admit(r.ctx, c, auth.ScopeContainersRead, handshake)
	if err != nil {
		return err
	}
	nc, ok := fctx.Conn().(*conn)
	if !ok {
		return compute.Internal("open a feed", fmt.Errorf("on a %T", fctx.Conn()))
	}
	leave, err := s.feeds.reserve(cred.User)
	if err != nil {
		return err
	}
	s.conns.take(nc, leave)
	f := &feed{
		s: s, cred: cred, conn: nc, out: make(chan frame, feedMessages), sent: make(chan struct{}, 1),
		log: s.log.With("id", r.id, "user", int64(cred.User), "token", cred.TokenID),
	}
	return s.upgrade(c, f.run)
}

// run serves the client until one of its goroutines ends, and then the others.
func (f *feed) run(ws *websocket.Conn) {
	began := time.Now()
	ctx, end := context.WithCancelCause(f.s.feeds.base)
	defer end(nil)
	defer context.AfterFunc(ctx, func() { _ = f.conn.SetWriteDeadline(time.Now().Add(hurry)) })()
	var sending, listening sync.WaitGroup
	f.send = func() {
		sending.Go(func() {
			if err := guarded(func() error { return f.sendAll(ctx, ws) }); err != nil {
				end(err)
			}
		})
	}
	listening.Go(func() { end(guarded(func() error { return f.listen(ws) })) })
	end(guarded(func() error { return f.lead(ctx) }))
	sending.Wait()

	cause := context.Cause(ctx)
	last := time.AfterFunc(farewell, func() { _ = f.conn.Conn.Close() }) // ends listen, if nothing else does
	defer last.Stop()
	f.sayGoodbye(ws, cause)
	listening.Wait()

	level := slog.LevelInfo
	if compute.AsError(cause) != nil {
		level = slog.LevelError
	}
	f.log.Log(f.s.base, level, "feed ended", "why", cause, "took", time.Since(began))
}

// guarded turns a panic into an error: it ends this client alone.
func guarded(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = compute.Internal("panic in what lasts", fmt.Errorf("%v\n%s", v, debug.Stack()))
		}
	}()
	return f()
}

// lead follows the events, from one subscription to the next, until the client is to go.
func (f *feed) lead(ctx context.Context) error {
	expiry := time.NewTimer(time.Until(f.cred.Expires))
	defer expiry.Stop()
	ping := time.NewTicker(f.s.feeds.times.pingEvery)
	defer ping.Stop()
	for {
		if err := f.follow(ctx, expiry.C, ping.C); !errors.Is(err, errBehind) {
			return err
		}
		f.s.feeds.relisted.Add(1)
	}
}

// follow subscribes first and then looks: what was revoked or changed before that shows, and what comes after is an event.
func (f *feed) follow(ctx context.Context, expiry, ping <-chan time.Time) error {
	sub := f.s.events.Subscribe(f.cred.User, feedEvents)
	defer sub.Close()
	moved, stop := f.s.addresses.follow(f.cred.User)
	defer stop()
	if err := f.verify(ctx); err != nil {
		return err
	}
	if err := f.list(ctx); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-expiry:
			return f.forbidden(errExpired)
		case now := <-ping:
			if !now.Before(f.cred.Expires) { // timers stand still while a machine sleeps
				return f.forbidden(errExpired)
			}
			f.heard.Store(0)
			f.queue(websocket.PingMessage, nil)
		case <-moved:
			f.sayMoved()
		case <-f.sent:
			f.sending = false
			switch {
			case len(f.out) > 0: // said since it last looked
				f.start()
			case f.behind:
				f.s.feeds.relisted.Add(1)
				if err := f.list(ctx); err != nil {
					return err
				}
			}
		case e, ok := <-sub.C:
			switch {
			case !ok && sub.Lost():
				return errBehind
			case !ok:
				return errGoingAway
			}
			if err := f.pass(ctx, e); err != nil {
				return err
			}
		}
	}
}

// pass tells what an event is to the client.
func (f *feed) pass(ctx context.Context, e compute.Event) error {
	switch act := f.ledger.take(e); {
	case act == actVerify:
		return f.verify(ctx)
	case f.behind:
		return nil // the list that is due will show it
	case act == actStatus:
		f.sayStatus(e.Container, condition{e.Status, e.StatusMessage})
	case act == actList:
		list, _, err := f.read(ctx)
		if err != nil {
			return err
		}
		f.sayList(f.ledger.asOf(list))
		f.sayMoved()
	}
	return nil
}

func (f *feed) sayStatus(id compute.ContainerID, c condition) {
	ip := f.s.addresses.of(id)
	if ip == f.s.addresses.gateway {
		delete(f.told, id)
	} else {
		if f.told == nil {
			f.told = make(map[compute.ContainerID]string)
		}
		f.told[id] = ip
	}
	f.say(openapi.FeedStatus{Type: openapi.FeedStatusTypeContainerStatus, Data: openapi.FeedStatusData{
		ContainerID: id, Status: c.status, ExternalIP: ip, StatusMessage: c.message,
	}})
}

// sayMoved tells the status again of containers whose address is another than was told. Where a list is due first, it comes after.
func (f *feed) sayMoved() {
	maps.DeleteFunc(f.told, func(id compute.ContainerID, _ string) bool {
		_, there := f.ledger.shown[id]
		return !there
	})
	for id, c := range f.ledger.shown {
		if f.behind {
			return
		}
		if f.s.addresses.of(id) != cmp.Or(f.told[id], f.s.addresses.gateway) {
			f.sayStatus(id, c)
		}
	}
}

// list tells all containers as they are now.
func (f *feed) list(ctx context.Context) error {
	list, seq, err := f.read(ctx)
	if err != nil {
		return err
	}
	f.behind = false
	f.ledger.begin(list, seq)
	f.told = nil // a list has no addresses, and what was told before it may not have been sent
	f.sayList(list)
	f.sayMoved()
	return nil
}

func (f *feed) read(ctx context.Context) ([]control.ContainerView, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, f.s.timeout)
	defer cancel()
	return f.s.service.ListContainersAt(ctx, f.cred.Principal)
}

func (f *feed) sayList(list []control.ContainerView) {
	out := make([]openapi.Container, len(list))
	for i, v := range list {
		out[i] = f.s.container(v)
	}
	f.say(openapi.FeedContainers{Type: openapi.FeedContainersTypeContainers, Data: out})
}

func (f *feed) say(message any) {
	if !f.queue(websocket.TextMessage, bytes.TrimSpace(encode(message))) {
		f.behind = true
	}
}

// queue never waits; false when there is no room.
func (f *feed) queue(kind int, data []byte) bool {
	select {
	case f.out <- frame{kind, data}:
		f.start()
		return true
	default:
		return false
	}
}

// start makes sure that what is in out is sent.
func (f *feed) start() {
	if !f.sending {
		f.sending = true
		f.send()
	}
}

// verify looks at the token again.
func (f *feed) verify(ctx context.Context) error {
	err := f.s.verifyAgain(ctx, f.cred, auth.ScopeContainersRead)
	switch compute.CodeOf(err) {
	case compute.CodeUnauthenticated, compute.CodeForbidden:
		return f.forbidden(&closing{websocket.ClosePolicyViolation, compute.UserMessage(err)})
	default:
		return err
	}
}

func (f *feed) forbidden(why *closing) error {
	f.s.feeds.forbidden.Add(1)
	return why
}

// sendAll sends what is in out, until that is empty or the client does not take it.
func (f *feed) sendAll(ctx context.Context, ws *websocket.Conn) error {
	for ctx.Err() == nil {
		var m frame
		select {
		case m = <-f.out:
		default:
			f.sent <- struct{}{}
			return nil
		}
		var err error
		if deadline := time.Now().Add(f.s.feeds.times.write); m.kind == websocket.PingMessage {
			err = ws.WriteControl(m.kind, m.data, deadline)
		} else if err = ws.SetWriteDeadline(deadline); err == nil {
			err = ws.WriteMessage(m.kind, m.data)
		}
		switch {
		case err != nil && ctx.Err() == nil && timedOut(err):
			return errNotTaken
		case err != nil:
			return errGone
		}
	}
	return nil
}

// listen reads what the client sends: pings are answered, pongs and a goodbye noted, the rest is nothing to us.
func (f *feed) listen(ws *websocket.Conn) error {
	times := f.s.feeds.times
	hear := func() error {
		if f.heard.Add(1) > maxChatter {
			return errChatter
		}
		return nil
	}
	ws.SetReadLimit(maxHeard)
	ws.SetPongHandler(func(string) error {
		return errors.Join(hear(), ws.SetReadDeadline(time.Now().Add(times.pongWait)))
	})
	ws.SetPingHandler(func(text string) error {
		if err := hear(); err != nil {
			return err
		}
		return ws.WriteControl(websocket.PongMessage, []byte(text), time.Now().Add(times.write))
	})
	err := ws.SetReadDeadline(time.Now().Add(times.pongWait))
	for err == nil {
		var kind int
		var text []byte
		if kind, text, err = ws.ReadMessage(); err != nil {
			break
		}
		if err = hear(); err == nil && kind == websocket.TextMessage && !utf8.Valid(text) {
			err = errNotUTF8
		}
	}
	var why *closing
	switch {
	case errors.As(err, &why):
		return why
	case errors.Is(err, wire.ErrReadLimit): // the other package has one of its own, which is never returned
		return errTooBig
	case timedOut(err):
		return errSilent
	default:
		return errGone // it said goodbye, broke the protocol, which the library has told it, or the connection broke
	}
}

func timedOut(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// sayGoodbye tells the client why the feed ends.
func (f *feed) sayGoodbye(ws *websocket.Conn, cause error) {
	var why *closing
	switch {
	case errors.Is(cause, errNotTaken):
		f.s.feeds.slow.Add(1)
		_ = f.conn.Conn.Close() // it takes nothing
		return
	case errors.Is(cause, errGone):
		return
	case !errors.As(cause, &why):
		why = &closing{websocket.CloseInternalServerErr, compute.UserMessage(cause)}
	}
	if why == errSilent {
		f.s.feeds.silent.Add(1)
	}
	reason := why.reason
	for len(reason) > maxReason || !utf8.ValidString(reason) {
		reason = reason[:min(len(reason)-1, maxReason)]
	}
	f.conn.linger.Store(true)
	// One that the library has sent before says the same.
	_ = ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(why.code, reason), time.Now().Add(hurry))
}
