package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"berth/internal/agentproto"
)

// channel is one end of an SSH session channel: agentproto's, or that of the break-glass server.
type channel interface {
	io.ReadWriter
	WriteStderr(p []byte) (int, error)
	CloseWrite() error
	Close() error
	Request(ctx context.Context, name string, wantReply bool, payload []byte) (bool, error)
	// next waits for the client's next request; it says false once there is none any more: the client is gone.
	next() (request, bool)
}

// request is one of the client's (RFC 4254, section 6).
type request struct {
	name    string
	payload []byte
	reply   func(ok bool) error
}

// client is who a session is for.
type client struct {
	account
	remote, local string
}

// session runs one command for a client. Its requests are handled in order by one goroutine, serve.
type session struct {
	s      *Server
	ch     channel
	client client

	env []string
	tty *terminal
	run *process

	unwanted chan struct{}  // closed once nobody reads the output any more
	unread   func()         // closes it
	files    []*os.File     // this end of what the command has open
	answered chan struct{}  // closed once the client knows that its command started: output comes after that
	gone     chan struct{}  // closed once the client is gone
	done     sync.WaitGroup // what copies and reports
	reported atomic.Bool    // the command ended, and the client was told
	replying sync.Mutex     // held until a request is answered: what ends the command may be one
}

func newSession(s *Server, ch channel, c client) *session {
	run := &session{
		s: s, ch: ch, client: c,
		answered: make(chan struct{}), gone: make(chan struct{}), unwanted: make(chan struct{}),
	}
	run.unread = sync.OnceFunc(func() { close(run.unwanted) })
	return run
}

const (
	reportTimeout = 15 * time.Second
	pipeSize      = 256 << 10
	maxMotd       = 32 << 10
)

// serve handles requests until the client is gone, then hangs up on what it ran.
func (s *session) serve() {
	for {
		r, ok := s.ch.next()
		if !ok {
			break
		}
		before := s.run
		s.replying.Lock()
		err := r.reply(s.handle(r))
		s.replying.Unlock()
		if err != nil {
			break
		}
		if before == nil && s.run != nil {
			close(s.answered)
		}
	}
	close(s.gone)
	s.unread()
	s.hangUp()
	s.done.Wait()
	closeAll(s.files...)
	if s.tty != nil {
		s.tty.close()
	}
	if s.run != nil {
		s.run.release()
	}
	_ = s.ch.Close() // the client is gone already, or reads the end
}

// hangUp tells the processes that their client is gone, as a terminal line does, and lets go of them: one that stays,
// as under nohup(1), finds nobody at the other end.
func (s *session) hangUp() {
	// What a command left behind when it ended is meant to go on, as after sshd: "ssh … 'server &'".
	if s.run != nil && !s.reported.Load() {
		_ = s.run.signal(syscall.SIGHUP) // it may be over
		_ = s.run.signal(syscall.SIGCONT)
	}
	past := time.Unix(1, 0)
	for _, f := range s.files {
		_ = f.SetDeadline(past) // one that is closed has no use for it
	}
}

func (s *session) handle(r request) bool {
	var err error
	switch r.name {
	case "env":
		err = s.setEnv(r.payload)
	case "pty-req":
		err = s.openPTY(r.payload)
	case "window-change":
		err = s.resize(r.payload)
	case "shell":
		err = s.start("", false)
	case "exec":
		var m struct{ Command string }
		if err = ssh.Unmarshal(r.payload, &m); err == nil {
			err = s.start(m.Command, true)
		}
	case agentproto.RequestExec:
		err = s.exec(r.payload)
	case "subsystem":
		err = s.subsystem(r.payload)
	case "signal":
		err = s.signal(r.payload)
	case "break":
		err = s.sendBreak()
	case "eow@openssh.com":
		err = s.endOutput()
	default:
		return false
	}
	if err != nil {
		s.s.log.Debug("session request", "request", r.name, "err", err)
	}
	return err == nil
}

func (s *session) setEnv(payload []byte) error {
	var m struct{ Name, Value string }
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return err
	}
	if s.run != nil || len(s.env) >= maxEnv || !s.s.acceptEnv.accepts(m.Name, m.Value) {
		return errors.New("not accepted")
	}
	s.env = append(s.env, m.Name+"="+m.Value)
	return nil
}

func (s *session) openPTY(payload []byte) error {
	var m struct {
		Term                         string
		Columns, Rows, Width, Height uint32
		Modes                        string
	}
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return err
	}
	if s.tty != nil || s.run != nil {
		return errors.New("too late for a terminal")
	}
	if len(m.Term) > maxEnvName || strings.Contains(m.Term, "\x00") {
		return errors.New("malformed terminal type")
	}
	t, err := openTerminal(s.client.account, m.Term, windowSize{m.Columns, m.Rows, m.Width, m.Height}, []byte(m.Modes))
	if err != nil {
		return err
	}
	s.tty = t
	return nil
}

