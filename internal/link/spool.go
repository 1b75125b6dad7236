package link

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sys/unix"

	"berth/internal/compute"
)

// Spool keeps a gateway's audit records on disk until the control plane has them. Records are numbered; the control plane
// says up to which number it has stored them, so that none is lost and none is there twice, whichever side dies when.
//
// It is two files of bounded size: records go to the end of the newer one, and the older one is removed when all of it is
// stored. Each is a header and then frames, as they are sent. A frame is synced before anybody sends it.
//
// One goroutine appends, and one, a Client's, takes.
type Spool struct {
	path string
	max  int64 // bytes of each file
	log  *slog.Logger
	codec

	disk sync.Mutex // held while files are made, renamed and removed, and headers written; before mu

	mu      sync.Mutex // guards what follows; no I/O under it
	queue   string     // names the numbers: hexadecimal digits of 16 random bytes
	next    int64      // the number of the next record
	parts   []*part    // the older one first; none while the disk refuses to make one
	changed chan struct{}
}

// part is one of the files.
type part struct {
	f    *os.File
	path string
	size int64 // bytes that are there for good
	done int64 // bytes of which the control plane has the records
}

// SpoolOptions adjusts a Spool. The zero value is ready to use.
type SpoolOptions struct {
	MaxBytes int64        // of both files; 0 is 64 MB
	Log      *slog.Logger // nil discards
}

const (
	defaultSpool = 64 << 20
	spoolFormat  = 1
	spoolHeader  = 64
	spoolMagic   = "BERTH\x00aq"
	// numberGap is left out where the end of a file is damaged: it may have held numbers that the control plane knows.
	numberGap = 1 << 24
)

// batch is what a frame of records holds. They are numbered from First to Last.
type batch struct {
	First   int64        `cbor:"1,keyasint"`
	Last    int64        `cbor:"2,keyasint"`
	Records []wireRecord `cbor:"3,keyasint"`
}

// packed is a batch whose records are encoded already, or not looked at.
type packed struct {
	First   int64             `cbor:"1,keyasint"`
	Last    int64             `cbor:"2,keyasint"`
	Records []cbor.RawMessage `cbor:"3,keyasint"`
}

const maxNumber = 1 << 53

// sane says whether the numbers are those of the records.
func (p packed) sane() bool {
	n := int64(len(p.Records))
	return n > 0 && p.First > 0 && p.First < maxNumber && p.Last == p.First+n-1
}

// SpoolFiles are the names that the files of a spool at path have, or may have for a while.
func SpoolFiles(path string) []string { return []string{path, path + ".1", path + ".new"} }

// OpenSpool opens the spool at path, or makes it. What a crash left of a frame is cut off. One process may have it open.
func OpenSpool(path string, o SpoolOptions) (*Spool, error) {
	if o.MaxBytes <= 0 {
		o.MaxBytes = defaultSpool
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Spool{path: path, max: o.MaxBytes / 2, log: o.Log, codec: newCodec(), changed: make(chan struct{})}
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open the audit records that wait for the control plane: %w", err), s.Close())
	}
	return s, nil
}

func (s *Spool) open() error {
	names := SpoolFiles(s.path)
	if err := os.Remove(names[2]); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	current := false
	for _, name := range []string{names[1], names[0]} {
		p, err := s.openPart(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case errors.Is(err, errDamaged):
			s.log.Error("audit records are lost: the file that they waited in is damaged, and removed", "file", name, "err", err)
			if err := os.Remove(name); err != nil {
				return err
			}
			s.next += numberGap
			continue
		case err != nil:
			return err
		}
		s.parts, current = append(s.parts, p), name == s.path
	}
	if len(s.parts) == 0 { // there is nothing to go on from
		s.queue, s.next = newQueue(), 1
	}
	if current {
		return nil
	}
	if err := s.begin(); err != nil { // a disk that is full keeps nobody out: it is tried again with the next record
		s.log.Error("make a file for audit records", "err", err)
	}
	return nil
}

func newQueue() string {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // it never fails
	return hex.EncodeToString(id)
}

// openPart opens one of the files, and goes on with its numbers.
func (s *Spool) openPart(path string) (_ *part, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: others may have written it (%v)", errDamaged, info.Mode())
	}
	head := make([]byte, spoolHeader)
	if _, err := io.ReadFull(f, head); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("%w: it is cut off", errDamaged)
	} else if err != nil {
		return nil, err
	}
	h, err := parseSpoolHead(head)
	if err != nil {
		return nil, err
	}
	p := &part{f: f, path: path, size: spoolHeader, done: spoolHeader}
	s.queue, s.next = h.queue, h.first
	for in := newFrameReader(f, maxRecords); ; {
		fr, err := in.next()
		if errors.Is(err, io.EOF) {
			return p, nil
		}
		var b packed
		if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
			return nil, err // the disk's fault, perhaps of the moment
		}
		if err == nil && fr.kind == kindRecords {
			err = s.read(fr.payload, &b)
		}
		if err != nil || fr.kind != kindRecords || !b.sane() || b.First < s.next {
			s.log.Warn("what is cut off at the end of the waiting audit records is not sent", "file", path,
				"bytes", info.Size()-p.size, "err", err)
			s.next += numberGap
			return p, f.Truncate(p.size)
		}
		p.size += int64(len(fr.raw))
		if s.next = b.Last + 1; b.Last <= h.stored {
			p.done = p.size
		}
	}
}

// spoolHead is the beginning of a file.
type spoolHead struct {
	queue  string
	first  int64 // the number of its first record
	stored int64 // up to which number the control plane has them: after a crash this may be less than it had said
}

