package link

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/internal/compute"
)

// stream writes frames as the control plane would.
type stream struct {
	t   testing.TB
	buf bytes.Buffer
	w   *writer
	at  wireVersion
}

func newStream(t testing.TB) *stream {
	s := &stream{t: t}
	s.w = newWriter(&s.buf)
	return s
}

// take returns what was written since the last take.
func (s *stream) take() []byte {
	b := slices.Clone(s.buf.Bytes())
	s.buf.Reset()
	return b
}

func (s *stream) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// snapshot is one of alice with two keys and a container that both open.
func (s *stream) snapshot(seq int64) []byte {
	s.t.Helper()
	s.at = wireVersion{Installation: "here", Epoch: 1, Seq: seq, At: 1000 + seq}
	s.must(s.w.begin(begin{Full: true, To: s.at}))
	s.must(s.w.account(alice(1, 2)))
	s.must(s.w.container(wireContainer{
		ID: "00000001", Owner: 1, Name: "dev-box", Type: "nano", Memory: 512, Storage: 5, Keys: []int64{1, 2}, SSH: true,
		Desired: "running", Status: "running",
	}))
	s.must(s.w.end())
	return s.take()
}

func alice(keys ...int64) wireAccount {
	a := wireAccount{ID: 1, Username: "alice", Role: "user"}
	for _, k := range keys {
		a.Keys = append(a.Keys, wireKey{ID: k, Fingerprint: keyPrint(string(rune('a' + k - 1)))})
	}
	return a
}

// change is one event on, with these accounts.
func (s *stream) change(accounts ...wireAccount) []byte {
	s.t.Helper()
	from := s.at
	s.at.Seq++
	s.at.At++
	s.must(s.w.begin(begin{From: from, To: s.at}))
	for _, a := range accounts {
		s.must(s.w.account(a))
	}
	s.must(s.w.end())
	return s.take()
}

func (s *stream) ping() []byte {
	s.must(s.w.send(kindPing, ping{Version: s.at}))
	return s.take()
}

// keysOf says how many keys open the container of a snapshot; -1 when the replica cannot say.
func keysOf(r *Replica) int {
	target, err := r.Target(context.Background(), "00000001")
	if err != nil {
		return -1
	}
	return len(target.Keys)
}

// written returns a replica's file after a snapshot, in which two keys open a container, and two changes, of which the second
// takes one key away.
func written(t testing.TB) (path string, s *stream) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "replica")
	s = newStream(t)
	r := OpenReplica(path, ReplicaOptions{Log: testLog(t)})
	apply(t, r, s.snapshot(10))
	apply(t, r, s.change(alice(1, 2)))
	apply(t, r, s.change(alice(2)))
	if n := keysOf(r); n != 1 {
		t.Fatalf("%d keys open the container", n)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return path, s
}

