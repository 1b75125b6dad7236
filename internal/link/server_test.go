package link

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/compute"
	"berth/internal/store"
)

// dialRaw connects as a gateway that does as the test wants.
func (p *plane) dialRaw(config *tls.Config) (*tls.Conn, error) {
	p.t.Helper()
	nc, err := net.Dial("tcp", p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	conn := tls.Client(nc, config)
	p.t.Cleanup(func() { _ = nc.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return conn, conn.HandshakeContext(ctx)
}

// raw is a gateway that has said hello.
func (p *plane) raw(name string) *tls.Conn {
	p.t.Helper()
	conn, err := p.dialRaw(p.credential(name).config)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := newWriter(conn).send(kindHello, hello{}); err != nil {
		p.t.Fatal(err)
	}
	return conn
}

// lastWord reads until the connection ends, and returns what was said last.
func lastWord(conn net.Conn) (code string, err error) {
	for in := newFrameReader(conn, maxFrame); ; {
		fr, err := in.next()
		if err != nil {
			return code, err
		}
		if fr.kind == kindBye {
			var b bye
			if err := newCodec().read(fr.payload, &b); err != nil {
				return "", err
			}
			code = b.Code
		}
	}
}

// TestStrangers holds that only a gateway's credential gets in, and only to a control plane.
func TestStrangers(t *testing.T) {
	p := newPlane(t)
	good := p.credential("edge")
	stranger, err := OpenAuthority(filepath.Join(t.TempDir(), "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	text, _, err := stranger.Issue("edge")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := ParseCredential(text)
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(*tls.Config)) *tls.Config {
		c := good.config.Clone()
		f(c)
		return c
	}
	for name, config := range map[string]*tls.Config{
		"no certificate":          change(func(c *tls.Config) { c.Certificates = nil }),
		"a certificate of others": change(func(c *tls.Config) { c.Certificates = foreign.config.Certificates }),
		"TLS 1.2":                 change(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }),
		"another protocol":        change(func(c *tls.Config) { c.NextProtos = []string{"h2"} }),
		"another control plane":   change(func(c *tls.Config) { c.RootCAs = foreign.config.RootCAs }),
		"another name":            change(func(c *tls.Config) { c.ServerName = "edge" }),
	} {
		conn, err := p.dialRaw(config)
		if err == nil { // in TLS 1.3 the server looks at the certificate after the client is done
			_, err = lastWord(conn)
		}
		if err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A credential of this authority that was never stored, or is stored under another name.
	text, fingerprint, err := p.ca.Issue("nobody")
	if err != nil {
		t.Fatal(err)
	}
	unknown, err := ParseCredential(text)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		conn, err := p.dialRaw(unknown.config)
		if err != nil {
			t.Fatal(err)
		}
		if code, err := lastWord(conn); code != byeUnknown {
			t.Errorf("a credential that is not known is told %q, %v", code, err)
		}
		if _, err := p.store.AddGateway(t.Context(), "somebody", fingerprint); err != nil && compute.CodeOf(err) != compute.CodeConflict {
			t.Fatal(err)
		}
	}

	// A gateway cannot pose as the control plane.
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: good.config.Certificates, NextProtos: []string{protocol}, MinVersion: tls.VersionTLS13,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			_ = c.(*tls.Conn).HandshakeContext(t.Context())
			_ = c.Close()
		}
	}()
	client := NewClient(ClientOptions{Credential: always(good), Timeout: patience, Dial: dialer(l.Addr().String())})
	if conn, err := client.connect(t.Context()); err == nil {
		_ = conn.Close()
		t.Error("a gateway's certificate is taken for the control plane's")
	}
	<-done
}

// TestHostileGateway sends what no gateway sends. The connection ends, and others do not notice.
func TestHostileGateway(t *testing.T) {
	p := newPlane(t)
	good := p.gateway("good")
	p.await(good)
	for i, f := range []func(conn *tls.Conn, w *writer) error{
		func(conn *tls.Conn, _ *writer) error { // garbage
			_, err := conn.Write([]byte(strings.Repeat("GET / HTTP/1.1\r\n\r\n", 1000)))
			return err
		},
		func(conn *tls.Conn, _ *writer) error { // a size of 4 GB
			_, err := conn.Write([]byte{255, 255, 255, 255, 0})
			return err
		},
		func(conn *tls.Conn, _ *writer) error { // a frame over the limit
			_, err := conn.Write(appendFrame(nil, kindAnswer, make([]byte, maxGatewayFrame)))
			return err
		},
		func(conn *tls.Conn, _ *writer) error { // a checksum that is wrong
			b := appendFrame(nil, kindAnswer, []byte{0xa0})
			b[len(b)-1]++
			_, err := conn.Write(b)
			return err
		},
		func(_ *tls.Conn, w *writer) error { return w.send(kindHello, hello{}) },  // twice
		func(_ *tls.Conn, w *writer) error { return w.send(kindAnswer, "what?") }, // of another form
		func(_ *tls.Conn, w *writer) error { return w.send(kindPing, ping{}) },
		func(_ *tls.Conn, w *writer) error { return w.send(kindAnswer, answer{Seq: 1 << 60}) }, // of the future
		func(_ *tls.Conn, w *writer) error { return w.send(kindAnswer, answer{Seq: -1}) },
		func(_ *tls.Conn, w *writer) error { // more answers than there was to answer
			for range 10_000 {
				if err := w.send(kindAnswer, answer{}); err != nil {
					return nil
				}
			}
			return nil
		},
	} {
		conn := p.raw("bad" + string(rune('a'+i)))
		if err := f(conn, newWriter(conn)); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Logf("%d: %v", i, err) // the server may have been faster
		}
		if _, err := lastWord(conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d: the connection goes on", i)
		}
	}
	p.user("alice")
	p.await(good)
	p.same(good)
}

