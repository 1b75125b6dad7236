package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"berth/internal/compute"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink keeps records in memory, and can be held up and made to fail: what is under test is what comes before it.
type sink struct {
	mu   sync.Mutex
	list []compute.AuditRecord
	err  error
	hold chan struct{} // nil: it does not wait
	at   chan struct{} // has a token for every write that waits
}

func (s *sink) AppendAudit(_ context.Context, list []compute.AuditRecord) error {
	if s.hold != nil {
		s.at <- struct{}{}
		<-s.hold
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	s.list = append(s.list, list...)
	return nil
}

func (s *sink) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// all is what it keeps.
func (s *sink) all() []compute.AuditRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.list)
}

// short is what of the records a test compares.
func (s *sink) short() string {
	var out []string
	for _, r := range s.all() {
		out = append(out, fmt.Sprintf("%s %s x%d", r.Action, r.Source, r.Count))
	}
	return strings.Join(out, ", ")
}

func refusal(source string) compute.AuditRecord {
	return compute.AuditRecord{
		Action: compute.ActionLogin, Outcome: compute.OutcomeDenied, Code: compute.CodeUnauthenticated, Source: source, Via: compute.ViaSSH,
	}
}

func login(source string) compute.AuditRecord {
	return compute.AuditRecord{Action: compute.ActionLogin, Outcome: compute.OutcomeAllowed, User: 1, Source: source, Via: compute.ViaSSH}
}

// run runs q until the function that it returns is called.
func run(t *testing.T, q *Queue) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Refusals alike are one record at first, and one more a minute with their number; whatever is allowed is recorded each time.
func TestRefusalsArePutTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		q := NewQueue(s, "g", nil)
		stop := run(t, q)
		began := time.Now()
		for port := range 5 {
			<-time.After(time.Second)
			q.Record(refusal(fmt.Sprintf("192.0.2.1:%d", port+1)))
			q.Record(login("192.0.2.1:1"))
		}
		q.Record(refusal("192.0.2.2:1"))
		synctest.Wait()
		first := "login 192.0.2.1:1 x1, login 192.0.2.1:1 x1"
		for range 4 {
			first += ", login 192.0.2.1:1 x1"
		}
		first += ", login 192.0.2.2:1 x1"
		if got := s.short(); got != first {
			t.Fatalf("got %s", got)
		}
		<-time.After(window)
		synctest.Wait()
		if got := s.short(); got != first+", login 192.0.2.1:5 x4" {
			t.Fatalf("got %s", got)
		}
		list := s.all()
		last := list[len(list)-1]
		if last.At.Sub(began) != 2*time.Second || last.Until.Sub(began) != 5*time.Second || last.Gateway != "g" {
			t.Errorf("%+v", last)
		}
		q.Record(refusal("192.0.2.1:6")) // of the next window
		q.Record(refusal("192.0.2.1:7"))
		stop() // what is not told of yet is told at the end
		if got := s.short(); !strings.HasSuffix(got, "x4, login 192.0.2.1:6 x1, login 192.0.2.1:7 x1") {
			t.Errorf("got %s", got)
		}
	})
}

// What differs in what matters is told apart; an IPv6 network is one source.
func TestKindsOfRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		q := NewQueue(s, "g", nil)
		stop := run(t, q)
		defer stop()
		other := refusal("192.0.2.1:1")
		for _, change := range []func(*compute.AuditRecord){
			func(r *compute.AuditRecord) {},
			func(r *compute.AuditRecord) { r.Code = compute.CodeNotRunning },
			func(r *compute.AuditRecord) { r.User = 7 },
			func(r *compute.AuditRecord) { r.Action = compute.ActionSessionOpen },
			func(r *compute.AuditRecord) { r.Via = compute.ViaREST },
			func(r *compute.AuditRecord) { r.Source = "[2001:db8::1]:5" },
			func(r *compute.AuditRecord) { r.Container = "a1b2c3d4" },
			func(r *compute.AuditRecord) { r.Target = "lobby" },
			func(r *compute.AuditRecord) { r.CredentialID = "SHA256:other" },
		} {
			r := other
			change(&r)
			q.Record(r)
			q.Record(r)
		}
		q.Record(refusal("[2001:db8::ffff:1]:9"))
		q.Record(refusal("[::ffff:192.0.2.1]:9"))
		synctest.Wait()
		if n := len(s.all()); n != 9 {
			t.Errorf("%d records: %s", n, s.short())
		}
	})
}

