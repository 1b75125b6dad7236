package e2e_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"berth/internal/leakcheck"
)

// Deadlines. The first start of a data directory imports the image.
const (
	startLimit = 90 * time.Second
	stopLimit  = 30 * time.Second
)

// instance is a data directory and the berth that serves it, if one does.
type instance struct {
	dir   string // its parent, passable for everybody, as /srv is
	data  string
	log   string
	flags []string
	env   []string

	before *leakcheck.Snapshot
	others []string // on a cluster, the namespaces of containers that were there before

	apart   bool // the roles run as processes of their own, berth-api and berth-gateway
	main    *daemon
	gateway *daemon // nil unless apart
	ready   ready
}

// daemon is a program of ours that runs.
type daemon struct {
	cmd    *exec.Cmd
	log    string
	exited chan struct{} // closed when it ended
}

// ready is what ready.json says.
type ready struct {
	APIURL  string `json:"api_url"`
	SSHAddr string `json:"ssh_addr"`
	Zone    string `json:"zone"`
	User    string `json:"user"`
	PID     int    `json:"pid"`
}

func binDir() (string, error) {
	dir := os.Getenv("BERTH_BIN_DIR")
	if dir == "" {
		dir = "../bin"
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "berth")); err != nil {
		return "", fmt.Errorf("%w: make build makes it", err)
	}
	return dir, nil
}

func imagePath() (string, error) {
	path := os.Getenv("BERTH_IMAGE")
	if path == "" {
		path = "../build/base-image.tar"
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: make image makes it", err)
	}
	return path, nil
}

// newInstance makes a data directory in which nothing runs yet.
func newInstance() (*instance, error) {
	before, err := leakcheck.Take()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "berth-e2e-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	i := &instance{dir: dir, data: filepath.Join(dir, "data"), log: filepath.Join(dir, "log"), before: before}
	if onCluster() {
		if i.others, err = ours(); err != nil {
			return nil, err
		}
	}
	return i, os.Mkdir(i.data, 0o755)
}

// berth returns a command of the operator for this instance. Who calls it is root, without sudo.
func (i *instance) berth(ctx context.Context, args ...string) (*exec.Cmd, error) {
	bin, err := binDir()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "berth"), append(args, "--data-dir", i.data)...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "SUDO_") && !strings.HasPrefix(kv, "BERTH_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, i.env...)
	return cmd, nil
}

// run runs a command of the operator and returns what it printed.
func (i *instance) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	cmd, err := i.berth(ctx, args...)
	if err != nil {
		return "", err
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("berth %s: %w: %s", strings.Join(args, " "), err, &errs)
	}
	return out.String(), nil
}

// spawn starts a program of ours for this instance, with its output in a file.
func (i *instance) spawn(program, log string, args ...string) (*daemon, error) {
	cmd, err := i.berth(context.Background(), append(args, i.flags...)...)
	if err != nil {
		return nil, err
	}
	cmd.Path = filepath.Join(filepath.Dir(cmd.Path), program)
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ^C at the test is not for berth, which the test ends
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d := &daemon{cmd: cmd, log: log, exited: make(chan struct{})}
	go func() {
		defer close(d.exited)
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
	}()
	return d, nil
}

// start starts Berth and returns when it says that it is ready.
func (i *instance) start() error {
	if err := i.startMain(); err != nil || !i.apart {
		return err
	}
	return i.startGateway()
}

func (i *instance) startMain() error {
	program, args := "berth", []string{"up"}
	if i.apart {
		program, args = "berth-api", nil
	}
	engine, err := engineFlags()
	if err != nil {
		return err
	}
	args = append(append(args, "--http-addr", "127.0.0.1:0", "--ssh-addr", "127.0.0.1:0"), engine...)
	return watching(i.data, func() (err error) {
		i.main, err = i.spawn(program, i.log, args...)
		return err
	}, func() (bool, error) {
		text, err := os.ReadFile(filepath.Join(i.data, "ready.json"))
		if errors.Is(err, os.ErrNotExist) {
			return false, i.main.alive()
		}
		if err != nil {
			return false, err
		}
		var r ready
		if err := json.Unmarshal(text, &r); err != nil {
			return false, fmt.Errorf("ready.json: %w", err)
		}
		if r.PID != i.main.cmd.Process.Pid { // it is of a run that was killed
			return false, i.main.alive()
		}
		r.SSHAddr = cmp.Or(r.SSHAddr, i.ready.SSHAddr)
		i.ready = r
		return true, nil
	})
}

var gatewayReady = regexp.MustCompile(`(?m)^The gateway is ready: ssh at (\S+)$`)

func (i *instance) startGateway() error {
	log := filepath.Join(i.dir, "gateway.log")
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		return err
	}
	return watching(i.dir, func() (err error) {
		i.gateway, err = i.spawn("berth-gateway", log, "--ssh-addr", "127.0.0.1:0")
		return err
	}, func() (bool, error) {
		text, err := os.ReadFile(log)
		if err != nil {
			return false, err
		}
		if m := gatewayReady.FindSubmatch(text); m != nil {
			i.ready.SSHAddr = string(m[1])
			return true, nil
		}
		return false, i.gateway.alive()
	})
}

