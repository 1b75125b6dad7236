package agentproto

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

const patience = 20 * time.Second

func sockets(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return ends[0], ends[1]
}

// rawPeer is an agent that is nothing but frames.
type rawPeer struct {
	t  *testing.T
	nc net.Conn
	in *reader
}

// against returns a gateway's connection to a raw peer.
func against(t *testing.T, cfg Config) (*Conn, *rawPeer) {
	t.Helper()
	a, b := sockets(t)
	p := &rawPeer{t: t, nc: b, in: newReader(b, MaxRequest)}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var hello sync.WaitGroup
	hello.Go(func() {
		p.await(frameHello)
		p.send(frameHello, 0, []byte(`{"min":1,"max":1}`))
	})
	c, err := Dial(ctx, a, cfg)
	hello.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = b.Close()
		_ = c.Close()
	})
	return c, p
}

func (p *rawPeer) send(t frameType, stream uint32, payload []byte) {
	p.write(appendFrame(nil, t, stream, payload))
}

func (p *rawPeer) write(b []byte) {
	p.t.Helper()
	_ = p.nc.SetWriteDeadline(time.Now().Add(patience))
	if _, err := p.nc.Write(b); err != nil {
		p.t.Errorf("the connection takes nothing: %v", err)
	}
}

// await reads frames until one of a kind comes.
func (p *rawPeer) await(t frameType) (header, []byte) {
	p.t.Helper()
	_ = p.nc.SetReadDeadline(time.Now().Add(patience))
	for {
		h, err := p.in.header()
		if err != nil {
			p.t.Errorf("frame %d does not come: %v", t, err)
			return header{}, nil
		}
		payload, err := p.in.payload(h.length)
		if err != nil {
			p.t.Error(err)
			return header{}, nil
		}
		if h.kind == t {
			return h, payload
		}
	}
}

// attached returns the gateway's attachment.
func (p *rawPeer) attached(c *Conn) *Attachment {
	p.t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		h, _ := p.await(frameAttach)
		p.send(frameAccept, h.stream, make([]byte, 4))
	})
	a, err := c.Attach(p.context(), Attach{User: "root"})
	wg.Wait()
	if err != nil {
		p.t.Fatal(err)
	}
	return a
}

func (p *rawPeer) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	p.t.Cleanup(cancel)
	return ctx
}

// opened returns the gateway's channel.
func (p *rawPeer) opened(a *Attachment) *Channel {
	p.t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		h, _ := p.await(frameOpen)
		p.send(frameAccept, h.stream, binary.BigEndian.AppendUint32(nil, 1000))
	})
	ch, err := a.Open(p.context(), "session", nil)
	wg.Wait()
	if err != nil {
		p.t.Fatal(err)
	}
	return ch
}

func closedSoon(t *testing.T, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("the %s goes on", what)
	}
}

