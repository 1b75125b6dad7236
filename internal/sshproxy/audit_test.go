package sshproxy

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"berth/internal/compute"
)

// ledger keeps what a gateway records.
type ledger struct {
	mu   sync.Mutex
	list []compute.AuditRecord
	wake chan struct{}
}

func newLedger() *ledger { return &ledger{wake: make(chan struct{}, 1)} }

func (l *ledger) record(r compute.AuditRecord) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, r)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *ledger) all() []compute.AuditRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.list)
}

// await returns the records once there are n.
func (l *ledger) await(t *testing.T, n int) []compute.AuditRecord {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		list := l.all()
		if len(list) >= n {
			return list
		}
		select {
		case <-l.wake:
		case <-deadline:
			t.Fatalf("%d records, want %d: %+v", len(list), n, list)
		}
	}
}

// short is what, where, and what became of it.
func short(r compute.AuditRecord) string {
	return strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s %s %s", r.Action, r.Container, r.Target, r.SessionKind, r.Outcome, r.Code)), " ")
}

func shorts(list []compute.AuditRecord) (out []string) {
	for _, r := range list {
		out = append(out, short(r))
	}
	return out
}

// Logins and sessions are recorded, each with its kind; what is done in them is not.
func TestSessionsAreRecorded(t *testing.T) {
	l := newLedger()
	h := newHarbour(t, Options{Record: l.record})
	c := h.login(t)
	run := func(f func(*gossh.Session) error) {
		t.Helper()
		session, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		if err := f(session); err != nil {
			t.Fatal(err)
		}
	}
	run(func(s *gossh.Session) error {
		if err := s.Setenv("LC_SECRET", "hunter2"); err != nil {
			t.Log(err) // it may not be accepted; nor may it be recorded
		}
		return s.Run("echo hunter2 hunter3")
	})
	l.await(t, 3)
	run(func(s *gossh.Session) error {
		s.Stdin = strings.NewReader("exit 0\n")
		if err := s.Shell(); err != nil {
			return err
		}
		return s.Wait()
	})
	list := l.await(t, 5)
	want := []string{
		"login aaaaaaaa allowed", "openSSHSession aaaaaaaa exec allowed", "endSSHSession aaaaaaaa exec allowed",
		"openSSHSession aaaaaaaa shell allowed", "endSSHSession aaaaaaaa shell allowed",
	}
	if !slices.Equal(shorts(list), want) {
		t.Fatalf("got %q", shorts(list))
	}
	for _, r := range list {
		if r.User != h.alice || r.Owner != h.alice || r.Credential != "ssh_key" || r.Via != compute.ViaSSH ||
			r.CredentialID != gossh.FingerprintSHA256(h.key.PublicKey()) || r.Source != c.LocalAddr().String() {
			t.Errorf("%+v", r)
		}
		if strings.Contains(fmt.Sprintf("%+v", r), "hunter") {
			t.Errorf("what was done is recorded: %+v", r)
		}
	}
	if list[1].Session == "" || list[1].Session != list[2].Session || list[1].Session == list[3].Session || list[0].Session != "" {
		t.Errorf("sessions %q, %q, %q", list[1].Session, list[2].Session, list[3].Session)
	}
	if list[2].Duration <= 0 || list[1].Duration != 0 {
		t.Errorf("durations %v, %v", list[1].Duration, list[2].Duration)
	}
}

// Stock clients: sftp, a jump, and the lobby.
func TestStockClientsAreRecorded(t *testing.T) {
	l := newLedger()
	h := newHarbour(t, Options{Record: l.record})
	c := h.login(t)
	session, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.RequestSubsystem("sftp"); err != nil {
		t.Fatal(err)
	}
	session.Close()
	want := []string{"login aaaaaaaa allowed", "openSSHSession aaaaaaaa sftp allowed", "endSSHSession aaaaaaaa sftp allowed"}
	if got := shorts(l.await(t, 3)); !slices.Equal(got, want) {
		t.Fatalf("got %q", got)
	}

	lobby := h.dial(t, "anybody", h.key)
	if session, err = lobby.NewSession(); err != nil {
		t.Fatal(err)
	}
	if err := session.Run("ls secrets"); err != nil {
		t.Fatal(err)
	}
	want = append(want, "login lobby allowed", "openSSHSession lobby lobby allowed", "endSSHSession lobby lobby allowed")
	if got := shorts(l.await(t, 6)); !slices.Equal(got, want) {
		t.Fatalf("got %q", got)
	}

	through, err := lobby.Dial("tcp", "bbbbbbbb."+zone+":22")
	if err != nil {
		t.Fatal(err)
	}
	inner, chans, reqs, err := gossh.NewClientConn(through, "bbbbbbbb", h.clientConfig("root", h.key))
	if err != nil {
		t.Fatal(err)
	}
	client := gossh.NewClient(inner, chans, reqs)
	defer client.Close()
	list := l.await(t, 7)
	if got := short(list[6]); got != "login bbbbbbbb allowed" || list[6].Source != lobby.LocalAddr().String() {
		t.Errorf("%+v", list[6])
	}
	if out := fmt.Sprintf("%+v", l.all()); strings.Contains(out, "secrets") || strings.Contains(out, "anybody") {
		t.Errorf("what was typed is recorded: %s", out)
	}
}

