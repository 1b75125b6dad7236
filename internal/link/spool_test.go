package link

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"berth/internal/compute"
)

// login is the record of one that is told from others by its number.
func login(n int) compute.AuditRecord {
	return compute.AuditRecord{
		At: time.Now(), Action: compute.ActionLogin, Outcome: compute.OutcomeAllowed, User: 1, Owner: 1, Via: compute.ViaSSH,
		Credential: compute.CredentialSSHKey, CredentialID: "SHA256:" + fmt.Sprintf("%043d", 1), Gateway: "whatever it says",
		Source: "192.0.2.1:1", Container: compute.ContainerID(fmt.Sprintf("%08x", n)), Count: 1,
	}
}

func refusal(n int) compute.AuditRecord {
	r := login(n)
	r.Outcome, r.Code = compute.OutcomeDenied, compute.CodeUnauthenticated
	return r
}

func openSpool(t testing.TB, path string, size int64) *Spool {
	t.Helper()
	s, err := OpenSpool(path, SpoolOptions{MaxBytes: size, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func keep(t testing.TB, s *Spool, list ...compute.AuditRecord) {
	t.Helper()
	if err := s.AppendAudit(context.Background(), list); err != nil {
		t.Fatal(err)
	}
}

// takeAll takes all that waits, from the number on, and returns which logins it tells of.
func takeAll(t testing.TB, s *Spool, after int64) (list []int, last int64) {
	t.Helper()
	for last = after; ; {
		raw, ok, err := s.oldest(last)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return list, last
		}
		fr, err := parseFrame(raw)
		if err != nil || fr.kind != kindRecords {
			t.Fatalf("%d, %v", fr.kind, err)
		}
		var b batch
		if err := newCodec().read(fr.payload, &b); err != nil || b.First <= last || b.Last != b.First+int64(len(b.Records))-1 {
			t.Fatalf("%d to %d with %d records after %d, %v", b.First, b.Last, len(b.Records), last, err)
		}
		for _, w := range b.Records {
			n := 0
			if _, err := fmt.Sscanf(w.Container, "%08x", &n); err != nil {
				t.Fatal(err)
			}
			list = append(list, n)
		}
		last = b.Last
	}
}

func wantRun(t testing.TB, list []int, from, to int) {
	t.Helper()
	if len(list) != max(to-from+1, 0) {
		t.Fatalf("%d records instead of %d to %d", len(list), from, to)
	}
	for i, n := range list {
		if n != from+i {
			t.Fatalf("%d is at the place of %d", n, from+i)
		}
	}
}

// What is kept is there at the next start, until the control plane has it, and the files stay small.
func TestSpoolKeeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spool")
	s := openSpool(t, path, 64<<10)
	n := 0
	appendOne := func() { n++; keep(t, s, login(n)) }
	for range 10 {
		appendOne()
	}
	list, last := takeAll(t, s, 0)
	wantRun(t, list, 1, 10)
	if last != 10 || s.Waiting() != 0 {
		t.Errorf("%d, and %d bytes wait", last, s.Waiting())
	}
	for range 2000 { // many times what the files hold
		appendOne()
		if n%100 == 0 {
			list, last = takeAll(t, s, last)
			wantRun(t, list, max(n-99, 11), n)
		}
	}
	for _, name := range SpoolFiles(path) {
		if info, err := os.Stat(name); err == nil && (info.Size() > 32<<10 || info.Mode() != 0o600) {
			t.Errorf("%s has %d bytes, %v", name, info.Size(), info.Mode())
		}
	}
	list, last = takeAll(t, s, last)
	wantRun(t, list, 2001, 2010)
	for range 100 {
		appendOne()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	queue := s.begun()
	s = openSpool(t, path, 64<<10)
	if s.begun() != queue {
		t.Errorf("the numbers have another name")
	}
	list, last = takeAll(t, s, last) // the control plane says that it has the others
	wantRun(t, list, 2011, 2110)
	if last != 2110 {
		t.Errorf("the last is %d", last)
	}
}

// Where there is no room, new records are lost and counted. Refusals do not take the room of others.
func TestSpoolIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spool")
	s := openSpool(t, path, 64<<10)
	refused, lost := 0, 0
	var some compute.RecordsLost
	for n := range 1000 {
		switch err := s.AppendAudit(t.Context(), []compute.AuditRecord{refusal(n)}); {
		case err == nil:
			refused++
		case errors.As(err, &some):
			lost += int(some)
		default:
			t.Fatal(err)
		}
	}
	if refused+lost != 1000 || s.Waiting() > 33<<10 || s.Waiting() < 30<<10 {
		t.Errorf("%d are kept and %d lost, in %d bytes", refused, lost, s.Waiting())
	}
	both := s.AppendAudit(t.Context(), []compute.AuditRecord{login(1), refusal(1), login(2)})
	if !errors.As(both, &some) || some != 1 {
		t.Errorf("of three, %v", both)
	}
	kept := 2
	for n := 3; ; n++ {
		r := login(n)
		r.Count = 3
		err := s.AppendAudit(t.Context(), []compute.AuditRecord{r})
		if errors.As(err, &some) && some == 3 {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		kept++
	}
	if kept < 100 || s.Waiting() > 64<<10 {
		t.Errorf("%d logins are kept, in %d bytes", kept, s.Waiting())
	}
	list, _ := takeAll(t, s, 0)
	if len(list) != refused+kept {
		t.Errorf("%d of %d are there", len(list), refused+kept)
	}
	wantRun(t, list[refused:], 1, kept)
	keep(t, s, refusal(7), login(8)) // there is room again
}

// However a file was cut or changed, what is taken are records that were kept, in order; what comes after has numbers that were
// not given before.
func TestSpoolDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spool")
	s := openSpool(t, path, 0)
	for n := range 4 {
		keep(t, s, login(n+1))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, text []byte, cut bool) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := OpenSpool(path, SpoolOptions{})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer s.Close()
		list, last := takeAll(t, s, 0)
		wantRun(t, list, 1, len(list))
		if len(list) == 4 {
			t.Fatalf("%s: it is not noticed", what)
		}
		keep(t, s, login(9))
		list, next := takeAll(t, s, last)
		wantRun(t, list, 9, 9)
		if cut && last > 0 && next < numberGap {
			t.Errorf("%s: number %d is given again", what, next)
		}
	}
	for n := range len(whole) {
		check(fmt.Sprintf("cut at %d", n), whole[:n], false)
		changed := append([]byte(nil), whole...)
		changed[n] ^= 0x41
		if n >= 12 && n < 16 || n < 12 && n >= 8 { // the format
			continue
		}
		check(fmt.Sprintf("changed at %d", n), changed, n >= spoolHeader)
	}
}

