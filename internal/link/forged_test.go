package link

import (
	"crypto/tls"
	"strings"
	"testing"
	"time"

	"berth/internal/compute"
)

// sender is a gateway that sends what the test wants, and has said which queue it has.
type sender struct {
	t    *testing.T
	conn *tls.Conn
	in   *frameReader
	w    *writer
}

func (p *plane) sender(c Credential, queue string) *sender {
	p.t.Helper()
	conn, err := p.dialRaw(c.config)
	if err != nil {
		p.t.Fatal(err)
	}
	s := &sender{t: p.t.(*testing.T), conn: conn, in: newFrameReader(conn, maxFrame), w: newWriter(conn)}
	s.send(kindHello, hello{Queue: queue})
	return s
}

// send sends, unless the control plane has ended the connection: what comes of it, the test reads.
func (s *sender) send(k kind, v any) { _ = s.w.send(k, v) }

// told reads on until the control plane says what it has stored, or ends the connection.
func (s *sender) told() (last int64, ok bool) {
	for {
		fr, err := s.in.next()
		if err != nil {
			return 0, false
		}
		if fr.kind != kindRecorded {
			continue
		}
		var r recorded
		if err := newCodec().read(fr.payload, &r); err != nil {
			s.t.Fatal(err)
		}
		return r.Last, true
	}
}

func (s *sender) wantTold(want int64) {
	s.t.Helper()
	if last, ok := s.told(); !ok || last != want {
		s.t.Fatalf("the control plane says %d, %v, not %d", last, ok, want)
	}
}

var someQueue = strings.Repeat("0a", 16)

