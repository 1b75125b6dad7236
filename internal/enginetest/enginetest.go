// Package enginetest is the contract that every engine keeps: what control.Engine says in words, held against a real one.
//
// Each engine's own tests open it and call Run; they add what only that engine has, such as the ways in which its parts can
// be killed. Nothing here knows how an engine works. Only tests import this package.
package enginetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/compute"
	"berth/internal/control"
)

// Engine is what is held to the contract: control's interface, and session's.
type Engine interface {
	control.Engine
	DialAgent(ctx context.Context, r compute.Ref) (net.Conn, error)
}

// Subject is an engine with what the tests need around it. The base image has a POSIX shell and the usual small tools.
type Subject struct {
	Engine Engine

	// Reopen ends the engine as an orderly end of Berth does, and returns it opened anew.
	Reopen func(t *testing.T) Engine

	// Shell runs a script as the container's root by way of its agent, and returns its standard output and exit status.
	Shell func(ctx context.Context, nc net.Conn, script string) (out string, status int, err error)

	// GrowsRunning says whether a container's storage grows while it runs, and not only at its next start.
	GrowsRunning bool

	// Quota says whether storage has the size that was asked for, and all that a container writes counts: where a cluster's
	// volumes are not ours, the cluster bounds them, or not.
	Quota bool

	// HostsMounted says whether /etc/hosts is a mount, which can be written and not replaced.
	HostsMounted bool

	// Spec is a small container that the engine can run, with the mount path /root. Each call has another id.
	Spec func() compute.Spec
}

// Timeout bounds each step of a test: far above what an engine needs on a slow, shared machine.
const Timeout = 2 * time.Minute

// Run holds the subject to the contract.
func Run(t *testing.T, s *Subject) {
	t.Run("life", func(t *testing.T) { testLife(t, s) })
	t.Run("stopped and started it is fresh outside its mount paths", func(t *testing.T) { testFresh(t, s) })
	t.Run("storage that is missing is not made anew", func(t *testing.T) { testMissing(t, s) })
	t.Run("removing what never was", func(t *testing.T) { testRemoveAbsent(t, s) })
	t.Run("storage that nobody knows of", func(t *testing.T) { testDiscard(t, s) })
	t.Run("a death is told of and a start follows", func(t *testing.T) { testDeath(t, s) })
	t.Run("the engine's end leaves containers running", func(t *testing.T) { testReopen(t, s) })
	t.Run("admission", func(t *testing.T) { testAdmit(t, s) })
	t.Run("mount paths change with a restart", func(t *testing.T) { testMountsChange(t, s) })
	t.Run("sizes change as it runs, and while it does not", func(t *testing.T) { testResize(t, s) })
	t.Run("a cancelled call returns", func(t *testing.T) { testCancel(t, s) })
	t.Run("several at once", func(t *testing.T) { testSeveral(t, s) })
	if s.Quota {
		t.Run("storage is bounded", func(t *testing.T) { testStorage(t, s) })
	}
	t.Run("memory is bounded", func(t *testing.T) { testMemory(t, s) })
	t.Run("processes are bounded", func(t *testing.T) { testProcesses(t, s) })
	t.Run("the host's name, files and limits inside", func(t *testing.T) { testInside(t, s) })
}

// box is one container of a test.
type box struct {
	t    *testing.T
	s    *Subject
	spec compute.Spec
}

// newBox makes a container's storage and has it removed when the test ends.
func newBox(t *testing.T, s *Subject, change ...func(*compute.Spec)) *box {
	t.Helper()
	b := &box{t: t, s: s, spec: s.Spec()}
	for _, f := range change {
		f(&b.spec)
	}
	t.Cleanup(func() { b.remove() })
	b.must("provision", s.Engine.Provision(b.ctx(), b.spec))
	return b
}

func (b *box) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	b.t.Cleanup(cancel)
	return ctx
}

func (b *box) must(op string, err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatalf("%s %s: %v", op, b.spec.Ref, err)
	}
}

func (b *box) apply(running bool) {
	b.t.Helper()
	b.spec.Generation++
	b.spec.Running = running
	b.must("apply", b.s.Engine.Apply(b.ctx(), b.spec))
}

func (b *box) remove() {
	b.t.Helper()
	b.must("remove", b.s.Engine.Remove(b.ctx(), b.spec.Ref))
}

// try runs a script in the container.
func (b *box) try(script string) (string, int, error) {
	b.t.Helper()
	ctx := b.ctx()
	nc, err := b.s.Engine.DialAgent(ctx, b.spec.Ref)
	if err != nil {
		return "", 0, err
	}
	defer nc.Close()
	return b.s.Shell(ctx, nc, script)
}