func TestAPeerThatBreaksTheProtocolLosesTheChannel(t *testing.T) {
	request := func(name string) []byte {
		b, err := encodeRequest(name, false, nil, MaxPayload)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	long := append(request("x"), make([]byte, MaxPayload-3)...)
	type frame struct {
		kind    frameType
		payload []byte
	}
	most := binary.BigEndian.AppendUint32(nil, 1<<32-1)
	for name, tt := range map[string]struct {
		times  int
		frames []frame
	}{
		"more data than credit":        {initialWindow/1000 + 1, []frame{{frameData, make([]byte, 1000)}}},
		"more stderr than credit":      {2, []frame{{frameStderr, make([]byte, MaxPayload)}}},
		"data after EOF":               {1, []frame{{frameEOF, nil}, {frameData, []byte("x")}}},
		"a flood of requests":          {maxRequests + 1, []frame{{frameRequest, request("window-change")}}},
		"a flood of long requests":     {3, []frame{{frameRequest, long}}},
		"a reply to nothing":           {1, []frame{{frameReply, []byte{1}}}},
		"credit without end":           {2, []frame{{frameWindow, most}}},
		"credit that is no number":     {1, []frame{{frameWindow, []byte{1, 2, 3}}}},
		"an unknown frame":             {1, []frame{{99, nil}}},
		"a hello in the middle":        {1, []frame{{frameHello, []byte("{}")}}},
		"a request without a name":     {1, []frame{{frameRequest, []byte{1, 0}}}},
		"a name that is not printable": {1, []frame{{frameRequest, []byte{0, 2, 'a', 0x1b}}}},
	} {
		t.Run(name, func(t *testing.T) {
			c, p := against(t, Config{})
			a := p.attached(c)
			ch, other := p.opened(a), p.opened(a)
			for range tt.times {
				for _, f := range tt.frames {
					p.send(f.kind, ch.id, f.payload)
				}
			}
			closedSoon(t, ch.Done(), "channel")
			if h, _ := p.await(frameClose); h.stream != ch.id {
				t.Errorf("stream %d is closed, not %d", h.stream, ch.id)
			}
			if _, err := ch.Write([]byte("x")); err == nil {
				t.Error("it can still be written")
			}
			if _, err := ch.Request(context.Background(), "x", true, nil); err == nil {
				t.Error("it can still be asked")
			}
			if _, err := io.Copy(io.Discard, ch); err == nil {
				t.Error("its output ended as if nothing was wrong")
			}
			p.send(frameData, ch.id, make([]byte, 1000)) // under way before it knew
			p.send(frameClose, ch.id, nil)
			p.send(frameData, other.id, []byte("fine"))
			if _, err := io.ReadFull(other, make([]byte, 4)); err != nil {
				t.Errorf("another channel: %v", err)
			}
		})
	}
}

func TestAPeerThatBreaksTheProtocolLosesTheConnection(t *testing.T) {
	anOpen := append(make([]byte, 8), 1, 'x')
	for name, b := range map[string][]byte{
		"a frame that is too long":     {byte(frameData), 0xff, 0xff, 0xff, 0, 0, 0, 1},
		"an attach from an agent":      appendFrame(nil, frameAttach, 2, []byte("{}")),
		"a stream of the gateway's":    appendFrame(nil, frameOpen, 99, anOpen),
		"a stream that there is none":  appendFrame(nil, frameData, 77, []byte("x")),
		"a close of a future stream":   appendFrame(nil, frameClose, 77, nil),
		"an open that is cut short":    appendFrame(nil, frameOpen, 2, make([]byte, 8)),
		"an answer to nothing":         appendFrame(nil, frameAccept, 1, make([]byte, 4)),
		"a refusal of what is open":    appendFrame(nil, frameReject, 1, make([]byte, 4)),
		"a call without a name":        appendFrame(nil, frameCall, 0, make([]byte, 5)),
		"a window without a stream":    appendFrame(nil, frameWindow, 0, make([]byte, 4)),
		"a stream number used again":   bytes.Repeat(appendFrame(nil, frameOpen, 2, anOpen), 2),
		"an unknown frame outside all": appendFrame(nil, 99, 0, nil),
	} {
		t.Run(name, func(t *testing.T) {
			c, p := against(t, Config{})
			a := p.attached(c)
			p.write(b)
			closedSoon(t, c.Done(), "connection")
			closedSoon(t, a.Done(), "attachment")
			if c.Err() == nil {
				t.Error("no reason")
			}
		})
	}
}

func TestAPeerThatBreaksChannelAfterChannel(t *testing.T) {
	c, p := against(t, Config{})
	a := p.attached(c)
	for range maxBroken + 1 {
		ch := p.opened(a)
		p.send(frameReply, ch.id, []byte{1})
		closedSoon(t, ch.Done(), "channel")
	}
	closedSoon(t, c.Done(), "connection")
}

// Streams that a peer opens and closes, or that nobody accepts, leave nothing; neither does what comes on refused ones.
func TestAFloodOfStreamsLeavesNothing(t *testing.T) {
	c, p := against(t, Config{Limits: Limits{Streams: 20, Channels: 4}})
	a := p.attached(c)
	go func() { _, _ = io.Copy(io.Discard, p.nc) }()
	head := binary.BigEndian.AppendUint32(make([]byte, 4), a.c.id)
	id := uint32(0)
	for range 200 {
		var b []byte
		for range 100 {
			id += 2
			b = appendFrame(b, frameOpen, id, append(head, 1, 'x'))
			b = appendFrame(b, frameClose, id, nil)
		}
		p.write(b)
	}
	p.write(appendFrame(nil, framePing, 0, nil))
	c.mu.Lock()
	n := len(c.streams)
	c.mu.Unlock()
	if n > 20 {
		t.Errorf("%d streams", n)
	}
}

// A peer that asks and asks and takes no answer loses the connection before it costs memory.
func TestAFloodWithoutReading(t *testing.T) {
	for name, frame := range map[string][]byte{
		"pings":         appendFrame(nil, framePing, 0, nil),
		"calls":         appendFrame(nil, frameCall, 0, []byte{0, 0, 0, 1, 4, 'p', 'i', 'n', 'g'}),
		"unknown calls": appendFrame(nil, frameCall, 0, []byte{0, 0, 0, 1, 1, 'x'}),
		"slow calls":    appendFrame(nil, frameCall, 0, []byte{0, 0, 0, 1, 4, 's', 'l', 'o', 'w'}),
	} {
		t.Run(name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			c, p := against(t, Config{OnCall: func(ctx context.Context, name string, _ []byte) ([]byte, error) {
				if name == "slow" {
					<-ctx.Done()
				}
				return nil, errors.New("no")
			}})
			flood := bytes.Repeat(frame, 1000)
			for c.Err() == nil {
				_ = p.nc.SetWriteDeadline(time.Now().Add(patience))
				if _, err := p.nc.Write(flood); err != nil {
					break
				}
				if n := runtime.NumGoroutine(); n > before+maxAnswer+10 {
					t.Fatalf("%d goroutines", n)
				}
			}
			closedSoon(t, c.Done(), "connection")
		})
	}
}

