package e2e_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/rogpeppe/go-internal/testscript"
)

// Scripts run with these variables, of the account that is logged in: ME (its name), HOME, TOKEN, KEYID, KEY (the private
// key's file), API, ZONE, SSH_PORT and DATA (the data directory); IMAGE is the base image's archive, OLDEST_AGENT
// the oldest agent that gateways serve. On a
// cluster KUBECTL is its kubectl. ssh, scp and sftp are the
// stock ones with -F, as everything that calls them gets them; they end with 124 after LIMIT seconds, and SSH is the client itself.
// BERTH_DATA names the instance for berth's own commands. nobody runs a program as that user.
func TestScripts(t *testing.T) {
	bin, err := binDir()
	if err != nil {
		t.Fatal(err)
	}
	stock, err := exec.LookPath("ssh")
	if err != nil {
		t.Fatal(err)
	}
	clients, err := clientDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	files, err := scripts()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Files: files,
		Condition: func(what string) (bool, error) {
			switch what {
			case "machine":
				return !onCluster(), nil
			case "cluster":
				return onCluster(), nil
			}
			return false, fmt.Errorf("a script asks for %q", what)
		},
		Setup: func(env *testscript.Env) error {
			s := &script{work: env.WorkDir, accounts: map[string]*account{}}
			env.Values[scriptKey{}] = s
			env.Setenv("PATH", strings.Join([]string{clients, bin, os.Getenv("PATH"), "/usr/sbin", "/sbin"}, ":"))
			env.Setenv("LIMIT", "120")
			env.Setenv("GORACE", "atexit_sleep_ms=0") // of noise, throttle and retry, which are this program
			env.Setenv("SSH", stock)
			env.Defer(func() { s.end(env.T()) })
			if onCluster() {
				c, err := readCluster()
				env.Setenv("KUBECTL", c.Kubectl)
				env.Setenv("KUBECONFIG", c.Kubeconfig)
				return err
			}
			env.Setenv("OLDEST_AGENT", filepath.Join(bin, "../build/oldest-agent"))
			image, err := imagePath()
			env.Setenv("IMAGE", image)
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"instance": command(cmdInstance), "up": command(cmdUp), "down": command(cmdDown), "harm": command(cmdHarm),
			"login": command(cmdLogin), "as": command(cmdAs),
			"api": command(cmdAPI), "json": command(cmdJSON), "problem": command(cmdProblem),
			"container": command(cmdContainer), "await": command(cmdAwait),
			"sh": command(cmdSh), "exits": command(cmdExits), "keep": command(cmdKeep),
			"signal": command(cmdSignal), "feed": command(cmdFeed), "hears": command(cmdHears),
		},
	})
}

// clientDir writes the clients that scripts find first.
func clientDir(dir string) (string, error) {
	nobody := "#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "nobody"), []byte(nobody), 0o755); err != nil {
		return "", err
	}
	for _, name := range []string{"ssh", "scp", "sftp"} {
		path, err := exec.LookPath(name)
		if err != nil {
			return "", err
		}
		text := fmt.Sprintf("#!/bin/sh\nexec timeout --foreground -k 5 \"${LIMIT:-120}\" %s -F \"$HOME/ssh_config\" \"$@\"\n", path)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// script is the state of one run of one script.
type script struct {
	work     string
	own      *instance // nil where it uses the shared one
	me       *account
	accounts map[string]*account
	answer   []byte // of the last api
	feeds    map[string]*websocket.Conn
}

type scriptKey struct{}

func (s *script) instance() (*instance, error) {
	if s.own != nil {
		return s.own, nil
	}
	return sharedInstance()
}

// end deletes what the script made, so that what fails there fails the script.
func (s *script) end(t testscript.T) {
	if s.own != nil {
		if err := s.own.delete(); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, a := range s.accounts {
		if err := a.deleteAll(); err != nil {
			t.Log(err)
		}
	}
}

// deleteAll deletes the account's containers.
func (a *account) deleteAll() error {
	var list struct {
		Containers []container `json:"containers"`
	}
	if err := a.get("/compute/containers", &list); err != nil {
		return err
	}
	var errs []error
	for _, c := range list.Containers {
		errs = append(errs, a.do(http.MethodDelete, "/compute/containers/"+c.ID, "", nil))
	}
	return errors.Join(errs...)
}

// command makes a script's command of a function; "!" is for those that take it, in their first argument.
func command(f func(s *script, ts *testscript.TestScript, neg bool, args []string) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if err := f(ts.Value(scriptKey{}).(*script), ts, neg, args); err != nil {
			ts.Fatalf("%v", err)
		}
	}
}

var errUsage = errors.New("wrong usage: see the command's comment")

// instance [-again] [NAME=VALUE…] [FLAG…] gives the script an instance of its own, with such variables and flags of berth up.
// It is not started. Again, the same instance has other ones from now on.
func cmdInstance(s *script, ts *testscript.TestScript, neg bool, args []string) (err error) {
	again := len(args) > 0 && args[0] == "-again"
	if neg || again != (s.own != nil) {
		return errUsage
	}
	if again {
		s.own.flags, s.own.env, args = nil, nil, args[1:]
	} else if s.own, err = newInstance(); err != nil {
		return err
	}
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			s.own.flags = append(s.own.flags, a)
		} else {
			s.own.env = append(s.own.env, a)
		}
	}
	ts.Setenv("DATA", s.own.data)
	ts.Setenv("BERTH_DATA", s.own.data)
	ts.Setenv("LOG", s.own.log)
	ts.Setenv("INSTANCE", s.own.name())
	return nil
}