// watching runs start, and then done whenever something happens in dir, until it says true.
func watching(dir string, start func() error, done func() (bool, error)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Add(dir); err != nil {
		return err
	}
	if err := start(); err != nil {
		return err
	}
	deadline := time.After(startLimit)
	often := time.NewTicker(time.Second) // for an end that writes nothing
	defer often.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-w.Events:
		case <-often.C:
		case err := <-w.Errors:
			return err
		case <-deadline:
			return fmt.Errorf("it is not ready after %v", startLimit)
		}
	}
}

func (d *daemon) running() bool {
	if d == nil {
		return false
	}
	select {
	case <-d.exited:
		return false
	default:
		return true
	}
}

// alive is an error when it ended.
func (d *daemon) alive() error {
	if d.running() {
		return nil
	}
	return fmt.Errorf("it ended before it was ready: %v\n%s", d.cmd.ProcessState, tail(d.log))
}

// stop ends it as an operator does, and expects that it ends well.
func (d *daemon) stop() error {
	if !d.running() {
		return nil
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-d.exited:
	case <-time.After(stopLimit):
		return fmt.Errorf("it did not end on SIGTERM within %v\n%s", stopLimit, errors.Join(errors.New(tail(d.log)), d.kill()))
	}
	if !d.cmd.ProcessState.Success() {
		return fmt.Errorf("it ended with %v\n%s", d.cmd.ProcessState, tail(d.log))
	}
	return nil
}

// kill ends it at once, as a fault would.
func (d *daemon) kill() error {
	if !d.running() {
		return nil
	}
	if err := d.cmd.Process.Kill(); err != nil {
		return err
	}
	<-d.exited
	return nil
}

func (i *instance) stop() error { return errors.Join(i.gateway.stop(), i.main.stop()) }
func (i *instance) kill() error { return errors.Join(i.gateway.kill(), i.main.kill()) }

// name is what processes, cgroups and directories of the instance's engine are named by.
func (i *instance) name() string {
	sum := sha256.Sum256([]byte(i.data))
	return "berth-" + hex.EncodeToString(sum[:4])
}

// links is what the names of its network's links and table contain.
func (i *instance) links() string {
	sum := sha256.Sum256([]byte("berth network\x00" + i.data))
	return hex.EncodeToString(sum[:3])
}

// containerd returns the process id of the instance's containerd.
func (i *instance) containerd() (int, error) {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, p := range procs {
		line, err := os.ReadFile(p)
		if err != nil {
			continue // it ended
		}
		args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		if filepath.Base(args[0]) == "containerd" && strings.Contains(string(line), i.name()) {
			return strconv.Atoi(strings.Split(p, "/")[2])
		}
	}
	return 0, errors.New("the instance has no containerd")
}

// tail is the end of a program's output.
func tail(log string) string {
	text, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return "its output:\n  " + strings.Join(lines[max(0, len(lines)-40):], "\n  ")
}

// delete ends the instance and all it has, and looks for what is left of it.
func (i *instance) delete() error {
	if err := i.stop(); err != nil {
		return errors.Join(err, i.downDelete())
	}
	if err := i.downDelete(); err != nil {
		return err
	}
	if err := i.leaks(); err != nil {
		return err
	}
	return os.RemoveAll(i.dir)
}

func (i *instance) downDelete() error {
	if onCluster() { // which has had all of it deleted already
		return nil
	}
	_, err := i.run("down", "--delete")
	return err
}

// leaks says what is left of the instance on this machine.
func (i *instance) leaks() error {
	left, err := leakcheck.Settled(i.before, leakcheck.Patience, i.data, i.name(), i.links())
	if err != nil {
		return err
	}
	var errs []error
	for _, thing := range left {
		errs = append(errs, fmt.Errorf("left behind: %v", thing))
	}
	return errors.Join(errs...)
}

// own returns an instance for one test alone, which ends with it. It is not started.
func own(t testing.TB) *instance {
	t.Helper()
	i, err := newInstance()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(tail(i.log))
		}
		if err := i.delete(); err != nil {
			t.Error(err)
		}
	})
	return i
}

// shared is the instance that tests share which do not harm it, started by the first.
var shared struct {
	once sync.Once
	i    *instance
	err  error
}

func sharedInstance() (*instance, error) {
	shared.once.Do(func() {
		if shared.i, shared.err = newInstance(); shared.err == nil {
			shared.err = shared.i.start()
		}
	})
	return shared.i, shared.err
}

func endShared() error {
	if shared.i == nil {
		return nil
	}
	if onCluster() {
		if err := shared.i.emptyCluster(); err != nil {
			return errors.Join(err, shared.i.stop())
		}
	}
	return shared.i.delete()
}

// about lists what there is of a container on this machine and in the data directory.
func (i *instance) about(id string) ([]string, error) {
	if onCluster() {
		return aboutOnCluster(id)
	}
	now, err := leakcheck.Take()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, thing := range leakcheck.About(now.Since(&leakcheck.Snapshot{}), id) {
		if thing.Kind != leakcheck.Process || strings.Contains(thing.Note, "shim") || strings.Contains(thing.Note, "/.berth/agent") {
			out = append(out, thing.String()) // not the clients of the test, whose arguments name it
		}
	}
	err = filepath.WalkDir(i.data, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), id) {
			out = append(out, path)
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
	return out, err
}

// awaitGone waits until nothing is left of a container that was deleted: neither feed nor file announces that.
func (i *instance) awaitGone(id string) error {
	if len(id) != 8 {
		return errUsage
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(statusLimit); ; <-tick.C {
		left, err := i.about(id)
		if err != nil || len(left) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("of container %s there is still: %s", id, strings.Join(left, "; "))
		}
	}
}
