package agent

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// outputBuffer is how much of a command's output is read at a time: two frames of the wire.
const outputBuffer = 64 << 10

// outputs are in use only while there is output: an idle session has none.
var outputs = sync.Pool{New: func() any { return new([outputBuffer]byte) }}

// output reads from this end of a pipe or a terminal.
type output struct {
	file *os.File
	buf  *[outputBuffer]byte
	n    int
	err  error
}

// copyOutput copies what comes out of f to w until its end, which for a terminal is an error (EIO), or until w takes no more.
func copyOutput(w io.Writer, f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	o := &output{file: f}
	for read := o.read; ; {
		if raw.Read(read) != nil {
			return // its deadline, or closed
		}
		if o.n > 0 {
			_, err = w.Write(o.buf[:o.n])
		}
		outputs.Put(o.buf)
		if o.n <= 0 || err != nil {
			return
		}
	}
}

// read is called when there may be something to read, and says whether there was.
func (o *output) read(fd uintptr) bool {
	o.buf = outputs.Get().(*[outputBuffer]byte)
	for {
		o.n, o.err = unix.Read(int(fd), o.buf[:])
		if !errors.Is(o.err, unix.EINTR) {
			break
		}
	}
	if errors.Is(o.err, unix.EAGAIN) {
		outputs.Put(o.buf)
		return false
	}
	return true
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