// TestCredentialRevoked holds that a gateway is cut off at once, refused from then on, and admits nobody.
func TestCredentialRevoked(t *testing.T) {
	p := newPlane(t)
	p.opt.Heartbeat = time.Hour // so that only the event can tell
	p.stop()
	p.start()
	alice, key := p.user("alice")
	box := p.box(alice, key)
	g, other := p.gateway("edge"), p.gateway("other")
	p.await(g, other)
	events, cancel := g.replica.Changes()
	defer cancel()
	if _, err := p.store.RevokeGateway(t.Context(), "edge"); err != nil {
		t.Fatal(err)
	}
	within := time.After(patience)
	for told := false; !told; { // then whoever is in is looked at, and put out
		select {
		case _, open := <-events:
			told = !open
		case <-within:
			t.Fatal("nobody is told that the gateway is one no more")
		}
	}
	_, err := g.replica.Target(t.Context(), box.ID)
	if err == nil || compute.CodeOf(err) != compute.CodeForbidden || !strings.Contains(err.Error(), "taken out of service") {
		t.Errorf("the gateway says %v", err)
	}
	p.await(other)
	eventually(t, "it is not connected", func() bool {
		_, connected := p.server.Connected()[g.cred.Fingerprint]
		return !connected
	})
	conn, err := p.dialRaw(g.cred.config)
	if err != nil {
		t.Fatal(err)
	}
	if code, err := lastWord(conn); code != byeRevoked {
		t.Errorf("it is told %q, %v", code, err)
	}
	g.stop()
	g.alone()
	if _, err := g.replica.Target(t.Context(), box.ID); compute.CodeOf(err) != compute.CodeUnavailable {
		t.Errorf("started again alone, it says %v", err)
	}
	g.stop()
	// The name is free again; another credential brings it back.
	again := p.gateway("edge")
	p.await(again)
	p.same(again)
	names, err := p.server.Unacknowledged(t.Context(), p.last())
	if err != nil || len(names) > 0 {
		t.Errorf("not acknowledged by %v, %v", names, err)
	}
}

// beforePage is a Source that does something before each page of containers is read.
type beforePage struct {
	Source
	do func(ctx context.Context) error
}

func (b beforePage) ContainersAfter(
	ctx context.Context, after compute.ContainerID, limit int,
) ([]compute.Container, error) {
	if err := b.do(ctx); err != nil {
		return nil, err
	}
	return b.Source.ContainersAfter(ctx, after, limit)
}

// TestRevokedWhileASnapshotIsSent holds that what a slow gateway has not been sent by then it is not sent at all.
func TestRevokedWhileASnapshotIsSent(t *testing.T) {
	p := newPlane(t)
	p.stop()
	var revoke sync.Once
	p.wrap = func(s *store.Store) Source {
		return beforePage{s, func(ctx context.Context) (err error) {
			revoke.Do(func() { _, err = s.RevokeGateway(ctx, "edge") })
			return err
		}}
	}
	p.start()
	alice, key := p.user("alice")
	p.box(alice, key)
	in := newFrameReader(p.raw("edge"), maxFrame)
	for last := kind(0); ; {
		fr, err := in.next()
		switch {
		case err != nil && last != kindBye:
			t.Fatalf("the last word is of kind %d, then %v", last, err)
		case err != nil:
			return
		case fr.kind == kindContainers, fr.kind == kindEnd:
			t.Errorf("it is sent a frame of kind %d", fr.kind)
		}
		last = fr.kind
	}
}