// sh runs a script that must succeed.
func (b *box) sh(script string) string {
	b.t.Helper()
	out, status, err := b.try(script)
	if err != nil || status != 0 {
		b.t.Fatalf("in %s: %s: status %d, %v; it printed %q", b.spec.Ref, script, status, err, out)
	}
	return strings.TrimSuffix(out, "\n")
}

// eq checks what a script prints.
func (b *box) eq(script, want string) {
	b.t.Helper()
	if got := b.sh(script); got != want {
		b.t.Errorf("in %s: %s: printed %q, want %q", b.spec.Ref, script, got, want)
	}
}

func wantCode(t *testing.T, op string, err error, want compute.Code) {
	t.Helper()
	if err == nil || compute.CodeOf(err) != want {
		t.Errorf("%s: error %v, want one with code %s", op, err, want)
	}
}

// watching is a Watch under way.
type watching struct {
	t      *testing.T
	listed map[compute.Ref]compute.Observation // before synced
	later  chan compute.Observation
}

// watch begins to watch and returns once the engine has listed what it has.
func watch(t *testing.T, e Engine) *watching {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &watching{t: t, listed: make(map[compute.Ref]compute.Observation), later: make(chan compute.Observation, 100)}
	synced, ended := make(chan struct{}), make(chan error, 1)
	isSynced := false
	go func() {
		ended <- e.Watch(ctx, func(o compute.Observation) {
			if isSynced {
				w.later <- o
			} else {
				w.listed[o.Ref] = o
			}
		}, func() { isSynced = true; close(synced) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("watch: %v", err)
		}
	})
	select {
	case <-synced:
	case err := <-ended:
		ended <- err
		t.Fatalf("watch ended before it was synced: %v", err)
	case <-time.After(Timeout):
		t.Fatal("watch is not synced")
	}
	return w
}

// next waits for an observation of r.
func (w *watching) next(r compute.Ref) compute.Observation {
	w.t.Helper()
	deadline := time.After(Timeout)
	for {
		select {
		case o := <-w.later:
			if o.Ref == r {
				return o
			}
		case <-deadline:
			w.t.Fatalf("nothing was told of %s", r)
		}
	}
}

// none checks that nothing was told of r so far.
func (w *watching) none(r compute.Ref) {
	w.t.Helper()
	for {
		select {
		case o := <-w.later:
			if o.Ref == r {
				w.t.Errorf("told without need: %+v", o)
			}
		default:
			return
		}
	}
}

func testLife(t *testing.T, s *Subject) {
	b := newBox(t, s)
	b.must("provision again", s.Engine.Provision(b.ctx(), b.spec))
	w := watch(t, s.Engine)
	if o := w.listed[b.spec.Ref]; o.Phase != compute.PhaseStopped {
		t.Errorf("with storage alone it is observed as %+v, want %s", o, compute.PhaseStopped)
	}
	_, err := s.Engine.DialAgent(b.ctx(), b.spec.Ref)
	wantCode(t, "dial before it runs", err, compute.CodeNotRunning)

	b.apply(true)
	b.eq("id -u; cat /proc/1/comm", "0\nagent")
	b.sh("echo here > /tmp/mark")
	b.apply(true)
	b.eq("cat /tmp/mark", "here") // the same life
	u, err := s.Engine.Usage(b.ctx(), b.spec.Ref)
	b.must("usage", err)
	if u.MemoryMB <= 0 || u.MemoryMB > b.spec.MemoryMB || u.StorageGB < 0 || u.StorageGB > float64(b.spec.StorageGB) {
		t.Errorf("usage is %+v", u)
	}
	b.sh("head -c 100M /dev/zero > /root/big; sync")
	ctx, again := b.ctx(), time.NewTicker(100*time.Millisecond) // a figure may be some seconds old
	defer again.Stop()
	for grown := 0.0; grown < 0.09; <-again.C {
		after, err := s.Engine.Usage(ctx, b.spec.Ref)
		b.must("usage", err)
		if grown = after.StorageGB - u.StorageGB; grown > 0.12 {
			t.Errorf("100 MiB more on disk show as %.3f GB", grown)
		}
	}
	if o := watch(t, s.Engine).listed[b.spec.Ref]; o.Phase != compute.PhaseRunning || o.Generation != b.spec.Generation {
		t.Errorf("while it runs it is observed as %+v", o)
	}

	b.apply(false)
	b.apply(false)
	_, err = s.Engine.DialAgent(b.ctx(), b.spec.Ref)
	wantCode(t, "dial when stopped", err, compute.CodeNotRunning)
	_, err = s.Engine.Usage(b.ctx(), b.spec.Ref)
	wantCode(t, "usage when stopped", err, compute.CodeNotRunning)

	b.apply(true)
	b.remove()
	b.remove()
	if o, there := watch(t, s.Engine).listed[b.spec.Ref]; there {
		t.Errorf("removed, it is observed as %+v", o)
	}
	_, err = s.Engine.DialAgent(b.ctx(), b.spec.Ref)
	wantCode(t, "dial when removed", err, compute.CodeNotRunning)
	w.none(b.spec.Ref)
}