// [!] up [-strange] starts the script's own instance, or must fail to; then what it printed is stdout. To a strange one the
// script's accounts are unknown.
func cmdUp(s *script, ts *testscript.TestScript, neg bool, args []string) error {
	strange := len(args) == 1 && args[0] == "-strange"
	if s.own == nil || len(args) > 0 && !strange {
		return errUsage
	}
	began := time.Now()
	err := s.own.start()
	if neg {
		if err == nil {
			return errors.New("berth up is ready, and should have failed")
		}
		text, rerr := os.ReadFile(s.own.log)
		_, _ = ts.Stdout().Write(text)
		return rerr
	}
	if err != nil {
		return err
	}
	ts.Logf("ready after %v", time.Since(began).Round(time.Millisecond))
	for _, a := range s.accounts {
		if strange {
			break
		}
		if err := a.prepare(); err != nil {
			return err
		}
	}
	s.setEnv(ts)
	return nil
}

// down stops the berth of the script's own instance with SIGTERM.
func cmdDown(s *script, _ *testscript.TestScript, neg bool, args []string) error {
	if s.own == nil || neg || len(args) > 0 {
		return errUsage
	}
	return s.own.stop()
}

// harm berth|containerd kills that process of the script's own instance with SIGKILL.
func cmdHarm(s *script, _ *testscript.TestScript, neg bool, args []string) error {
	if s.own == nil || neg || len(args) != 1 {
		return errUsage
	}
	if args[0] == "berth" {
		return s.own.kill()
	}
	pid, err := s.own.containerd()
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

var notInName = regexp.MustCompile(`[^a-z0-9]+`)

// login [NAME] makes an account and logs in as it.
func cmdLogin(s *script, ts *testscript.TestScript, neg bool, args []string) error {
	name := "me"
	if len(args) == 1 {
		name = args[0]
	}
	if neg || len(args) > 1 || s.accounts[name] != nil {
		return errUsage
	}
	i, err := s.instance()
	if err != nil {
		return err
	}
	full := notInName.ReplaceAllString(strings.ToLower(ts.Name()+"-"+name), "-")
	if s.own == nil {
		full = fmt.Sprintf("%s-%d", full, persons.Add(1))
	}
	if len(full) > 32 {
		full = strings.TrimLeft(full[len(full)-32:], "-")
	}
	a, err := newAccount(i, full, s.work)
	if err != nil {
		return err
	}
	s.accounts[name], s.me = a, a
	s.setEnv(ts)
	return nil
}

// as NAME goes on as an account that logged in before.
func cmdAs(s *script, ts *testscript.TestScript, neg bool, args []string) error {
	if neg || len(args) != 1 || s.accounts[args[0]] == nil {
		return errUsage
	}
	s.me = s.accounts[args[0]]
	s.setEnv(ts)
	return nil
}

func (s *script) setEnv(ts *testscript.TestScript) {
	i, err := s.instance()
	ts.Check(err)
	ts.Setenv("DATA", i.data)
	ts.Setenv("BERTH_DATA", i.data)
	ts.Setenv("LOG", i.log)
	ts.Setenv("INSTANCE", i.name())
	ts.Setenv("API", i.ready.APIURL)
	ts.Setenv("ZONE", i.ready.Zone)
	ts.Setenv("SSH_PORT", i.ready.SSHAddr[strings.LastIndexByte(i.ready.SSHAddr, ':')+1:])
	if s.me == nil {
		return
	}
	ts.Setenv("ME", s.me.name)
	ts.Setenv("HOME", s.me.home)
	ts.Setenv("TOKEN", s.me.token)
	ts.Setenv("KEY", s.me.key())
	ts.Setenv("KEYID", strconv.FormatInt(s.me.keyID, 10))
}

// api STATUS METHOD PATH [BODY [CONTENT-TYPE]] sends a request with TOKEN; the answer is stdout, and what json reads.
func cmdAPI(s *script, ts *testscript.TestScript, neg bool, args []string) error {
	if neg || len(args) < 3 || len(args) > 5 || s.me == nil {
		return errUsage
	}
	body, contentType := "", ""
	if len(args) > 3 {
		body, contentType = args[3], "application/json"
	}
	if len(args) > 4 {
		contentType = args[4]
	}
	a := *s.me
	a.token = ts.Getenv("TOKEN")
	status, header, answer, err := a.call(args[1], args[2], contentType, body)
	if err != nil {
		return err
	}
	s.answer = answer
	if _, err := ts.Stdout().Write(answer); err != nil {
		return err
	}
	if strconv.Itoa(status) != args[0] {
		return fmt.Errorf("%s %s: status %d, want %s", args[1], args[2], status, args[0])
	}
	want := "application/json"
	if status >= 400 {
		want = "application/problem+json"
	}
	if got := header.Get("Content-Type"); args[2] != "/healthz" && !strings.HasPrefix(got, want) {
		return fmt.Errorf("%s %s: Content-Type %q, want %s", args[1], args[2], got, want)
	}
	return nil
}

// container NAME [JSON] makes a container, waits until it runs and sets NAME to its id.
func cmdContainer(s *script, ts *testscript.TestScript, neg bool, args []string) error {
	if neg || len(args) < 1 || len(args) > 2 || s.me == nil {
		return errUsage
	}
	began := time.Now()
	id, err := s.me.box(strings.Join(args[1:], ""))
	if err != nil {
		return err
	}
	ts.Logf("container %s runs after %v", id, time.Since(began).Round(time.Millisecond))
	ts.Setenv(args[0], id)
	return nil
}

// await ID STATUS waits for the status; "gone" waits until the container's id is no process, mount or file any more.
func cmdAwait(s *script, ts *testscript.TestScript, neg bool, args []string) error {
	if neg || len(args) != 2 || s.me == nil {
		return errUsage
	}
	began := time.Now()
	var err error
	if args[1] == "gone" {
		err = s.me.on.awaitGone(args[0])
	} else {
		_, err = s.me.await(args[0], args[1], statusLimit)
	}
	ts.Logf("%s after %v", args[1], time.Since(began).Round(time.Millisecond))
	return err
}

// [!] sh COMMAND runs a line of bash.
func cmdSh(_ *script, ts *testscript.TestScript, neg bool, args []string) error {
	if len(args) != 1 {
		return errUsage
	}
	err := ts.Exec("bash", "-euo", "pipefail", "-c", args[0])
	if neg && err == nil {
		return errors.New("it succeeded, and should have failed")
	}
	if neg {
		return nil
	}
	return err
}

// exits CODE PROGRAM [ARG…] runs a program that must end with that code.
func cmdExits(_ *script, ts *testscript.TestScript, neg bool, args []string) error {
	if neg || len(args) < 2 {
		return errUsage
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		return err
	}
	if strconv.Itoa(code) != args[0] {
		return fmt.Errorf("exit code %d, want %s", code, args[0])
	}
	return nil
}

// keep NAME sets NAME to what the last program printed, trimmed.
func cmdKeep(_ *script, ts *testscript.TestScript, neg bool, args []string) error {
	if neg || len(args) != 1 {
		return errUsage
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
	return nil
}

// signal SIGNAL ends the one background program of the script: TERM, KILL, INT.
func cmdSignal(_ *script, ts *testscript.TestScript, neg bool, args []string) error {
	signals := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL, "INT": syscall.SIGINT}
	if neg || len(args) != 1 || signals[args[0]] == 0 {
		return errUsage
	}
	for _, cmd := range ts.BackgroundCmds() {
		if err := cmd.Process.Signal(signals[args[0]]); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	return nil
}
