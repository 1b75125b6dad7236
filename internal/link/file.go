package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The file of a replica is a header and then frames, as they came: a snapshot and the changes that followed it. The header
// says how many bytes count. It is written after what it counts and synced with it, so
//   - what is beyond was never acknowledged, torn or not, and is forgotten;
//   - what is missing or damaged below was, and nothing in the file is trusted.
const (
	fileFormat = 1
	headerSize = 64
)

const fileMagic = "BERTH\x00rp"

// errDamaged says that a file is not to be trusted.
var errDamaged = errors.New("the file is not as it was written")

// header is the beginning of the file.
type header struct {
	length  int64     // bytes that count, itself among them
	contact time.Time // when the control plane was last heard from, or somewhat earlier
}

func (h header) bytes() []byte {
	b := make([]byte, headerSize)
	copy(b, fileMagic)
	binary.BigEndian.PutUint32(b[8:], fileFormat)
	binary.BigEndian.PutUint64(b[16:], uint64(h.length))
	binary.BigEndian.PutUint64(b[24:], uint64(h.contact.UnixMilli()))
	binary.BigEndian.PutUint32(b[headerSize-4:], crc(b[:headerSize-4]))
	return b
}

func parseHeader(b []byte) (header, error) {
	switch {
	case len(b) != headerSize || string(b[:len(fileMagic)]) != fileMagic:
		return header{}, fmt.Errorf("%w: it does not begin as one", errDamaged)
	case crc(b[:headerSize-4]) != binary.BigEndian.Uint32(b[headerSize-4:]):
		return header{}, fmt.Errorf("%w: its header", errDamaged)
	case binary.BigEndian.Uint32(b[8:]) != fileFormat:
		return header{}, fmt.Errorf("%w: it is of format %d, and this version reads %d", errDamaged,
			binary.BigEndian.Uint32(b[8:]), fileFormat)
	}
	h := header{
		length:  int64(binary.BigEndian.Uint64(b[16:])),
		contact: time.UnixMilli(int64(binary.BigEndian.Uint64(b[24:]))),
	}
	if h.length < headerSize {
		return header{}, fmt.Errorf("%w: its header", errDamaged)
	}
	return h, nil
}

// file is a replica's, open. One goroutine uses it.
type file struct {
	f *os.File
	header
	base int64 // its length when it was written anew
}

// readFile opens the file at path and makes a state of it. The error is fs.ErrNotExist when there is none, errDamaged when
// what is there is not to be trusted.
func readFile(path string, c codec) (*file, *state, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, err
	}
	in := &file{f: f}
	st, err := in.read(c)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return in, st, nil
}

func (f *file) read(c codec) (*state, error) {
	info, err := f.f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: others may have written it (%v)", errDamaged, info.Mode())
	}
	b := make([]byte, headerSize)
	if _, err := io.ReadFull(f.f, b); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("%w: it is cut off", errDamaged)
	} else if err != nil {
		return nil, err
	}
	if f.header, err = parseHeader(b); err != nil {
		return nil, err
	}
	if info.Size() < f.length {
		return nil, fmt.Errorf("%w: it is cut off", errDamaged)
	}
	st, base, err := replay(io.LimitReader(f.f, f.length-headerSize), c)
	f.base = headerSize + base
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
		return nil, err // the disk's fault, perhaps of the moment
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return st, nil
}

// append makes frames durable. After an error the file is of no more use, but still says what it said.
func (f *file) append(raw []byte, contact time.Time) error {
	if _, err := f.f.WriteAt(raw, f.length); err != nil {
		return err
	}
	h := header{length: f.length + int64(len(raw)), contact: contact}
	if _, err := f.f.WriteAt(h.bytes(), 0); err != nil {
		return err
	}
	if err := f.f.Sync(); err != nil {
		return err
	}
	f.header = h
	return nil
}

// note records a contact. It is not synced: an older one errs to the safe side.
func (f *file) note(contact time.Time) error {
	h := header{length: f.length, contact: contact}
	if _, err := f.f.WriteAt(h.bytes(), 0); err != nil {
		return err
	}
	f.header = h
	return nil
}

func (f *file) close() error {
	if f == nil {
		return nil
	}
	return f.f.Close()
}

// draft is a file that is being written beside the one that it will replace.
type draft struct {
	f      *os.File
	length int64
}

// The drafts of a replica's file have fixed names, so that one that a crash left is found. There is at most one of each.
const (
	snapshotDraft = ".snapshot"
	compactDraft  = ".compact"
)

// ReplicaFiles are the names that the file of a replica at path has, or may have for a while.
func ReplicaFiles(path string) []string {
	return []string{path, path + snapshotDraft, path + compactDraft}
}

func newDraft(path string) (*draft, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	d := &draft{f: f}
	if _, err := d.Write(make([]byte, headerSize)); err != nil {
		return nil, errors.Join(err, d.discard())
	}
	return d, nil
}

func (d *draft) Write(p []byte) (int, error) {
	n, err := d.f.Write(p)
	d.length += int64(n)
	return n, err
}

// finish makes the draft durable and puts it at path.
func (d *draft) finish(path string, contact time.Time) (*file, error) {
	out := &file{f: d.f, header: header{length: d.length, contact: contact}, base: d.length}
	_, err := d.f.WriteAt(out.bytes(), 0)
	if err == nil {
		err = d.f.Sync()
	}
	if err == nil {
		err = os.Rename(d.f.Name(), path)
	}
	if err != nil {
		return nil, errors.Join(err, d.discard())
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return nil, errors.Join(err, d.f.Close())
	}
	return out, nil
}

func (d *draft) discard() error {
	err := os.Remove(d.f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, d.f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