// TestForgedRecords has a stolen gateway say what it likes. It can say that people came to it, under its own name, and nothing
// else: no change, no other gateway, no time to come, nothing of an account that is still to come.
func TestForgedRecords(t *testing.T) {
	p := newPlane(t)
	alice, _ := p.user("alice")
	s := p.sender(p.credential("edge"), someQueue)
	s.wantTold(0)
	good := toWireRecord(login(1))
	good.User = int64(alice)
	change := func(f func(*wireRecord)) wireRecord {
		w := good
		f(&w)
		return w
	}
	long := strings.Repeat("x", 4000)
	forged := []wireRecord{
		change(func(w *wireRecord) { w.Action = "deleteContainer" }),
		change(func(w *wireRecord) { w.Action = compute.ActionChangeUser }),
		change(func(w *wireRecord) { w.Action = "" }),
		change(func(w *wireRecord) { w.Action = long }),
		change(func(w *wireRecord) { w.Outcome = "perhaps" }),
		change(func(w *wireRecord) { w.Code = "not_found" }),
		change(func(w *wireRecord) { w.Outcome, w.Code = "denied", "" }),
		change(func(w *wireRecord) { w.Outcome, w.Code = "denied", long }),
		change(func(w *wireRecord) { w.User = -1 }),
		change(func(w *wireRecord) { w.Key = "SHA256:short" }),
		change(func(w *wireRecord) { w.Key = "operator" }),
		change(func(w *wireRecord) { w.Source = "somewhere" }),
		change(func(w *wireRecord) { w.Source = "[fe80::1%" + long + "]:1" }),
		change(func(w *wireRecord) { w.Source = "[fe80::1%\x1b[2J]:1" }),
		change(func(w *wireRecord) { w.Container = "../../etc" }),
		change(func(w *wireRecord) { w.Target = "user:alice" }),
		change(func(w *wireRecord) { w.Session = "\xff\xfe" }),
		change(func(w *wireRecord) { w.Kind = "rm -rf" }),
	}
	s.send(kindRecords, batch{First: 1, Last: int64(len(forged)), Records: forged})
	s.wantTold(int64(len(forged)))
	list := records(t, p.store.Reader)
	if len(list) != len(forged) || p.server.Forged() != uint64(len(forged)) {
		t.Fatalf("of %d are %d there, and %d are counted", len(forged), len(list), p.server.Forged())
	}
	for i, r := range list {
		if r.Action != compute.ActionAuditLost || r.Gateway != "edge" || r.User != 0 || r.Owner != 0 || r.Source != "" {
			t.Errorf("%d: %+v", i, r)
		}
	}

	began := time.Now()
	first := int64(len(forged)) + 1
	odd := []wireRecord{
		change(func(w *wireRecord) { w.At = began.Add(1000 * time.Hour).UnixMilli() }),
		change(func(w *wireRecord) { w.At = 0 }),
		change(func(w *wireRecord) { w.At, w.Until, w.Count = -1<<62, 1<<62, 1<<62 }),
		change(func(w *wireRecord) { w.Duration, w.Count = 1<<62, -1 }),
		change(func(w *wireRecord) { w.User = int64(alice) + 1 }), // who is not there yet
		{Action: compute.ActionAuditLost, Outcome: "allowed", User: int64(alice), Count: 3, Target: long},
	}
	s.send(kindRecords, batch{First: first, Last: first + int64(len(odd)) - 1, Records: odd})
	s.wantTold(first + int64(len(odd)) - 1)
	ours, err := p.store.Gateways(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list = records(t, p.store.Reader)[len(forged):]
	if len(list) != len(odd) {
		t.Fatalf("%d are there", len(list))
	}
	for i, r := range list {
		if r.Gateway != "edge" || r.At.Before(ours[0].CreatedAt) || r.At.After(time.Now()) || r.Until.After(time.Now()) ||
			r.Count < 1 || r.Count > mostCounted || r.Duration < 0 || r.Duration > longestSession {
			t.Errorf("%d: %+v", i, r)
		}
	}
	if r := list[4]; r.User != 0 || r.Owner != 0 {
		t.Errorf("it is of an account that is not there: %+v", r)
	}
	if r := list[5]; r.Action != compute.ActionAuditLost || r.Outcome != compute.OutcomeFailed || r.Owner != 0 || r.Count != 3 || r.Target != "" {
		t.Errorf("%+v", r)
	}
}

// TestRecordsOutOfOrder holds what a gateway may send when; and that it is cut off, with nothing stored, when it does not.
func TestRecordsOutOfOrder(t *testing.T) {
	p := newPlane(t)
	cred := p.credential("edge")
	one := batch{First: 1, Last: 1, Records: []wireRecord{toWireRecord(login(1))}}
	for name, send := range map[string]func(s *sender){
		"none":            func(s *sender) { s.send(kindRecords, batch{First: 1}) },
		"other numbers":   func(s *sender) { s.send(kindRecords, batch{First: 1, Last: 7, Records: one.Records}) },
		"number 0":        func(s *sender) { s.send(kindRecords, batch{First: 0, Last: 0, Records: one.Records}) },
		"a huge number":   func(s *sender) { s.send(kindRecords, batch{First: maxNumber, Last: maxNumber, Records: one.Records}) },
		"too many":        func(s *sender) { s.send(kindRecords, batch{First: 1, Last: 1000, Records: make([]wireRecord, 1000)}) },
		"no records":      func(s *sender) { s.send(kindRecords, "text") },
		"a word of ours":  func(s *sender) { s.send(kindRecorded, recorded{Last: 1}) },
		"a frame too big": func(s *sender) { s.send(kindRecords, strings.Repeat("x", maxRecords)) },
	} {
		s := p.sender(cred, someQueue)
		s.wantTold(0)
		send(s)
		if last, ok := s.told(); ok {
			t.Errorf("%s: it is told %d", name, last)
		}
		_ = s.conn.Close()
	}
	s := p.sender(cred, "") // it has named no queue
	s.send(kindRecords, one)
	if _, ok := s.told(); ok {
		t.Error("records of no queue are stored")
	}
	for _, queue := range []string{"x", strings.Repeat("0A", 16), strings.Repeat("0", 4000)} {
		if _, ok := p.sender(cred, queue).told(); ok {
			t.Errorf("queue %.40q is one", queue)
		}
	}
	if list := records(t, p.store.Reader); len(list) > 0 {
		t.Errorf("stored are %+v", list)
	}

	// Sent again, it is there once; of another gateway, it is its own.
	for range 2 {
		s = p.sender(cred, someQueue)
		if _, ok := s.told(); !ok {
			t.Fatal("cut off")
		}
		s.send(kindRecords, one)
		s.wantTold(1)
		_ = s.conn.Close()
	}
	s = p.sender(p.credential("other"), someQueue)
	s.wantTold(0)
	s.send(kindRecords, one)
	s.wantTold(1)
	list := records(t, p.store.Reader)
	if len(list) != 2 || list[0].Gateway != "edge" || list[1].Gateway != "other" {
		t.Errorf("stored are %+v", list)
	}

	// One that was revoked meanwhile says nothing more.
	if _, err := p.store.RevokeGateway(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
	s.send(kindRecords, batch{First: 2, Last: 2, Records: one.Records})
	if last, ok := s.told(); ok {
		t.Errorf("a revoked gateway is told %d", last)
	}
	if list := records(t, p.store.Reader); len(list) != 2 {
		t.Errorf("stored are %+v", list)
	}
}
