package link

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/compute"
)

// script is a control plane that says what the test wants, to one gateway after another.
type script struct {
	t    testing.TB
	l    net.Listener
	cred Credential
}

func newScript(t testing.TB) *script {
	t.Helper()
	ca, err := OpenAuthority(filepath.Join(t.TempDir(), "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	config, err := ca.serverConfig()
	if err != nil {
		t.Fatal(err)
	}
	text, _, err := ca.Issue("edge")
	if err != nil {
		t.Fatal(err)
	}
	s := &script{t: t}
	if s.cred, err = ParseCredential(text); err != nil {
		t.Fatal(err)
	}
	if s.l, err = tls.Listen("tcp", "127.0.0.1:0", config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.l.Close() })
	return s
}

// talk is a connection that a gateway made.
type talk struct {
	*stream
	conn net.Conn
	in   *frameReader
}

// accept returns the next connection, and what its gateway has.
func (s *script) accept() (*talk, wireVersion) {
	s.t.Helper()
	conn, err := s.l.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		s.t.Fatal(err)
	}
	k := &talk{stream: newStream(s.t), conn: conn, in: newFrameReader(conn, maxGatewayFrame)}
	var h hello
	k.read(kindHello, &h)
	return k, h.Version
}

func (k *talk) read(want kind, v any) {
	k.t.Helper()
	fr, err := k.in.next()
	if err != nil || fr.kind != want {
		k.t.Fatalf("the gateway sent %d, %v", fr.kind, err)
	}
	k.must(k.w.codec.read(fr.payload, v))
}

func (k *talk) say(data []byte) {
	k.t.Helper()
	_, err := k.conn.Write(data)
	k.must(err)
}

// answered reads an answer.
func (k *talk) answered() int64 {
	k.t.Helper()
	var a answer
	k.read(kindAnswer, &a)
	return a.Seq
}

// gone waits until the gateway has closed the connection.
func (k *talk) gone() {
	k.t.Helper()
	if _, err := k.in.next(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		k.t.Fatalf("the gateway goes on: %v", err)
	}
	_ = k.conn.Close()
}

func (s *script) gateway() *gateway {
	g := &gateway{
		t: s.t, path: filepath.Join(s.t.TempDir(), "replica"), cred: s.cred, dial: dialer(s.l.Addr().String()),
		opt: ReplicaOptions{Log: testLog(s.t)}, timeout: patience,
	}
	g.start()
	s.t.Cleanup(g.stop)
	return g
}

// TestLostChange skips a change. The gateway sees it by the next one, or by the next ping, and asks for everything.
func TestLostChange(t *testing.T) {
	s := newScript(t)
	g := s.gateway()
	k, v := s.accept()
	if v != (wireVersion{}) {
		t.Fatalf("a new gateway has %v", v)
	}
	k.say(k.snapshot(10))
	if seq := k.answered(); seq != 10 {
		t.Errorf("it acknowledged %d", seq)
	}
	k.say(k.change(alice(1)))
	if seq := k.answered(); seq != 11 {
		t.Errorf("it acknowledged %d", seq)
	}
	for _, next := range []func() []byte{k.ping, func() []byte { return k.change(alice()) }} {
		k.change(alice(2)) // is not sent
		k.say(next())
		k.gone()
		at := k.at
		if k, v = s.accept(); v != (wireVersion{}) {
			t.Fatalf("it goes on from %v", v)
		}
		k.say(k.snapshot(at.Seq + 1))
		k.answered()
	}
	// A connection that ends is no reason to begin anew.
	_ = k.conn.Close()
	at := k.at
	if k, v = s.accept(); v != at {
		t.Errorf("it goes on from %v, not %v", v, at)
	}
	if n := keysOf(g.replica); n != 2 {
		t.Errorf("%d keys open the container", n)
	}
}

// TestSilence holds that a control plane that says nothing is taken for gone, and that what is known holds meanwhile.
func TestSilence(t *testing.T) {
	s := newScript(t)
	g := s.gateway()
	k, _ := s.accept()
	k.say(k.snapshot(10))
	k.answered()
	g.stop()
	g.timeout = 200 * time.Millisecond
	g.start()
	for range 2 { // it gives up, and comes again
		for said := false; !said; { // on a busy machine it may give up before it has said where it is
			conn, err := s.l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			in, h := newFrameReader(conn, maxGatewayFrame), hello{}
			if fr, err := in.next(); err == nil {
				if said = true; newCodec().read(fr.payload, &h) != nil || h.Version != k.at {
					t.Errorf("it goes on from %v", h.Version)
				}
				if _, err := in.next(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("it does not give up: %v", err)
				}
			}
			_ = conn.Close()
		}
	}
	if n := keysOf(g.replica); n != 2 {
		t.Errorf("%d keys open the container", n)
	}
}

// TestBye holds what a gateway makes of being turned away.
func TestBye(t *testing.T) {
	for code, want := range map[string]int{byeRevoked: -1, byeUnknown: 2, byeReplaced: 2, byeStopping: 2, byeSlow: 2} {
		s := newScript(t)
		g := s.gateway()
		k, _ := s.accept()
		k.say(k.snapshot(10))
		k.answered()
		k.must(k.w.send(kindBye, bye{Code: code, Reason: "because"}))
		k.say(k.take())
		k.gone()
		eventually(t, code+" is heeded", func() bool { return keysOf(g.replica) == want })
		g.stop()
		if n := keysOf(reopen(t, g.path)); n != want {
			t.Errorf("%s: from the disk, %d keys open the container", code, n)
		}
	}
}