func (h spoolHead) bytes() ([]byte, error) {
	id, err := hex.DecodeString(h.queue)
	if err != nil {
		return nil, err
	}
	b := make([]byte, spoolHeader)
	copy(b, spoolMagic)
	binary.BigEndian.PutUint32(b[8:], spoolFormat)
	binary.BigEndian.PutUint64(b[16:], uint64(h.first))
	copy(b[24:40], id)
	binary.BigEndian.PutUint64(b[40:], uint64(h.stored))
	binary.BigEndian.PutUint32(b[spoolHeader-4:], crc(b[:spoolHeader-4]))
	return b, nil
}

func parseSpoolHead(b []byte) (h spoolHead, err error) {
	switch {
	case !bytes.HasPrefix(b, []byte(spoolMagic)), crc(b[:spoolHeader-4]) != binary.BigEndian.Uint32(b[spoolHeader-4:]):
		return h, fmt.Errorf("%w: its header", errDamaged)
	case binary.BigEndian.Uint32(b[8:]) != spoolFormat:
		return h, fmt.Errorf("it is of format %d, and this version of Berth reads %d", binary.BigEndian.Uint32(b[8:]), spoolFormat)
	}
	h = spoolHead{
		queue: hex.EncodeToString(b[24:40]), first: int64(binary.BigEndian.Uint64(b[16:])), stored: int64(binary.BigEndian.Uint64(b[40:])),
	}
	if h.first < 1 || h.first > maxNumber {
		return h, fmt.Errorf("%w: its header", errDamaged)
	}
	return h, nil
}

// begin makes a new file the one that records go to. The one before, if there is one, is put aside.
func (s *Spool) begin() error {
	s.disk.Lock()
	defer s.disk.Unlock()
	names := SpoolFiles(s.path)
	f, err := os.OpenFile(names[2], os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	s.mu.Lock()
	h := spoolHead{queue: s.queue, first: s.next}
	s.mu.Unlock()
	head, err := h.bytes()
	if err == nil {
		_, err = f.Write(head)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		if err = os.Rename(s.path, names[1]); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		err = os.Rename(names[2], s.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(s.path))
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.parts {
		p.path = names[1]
	}
	s.parts = append(s.parts, &part{f: f, path: s.path, size: spoolHeader, done: spoolHeader})
	return nil
}

// Close closes the files. What waits is sent after the next start.
func (s *Spool) Close() error {
	var errs []error
	for _, p := range s.parts {
		errs = append(errs, p.f.Close())
	}
	s.parts = nil
	return errors.Join(errs...)
}

// Waiting is how many bytes of records the control plane does not have yet.
func (s *Spool) Waiting() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting()
}

func (s *Spool) waiting() (n int64) {
	for _, p := range s.parts {
		n += p.size - p.done
	}
	return n
}

// Delivered waits until the control plane has all there is, or ctx ends.
func (s *Spool) Delivered(ctx context.Context) {
	for {
		s.mu.Lock()
		n, changed := s.waiting(), s.changed
		s.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// announce wakes whoever waits for a change. s.mu is held.
func (s *Spool) announce() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// AppendAudit keeps records for the control plane. Where there is no room, the error says how many are lost: new ones rather
// than old ones, so that nobody pushes out what tells of them. Half of the room is for other things than refusals, which
// strangers can cause.
func (s *Spool) AppendAudit(_ context.Context, records []compute.AuditRecord) error {
	crowded := s.Waiting() > s.max
	var list []cbor.RawMessage
	var size, lost, kept int64
	flush := func() error {
		if len(list) == 0 {
			return nil
		}
		err := s.append(list)
		if errors.Is(err, errFull) {
			lost, err = lost+kept, nil
		}
		list, size, kept = nil, 0, 0
		return err
	}
	for _, r := range records {
		if crowded && r.Class() == compute.AuditRefusal && r.Action != compute.ActionAuditLost {
			lost += max(r.Count, 1)
			continue
		}
		b, err := s.enc.Marshal(toWireRecord(r))
		if err != nil {
			return err
		}
		if len(list) == maxBatch || size+int64(len(b)) > chunk {
			if err := flush(); err != nil {
				return err
			}
		}
		list, size, kept = append(list, b), size+int64(len(b)), kept+max(r.Count, 1)
	}
	if err := flush(); err != nil {
		return err
	}
	if lost > 0 {
		return compute.RecordsLost(lost)
	}
	return nil
}

var errFull = errors.New("there is no room")

// append makes one frame durable.
func (s *Spool) append(list []cbor.RawMessage) error {
	s.mu.Lock()
	first := s.next
	s.mu.Unlock()
	last := first + int64(len(list)) - 1
	payload, err := s.enc.Marshal(packed{First: first, Last: last, Records: list})
	if err != nil {
		return err
	}
	raw := appendFrame(nil, kindRecords, payload)
	p, err := s.room(int64(len(raw)))
	if err != nil {
		return err
	}
	_, err = p.f.WriteAt(raw, p.size)
	if err == nil {
		err = p.f.Sync()
	}
	if err != nil {
		return errors.Join(err, p.f.Truncate(p.size)) // half a frame would hide the next
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.size += int64(len(raw))
	s.next = last + 1
	s.announce()
	return nil
}

// room returns the file that n more bytes go to.
func (s *Spool) room(n int64) (*part, error) {
	for {
		s.mu.Lock()
		parts := s.parts
		s.mu.Unlock()
		if len(parts) > 0 {
			if p := parts[len(parts)-1]; p.size+n <= s.max || p.size == spoolHeader { // who appends alone changes the size
				return p, nil
			}
		}
		if len(parts) > 1 {
			return nil, errFull
		}
		if err := s.begin(); err != nil {
			return nil, err
		}
	}
}