// What the control plane has is not sent again after a restart, also where another credential takes the place of the one that
// it was sent with: for that one the control plane knows no number.
func TestSpoolKnowsWhatIsStored(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spool")
	s := openSpool(t, path, 64<<10)
	last := int64(0)
	for n := 1; n <= 300; n++ { // both files
		keep(t, s, login(n))
		if n == 290 {
			_, last = takeAll(t, s, last)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, path, 64<<10)
	list, _ := takeAll(t, s, 0)
	if wantRun(t, list, 291, 300); last != 290 {
		t.Errorf("%d were stored", last)
	}
}

// A crash between two steps of putting a file aside costs nothing.
func TestSpoolCrashes(t *testing.T) {
	for _, left := range [][2]string{{"", ".1"}, {"", ""}} { // the newer file is not there yet; a draft is
		path := filepath.Join(t.TempDir(), "spool")
		s := openSpool(t, path, 0)
		keep(t, s, login(1), login(2))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+left[0], path+left[1]); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".new", []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		s = openSpool(t, path, 0)
		keep(t, s, login(3))
		list, last := takeAll(t, s, 0)
		wantRun(t, list, 1, 3)
		if last != 3 {
			t.Errorf("the last is %d", last)
		}
	}
}

// Numbers that were never given are not believed: what waits goes under another name.
func TestSpoolNumbersOfOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spool")
	s := openSpool(t, path, 0)
	keep(t, s, login(1), login(2))
	if err := s.judge(2); err != nil {
		t.Error(err)
	}
	queue := s.begun()
	if err := s.judge(3); err == nil || s.begun() == queue {
		t.Errorf("%v, and the name is the same", err)
	}
	queue = s.begun()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, path, 0)
	list, _ := takeAll(t, s, 0)
	if wantRun(t, list, 1, 2); s.begun() != queue {
		t.Error("the name is not kept")
	}
}

// A disk that refuses costs the records of meanwhile, and nothing else.
func TestSpoolWithoutDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "missing")
	s := openSpool(t, filepath.Join(dir, "spool"), 0)
	var some compute.RecordsLost
	if err := s.AppendAudit(t.Context(), []compute.AuditRecord{login(1)}); err == nil || errors.As(err, &some) {
		t.Errorf("%v", err)
	}
	if _, ok, err := s.oldest(0); ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	keep(t, s, login(2))
	list, _ := takeAll(t, s, 0)
	wantRun(t, list, 2, 2)
}

func TestSpoolIsNoLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "victim"), []byte("text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("victim", filepath.Join(dir, "spool")); err != nil {
		t.Fatal(err)
	}
	if s, err := OpenSpool(filepath.Join(dir, "spool"), SpoolOptions{}); err == nil {
		t.Errorf("it follows a link: %v", s.Close())
	}
}

// Whatever is in the file, it is opened or refused, and what is kept then is there.
func FuzzSpool(f *testing.F) {
	path := filepath.Join(f.TempDir(), "spool")
	s, err := OpenSpool(path, SpoolOptions{})
	if err != nil {
		f.Fatal(err)
	}
	if err := errors.Join(s.AppendAudit(context.Background(), []compute.AuditRecord{login(1), refusal(2)}), s.Close()); err != nil {
		f.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(text[:len(text)-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "spool")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := OpenSpool(path, SpoolOptions{})
		if err != nil {
			return // of another format
		}
		defer s.Close()
		keep(t, s, login(7))
		for last := int64(0); ; {
			raw, ok, err := s.oldest(last)
			if err != nil || !ok {
				t.Fatalf("it is not there, %v", err)
			}
			fr, err := parseFrame(raw)
			if err != nil {
				t.Fatal(err)
			}
			var b batch
			if err := newCodec().read(fr.payload, &b); err == nil && b.Last == s.next-1 {
				return
			}
			var p packed
			if err := newCodec().read(fr.payload, &p); err != nil || p.Last <= last {
				t.Fatalf("%v, %d after %d", err, p.Last, last)
			}
			last = p.Last
		}
	})
}
