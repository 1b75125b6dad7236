package agent

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// outputBuffer is how much of a command's output is read and sent at a time: two frames of the wire.
	outputBuffer = 64 << 10

	// A command that has sent bulk without a break is given a pause when it has little more: head(1) writes 4 kB at a
	// time, and to wake up and send for each of them costs three times the processor time. Pauses are short against the
	// time in which the fastest command fills its pipe. An answer to a key never waits.
	bulk      = 128 << 10
	longBreak = 5 * time.Millisecond
	pause     = 50 * time.Microsecond
	maxPauses = 2 // without any output
)

// outputs are in use only while there is output: an idle session has none.
var outputs = sync.Pool{New: func() any { return new([outputBuffer]byte) }}

// outlet is this end of a pipe or a terminal that a command writes to. Reads of it do not block.
type outlet struct {
	fd   int
	stop <-chan struct{} // closed when nobody wants any more of it
	wait func() error    // until there may be something to read, or stop
}

// copyTo copies what comes to w until its end, which for a terminal is an error (EIO), or until w takes no more.
func (o outlet) copyTo(w io.Writer) {
	for total, goOn := 0, true; goOn; {
		began := time.Now()
		if o.wait() != nil {
			return
		}
		if time.Since(began) > longBreak {
			total = 0
		}
		total, goOn = o.copyReady(w, total)
	}
}

// copyReady copies until there is nothing for the moment, and then says true. Total is how much came without a break.
func (o outlet) copyReady(w io.Writer, total int) (int, bool) {
	buf := outputs.Get().(*[outputBuffer]byte)
	defer outputs.Put(buf)
	for pauses := 0; ; {
		select {
		case <-o.stop:
			return total, false
		default:
		}
		n, err := o.read(buf[:])
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return total, false
			}
			total += n
			pauses = 0
		}
		switch {
		case err != nil:
			return total, false
		case n == len(buf):
			continue
		case total < bulk || pauses == maxPauses:
			return total, true
		}
		pauses++
		// Not time.Sleep: the runtime's timers are as coarse as a millisecond when there is nothing else to do.
		_ = unix.Nanosleep(&unix.Timespec{Nsec: int64(pause)}, nil)
	}
}

// read reads what is there. An error is the end.
func (o outlet) read(b []byte) (int, error) {
	for {
		n, err := unix.Read(o.fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return 0, nil
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// outlet is the terminal's: its end of lines and its keys are few, and the runtime's poller does.
func (t *terminal) outlet(stop <-chan struct{}) (outlet, error) {
	raw, err := t.master.SyscallConn()
	if err != nil {
		return outlet{}, err
	}
	o := outlet{stop: stop}
	err = raw.Control(func(fd uintptr) { o.fd = int(fd) })
	o.wait = func() error {
		return raw.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0 || err != nil
		})
	}
	return o, err
}

// poller waits for pipes. The runtime's own poller wakes a thread for every write to a pipe, whether anybody waits for
// it or not; this one is armed by those who wait.
type poller struct {
	once sync.Once
	file *os.File
	err  error
	over chan struct{} // closed once run has ended

	mu      sync.Mutex // guards what follows
	waiting map[int32]chan struct{}
}

// start starts it, unless it runs.
func (p *poller) start() error {
	p.once.Do(func() {
		p.over = make(chan struct{})
		fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err == nil {
			err = unix.SetNonblock(fd, true) // for the runtime's poller, which waits for this one
		}
		if err != nil {
			p.err = os.NewSyscallError("epoll_create1", err)
			close(p.over)
			return
		}
		p.file, p.waiting = os.NewFile(uintptr(fd), "epoll"), make(map[int32]chan struct{})
		go p.run()
	})
	return p.err
}

// close ends it, when nobody waits any more.
func (p *poller) close() {
	p.once.Do(func() { p.err = os.ErrClosed })
	if p.file != nil {
		_ = p.file.Close()
		<-p.over
	}
}

func (p *poller) run() {
	defer close(p.over)
	raw, err := p.file.SyscallConn()
	if err != nil {
		return
	}
	var events [32]unix.EpollEvent
	for {
		n := 0
		if raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events[:], 0)
			return n > 0
		}) != nil {
			return // closed
		}
		p.mu.Lock()
		for _, e := range events[:n] {
			if ready := p.waiting[e.Fd]; ready != nil {
				close(ready)
				delete(p.waiting, e.Fd)
			}
		}
		p.mu.Unlock()
	}
}

// outlet is a pipe's whose reading end is fd, until stop is closed.
func (p *poller) outlet(fd int, stop <-chan struct{}) outlet {
	op := unix.EPOLL_CTL_ADD
	return outlet{fd: fd, stop: stop, wait: func() error {
		ready := make(chan struct{})
		p.mu.Lock()
		p.waiting[int32(fd)] = ready
		p.mu.Unlock()
		defer func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.waiting, int32(fd))
		}()
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(fd)}
		var err error
		if cerr := p.control(func(epfd int) { err = unix.EpollCtl(epfd, op, fd, &event) }); cerr != nil || err != nil {
			return errors.Join(cerr, err)
		}
		op = unix.EPOLL_CTL_MOD
		select {
		case <-ready:
			return nil
		case <-stop:
			return os.ErrDeadlineExceeded
		}
	}}
}

func (p *poller) control(f func(fd int)) error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { f(int(fd)) })
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