// Whoever tries one key after the other is told apart from the rest, and after some of them no more from themselves.
func TestManyKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		q := NewQueue(s, "g", nil)
		stop := run(t, q)
		defer stop()
		const n = 1000
		for i := range n {
			r := refusal("192.0.2.1:1")
			r.CredentialID = fmt.Sprint("SHA256:", i)
			q.Record(r)
		}
		q.Record(refusal("192.0.2.2:1"))
		<-time.After(window)
		synctest.Wait()
		list := s.all()
		if last := list[len(list)-1]; len(list) != maxKindsOfOrigin+3 || last.Count != n-maxKindsOfOrigin-1 {
			t.Errorf("%d records, the last %+v", len(list), last)
		}
	})
}

// However many addresses strangers have, they fill no memory and no disk.
func TestManySources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		q := NewQueue(s, "g", nil)
		stop := run(t, q)
		const n = 20_000
		for i := range n {
			q.Record(refusal(fmt.Sprintf("10.%d.%d.1:1", i/256, i%256)))
			if i%1000 == 0 {
				synctest.Wait() // so that none is lost
			}
		}
		synctest.Wait()
		kinds := func() int {
			q.mu.Lock()
			defer q.mu.Unlock()
			return len(q.refusals)
		}
		if n := len(s.all()); n != maxKinds+1 || kinds() != maxKinds+1 {
			t.Errorf("%d records, %d kinds", n, kinds())
		}
		<-time.After(window)
		synctest.Wait()
		list := s.all()
		last := list[len(list)-1]
		if len(list) != maxKinds+2 || last.Count != n-maxKinds-1 || last.Source != "" || last.Outcome != compute.OutcomeDenied {
			t.Errorf("%d records, the last %+v", len(list), last)
		}
		if n := kinds(); n != 0 {
			t.Errorf("%d kinds are remembered", n)
		}
		stop()
	})
}

// A writer that is held up holds up nobody; what is lost is counted, logged, and recorded.
func TestLossIsCounted(t *testing.T) {
	s := &sink{hold: make(chan struct{}), at: make(chan struct{}, 1000)}
	var log strings.Builder
	q := NewQueue(s, "g", slog.New(slog.NewTextHandler(&log, nil)))
	stop := run(t, q)
	q.Record(login("192.0.2.1:1"))
	<-s.at // the writer has it, and nothing else
	for range maxWaiting + 7 {
		q.Record(login("192.0.2.1:1"))
	}
	close(s.hold)
	stop()
	lost, n := int64(0), 0
	for _, r := range s.all() {
		if r.Action == compute.ActionAuditLost {
			lost += r.Count
		} else {
			n++
		}
	}
	if lost != 7 || n != maxWaiting+1 || !strings.Contains(log.String(), "audit records were lost") {
		t.Errorf("%d are there, %d lost; the log: %s", n, lost, log.String())
	}
}

func TestSinkThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{err: errors.New("disk full")}
		var log strings.Builder
		q := NewQueue(s, "g", slog.New(slog.NewTextHandler(&log, nil)))
		stop := run(t, q)
		q.Record(login("192.0.2.1:1"))
		synctest.Wait()
		q.Record(login("192.0.2.1:2"))
		synctest.Wait()
		s.fail(nil)
		q.Record(login("192.0.2.1:3"))
		stop()
		if got := s.short(); got != "login 192.0.2.1:3 x1, loseAuditRecords  x2" {
			t.Errorf("got %s", got)
		}
		if !strings.Contains(log.String(), "disk full") {
			t.Errorf("the log: %s", log.String())
		}
	})
}

// A sink that keeps some tells how many it does not; the figure for operators counts each once, and the log has one line
// until all is kept again.
func TestSinkWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{err: compute.RecordsLost(3)}
		var log strings.Builder
		q := NewQueue(s, "g", slog.New(slog.NewTextHandler(&log, nil)))
		stop := run(t, q)
		for range 2 {
			q.Record(login("192.0.2.1:1"))
			synctest.Wait()
		}
		if n := q.Missed(); n != 6 {
			t.Errorf("%d are missed", n)
		}
		s.fail(errors.New("disk full"))
		q.Record(login("192.0.2.1:2"))
		synctest.Wait()
		if n := q.Missed(); n != 7 {
			t.Errorf("%d are missed", n)
		}
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d lines: %s", n, log.String())
		}
		s.fail(nil)
		q.Record(login("192.0.2.1:3"))
		stop()
		if got := s.short(); got != "login 192.0.2.1:3 x1, loseAuditRecords  x7" || q.Missed() != 7 {
			t.Errorf("got %s, and %d are missed", got, q.Missed())
		}
	})
}