func (s *session) resize(payload []byte) error {
	var size windowSize
	if err := ssh.Unmarshal(payload, &size); err != nil {
		return err
	}
	if s.tty == nil {
		return errors.New("there is no terminal")
	}
	return s.tty.resize(size)
}

// signals are the names of RFC 4254, section 6.10.
var signals = map[string]syscall.Signal{
	"ABRT": unix.SIGABRT, "ALRM": unix.SIGALRM, "FPE": unix.SIGFPE, "HUP": unix.SIGHUP, "ILL": unix.SIGILL,
	"INT": unix.SIGINT, "KILL": unix.SIGKILL, "PIPE": unix.SIGPIPE, "QUIT": unix.SIGQUIT, "SEGV": unix.SIGSEGV, "TERM": unix.SIGTERM,
	"USR1": unix.SIGUSR1, "USR2": unix.SIGUSR2,
}

func (s *session) signal(payload []byte) error {
	var m struct{ Name string }
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return err
	}
	sig, ok := signals[m.Name]
	if !ok || s.run == nil {
		return fmt.Errorf("signal %.20q", m.Name)
	}
	return s.run.signal(sig)
}

func (s *session) sendBreak() error {
	if s.tty == nil {
		return errors.New("there is no terminal")
	}
	return s.tty.sendBreak()
}

// endOutput ends the output of a command, whose client reads no more of it: the next write there fails, as on a broken
// pipe (OpenSSH's PROTOCOL, section 2.1). A terminal has no such end.
func (s *session) endOutput() error {
	if s.tty != nil || len(s.files) != 3 {
		return errors.New("there is no output to end")
	}
	s.unread()
	return nil
}

func (s *session) subsystem(payload []byte) error {
	var m struct{ Name string }
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return err
	}
	if m.Name != "sftp" {
		return fmt.Errorf("there is no subsystem %.40q", m.Name)
	}
	if !s.client.mayLogIn() {
		return errNoLogin
	}
	return s.launch(command{path: selfExe, argv: []string{"berth-agent", "sftp"}})
}

// start runs the account's shell: as a login shell without a command line, else for it.
func (s *session) start(line string, exec bool) error {
	c, err := s.client.program(line, exec, environ(s.environ()).value("PATH"))
	if err != nil {
		return s.fail(err)
	}
	return s.launch(c)
}

// exitNotFound is what a shell reports for a program that is not there.
const exitNotFound = 127

// fail reports what kept a command from starting as that command's own failure: its client shows the line.
func (s *session) fail(why error) error {
	if s.run != nil {
		return errAlready
	}
	end := "\n"
	if s.tty != nil {
		end = "\r\n"
	}
	s.run = s.s.procs.neverStarted(exitNotFound)
	s.follow(func() { _, _ = io.WriteString(stderrOf{s.ch}, "berth: "+why.Error()+end) })
	return nil
}

var errAlready = errors.New("a command runs already")

// follow runs f once the client knows of the command's start, and reports the command's end after it.
func (s *session) follow(f func()) {
	s.done.Go(func() {
		select {
		case <-s.answered:
		case <-s.gone:
			return
		}
		f()
		select {
		case <-s.run.ended:
			s.report()
		case <-s.gone:
		}
	})
}

type stderrOf struct{ ch channel }

func (e stderrOf) Write(p []byte) (int, error) { return e.ch.WriteStderr(p) }

func (s *session) environ() []string {
	tty, term := "", ""
	if s.tty != nil {
		tty, term = s.tty.slave.Name(), s.tty.term
	}
	return loginEnviron(s.s.environ, s.client.account, s.client.remote, s.client.local, tty, term, s.env)
}

// launch starts c as the client's user and copies for it.
func (s *session) launch(c command) error {
	if s.run != nil {
		return errAlready
	}
	c.as = s.client.account
	if c.env == nil {
		c.env = s.environ()
	}
	if s.tty != nil {
		return s.launchOnTTY(c)
	}
	return s.launchOnPipes(c)
}

// startIn starts c in its directory; one that names none in the user's home, or in / where that is not possible. It says
// false when the client was told that the program cannot be started.
func (s *session) startIn(c command) (bool, error) {
	chosen := c.dir != ""
	if !chosen {
		c.dir = s.client.home
	}
	if c.dir == "" {
		c.dir = "/"
	}
	run, err := s.s.procs.start(c)
	if err != nil && c.dir != "/" && !chosen {
		c.dir = "/"
		run, err = s.s.procs.start(c)
	}
	if err != nil {
		return false, s.fail(fmt.Errorf("%s: %w", c.path, err))
	}
	s.run = run
	return true, nil
}

