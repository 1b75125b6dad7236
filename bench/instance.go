package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"berth/internal/leakcheck"
)

// Deadlines. The first start imports the image.
const (
	startLimit   = 3 * time.Minute
	stopLimit    = 30 * time.Second
	commandLimit = time.Minute
	statusLimit  = time.Minute
)

// instance is a data directory of our own and the berth that serves it.
type instance struct {
	o     options
	serve []string // the command that serves it
	dir   string
	data  string

	before *leakcheck.Snapshot
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd ended
	ready  readyFile
	keyID  int64
	token  string // empty: the one in the data directory
}

// readyFile is ready.json.
type readyFile struct {
	APIURL string `json:"api_url"`
	Zone   string `json:"zone"`
	PID    int    `json:"pid"`
	SSH    string `json:"ssh_addr"`
	Admin  string `json:"admin_url"`
}

// newInstance makes a data directory, which the command serve serves once it is started.
func newInstance(o options, serve ...string) (*instance, error) {
	before, err := leakcheck.Take()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		return nil, err
	}
	// Containers' roots reach their volumes through it.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	i := &instance{o: o, dir: dir, data: filepath.Join(dir, "data"), before: before}
	i.serve = append(serve, "--data-dir", i.data, "--http-addr", "127.0.0.1:0", "--image", o.image)
	return i, os.Mkdir(i.data, 0o755)
}

func (i *instance) path(name string) string { return filepath.Join(i.dir, name) }
func (i *instance) sshConfig() string       { return i.path("ssh_config") }
func (i *instance) key() string             { return i.path("id_ed25519") }

// environment is ours without what is meant for a berth of the invoker's.
func environment() []string {
	env := []string{"SSH_AUTH_SOCK="}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "SUDO_") && !strings.HasPrefix(kv, "BERTH_") && !strings.HasPrefix(kv, "SSH_") {
			env = append(env, kv)
		}
	}
	return env
}

// run runs a command of the operator, and returns what it printed.
func (i *instance) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, i.o.berth, args...)
	cmd.Env = environment()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("berth %s: %w: %s", strings.Join(args, " "), err, &errs)
	}
	return out.String(), nil
}

// start starts berth and returns, once it is ready, how long that took.
func (i *instance) start(ctx context.Context) (time.Duration, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return 0, err
	}
	defer w.Close()
	if err := w.Add(i.data); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := i.launch(); err != nil {
		return 0, err
	}
	if err := i.awaitReady(ctx, w); err != nil {
		return 0, err
	}
	took := time.Since(began)
	if i.ready.SSH == "" { // nobody logs in here
		return took, nil
	}
	return took, i.enroll(ctx)
}

func (i *instance) launch() error {
	out, err := os.OpenFile(i.path("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(i.serve[0], i.serve[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = environment(), out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is for us, who end it
	if err := cmd.Start(); err != nil {
		return err
	}
	i.cmd, i.exited = cmd, make(chan struct{})
	go func() {
		defer close(i.exited)
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
	}()
	return nil
}

func (i *instance) awaitReady(ctx context.Context, w *fsnotify.Watcher) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("it took more than %v", startLimit))
	defer cancel()
	for {
		text, err := os.ReadFile(filepath.Join(i.data, "ready.json"))
		if err == nil {
			if err := json.Unmarshal(text, &i.ready); err != nil {
				return fmt.Errorf("ready.json: %w", err)
			}
			if i.ready.PID == i.cmd.Process.Pid {
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
			return fmt.Errorf("%s: %v: %s", i.serve[0], i.cmd.ProcessState, i.tail())
		case <-ctx.Done():
			return fmt.Errorf("wait for berth: %w: %s", context.Cause(ctx), i.tail())
		}
	}
}

var identityLine = regexp.MustCompile(`(?m)^(\s*IdentityFile\s).*$`)

// enroll gives berth's first account a key of ours, once, and writes the ssh_config that berth wrote with that key in it: the
// invoker's own may need a passphrase.
func (i *instance) enroll(ctx context.Context) error {
	text, err := os.ReadFile(filepath.Join(i.data, "ssh_config"))
	if err != nil {
		return err
	}
	if err := i.enrollKey(ctx); err != nil {
		return err
	}
	text = identityLine.ReplaceAll(text, []byte(`${1}"`+i.key()+`"`))
	return os.WriteFile(i.sshConfig(), text, 0o600)
}

// enrollKey gives berth's first account a key of ours, once.
func (i *instance) enrollKey(ctx context.Context) error {
	if i.keyID != 0 {
		return nil
	}
	public, err := writeKey(i.key())
	if err != nil {
		return err
	}
	body, err := json.Marshal(map[string]string{"name": "bench", "public_key": public})
	if err != nil {
		return err
	}
	var key struct{ ID int64 }
	if err := i.call(ctx, http.MethodPost, "/compute/ssh-keys", string(body), &key); err != nil {
		return err
	}
	i.keyID = key.ID
	return nil
}

// call sends a request to the API.
func (i *instance) call(ctx context.Context, method, path, body string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	token := i.token
	if token == "" {
		text, err := os.ReadFile(filepath.Join(i.data, "token"))
		if err != nil {
			return err
		}
		token = strings.TrimSpace(string(text))
	}
	req, err := http.NewRequestWithContext(ctx, method, i.ready.APIURL+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %d: %s", method, path, resp.StatusCode, answer)
	}
	return json.Unmarshal(answer, into)
}

// stop ends berth as an operator does.
func (i *instance) stop() error {
	if i.cmd == nil {
		return nil
	}
	_ = i.cmd.Process.Signal(syscall.SIGTERM) // one that has ended is what we want
	select {
	case <-i.exited:
	case <-time.After(stopLimit):
		_ = i.cmd.Process.Kill()
		<-i.exited
		return fmt.Errorf("berth did not end on SIGTERM within %v: %s", stopLimit, i.tail())
	}
	if !i.cmd.ProcessState.Success() {
		return fmt.Errorf("berth ended with %v: %s", i.cmd.ProcessState, i.tail())
	}
	return nil
}

// tail is the end of berth's output.
func (i *instance) tail() string {
	text, err := os.ReadFile(i.path("log"))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return "berth's output:\n  " + strings.Join(lines[max(0, len(lines)-30):], "\n  ")
}

// delete ends berth, removes all that it made, and looks for what is left. It works on where the measurements were
// interrupted, so it takes no context.
func (i *instance) delete() error {
	err := i.stop()
	if _, statErr := os.Stat(i.data); statErr == nil {
		_, downErr := i.run(context.Background(), "down", "--delete", "--data-dir", i.data)
		err = errors.Join(err, downErr)
	}
	if err != nil {
		return fmt.Errorf("%w; what is left is in %s", err, i.dir)
	}
	engine, network := sha256.Sum256([]byte(i.data)), sha256.Sum256([]byte("berth network\x00"+i.data))
	left, err := leakcheck.Settled(i.before, leakcheck.Patience, i.data,
		"berth-"+hex.EncodeToString(engine[:4]), hex.EncodeToString(network[:3]))
	var errs []error
	for _, thing := range left {
		errs = append(errs, fmt.Errorf("left behind: %v", thing))
	}
	return errors.Join(append(errs, err, os.RemoveAll(i.dir))...)
}
