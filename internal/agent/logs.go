package agent

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/agentproto"
)

// logSize is how much of the output of the image's command is kept, at least.
const logSize = 256 << 10

// logbook keeps the end of what is written to it. Whoever writes never waits for those who read: these miss what is gone by then.
type logbook struct {
	mu    sync.Mutex // guards what follows
	text  []byte
	begin int64         // how much was written before text
	over  bool          // nothing more will be written
	news  chan struct{} // closed when there is more, or over; nil while nobody waits
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if gone := len(l.text) - logSize; gone > logSize {
		l.text = append(l.text[:0], l.text[gone:]...)
		l.begin += int64(gone)
	}
	l.wake()
	return len(p), nil
}

// end says that nothing more will be written.
func (l *logbook) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	l.wake()
}

// wake wakes those who wait. l.mu is held.
func (l *logbook) wake() {
	if l.news != nil {
		close(l.news)
		l.news = nil
	}
}

// say writes a line of the agent's own.
func (l *logbook) say(format string, args ...any) {
	line := fmt.Sprintf("berth: "+format+"\n", args...)
	l.mu.Lock()
	within := len(l.text) > 0 && l.text[len(l.text)-1] != '\n'
	l.mu.Unlock()
	if within { // nobody else writes
		line = "\n" + line
	}
	_, _ = l.Write([]byte(line))
}

// logReader reads a log from a place on.
type logReader struct {
	log    *logbook
	at     int64 // the place: how much was written before it
	follow bool
	until  int64 // where it ends, unless it follows
	within bool  // what it read last ended within a line
}

func (l *logbook) reader(q agentproto.Logs) *logReader {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &logReader{log: l, follow: q.Follow, until: l.begin + int64(len(l.text))}
	if q.Tail != nil {
		r.at = l.lastLines(*q.Tail)
	}
	return r
}

// lastLines returns where the last n lines begin: the first place of all where no more than that are kept. l.mu is held.
func (l *logbook) lastLines(n int64) int64 {
	at := len(l.text)
	if n == 0 {
		return l.begin + int64(at)
	}
	for at--; n > 0 && at >= 0; n-- { // from the end of the last line, whether or not it has one
		at = bytes.LastIndexByte(l.text[:at], '\n')
	}
	if at < 0 {
		return 0
	}
	return l.begin + int64(at) + 1
}

// next appends to b, as far as that has room, what follows. If that is nothing, there is more once the channel is closed;
// without a channel that was all. What is gone is said, in a line of its own.
func (r *logReader) next(b []byte) ([]byte, <-chan struct{}) {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.at < l.begin {
		b = r.skip(b)
	}
	text := l.text[r.at-l.begin:]
	if !r.follow {
		text = text[:max(0, min(r.until-r.at, int64(len(text))))]
	}
	text = text[:min(len(text), cap(b)-len(b))]
	b = append(b, text...)
	r.at += int64(len(text))
	switch {
	case len(b) > 0:
		r.within = b[len(b)-1] != '\n'
		return b, nil
	case !r.follow, l.over:
		return nil, nil
	case l.news == nil:
		l.news = make(chan struct{})
	}
	return nil, l.news
}

// skip goes on with the first whole line that is kept. l.mu is held.
func (r *logReader) skip(b []byte) []byte {
	to := r.log.begin + int64(bytes.IndexByte(r.log.text, '\n')+1)
	if r.within {
		b = append(b, '\n')
	}
	b = fmt.Appendf(b, "berth: %d bytes of the output are lost here\n", to-r.at)
	r.at = to
	return b
}

// openLogs begins to write the log to a channel, or refuses it.
func (s *Server) openLogs(n *agentproto.NewChannel) {
	q, err := agentproto.DecodeLogs(n.Payload)
	if err != nil {
		_ = n.Reject(agentproto.ReasonConnectFailed, err.Error())
		return
	}
	if !s.goDo(&s.sessions, func() {
		ch, err := n.Accept()
		if err != nil {
			return // the client is gone
		}
		defer ch.Close()
		s.sendLogs(ch, s.logs.reader(q))
	}) {
		_ = n.Reject(agentproto.ReasonShortOfSupply, errClosing.Error())
	}
}

// sendLogs waits for a client that is slow; what is gone when it takes more, it misses.
func (s *Server) sendLogs(ch *agentproto.Channel, r *logReader) {
	for {
		sent, more, err := sendNext(ch, r)
		switch {
		case err != nil:
			return
		case sent:
			continue
		case more == nil:
			_ = ch.CloseWrite() // it may be gone
			return
		}
		select {
		case <-more:
		case <-ch.Done():
			return
		case <-s.ctx.Done():
			return
		}
	}
}

func sendNext(ch *agentproto.Channel, r *logReader) (sent bool, more <-chan struct{}, err error) {
	buf := outputs.Get().(*[outputBuffer]byte)
	defer outputs.Put(buf)
	text, more := r.next(buf[:0])
	_, err = ch.Write(text)
	return len(text) > 0, more, err
}

// RunImage starts the image's own command, if there is one. Its output goes to the log, and so does what becomes of it.
func (s *Server) RunImage(argv []string) {
	if len(argv) == 0 {
		s.logs.end()
		return
	}
	if err := s.startImage(argv); err != nil {
		s.log.Error("start the image's command", "err", err)
		s.logs.say("not started: %v", err)
		s.logs.end()
	}
}

func (s *Server) startImage(argv []string) error {
	as, err := imageAccount(s.passwd, s.group, s.user)
	if err != nil {
		return err
	}
	env := imageEnviron(s.environ, as)
	path, err := lookPath(argv[0], env.value("PATH"))
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		closeAll(r, w)
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	// Its user may open what /dev/stdout leads to, as many images' programs do.
	if os.Geteuid() == 0 {
		err = w.Chown(int(as.uid), -1)
	}
	var run *process
	if err == nil {
		run, err = s.procs.start(command{
			path: path, argv: argv, env: env, dir: dir, as: as,
			files: []uintptr{null.Fd(), w.Fd(), w.Fd()},
		})
	}
	closeAll(null, w)
	if err != nil {
		_ = r.Close()
		return fmt.Errorf("%s: %w", argv[0], err)
	}
	s.logs.say("started %s", argv[0])
	go s.logs.record(argv[0], run, r) // ends with the last process that has the pipe
	return nil
}

// record takes down what a process writes to a pipe, then how it ended, then what those write that it left behind.
func (l *logbook) record(name string, run *process, r *os.File) {
	defer l.end()
	defer r.Close()
	cut := make(chan struct{})
	go func() {
		<-run.ended
		_ = r.SetReadDeadline(time.Unix(1, 0))
		close(cut)
	}()
	_, _ = io.Copy(l, r) // until the process has ended, or nobody has the pipe any more
	<-cut
	_ = r.SetReadDeadline(time.Time{})
	_, _ = io.CopyN(l, r, unread(r)) // what it wrote last is there, or nothing is left
	if w := run.status; w.Signaled() {
		l.say("%s was ended by %s", name, unix.SignalName(w.Signal()))
	} else {
		l.say("%s exited with status %d", name, w.ExitStatus())
	}
	run.release()
	_, _ = io.Copy(l, r)
}

// unread returns how much there is to read in a pipe.
func unread(r *os.File) (n int64) {
	raw, err := r.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { // 0 where it fails
		size, _ := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		n = int64(size)
	})
	return n
}
