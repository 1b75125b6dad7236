package link

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/compute"
	"berth/internal/store"
)

// records returns all that is stored, oldest first.
func records(t testing.TB, s *store.Reader) (list []compute.AuditRecord) {
	t.Helper()
	for after := int64(0); ; {
		page, next, err := s.Audit(context.Background(), compute.AuditQuery{After: after, OldestFirst: true, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, page...)
		if after = next; next == 0 {
			return list
		}
	}
}

// numbersIn returns which logins records tell of.
func numbersIn(t testing.TB, list []compute.AuditRecord) (numbers []int) {
	t.Helper()
	for _, r := range list {
		n := 0
		if _, err := fmt.Sscanf(string(r.Container), "%08x", &n); err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		numbers = append(numbers, n)
	}
	return numbers
}

// TestRecordsArrive walks through kills, pauses and partitions of both sides while a gateway sees logins. Each of them is in
// the control plane's table once, in order, as of that gateway.
func TestRecordsArrive(t *testing.T) {
	for walk := range 4 {
		t.Run(fmt.Sprint(walk), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(uint64(walk), 17))
			p := newPlane(t)
			alice, _ := p.user("alice")
			wire := newProxy(t, p.addr)
			g := p.gateway("edge")
			g.stop()
			g.timeout, g.dial = 500*time.Millisecond, dialer(wire.addr())
			path, n := filepath.Join(t.TempDir(), "spool"), 0
			begin := func() {
				g.spool = openSpool(t, path, 0)
				g.start()
			}
			end := func() {
				g.stop()
				if err := g.spool.Close(); err != nil {
					t.Fatal(err)
				}
			}
			begin()
			for range 80 {
				switch random.IntN(8) {
				case 0:
					if p.server != nil {
						p.stop()
					}
				case 1:
					if p.server == nil {
						p.start()
					}
				case 2:
					end()
					begin()
				case 3:
					wire.hold(true)
				case 4:
					wire.hold(false)
				case 5:
					wire.cut()
				case 6:
					wire.setDown(random.IntN(2) == 0)
				}
				var list []compute.AuditRecord
				for range random.IntN(40) {
					r := login(n)
					r.User, r.Owner = alice, alice
					list = append(list, r)
					n++
				}
				keep(t, g.spool, list...)
			}
			wire.hold(false)
			wire.setDown(false)
			if p.server == nil {
				p.start()
			}
			g.delivered()
			list := records(t, p.store.Reader)
			wantRun(t, numbersIn(t, list), 0, n-1)
			for _, r := range list {
				if r.Gateway != "edge" || r.User != alice || r.Owner != alice || r.Via != compute.ViaSSH || r.Username != "alice" {
					t.Fatalf("%+v", r)
				}
			}
			end()
		})
	}
}

// delivered waits until the control plane has all that the gateway saw.
func (g *gateway) delivered() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if g.spool.Delivered(ctx); g.spool.Waiting() > 0 {
		g.t.Fatalf("after %v, %d bytes of records wait", patience, g.spool.Waiting())
	}
}

// seerChild is a gateway that sees one login after the other, and says so once it has written it down.
func seerChild() error {
	cred, err := ReadCredential(os.Args[2])
	if err != nil {
		return err
	}
	spool, err := OpenSpool(os.Args[4], SpoolOptions{MaxBytes: 256 << 10}) // so that putting aside is killed, too
	if err != nil {
		return err
	}
	var first int
	if _, err := fmt.Sscan(os.Args[5], &first); err != nil {
		return err
	}
	client := NewClient(ClientOptions{
		Replica: OpenReplica(os.Args[3], ReplicaOptions{}), Spool: spool, Credential: always(cred), Dial: dialer(os.Args[1]),
		Timeout: 2 * time.Second,
	})
	ran := make(chan error, 1)
	go func() { ran <- client.Run(context.Background()) }()
	in := bufio.NewReader(os.Stdin)
	for n := first; ; n++ {
		if _, err := in.ReadByte(); errors.Is(err, io.EOF) { // whoever started it wants all to be brought
			spool.Delivered(context.Background())
			return nil
		}
		var some compute.RecordsLost
		err := spool.AppendAudit(context.Background(), []compute.AuditRecord{login(n)})
		for ; errors.As(err, &some); err = spool.AppendAudit(context.Background(), []compute.AuditRecord{login(n)}) {
			spool.Delivered(context.Background())
		}
		if err != nil {
			return err
		}
		if _, err := fmt.Println(n); err != nil {
			return err
		}
	}
}

// planeChild is a control plane on a directory, at the socket that it was started with.
func planeChild() error {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	s, err := store.Open(context.Background(), filepath.Join(os.Args[1], "berth.db"), store.Options{})
	if err != nil {
		return err
	}
	ca, err := OpenAuthority(filepath.Join(os.Args[1], "link_ca.pem"))
	if err != nil {
		return err
	}
	server, err := NewServer(ServerOptions{Source: s, Trail: s, Authority: ca})
	if err != nil {
		return err
	}
	return server.Serve(l)
}