// TestOneConnectionEach holds that a second connection of a credential takes the place of the first.
func TestOneConnectionEach(t *testing.T) {
	p := newPlane(t)
	cred := p.credential("edge")
	connect := func() *tls.Conn {
		conn, err := p.dialRaw(cred.config)
		if err != nil {
			t.Fatal(err)
		}
		if err := newWriter(conn).send(kindHello, hello{}); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	first := connect()
	if _, err := newFrameReader(first, maxFrame).next(); err != nil {
		t.Fatal(err)
	}
	second := connect()
	if code, err := lastWord(first); code != byeReplaced {
		t.Errorf("the first is told %q, %v", code, err)
	}
	if _, err := newFrameReader(second, maxFrame).next(); err != nil {
		t.Errorf("the second: %v", err)
	}
	if n := len(p.server.Connected()); n != 1 {
		t.Errorf("%d gateways are connected", n)
	}
}

// TestManyOpen holds that connections which prove nothing are few, and do not keep gateways out.
func TestManyOpen(t *testing.T) {
	p := newPlane(t)
	var idle []net.Conn
	for range 3 * maxOpening {
		nc, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		idle = append(idle, nc)
	}
	p.await(p.gateway("edge"))
	for i, nc := range idle[:2*maxOpening] {
		_ = nc.SetReadDeadline(time.Now().Add(patience))
		if _, err := nc.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("connection %d is open still: %v", i, err)
		}
	}
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	if n := len(p.server.opening); n > maxOpening {
		t.Errorf("%d are open", n)
	}
}

// TestSlowGateway holds that a gateway which stops reading is cut off and counted, and that nobody waits for it.
func TestSlowGateway(t *testing.T) {
	p := newPlane(t)
	p.opt.Timeout = time.Second
	p.stop()
	p.start()
	alice, _ := p.user("alice")
	wire := newProxy(t, p.addr)
	slow, good := p.gateway("slow"), p.gateway("good")
	slow.stop()
	slow.dial = dialer(wire.addr())
	slow.start()
	p.await(slow, good)
	wire.hold(true)
	if _, err := p.store.SetUserDisabled(t.Context(), alice, true); err != nil {
		t.Fatal(err)
	}
	seq := p.last()
	p.await(good)

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	names, err := p.server.Unacknowledged(ctx, seq)
	if err != nil || !slices.Equal(names, []string{"slow"}) {
		t.Errorf("not acknowledged by %v, %v", names, err)
	}
	eventually(t, "the slow gateway is dropped", func() bool { return p.server.Dropped() > 0 })
	eventually(t, "it is not connected", func() bool {
		_, connected := p.server.Connected()[slow.cred.Fingerprint]
		return !connected
	})
	// It is not waited for any more, and still named: it may admit what it knew.
	names, err = p.server.Unacknowledged(t.Context(), seq)
	if err != nil || !slices.Equal(names, []string{"slow"}) {
		t.Errorf("not acknowledged by %v, %v", names, err)
	}
	wire.hold(false)
	p.await(slow, good)
	p.same(slow)
	names, err = p.server.Unacknowledged(t.Context(), seq)
	if err != nil || len(names) > 0 {
		t.Errorf("not acknowledged by %v, %v", names, err)
	}
}

// TestUnacknowledged says who is named when.
func TestUnacknowledged(t *testing.T) {
	p := newPlane(t)
	p.credential("never-came")
	named := func() []string {
		t.Helper()
		names, err := p.server.Unacknowledged(t.Context(), p.last())
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	if names := named(); len(names) > 0 {
		t.Errorf("with no gateway: %v", names)
	}
	g := p.gateway("edge")
	p.await(g)
	g.stop()
	eventually(t, "it left", func() bool { return len(p.server.Connected()) == 0 })
	if names := named(); len(names) > 0 {
		t.Errorf("one that left and knows all: %v", names)
	}
	p.user("alice")
	if names := named(); !slices.Equal(names, []string{"edge"}) {
		t.Errorf("one that left before: %v", names)
	}
	p.stop()
	p.start()
	if names := named(); !slices.Equal(names, []string{"edge"}) {
		t.Errorf("after a restart of the control plane: %v", names)
	}
	p.opt.MaxStale = time.Nanosecond // and the slack is passed below
	p.stop()
	p.exec(`UPDATE gateways SET seen_at = seen_at - 3600000 WHERE seen_at IS NOT NULL`)
	p.start()
	if names := named(); len(names) > 0 {
		t.Errorf("one that admits nobody by now: %v", names)
	}
}