// An open that its caller gave up is closed when the peer accepts it after all.
func TestAnOpenThatIsGivenUp(t *testing.T) {
	budget := NewBudget(1 << 20)
	c, p := against(t, Config{Budget: budget})
	a := p.attached(c)
	for _, answer := range []frameType{frameAccept, frameReject, frameClose} {
		ctx, cancel := context.WithCancel(p.context())
		var wg sync.WaitGroup
		var open header
		wg.Go(func() {
			open, _ = p.await(frameOpen)
			cancel()
		})
		if _, err := a.Open(ctx, "session", nil); !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v", err)
		}
		wg.Wait()
		if h, _ := p.await(frameClose); h.stream != open.stream {
			t.Errorf("stream %d is closed, not %d", h.stream, open.stream)
		}
		if answer != frameClose {
			p.send(answer, open.stream, make([]byte, 4))
		}
		if answer != frameReject {
			p.send(frameClose, open.stream, nil)
		}
		ch := p.opened(a) // what came before it was handled
		c.mu.Lock()
		n := len(c.streams)
		c.mu.Unlock()
		if n != 2 { // the attachment and ch
			t.Errorf("after frame %d there are %d streams", answer, n)
		}
		_ = ch.Close()
		p.await(frameClose)
		p.send(frameClose, ch.id, nil)
	}
	if u := budget.Used(); u != 0 {
		t.Errorf("%d bytes are not given back", u)
	}
}