// child starts this program as a part.
func child(t *testing.T, part string, files []*os.File, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env, cmd.Stderr, cmd.ExtraFiles = append(os.Environ(), childEnv+"="+part), os.Stderr, files
	t.Cleanup(func() {
		if cmd.Process != nil && cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd
}

// TestRecordsSurviveKills kills and pauses both processes, by turns and at once, at instants spread over what they do. Each login
// that was written down is in the table once.
func TestRecordsSurviveKills(t *testing.T) {
	p := newPlane(t)
	p.user("alice")
	text, fingerprint, err := p.ca.Issue("edge")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.store.AddGateway(t.Context(), "edge", fingerprint); err != nil {
		t.Fatal(err)
	}
	cred, err := ParseCredential(text)
	if err != nil {
		t.Fatal(err)
	}
	p.stop()
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	credFile, replica, spool := filepath.Join(dir, "edge.pem"), filepath.Join(dir, "replica"), filepath.Join(dir, "spool")
	if err := os.WriteFile(credFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(5, 5))
	var sure []int // that were written down
	n := 0
	var plane, seer *exec.Cmd
	var say io.WriteCloser
	var heard *bufio.Scanner
	for round := range 12 {
		if plane == nil {
			plane = child(t, "plane", []*os.File{file}, p.dir)
			if err := plane.Start(); err != nil {
				t.Fatal(err)
			}
		}
		if seer == nil {
			seer = child(t, "seer", nil, p.addr, credFile, replica, spool, fmt.Sprint(n))
			if say, err = seer.StdinPipe(); err != nil {
				t.Fatal(err)
			}
			out, err := seer.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			heard = bufio.NewScanner(out)
			if err := seer.Start(); err != nil {
				t.Fatal(err)
			}
		}
		paused := random.IntN(3) == 0
		if paused {
			signal(t, plane, unix.SIGSTOP)
		}
		for range random.IntN(300) {
			if _, err := say.Write([]byte{1}); err != nil || !heard.Scan() {
				t.Fatalf("round %d: %v, %v", round, err, heard.Err())
			}
			sure = append(sure, n)
			n++
		}
		if paused {
			signal(t, plane, unix.SIGCONT)
		}
		paused = random.IntN(3) == 0
		if paused { // and wakes up to a control plane that died meanwhile
			signal(t, seer, unix.SIGSTOP)
		}
		if random.IntN(3) < 2 {
			kill(t, plane)
			plane = nil
		}
		if paused {
			signal(t, seer, unix.SIGCONT)
		}
		if plane != nil || random.IntN(2) == 0 {
			if _, err := say.Write([]byte{1}); err != nil {
				t.Fatal(err)
			}
			kill(t, seer) // perhaps after it has written that one down
			seer = nil
			n++
			continue
		}
	}
	for _, cmd := range []*exec.Cmd{seer, plane} {
		if cmd != nil {
			kill(t, cmd)
		}
	}
	_, _ = file.Close(), l.Close() // the children had it
	p.start()
	g := &gateway{
		t: t, path: replica, cred: cred, dial: dialer(p.addr), timeout: patience, spool: openSpool(t, spool, 256<<10),
		opt: ReplicaOptions{Log: testLog(t)},
	}
	g.start()
	g.delivered()
	g.stop()
	list := numbersIn(t, records(t, p.store.Reader))
	if !slices.IsSortedFunc(list, func(a, b int) int { return cmp.Or(cmp.Compare(a, b), 1) }) {
		t.Errorf("some are there twice, or in another order: %v", list)
	}
	for _, n := range sure {
		if !slices.Contains(list, n) {
			t.Errorf("%d was written down, and is not there", n)
		}
	}
	if len(sure) < 100 {
		t.Errorf("%d are too few", len(sure))
	}
}

func signal(t *testing.T, cmd *exec.Cmd, s unix.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
}

// brokenTrail fails until it is mended.
type brokenTrail struct {
	Trail
	broken atomic.Bool
	asked  chan struct{}
}

func (b *brokenTrail) AppendGatewayAudit(
	ctx context.Context, fingerprint, queue string, first int64, records []compute.AuditRecord,
) (int64, error) {
	if b.broken.Load() {
		notify(b.asked)
		return 0, errors.New("the disk is full")
	}
	return b.Trail.AppendGatewayAudit(ctx, fingerprint, queue, first, records)
}

// TestTrailThatFails holds that records which cannot be stored hold up nothing else, and come later.
func TestTrailThatFails(t *testing.T) {
	p := &plane{t: t, dir: t.TempDir(), opt: ServerOptions{Heartbeat: 50 * time.Millisecond, Timeout: 10 * time.Second}}
	trail := &brokenTrail{asked: make(chan struct{}, 1)}
	trail.broken.Store(true)
	p.wrapTrail = func(s *store.Store) Trail { trail.Trail = s; return trail }
	p.start()
	t.Cleanup(p.stop)
	g := p.gateway("edge")
	g.stop()
	g.spool = openSpool(t, filepath.Join(t.TempDir(), "spool"), 0)
	g.start()
	keep(t, g.spool, login(1))
	<-trail.asked
	p.user("alice")
	p.await(g)
	trail.broken.Store(false)
	g.delivered()
	wantRun(t, numbersIn(t, records(t, p.store.Reader)), 1, 1)
}