// TestSubscriptions holds what those who watch a replica are told.
func TestSubscriptions(t *testing.T) {
	path, s := written(t)
	r := OpenReplica(path, ReplicaOptions{})
	events, cancel := r.Changes()
	next := func() (e compute.Event) {
		t.Helper()
		select {
		case e = <-events:
		default:
			t.Fatal("nothing is told")
		}
		return e
	}
	apply(t, r, s.change(alice(1, 2)))
	if e := next(); e.Kind != compute.EventKeyAdded || e.Owner != 1 || e.Seq != s.at.Seq {
		t.Errorf("a key was added: %+v", e)
	}
	apply(t, r, s.change(alice(1)))
	if e := next(); e.Kind != compute.EventUserChanged || e.Owner != 1 {
		t.Errorf("a key was deleted: %+v", e)
	}
	disabled := alice(1)
	disabled.Disabled = true
	apply(t, r, s.change(disabled))
	if e := next(); e.Kind != compute.EventUserChanged {
		t.Errorf("a user was disabled: %+v", e)
	}
	for _, c := range []wireContainer{{ID: "00000001", Owner: 1, Desired: "stopped"}, {ID: "00000001", Gone: true}} {
		from := s.at
		s.at.Seq++
		s.must(s.w.begin(begin{From: from, To: s.at}))
		s.must(s.w.container(c))
		s.must(s.w.end())
		apply(t, r, s.take())
		want := compute.EventContainerChanged
		if c.Gone {
			want = compute.EventContainerDeleted
		}
		if e := next(); e.Kind != want || e.Container != "00000001" {
			t.Errorf("of %+v is told %+v", c, e)
		}
	}
	closed := func(when string) {
		t.Helper()
		for {
			select {
			case _, open := <-events:
				if open {
					continue
				}
			default:
				t.Errorf("%s, it goes on", when)
			}
			return
		}
	}
	apply(t, r, s.snapshot(100))
	closed("after a snapshot")
	cancel()
	events, cancel = r.Changes()
	cancel()
	cancel()
	closed("after its cancel")
	events, _ = r.Changes()
	apply(t, r, s.change(slices.Repeat([]wireAccount{alice(1)}, pending+1)...))
	closed("when nobody reads")
	events, _ = r.Changes()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	closed("at the end")
	events, cancel = r.Changes()
	closed("after the end")
	cancel()
}

// TestAskedWhileItChanges has readers beside changes, snapshots and compactions: for the race detector.
func TestAskedWhileItChanges(t *testing.T) {
	path, s := written(t)
	r := OpenReplica(path, ReplicaOptions{})
	r.slack = 1 << 10
	ctx, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				if n := keysOf(r); n < 1 {
					t.Errorf("%d keys open the container", n)
					return
				}
				_, err := r.Accounts(ctx, keyPrint("b"))
				_, uerr := r.Users(ctx)
				_, kerr := r.Keys(ctx, 1)
				_, cerr := r.Containers(ctx, 1)
				if err := errors.Join(err, uerr, kerr, cerr); err != nil {
					t.Error(err)
				}
				_, cancel := r.Changes()
				cancel()
			}
		})
	}
	for i := range 120 {
		if i%40 == 39 {
			apply(t, r, s.snapshot(s.at.Seq+1))
		}
		apply(t, r, s.change(alice(int64(1+i%2))))
	}
	stop()
	readers.Wait()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestCredentialFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ca.pem")
	var authorities [8]*Authority
	var wg sync.WaitGroup
	for i := range authorities { // at once: one is made, and all have it
		wg.Go(func() {
			a, err := OpenAuthority(path)
			if err != nil {
				t.Error(err)
			}
			authorities[i] = a
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, a := range authorities {
		if !a.cert.Equal(authorities[0].cert) {
			t.Error("two authorities were made")
		}
	}
	text, _, err := authorities[0].Issue("edge")
	if err != nil {
		t.Fatal(err)
	}
	other, err := OpenAuthority(filepath.Join(dir, "other.pem"))
	if err != nil {
		t.Fatal(err)
	}
	foreign, _, err := other.Issue("edge")
	if err != nil {
		t.Fatal(err)
	}
	ca := readAllFile(t, path)
	const begin = "-----BEGIN CERTIFICATE-----"
	root := func(text []byte) string { return string(text[strings.LastIndex(string(text), begin):]) }
	key, certs, _ := strings.Cut(string(text), begin)
	_, foreignCerts, _ := strings.Cut(string(foreign), begin)
	for name, bad := range map[string]string{
		"nothing":             "",
		"noise":               "hello",
		"no certificate":      key,
		"another's key":       key + begin + foreignCerts,
		"no root":             strings.TrimSuffix(string(text), root(text)),
		"another root":        strings.TrimSuffix(string(text), root(text)) + root(foreign),
		"certificates first":  begin + certs + key,
		"an authority's file": string(ca),
		"a certificate more":  string(text) + root(text),
	} {
		if c, err := ParseCredential([]byte(bad)); err == nil {
			t.Errorf("%s makes the credential of %s", name, c.Name)
		}
	}
}

func FuzzCredential(f *testing.F) {
	a, err := OpenAuthority(filepath.Join(f.TempDir(), "ca.pem"))
	if err != nil {
		f.Fatal(err)
	}
	text, _, err := a.Issue("edge")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseCredential(data)
		if err == nil && (c.config == nil || c.Fingerprint == "") {
			t.Errorf("%+v", c)
		}
	})
}