func reopen(t testing.TB, path string) *Replica {
	t.Helper()
	r := OpenReplica(path, ReplicaOptions{})
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// TestDamageIsSeen changes each byte of a file, and cuts it off at each length. What was revoked never comes back.
func TestDamageIsSeen(t *testing.T) {
	path, _ := written(t)
	whole := readAllFile(t, path)
	if n := keysOf(reopen(t, path)); n != 1 {
		t.Fatalf("undamaged, %d keys open the container", n)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v", info.Mode(), err)
	}
	c := newCodec()
	bad := filepath.Join(t.TempDir(), "replica")
	try := func(what string, at int, text []byte) {
		t.Helper()
		if err := os.WriteFile(bad, text, 0o600); err != nil {
			t.Fatal(err)
		}
		f, _, err := readFile(bad, c)
		if err == nil {
			_ = f.close()
		}
		if !errors.Is(err, errDamaged) {
			t.Errorf("%s %d: %v", what, at, err)
		}
	}
	for i := range whole {
		text := slices.Clone(whole)
		text[i] ^= 0x40
		try("changed byte", i, text)
		try("cut off at", i, whole[:i])
	}
	if n := keysOf(reopen(t, bad)); n != -1 {
		t.Errorf("of a damaged file, %d keys open the container", n)
	}

	// More than counts is what was never acknowledged.
	torn := append(slices.Clone(whole), "torn"...)
	if err := os.WriteFile(bad, torn, 0o600); err != nil {
		t.Fatal(err)
	}
	if n := keysOf(reopen(t, bad)); n != 1 {
		t.Errorf("with a torn end, %d keys open the container", n)
	}
	for name, spoil := range map[string]func() error{
		"open to others": func() error { return os.Chmod(bad, 0o620) },
		"a symlink":      func() error { return errors.Join(os.Remove(bad), os.Symlink(path, bad)) },
		"a directory":    func() error { return errors.Join(os.Remove(bad), os.Mkdir(bad, 0o700)) },
	} {
		if err := os.RemoveAll(bad); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(bad, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if n := keysOf(reopen(t, bad)); n != -1 {
			t.Errorf("%s: %d keys open the container", name, n)
		}
	}
}

// TestGoesOnAfterDamage holds that a replica without a good file asks for a snapshot, and is whole with it.
func TestGoesOnAfterDamage(t *testing.T) {
	path, s := written(t)
	if err := os.WriteFile(path, []byte("no replica"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := reopen(t, path)
	if v := r.position(); v != (wireVersion{}) {
		t.Fatalf("it goes on from %v", v)
	}
	_, err := r.Accounts(t.Context(), keyPrint("a"))
	if compute.CodeOf(err) != compute.CodeUnavailable || !strings.Contains(err.Error(), "no word from its control plane") {
		t.Errorf("without a good file the answer is %v", err)
	}
	apply(t, r, s.snapshot(20))
	if n := keysOf(r); n != 2 {
		t.Errorf("%d keys open the container", n)
	}
	if n := keysOf(reopen(t, path)); n != 2 {
		t.Errorf("from the disk, %d keys open the container", n)
	}
}

// TestDiskRefuses holds that a change which the disk does not take holds all the same, is not acknowledged, and is written
// once the disk takes it.
func TestDiskRefuses(t *testing.T) {
	path, s := written(t)
	clock := time.Now()
	r := OpenReplica(path, ReplicaOptions{Log: testLog(t), Now: func() time.Time { return clock }})
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	before := r.durable
	if err := r.file.f.Close(); err != nil { // every write fails from now on
		t.Fatal(err)
	}
	blocker := path + compactDraft + "/in the way"
	if err := os.MkdirAll(blocker, 0o700); err != nil {
		t.Fatal(err)
	}
	apply(t, r, s.change(alice()))
	if n := keysOf(r); n != 0 {
		t.Errorf("%d keys open the container", n)
	}
	if r.durable != before {
		t.Errorf("%v is said to be durable, after %v", r.durable, before)
	}
	if n := keysOf(reopen(t, path)); n != 1 {
		t.Errorf("on the disk, %d keys open the container", n)
	}
	if err := os.RemoveAll(path + compactDraft); err != nil {
		t.Fatal(err)
	}
	f := newFeed(r)
	f.at = s.at
	if err := feedAll(f, s.ping()); err != nil || r.durable == s.at {
		t.Fatalf("it does not leave the disk alone for a while: %v, %v", r.durable, err)
	}
	clock = clock.Add(mendPause)
	if err := feedAll(f, s.ping()); err != nil || r.durable != s.at {
		t.Fatalf("the disk is good again, and %v is durable, %v", r.durable, err)
	}
	if n := keysOf(reopen(t, path)); n != 0 {
		t.Errorf("on the disk, %d keys open the container", n)
	}
	apply(t, r, s.change(alice(1)))
	if n := keysOf(reopen(t, path)); r.durable != s.at || n != 1 {
		t.Errorf("%v is durable, and on the disk %d keys open the container", r.durable, n)
	}

	// A snapshot that the disk refuses is used, too.
	if err := os.MkdirAll(path+snapshotDraft+"/in the way", 0o700); err != nil {
		t.Fatal(err)
	}
	apply(t, r, s.snapshot(40))
	if n := keysOf(r); n != 2 || r.durable != s.at {
		t.Errorf("%d keys open the container, and %v is durable", n, r.durable)
	}
	if err := os.RemoveAll(path + snapshotDraft); err != nil {
		t.Fatal(err)
	}
}

// TestCompaction holds that a file does not grow for ever, while changes come and afterwards.
func TestCompaction(t *testing.T) {
	path, s := written(t)
	r := OpenReplica(path, ReplicaOptions{Log: testLog(t)})
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	r.slack = 1 << 10
	inode := func() os.FileInfo {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	compacted := 0
	for last := inode(); compacted < 5; {
		apply(t, r, s.change(alice(int64(1+s.at.Seq%2))))
		if r.compaction != nil && s.at.Seq%3 == 0 {
			<-r.compaction.done // at times it is over before the next change, at times it is not
		}
		if now := inode(); !os.SameFile(last, now) {
			compacted, last = compacted+1, now
		}
		if r.file.length > 64<<10 {
			t.Fatalf("the file has grown to %d bytes", r.file.length)
		}
	}
	f, st, err := readFile(path, r.codec)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	if st.version != s.at || len(st.accounts[1].keys) != 1 || st.accounts[1].keys[0].id != 1+(s.at.Seq-1)%2 {
		t.Errorf("the file has %v at %v, want %v", st.accounts[1], st.version, s.at)
	}
	for _, left := range []string{snapshotDraft, compactDraft} {
		if _, err := os.Stat(path + left); r.compaction == nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", left, err)
		}
	}
}

// TestMaxStale holds that a gateway which has heard nothing for long admits nobody, also after it was started again, and
// wherever the clock was set.
func TestMaxStale(t *testing.T) {
	path, s := written(t)
	now := time.Now()
	open := func() *Replica {
		r := OpenReplica(path, ReplicaOptions{MaxStale: time.Hour, Now: func() time.Time { return now }})
		t.Cleanup(func() {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
		return r
	}
	r := open()
	if n := keysOf(r); n != 1 {
		t.Fatalf("%d keys open the container", n)
	}
	now = now.Add(59 * time.Minute)
	if n := keysOf(r); n != 1 {
		t.Errorf("after 59 minutes, %d keys open the container", n)
	}
	now = now.Add(2 * time.Minute)
	_, err := r.Target(t.Context(), "00000001")
	const words = "has not heard from its control plane for more than 1h0m0s"
	if compute.CodeOf(err) != compute.CodeUnavailable || !strings.Contains(err.Error(), words) {
		t.Errorf("after 61 minutes: %v", err)
	}
	if n := keysOf(open()); n != -1 {
		t.Errorf("started again after 61 minutes, %d keys open the container", n)
	}
	apply(t, r, s.ping())
	if n := keysOf(r); n != 1 {
		t.Errorf("after a ping, %d keys open the container", n)
	}
	again := open() // the ping is remembered
	select {
	case <-again.able:
	default:
		t.Error("after a restart it is not ready, although it has just heard")
	}
	if n := keysOf(again); n != 1 {
		t.Errorf("after a restart, %d keys open the container", n)
	}
	now = now.Add(-clockSlack - time.Minute)
	late := open()
	if n := keysOf(late); n != -1 {
		t.Errorf("with a clock before the last contact, %d keys open the container", n)
	}
	select {
	case <-late.able:
		t.Error("it is ready")
	default:
	}
	apply(t, late, s.ping())
	if n := keysOf(late); n != 1 {
		t.Errorf("after a ping, %d keys open the container", n)
	}
}