// Who tried to log in and did not is recorded, once a connection, with the key that was offered and as nobody.
func TestRefusedLoginsAreRecorded(t *testing.T) {
	l := newLedger()
	w := newWorld(t)
	alice, mallory := newKey(t), newKey(t)
	a := w.user("alice")
	w.container("a1b2c3d4", a, w.key(a, alice))
	m := w.user("mallory")
	w.key(m, mallory)
	g := startGateway(t, Options{Directory: w, Record: l.record})

	refusal(t, g, "a1b2c3d4", mallory, newKey(t), mallory)
	l.await(t, 1) // a refusal is recorded when its connection has ended
	refusal(t, g, "nobody", newKey(t))
	refusal(t, g, "my:password!", newKey(t))
	l.await(t, 3)
	raw := dialRaw(t, g.addr)
	if _, err := raw.auth(authRequest("alice", "none")); err != nil {
		t.Fatal(err)
	}
	raw.nc.Close()
	list := l.await(t, 4)
	want := []string{
		"login a1b2c3d4 denied unauthenticated", "login lobby denied unauthenticated", "login lobby denied unauthenticated",
		"login lobby denied unauthenticated",
	}
	if !slices.Equal(shorts(list), want) {
		t.Fatalf("got %q", shorts(list))
	}
	for _, r := range list {
		host, _, err := net.SplitHostPort(r.Source)
		if err != nil || host != "127.0.0.1" || r.User != 0 || r.Owner != 0 || r.Via != compute.ViaSSH {
			t.Errorf("%+v", r)
		}
		if strings.Contains(fmt.Sprintf("%+v", r), "password") {
			t.Errorf("what was typed is recorded: %+v", r)
		}
	}
	if list[0].CredentialID != gossh.FingerprintSHA256(mallory.PublicKey()) || list[0].Credential != "ssh_key" || list[3].CredentialID != "" {
		t.Errorf("keys %q, %q", list[0].CredentialID, list[3].CredentialID)
	}

	// One of several keys that is good is a login; a scan of the port is nothing.
	c := g.dial(t, "a1b2c3d4", mallory, alice)
	scan, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	scan.Close()
	list = l.await(t, 5)
	if got := short(list[4]); got != "login a1b2c3d4 allowed" || list[4].User != a {
		t.Errorf("%+v", list[4])
	}

	// A session that may not be entered.
	w.ssh(a, "a1b2c3d4", false)
	if _, err := tryRun(c, "true"); err == nil {
		t.Error("it ran")
	}
	list = l.await(t, 6)
	if got := short(list[5]); got != "openSSHSession a1b2c3d4 denied ssh_disabled" || list[5].User != a {
		t.Errorf("%+v", list[5])
	}
}

func tryRun(c *gossh.Client, command string) (string, error) {
	session, err := c.NewSession()
	if err != nil {
		return "", err
	}
	defer session.Close()
	var out bytes.Buffer
	session.Stdout = &out
	err = session.Run(command)
	return out.String(), err
}

// A session that a revocation ends has its end recorded as any other.
func TestRevokedSessionsAreRecorded(t *testing.T) {
	l := newLedger()
	h := newHarbour(t, Options{Record: l.record})
	c := h.login(t)
	session, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Start("exec sleep 1000"); err != nil {
		t.Fatal(err)
	}
	l.await(t, 2)
	if err := h.DeleteKey(t.Context(), h.alice, h.keyID); err != nil {
		t.Fatal(err)
	}
	list := l.await(t, 3)
	if got := short(list[2]); got != "endSSHSession aaaaaaaa exec allowed" || list[2].Session != list[1].Session {
		t.Errorf("%+v", list[2])
	}
}
