package enginetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"berth/internal/compute"
)

// victimEnv has the test's own binary be a control plane that is killed.
const victimEnv = "BERTH_TEST_VICTIM"

// stepMessage is what engines log, at level debug, after each step of what they change.
const stepMessage = "step"

// Mortal is an engine under control planes that are killed.
type Mortal struct {
	// Config is what the engine is opened with, in this process and in those that are killed.
	Config any
	// Open opens it. It is what TestMain gave Victim.
	Open func(config json.RawMessage) Opening
	// Gone fails the test where anything is left of a container that was deleted.
	Gone func(t *testing.T, e Engine, r compute.Ref)
	// Planes is how many control planes work, and are killed, at a time: each with an installation of its own.
	Planes int
}

// order is what a control plane is to do, and after which step it is killed; 0 is never.
type order struct {
	Database string
	Config   json.RawMessage
	Op       string
	Ref      compute.Ref // but for a create
	KillAt   int
}

// operations are what owners ask for, in the order in which each container goes through them.
var operations = []string{"create", "stop", "start", "delete"}

// Victim is to be called first by TestMain. In a process that RunKilled started it is that control plane, and does not
// return.
func Victim(open func(config json.RawMessage) Opening) {
	text := os.Getenv(victimEnv)
	if text == "" {
		return
	}
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		panic(err)
	}
	if err := o.carryOut(open(o.Config)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (o order) carryOut(open Opening) error {
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	k := killer{Handler: slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}), left: new(atomic.Int64)}
	p, err := OpenPlane(ctx, o.Database, open, slog.New(k))
	if err != nil {
		return err
	}
	if err := p.Settle(ctx); err != nil { // what it does at its start are not the operation's steps
		return err
	}
	k.left.Store(int64(o.KillAt))
	r, err := p.ask(ctx, o.Op, o.Ref)
	if err == nil {
		err = p.reached(ctx, o.Op, r)
	}
	k.left.Store(0)
	return errors.Join(err, p.Close())
}

// ask asks for an operation as the container's owner.
func (p *Plane) ask(ctx context.Context, op string, r compute.Ref) (compute.Ref, error) {
	var err error
	switch op {
	case "create":
		r, err = p.Create(ctx)
	case "stop":
		_, err = p.Service.StopContainer(ctx, p.Owner, r.ID)
	case "start":
		_, err = p.Service.StartContainer(ctx, p.Owner, r.ID)
	case "delete":
		err = p.Service.DeleteContainer(ctx, p.Owner, r.ID)
	default:
		err = fmt.Errorf("unknown operation %q", op)
	}
	return r, err
}

// reached returns when it is done.
func (p *Plane) reached(ctx context.Context, op string, r compute.Ref) error {
	switch op {
	case "stop":
		return p.AwaitStatus(ctx, r, compute.StatusStopped, "")
	case "delete":
		return p.AwaitGone(ctx, r)
	}
	return p.AwaitStatus(ctx, r, compute.StatusRunning, "")
}

// killer is a log that kills its process after as many steps as are left, if any.
type killer struct {
	slog.Handler
	left *atomic.Int64
}

func (k killer) Handle(ctx context.Context, r slog.Record) error {
	err := k.Handler.Handle(ctx, r)
	if r.Message == stepMessage && k.left.Add(-1) == 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return err
}

func (k killer) WithAttrs(a []slog.Attr) slog.Handler { return killer{k.Handler.WithAttrs(a), k.left} }

func (k killer) WithGroup(g string) slog.Handler { return killer{k.Handler.WithGroup(g), k.left} }

// RunKilled kills control planes with SIGKILL after every step of a create, a stop, a start and a delete. The next one must
// finish the work, with nothing left of what was deleted, and nothing lost of what was not.
func RunKilled(t *testing.T, m *Mortal) {
	config, err := json.Marshal(m.Config)
	if err != nil {
		t.Fatal(err)
	}
	k := &killing{Mortal: m, config: config, steps: make(map[string]int)}
	for range m.Planes {
		t.Run("plane", func(t *testing.T) {
			if m.Planes > 1 {
				t.Parallel()
			}
			k.work(t)
		})
	}
	t.Cleanup(func() {
		for _, op := range operations {
			n := k.steps[op]
			t.Logf("%s: %d steps", op, n-1)
			if n < 4 {
				t.Errorf("%s was killed at too few steps to have been killed at each", op)
			}
		}
	})
}

// killing is how far RunKilled is.
type killing struct {
	*Mortal
	config json.RawMessage

	mu    sync.Mutex
	next  int
	steps map[string]int // the first step that an operation does not have; none while that is not known
}

// take gives out the next step at which any operation can be killed; 0 when there is none.
func (k *killing) take() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.steps) == len(operations) || k.next == 100 {
		return 0
	}
	k.next++
	return k.next
}

func (k *killing) has(op string, step int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	n, known := k.steps[op]
	return !known || step < n
}

func (k *killing) ended(op string, step int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n, known := k.steps[op]; !known || step < n {
		k.steps[op] = step
	}
}

// installation is one that RunKilled works on: control planes follow each other on it.
type installation struct {
	*killing
	t        *testing.T
	database string
	p        *Plane // nil while none runs
}

