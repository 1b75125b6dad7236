package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"berth/api"
	"berth/internal/compute"
)

const (
	// maxFile is the size at which a file is put aside, and keepFiles is how many of those stay beside it.
	maxFile   = 16 << 20
	keepFiles = 4
	// maxLine bounds a line: its texts are bounded, and JSON takes at most six bytes for one of theirs.
	maxLine = 16 << 10
)

// File is JSON lines of records, root's alone, in files of bounded size and number: path is the newest, path.1 the one before.
// It is for one goroutine at a time.
type File struct {
	path string
	max  int64
	keep int

	f    *os.File // nil where a rotation failed half way
	size int64
	last int64 // the number of the record that was written last
}

// OpenFile opens the file at path, or makes it. What a crash left of a line is cut off.
func OpenFile(path string) (*File, error) { return openFile(path, maxFile, keepFiles) }

func openFile(path string, size int64, keep int) (*File, error) {
	f := &File{path: path, max: size, keep: keep}
	var err error
	if f.last, err = f.open(); err == nil && f.last == 0 {
		f.last, err = lastNumber(f.aside(1)) // it was put aside just before the end
	}
	if err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	return f, nil
}

// Names lists the files that one at path may come to have, itself among them.
func Names(path string) []string {
	names := []string{path}
	for n := range keepFiles {
		names = append(names, fmt.Sprintf("%s.%d", path, n+1))
	}
	return names
}

func (f *File) aside(n int) string { return fmt.Sprintf("%s.%d", f.path, n) }

// open opens the newest file and returns the number of its last record.
func (f *File) open() (last int64, err error) {
	f.f, err = os.OpenFile(f.path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, err
	}
	whole, last, err := tail(f.f)
	if err == nil {
		err = f.f.Truncate(whole)
	}
	if err == nil {
		err = f.f.Chmod(0o600)
	}
	if err != nil {
		return 0, errors.Join(err, f.f.Close())
	}
	f.size = whole
	return last, nil
}

// lastNumber returns the number of the last record in a file; 0 where there is none.
func lastNumber(path string) (int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	_, last, err := tail(f)
	return last, err
}

// tail returns where the last whole line of f ends, and the number in it.
func tail(f *os.File) (whole, last int64, err error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return 0, 0, err
	}
	text := make([]byte, min(size, 2*maxLine))
	if _, err := f.ReadAt(text, size-int64(len(text))); err != nil {
		return 0, 0, err
	}
	end := bytes.LastIndexByte(text, '\n')
	if end < 0 {
		return 0, 0, nil // no line of ours
	}
	whole = size - int64(len(text)) + int64(end) + 1
	line := text[bytes.LastIndexByte(text[:end], '\n')+1 : end]
	var r struct{ Seq int64 }
	if err := json.Unmarshal(line, &r); err != nil {
		return whole, 0, nil // somebody else's line; what comes after it is ours
	}
	return whole, r.Seq, nil
}

// Last is the number of the record that was written last; 0 where there is none.
func (f *File) Last() int64 { return f.last }

// AppendAudit writes records, a line each.
func (f *File) AppendAudit(_ context.Context, records []compute.AuditRecord) error {
	for _, r := range records {
		line, err := json.Marshal(api.NewAuditRecord(r.Bounded()))
		if err != nil {
			return err
		}
		if err := f.write(append(line, '\n')); err != nil {
			return err
		}
		f.last = r.Seq
	}
	return nil
}

// write appends a line, whole or not at all.
func (f *File) write(line []byte) error {
	if f.size > 0 && f.size+int64(len(line)) > f.max {
		if err := f.rotate(); err != nil {
			return err
		}
	}
	if f.f == nil {
		if _, err := f.open(); err != nil {
			f.f = nil
			return err
		}
	}
	n, err := f.f.Write(line)
	if err != nil {
		return errors.Join(err, f.f.Truncate(f.size)) // half a line would spoil the next
	}
	f.size += int64(n)
	return nil
}

// rotate puts the file aside and begins another. The oldest goes.
func (f *File) rotate() error {
	if f.f != nil {
		if err := f.f.Close(); err != nil {
			return err
		}
		f.f = nil
	}
	for n := f.keep; n > 0; n-- {
		from := f.path
		if n > 1 {
			from = f.aside(n - 1)
		}
		if err := os.Rename(from, f.aside(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	_, err := f.open()
	return err
}

// Close closes the file.
func (f *File) Close() error {
	if f.f == nil {
		return nil
	}
	err := f.f.Close()
	f.f = nil
	return err
}
