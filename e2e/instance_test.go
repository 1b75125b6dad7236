package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd ended
	ready  ready
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

// launch starts berth up and does not wait for it to serve.
func (i *instance) launch() error {
	image, err := imagePath()
	if err != nil {
		return err
	}
	args := []string{"up", "--http-addr", "127.0.0.1:0", "--ssh-addr", "127.0.0.1:0", "--image", image}
	cmd, err := i.berth(context.Background(), append(args, i.flags...)...)
	if err != nil {
		return err
	}
	out, err := os.OpenFile(i.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ^C at the test is not for berth, which the test ends
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	i.cmd, i.exited = cmd, exited
	go func() {
		defer close(exited)
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
	}()
	return nil
}

// start starts berth up and returns when it says that it is ready.
func (i *instance) start() error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Add(i.data); err != nil {
		return err
	}
	if err := i.launch(); err != nil {
		return err
	}
	deadline := time.After(startLimit)
	for {
		text, err := os.ReadFile(filepath.Join(i.data, "ready.json"))
		if err == nil {
			var r ready
			if err := json.Unmarshal(text, &r); err != nil {
				return fmt.Errorf("ready.json: %w", err)
			}
			if r.PID == i.cmd.Process.Pid { // another one is of a run that was killed
				i.ready = r
				return nil
			}
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		select {
		case <-w.Events:
		case err := <-w.Errors:
			return err
		case <-i.exited:
			return fmt.Errorf("berth up ended before it was ready: %v\n%s", i.cmd.ProcessState, i.tail())
		case <-deadline:
			return fmt.Errorf("berth up is not ready after %v\n%s", startLimit, errors.Join(errors.New(i.tail()), i.kill()))
		}
	}
}

func (i *instance) running() bool {
	if i.cmd == nil {
		return false
	}
	select {
	case <-i.exited:
		return false
	default:
		return true
	}
}

// stop ends berth as an operator does, and expects that it ends well.
func (i *instance) stop() error {
	if !i.running() {
		return nil
	}
	if err := i.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-i.exited:
	case <-time.After(stopLimit):
		return fmt.Errorf("berth did not end on SIGTERM within %v\n%s", stopLimit, errors.Join(errors.New(i.tail()), i.kill()))
	}
	if !i.cmd.ProcessState.Success() {
		return fmt.Errorf("berth ended with %v\n%s", i.cmd.ProcessState, i.tail())
	}
	return nil
}

// kill ends berth at once, as a fault would.
func (i *instance) kill() error {
	if !i.running() {
		return nil
	}
	if err := i.cmd.Process.Kill(); err != nil {
		return err
	}
	<-i.exited
	return nil
}

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

// tail is the end of berth's output.
func (i *instance) tail() string {
	text, err := os.ReadFile(i.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return "berth's output:\n  " + strings.Join(lines[max(0, len(lines)-40):], "\n  ")
}

// delete ends the instance and all it has, and looks for what is left of it.
func (i *instance) delete() error {
	if i.running() {
		if err := i.stop(); err != nil {
			return errors.Join(err, i.downDelete())
		}
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
		if t.Failed() && i.cmd != nil {
			t.Log(i.tail())
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
	return shared.i.delete()
}

// about lists what there is of a container on this machine and in the data directory.
func (i *instance) about(id string) ([]string, error) {
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