func (k *killing) work(t *testing.T) {
	i := &installation{killing: k, t: t, database: filepath.Join(t.TempDir(), "berth.db")}
	defer i.close()
	i.open()
	keeper := i.finish("create", compute.Ref{})
	i.sh(keeper, "echo kept >/root/f; echo here >/tmp/mark")
	for step := k.take(); step > 0; step = k.take() {
		i.killAt(step)
		if t.Failed() {
			t.Fatalf("killed at step %d", step)
		}
	}
	i.open()
	i.sh(keeper, "test $(cat /root/f) = kept && test $(cat /tmp/mark) = here") // in the same life all the while
	i.finish("delete", keeper)
	i.gone(keeper)
	left, err := i.p.Service.Quarantined(i.ctx(), i.p.Admin)
	i.must("look for orphans", err)
	for _, v := range left {
		if !v.Foreign {
			t.Errorf("left behind: %+v", v)
		}
	}
}

// killAt takes a container through its life, and kills the control plane at a step of each operation that has so many.
func (i *installation) killAt(step int) {
	r := i.killed("create", compute.Ref{}, step)
	i.sh(r, "test -f /root/.profile && test -d /opt/app && touch /opt/app/f && echo kept >/root/f; echo lost >/f")
	if i.has("stop", step) || i.has("start", step) {
		i.killed("stop", r, step)
		_, err := i.p.Engine.DialAgent(i.ctx(), r)
		wantCode(i.t, "dial when stopped", err, compute.CodeNotRunning)
		i.killed("start", r, step)
		i.sh(r, "test $(cat /root/f) = kept && test -e /opt/app/f && test ! -e /f")
	}
	i.killed("delete", r, step)
	i.gone(r)
}

// killed does an operation, the first time in a process that is killed at a step, and then in this one, where a control
// plane runs when it returns.
func (i *installation) killed(op string, r compute.Ref, step int) compute.Ref {
	i.t.Helper()
	if !i.has(op, step) {
		i.open()
		return i.finish(op, r)
	}
	i.close()
	before := i.rows()
	if !i.victim(order{Database: i.database, Config: i.config, Op: op, Ref: r, KillAt: step}) {
		i.ended(op, step)
	}
	if op == "create" {
		made := slices.DeleteFunc(i.rows(), func(r compute.Ref) bool { return slices.Contains(before, r) })
		if len(made) != 1 {
			i.t.Fatalf("killed at step %d of a create, it stored %v", step, made)
		}
		r = made[0]
	}
	i.open()
	i.must(op+", killed", i.p.reached(i.ctx(), op, r))
	i.must("settle", i.p.Settle(i.ctx()))
	return r
}

// finish does an operation in this process.
func (i *installation) finish(op string, r compute.Ref) compute.Ref {
	i.t.Helper()
	r, err := i.p.ask(i.ctx(), op, r)
	i.must(op, err)
	i.must(op, i.p.reached(i.ctx(), op, r))
	i.must("settle", i.p.Settle(i.ctx()))
	return r
}

// victim runs an order in a process of its own, and says whether it was killed.
func (i *installation) victim(o order) bool {
	i.t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		i.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+string(b))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() && ws.Signal() == syscall.SIGKILL {
			lines := bytes.Split(bytes.TrimSpace(said.Bytes()), []byte("\n"))
			i.t.Logf("%s, killed at step %d: %s", o.Op, o.KillAt, lines[len(lines)-1])
			return true
		}
	}
	if err != nil {
		i.t.Fatalf("%s, to be killed at step %d: %v: %s", o.Op, o.KillAt, err, &said)
	}
	return false
}

// rows are the containers of the database, which no control plane has open.
func (i *installation) rows() []compute.Ref {
	i.t.Helper()
	refs, err := rowsOf(i.ctx(), i.database)
	i.must("read the database", err)
	return refs
}

func (i *installation) open() {
	i.t.Helper()
	if i.p != nil {
		return
	}
	p, err := OpenPlane(i.ctx(), i.database, i.Open(i.config), slog.New(slog.NewTextHandler(testLog{i.t}, nil)))
	i.must("open", err)
	i.p = p
}

func (i *installation) close() {
	if i.p != nil {
		if err := i.p.Close(); err != nil {
			i.t.Errorf("close: %v", err)
		}
		i.p = nil
	}
}

func (i *installation) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	i.t.Cleanup(cancel)
	return ctx
}

func (i *installation) must(op string, err error) {
	i.t.Helper()
	if err != nil {
		i.t.Fatalf("%s: %v", op, err)
	}
}

func (i *installation) sh(r compute.Ref, script string) {
	i.t.Helper()
	_, err := i.p.Sh(i.ctx(), r, script)
	i.must("look inside", err)
}

// gone checks that nothing is left of a deleted container, on the engine and around it.
func (i *installation) gone(r compute.Ref) {
	i.t.Helper()
	list, err := i.p.Engine.Stored(i.ctx())
	i.must("list what is stored", err)
	if slices.ContainsFunc(list, func(v compute.Stored) bool { return v.Ref == r }) {
		i.t.Errorf("left behind: %s", r)
	}
	i.Gone(i.t, i.p.Engine, r)
}

// testLog gives what is logged to the test.
type testLog struct{ t *testing.T }

func (w testLog) Write(b []byte) (int, error) {
	w.t.Log(string(bytes.TrimSuffix(b, []byte("\n"))))
	return len(b), nil
}