func (s *session) launchOnTTY(c command) error {
	fd := s.tty.slave.Fd()
	c.files, c.tty = []uintptr{fd, fd, fd}, true
	started, err := s.startIn(c)
	// Only the children hold the terminal now: its end shows as EIO.
	_ = s.tty.slave.Close()
	if !started {
		return err
	}
	s.files = []*os.File{s.tty.master}
	s.done.Go(func() { // ends with the channel's data, or with the terminal
		_, _ = io.Copy(onlyWriter{s.tty.master}, s.ch)
	})
	s.follow(func() {
		if c.login() {
			s.motd()
		}
		if o, err := s.tty.outlet(s.unwanted); err == nil {
			o.copyTo(s.ch)
		}
	})
	return nil
}

// onlyWriter keeps io.Copy from looking for ways of its own to write to a file.
type onlyWriter struct{ io.Writer }

// motd shows the message of the day, as sshd does, unless the user asked for silence.
func (s *session) motd() {
	if _, err := os.Lstat(filepath.Join(s.client.home, ".hushlogin")); err == nil {
		return
	}
	f, err := os.OpenFile("/etc/motd", os.O_RDONLY|nonblock, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
		text, _ := io.ReadAll(io.LimitReader(f, maxMotd)) // what could be read is shown
		_, _ = io.WriteString(s.ch, strings.ReplaceAll(string(text), "\n", "\r\n"))
	}
}

// pipes are a command's standard streams: the child's ends and ours.
type pipes struct {
	child          [3]*os.File
	stdin          *os.File // the runtime's poller waits for it
	stdout, stderr *os.File // the server's poller waits for these
}

func openPipes() (p pipes, err error) {
	ends := [3]**os.File{&p.stdin, &p.stdout, &p.stderr}
	for i, ours := range ends {
		var fds [2]int
		if err = unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			closeAll(append(p.child[:], p.stdin, p.stdout, p.stderr)...)
			return pipes{}, os.NewSyscallError("pipe2", err)
		}
		_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize) // a smaller one works too
		own, child := fds[0], fds[1]
		if i == 0 {
			own, child = child, own
			_ = unix.SetNonblock(own, true) // before it is a File: the runtime's poller takes it then
		}
		*ours, p.child[i] = os.NewFile(uintptr(own), "pipe"), os.NewFile(uintptr(child), "pipe")
		_ = unix.SetNonblock(own, true) // of our end alone; it fails for no pipe
	}
	return p, nil
}

func (p pipes) closeChild() { closeAll(p.child[:]...) }

func (s *session) launchOnPipes(c command) error {
	if err := s.s.poller.start(); err != nil {
		return s.fail(err)
	}
	p, err := openPipes()
	if err != nil {
		return s.fail(err)
	}
	c.files = []uintptr{p.child[0].Fd(), p.child[1].Fd(), p.child[2].Fd()}
	started, err := s.startIn(c)
	p.closeChild()
	if !started {
		closeAll(p.stdin, p.stdout, p.stderr)
		return err
	}
	s.files = []*os.File{p.stdin, p.stdout, p.stderr}
	s.done.Go(func() { // ends with the channel's data, or once nobody reads the pipe
		_, _ = io.Copy(onlyWriter{p.stdin}, s.ch)
		_ = p.stdin.Close()
	})
	s.follow(func() {
		var out sync.WaitGroup
		out.Go(func() { s.drain(s.ch, p.stdout) })
		out.Go(func() { s.drain(stderrOf{s.ch}, p.stderr) })
		out.Wait()
	})
	return nil
}

// drain copies a child's output to its end. When the client takes no more, the child gets EPIPE, as from sshd.
func (s *session) drain(dst io.Writer, src *os.File) {
	defer src.Close()
	s.s.poller.outlet(int(src.Fd()), s.unwanted).copyTo(dst)
}

// report ends the channel in the order that clients expect: status, end of file, close.
func (s *session) report() {
	s.reported.Store(true)
	name, payload := exitMessage(s.run.status)
	ctx, cancel := context.WithTimeout(context.Background(), reportTimeout)
	defer cancel()
	s.replying.Lock()
	defer s.replying.Unlock()
	_, _ = s.ch.Request(ctx, name, false, payload) // a client that is gone needs none of it
	_ = s.ch.CloseWrite()
	_ = s.ch.Close()
}

// exitMessage is the request that tells of a process's end (RFC 4254, section 6.10).
func exitMessage(w syscall.WaitStatus) (name string, payload []byte) {
	if !w.Signaled() {
		return "exit-status", ssh.Marshal(struct{ Status uint32 }{uint32(w.ExitStatus())})
	}
	signal := "SIG@openssh.com" // as sshd calls those that the RFC does not list
	for n, s := range signals {
		if s == w.Signal() {
			signal = n
		}
	}
	return "exit-signal", ssh.Marshal(struct {
		Name     string
		Core     bool
		Message  string
		Language string
	}{signal, w.CoreDump(), "", ""})
}