// Neither a request nor an open outlives its deadline when the peer takes nothing, and Close is not held up either.
func TestAPeerThatTakesNothing(t *testing.T) {
	c, p := against(t, Config{})
	a := p.attached(c)
	ch := p.opened(a)
	p.send(frameWindow, ch.id, binary.BigEndian.AppendUint32(nil, 1<<30))
	blocked := make(chan error, 1)
	go func() {
		_, err := ch.Write(make([]byte, 64<<20))
		blocked <- err
	}()
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			if _, err := ch.Request(ctx, "env", true, make([]byte, 10<<10)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a request gives %v", err)
			}
			if _, err := a.Open(ctx, "session", nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("an open gives %v", err)
			}
		})
	}
	wg.Wait()
	began := time.Now()
	_ = ch.Close()
	_ = a.Close()
	_ = c.Close()
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("closing took %v", d)
	}
	if err := <-blocked; err == nil {
		t.Error("64 MiB fit where nobody reads")
	}
}

// What came before the peer ended an attachment is still read, and does not look like the end of the output.
func TestThePeerEndsAnAttachment(t *testing.T) {
	c, p := against(t, Config{})
	a := p.attached(c)
	ch := p.opened(a)
	p.send(frameData, ch.id, []byte("the last words"))
	p.send(frameClose, a.c.id, nil)
	closedSoon(t, a.Done(), "attachment")
	closedSoon(t, ch.Done(), "channel")
	if b, err := io.ReadAll(ch); string(b) != "the last words" || !errors.Is(err, ErrClosed) {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := a.Open(p.context(), "session", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("opening gives %v", err)
	}
}

// Requests without answers are not lost to a receiver that is slower than their sender.
func TestRequestsArePaced(t *testing.T) {
	a, b := sockets(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	agents := make(chan *Conn, 1)
	go func() {
		c, err := Accept(ctx, b, Config{})
		if err != nil {
			t.Error(err)
		}
		agents <- c
	}()
	gw, err := Dial(ctx, a, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close()
	agent := <-agents
	defer agent.Close()
	at, err := gw.Attach(ctx, Attach{})
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := agent.AcceptAttachment(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const n = 5000
	got := make(chan int, 1)
	go func() {
		i := 0
		for r := range theirs.Requests() {
			if r.Name != "window-change" || binary.BigEndian.Uint32(r.Payload) != uint32(i) {
				t.Errorf("request %d is %s %x", i, r.Name, r.Payload)
			}
			i++
			runtime.Gosched()
			_ = r.Reply(false, nil)
		}
		got <- i
	}()
	for i := range n {
		ok, _, err := at.Request(ctx, "window-change", false, binary.BigEndian.AppendUint32(nil, uint32(i)))
		if !ok || err != nil {
			t.Fatal(i, err)
		}
	}
	at.Close()
	if i := <-got; i != n {
		t.Errorf("%d of %d requests came", i, n)
	}
}

func TestBudgetRefusesOpensAndHarmsNobody(t *testing.T) {
	budget := NewBudget(3 * initialWindow)
	c, p := against(t, Config{Budget: budget})
	a := p.attached(c)
	var list []*Channel
	for range 3 {
		list = append(list, p.opened(a))
	}
	var refusal *OpenError
	_, err := a.Open(p.context(), "session", nil)
	if !errors.As(err, &refusal) || refusal.Reason != ReasonShortOfSupply {
		t.Errorf("error is %v", err)
	}
	for _, ch := range list {
		p.send(frameData, ch.id, make([]byte, initialWindow))
	}
	for _, ch := range list {
		if _, err := io.ReadFull(ch, make([]byte, initialWindow)); err != nil {
			t.Error(err)
		}
	}
	if u := budget.Used(); u > 3*initialWindow {
		t.Errorf("%d bytes are taken", u)
	}
	_ = list[0].Close()
	list = append(list, p.opened(a))
	for _, ch := range list {
		_ = ch.Close()
	}
	if u := budget.Used(); u != 0 {
		t.Errorf("%d bytes are not given back", u)
	}
}