func testFresh(t *testing.T, s *Subject) {
	b := newBox(t, s, func(c *compute.Spec) { c.MountPaths = []string{"/root", "/srv/data", "/var/lib"} })
	b.apply(true)
	seeded := b.sh("ls -A /var/lib | sort | head -c 1000")
	if seeded == "" {
		t.Error("/var/lib was not seeded from the image")
	}
	b.sh("echo kept > /root/f; echo kept > /srv/data/f; rm -r /var/lib/*; chmod 711 /srv/data")
	b.sh("echo lost > /etc/f; echo lost > /f; rm /bin/ls; ln -s /etc /root/link; mkdir -p /root/d; chown 1000:1000 /root/d")
	b.apply(false)
	b.apply(true)
	b.eq("cat /root/f /srv/data/f; readlink /root/link; stat -c %u:%g /root/d; stat -c %a /srv/data", "kept\nkept\n/etc\n1000:1000\n711")
	b.eq("ls -A /var/lib", "") // seeded once, not again
	b.eq("ls /etc/f /f 2>&1 | grep -c 'No such file'", "2")
}

func testMissing(t *testing.T, s *Subject) {
	b := &box{t: t, s: s, spec: s.Spec()}
	b.spec.Running = true
	for range 2 {
		wantCode(t, "start without storage", s.Engine.Apply(b.ctx(), b.spec), compute.CodeStorageMissing)
	}
	if o, there := watch(t, s.Engine).listed[b.spec.Ref]; there {
		t.Errorf("something was made: %+v", o)
	}
}

func testRemoveAbsent(t *testing.T, s *Subject) {
	b := &box{t: t, s: s, spec: s.Spec()}
	b.remove()
}

func testDeath(t *testing.T, s *Subject) {
	b := newBox(t, s)
	b.apply(true)
	w := watch(t, s.Engine)
	b.sh("echo kept > /root/f")
	// Only the host can kill a pid namespace's first process; by its own decision it can end, as agents do on TERM.
	_, _, _ = b.try("kill -TERM 1; sleep 60") // cut off
	if o := w.next(b.spec.Ref); o.Phase != compute.PhaseStopped || o.Message == "" {
		t.Errorf("after its death it is observed as %+v", o)
	}
	b.apply(true)
	b.eq("cat /root/f", "kept")
	b.apply(false)
	w.none(b.spec.Ref) // asked for
}

func testReopen(t *testing.T, s *Subject) {
	running, stopped := newBox(t, s), newBox(t, s)
	running.apply(true)
	stopped.apply(true)
	stopped.apply(false)
	running.sh("echo here > /tmp/mark")
	s.Engine = s.Reopen(t)
	w := watch(t, s.Engine)
	if o := w.listed[running.spec.Ref]; o.Phase != compute.PhaseRunning || o.Generation != running.spec.Generation {
		t.Errorf("the running one is observed as %+v", o)
	}
	if o := w.listed[stopped.spec.Ref]; o.Phase != compute.PhaseStopped {
		t.Errorf("the stopped one is observed as %+v", o)
	}
	running.eq("cat /tmp/mark", "here")
	running.apply(true)
	running.eq("cat /tmp/mark", "here")
	w.none(running.spec.Ref)
	stopped.apply(true)
	stopped.eq("echo up", "up")
}

