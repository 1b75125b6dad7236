// Package pgtest runs a PostgreSQL of its own for the tests of a package: a real server, as a user without rights, on a socket
// in a temporary directory, of Debian's package or of what is in PATH. It keeps nothing.
//
// A test binary calls Main from its TestMain, and its tests NewDatabase; the first of them starts the server.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Server is a running PostgreSQL.
type Server struct {
	bin, dir string
	owner    *syscall.Credential // nil: this process's

	mu   sync.Mutex // guards what follows
	cmd  *exec.Cmd  // nil while it is stopped
	word *os.File   // takes the signal that is to end it
	made int
}

// startTimeout bounds a start, which writes a cluster, and a stop.
const startTimeout = time.Minute

// supervised runs a server until it is told the signal to end it with, or this process is gone and can tell nothing.
const supervised = `"$0" -D "$1" & read -r signal; kill -s "${signal:-QUIT}" $!; wait $!`

// shared is the server of this test binary.
var shared struct {
	once   sync.Once
	server *Server
	err    error
}

// Main stops the server of this binary, if a test has started it; it is called after the tests.
func Main() error {
	shared.once.Do(func() { shared.err = errors.New("the tests are over") })
	if shared.server == nil {
		return nil
	}
	return shared.server.Close()
}

// Shared returns the server of this test binary, which may keep what is committed in memory alone.
func Shared(t testing.TB) *Server {
	t.Helper()
	shared.once.Do(func() { shared.server, shared.err = Start("fsync = off") })
	if shared.err != nil {
		t.Fatalf("start PostgreSQL: %v", shared.err)
	}
	return shared.server
}

// NewDatabase makes an empty database on the shared server and returns its URL. It goes with the test.
func NewDatabase(t testing.TB) string {
	t.Helper()
	return Shared(t).NewDatabase(t)
}

// Start makes a cluster and starts a server on it. Settings are lines of its configuration.
func Start(settings ...string) (_ *Server, err error) {
	s := &Server{}
	if s.bin, err = findBin(); err != nil {
		return nil, err
	}
	if s.dir, err = os.MkdirTemp("", "berth-pg-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.giveAway(); err != nil {
		return nil, err
	}
	init := s.command("initdb", "--pgdata", s.data(), "--username", "postgres", "--auth", "trust", "--encoding", "UTF8",
		"--locale", "C.UTF-8", "--no-sync", "--no-instructions")
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	settings = append([]string{
		"listen_addresses = ''", "unix_socket_directories = '" + s.dir + "'", "max_connections = 300", "autovacuum = off",
	}, settings...)
	f, err := os.OpenFile(filepath.Join(s.data(), "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteString(strings.Join(settings, "\n") + "\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return s, s.Start()
}

// findBin returns the directory of the newest server that is installed.
func findBin() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		path, err = filepath.EvalSymlinks(path) // the other programs are beside it
		return filepath.Dir(path), err
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return "", errors.New("PostgreSQL is missing; `deploy/install-packages test` installs it")
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(strings.Split(path, "/")[4]) // 0 for what is no number
		return n
	}
	newest := slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })
	return filepath.Dir(newest), nil
}

// giveAway gives the directory to the user who is to run the server, which does not run as root.
func (s *Server) giveAway() error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	s.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return os.Chown(s.dir, uid, gid)
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir, cmd.Env = s.dir, []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner, Setpgid: true}
	return cmd
}

// Start starts a server that was stopped, and returns when it takes connections.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	heard, word, err := os.Pipe()
	if err != nil {
		return err
	}
	defer heard.Close()
	server := s.command("postgres")
	cmd := exec.Command("/bin/sh", "-c", supervised, server.Path, s.data())
	cmd.Dir, cmd.Env, cmd.SysProcAttr = server.Dir, server.Env, server.SysProcAttr
	cmd.Stdin, cmd.Stdout, cmd.Stderr = heard, log, log
	if err := cmd.Start(); err != nil {
		return errors.Join(err, word.Close())
	}
	s.cmd, s.word = cmd, word
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for {
		ready := exec.CommandContext(ctx, filepath.Join(s.bin, "pg_isready"), "--quiet", "--host", s.dir, "--username", "postgres")
		err := ready.Run()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
			return err
		}
		if ctx.Err() != nil {
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("the server did not come up:\n%s", text)
		}
		select { // nothing tells when it is ready
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Signals that end a server.
const (
	CutOff = "INT"  // it cuts its sessions off, and writes down where it was
	Crash  = "QUIT" // it ends as in a power cut
)

// Stop ends the server by a signal.
func (s *Server) Stop(signal string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	_, err := s.word.WriteString(signal + "\n")
	if err = errors.Join(err, s.word.Close()); err != nil {
		return err
	}
	_ = s.cmd.Wait() // it says how it was ended
	s.cmd, s.word = nil, nil
	return nil
}

// Close stops the server and removes all it had.
func (s *Server) Close() error { return errors.Join(s.Stop(Crash), os.RemoveAll(s.dir)) }

// URL is the address of a database.
func (s *Server) URL(database string) string {
	u := url.URL{Scheme: "postgres", User: url.User("postgres"), Path: "/" + database}
	u.RawQuery = url.Values{"host": {s.dir}}.Encode()
	return u.String()
}

// NewDatabase returns the URL of an empty database, which goes with the test. It is a schema in truth: one is made in a tenth
// of the time.
func (s *Server) NewDatabase(t testing.TB) string {
	t.Helper()
	s.mu.Lock()
	s.made++
	name := fmt.Sprintf("test%d", s.made)
	s.mu.Unlock()
	s.SQL(t, "postgres", "CREATE SCHEMA "+name)
	t.Cleanup(func() { s.SQL(t, "postgres", "DROP SCHEMA "+name+" CASCADE") })
	return s.URL("postgres") + "&search_path=" + name
}

// SQL runs statements as an administrator, and returns what they print.
func (s *Server) SQL(t testing.TB, database, statements string) string {
	t.Helper()
	return s.Run(t, "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align",
		"--set", "ON_ERROR_STOP=1", "--dbname", s.URL(database), "--command", statements)
}

// Run runs one of PostgreSQL's programs, and returns what it prints.
func (s *Server) Run(t testing.TB, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Env = append(os.Environ(), "PGOPTIONS=-c client_min_messages=warning")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return strings.TrimSpace(string(out))
}