func testAdmit(t *testing.T, s *Subject) {
	b := &box{t: t, s: s, spec: s.Spec()}
	b.must("admit", s.Engine.Admit(b.ctx(), b.spec))
	for _, c := range []struct {
		what   string
		code   compute.Code
		change func(*compute.Spec)
	}{
		{"a foreign architecture", compute.CodeCapacity, func(c *compute.Spec) { c.Arch = "riscv64" }},
		{"a file of the image", compute.CodeInvalid, func(c *compute.Spec) { c.MountPaths = []string{"/etc/passwd"} }},
		{"below a file", compute.CodeInvalid, func(c *compute.Spec) { c.MountPaths = []string{"/etc/passwd/x"} }},
		{"proc", compute.CodeInvalid, func(c *compute.Spec) { c.MountPaths = []string{"/proc/x"} }},
		{"two names of one place", compute.CodeInvalid, func(c *compute.Spec) { c.MountPaths = []string{"/var/run/x", "/run/x"} }},
		{"one in another by a link", compute.CodeInvalid, func(c *compute.Spec) { c.MountPaths = []string{"/var/run/x/y", "/run/x"} }},
		{"more memory than there is", compute.CodeCapacity, func(c *compute.Spec) { c.MemoryMB = 1 << 24 }},
	} {
		spec := b.spec
		c.change(&spec)
		wantCode(t, c.what, s.Engine.Admit(b.ctx(), spec), c.code)
		if c.code == compute.CodeInvalid {
			wantCode(t, c.what+", of one that exists", s.Engine.AdmitChange(b.ctx(), b.spec, spec), c.code)
		}
	}
	more := func(change func(*compute.Spec)) error {
		spec := b.spec
		change(&spec)
		return s.Engine.AdmitChange(b.ctx(), b.spec, spec)
	}
	tooMuch := func(c *compute.Spec) { c.MemoryMB = 1 << 24 }
	wantCode(t, "a change to more memory than there is", more(func(c *compute.Spec) { tooMuch(c); c.Running = true }), compute.CodeCapacity)
	wantCode(t, "a change to more storage than there is", more(func(c *compute.Spec) { c.StorageGB = 1 << 24 }), compute.CodeCapacity)
	b.must("a change of one that does not run, whatever the room", more(func(c *compute.Spec) { tooMuch(c); c.Running = false }))
	b.must("a change of nothing", more(func(*compute.Spec) {}))
}

func testMountsChange(t *testing.T, s *Subject) {
	b := newBox(t, s)
	b.apply(true)
	b.sh("echo kept > /root/f; mkdir -p /opt/app; echo lost > /opt/app/f")
	b.spec.MountPaths = []string{"/root", "/opt/app"}
	b.apply(true)
	b.eq("cat /root/f; ls /opt/app", "kept")
	b.sh("echo kept > /opt/app/f")
	b.apply(false)
	b.apply(true)
	b.eq("cat /opt/app/f", "kept")

	// A path that is taken away shows as the image has it, and with what it held once it is there again.
	b.spec.MountPaths = []string{"/root"}
	b.apply(true)
	b.eq("cat /root/f; test -e /opt/app || echo gone", "kept\ngone")
	b.sh("mkdir -p /opt/app; echo lost > /opt/app/f")
	b.spec.MountPaths = []string{"/opt/app"}
	b.apply(true)
	b.eq("cat /opt/app/f; test -e /root/f || echo gone", "kept\ngone")
	b.apply(false)
	b.spec.MountPaths = []string{"/opt/app", "/root"}
	b.apply(true)
	b.eq("cat /opt/app/f /root/f", "kept\nkept")
}

func testCancel(t *testing.T, s *Subject) {
	b := newBox(t, s)
	ctx, cancel := context.WithCancelCause(context.Background())
	superseded := errors.New("superseded")
	cancel(superseded)
	b.spec.Running = true
	if err := s.Engine.Apply(ctx, b.spec); !errors.Is(err, superseded) {
		t.Errorf("apply after its context's end: %v", err)
	}
	ctx, cancel = context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Engine.Apply(ctx, b.spec) }()
	cancel(superseded)
	if err := <-done; err != nil && !errors.Is(err, superseded) {
		t.Errorf("apply cut off: %v", err)
	}
	b.apply(true)
	b.eq("echo up", "up")
}

func testSeveral(t *testing.T, s *Subject) {
	var boxes []*box
	for range 4 {
		boxes = append(boxes, newBox(t, s))
	}
	var wg sync.WaitGroup
	errs := make([]error, len(boxes))
	for i, b := range boxes {
		b.spec.Running = true
		wg.Go(func() { errs[i] = s.Engine.Apply(b.ctx(), b.spec) })
	}
	wg.Wait()
	for i, b := range boxes {
		b.must("apply", errs[i])
		b.sh(fmt.Sprintf("echo %d > /root/me", i))
	}
	for i, b := range boxes {
		b.eq("cat /root/me", fmt.Sprint(i))
	}
}
