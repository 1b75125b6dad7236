package link

import (
	"errors"
	"os"
)

// What a Client does with a spool: it takes what is oldest, and lets go of what the control plane has.

// oldest returns a frame of the oldest records that the control plane, which has all up to number after, does not have, and
// whether there are any. What it has is let go of.
func (s *Spool) oldest(after int64) (raw []byte, ok bool, err error) {
	for {
		s.mu.Lock()
		if len(s.parts) == 0 {
			s.mu.Unlock()
			return nil, false, nil
		}
		p, newest := s.parts[0], len(s.parts) == 1
		at, end := p.done, p.size
		s.mu.Unlock()
		switch {
		case at == end && newest:
			return nil, false, nil
		case at == end:
			if err := s.drop(p); err != nil {
				return nil, false, err
			}
			continue
		}
		b, n, err := s.readPacked(p, at)
		if err != nil {
			return nil, false, err
		}
		if b.Last > after {
			raw, err := s.gather(p, b, at+n, end)
			return raw, err == nil, err
		}
		if err := p.note(func(h *spoolHead) { h.stored = b.Last }); err != nil {
			return nil, false, err
		}
		s.mu.Lock()
		p.done += n
		s.announce()
		s.mu.Unlock()
	}
}

func (s *Spool) readPacked(p *part, at int64) (b packed, n int64, err error) {
	fr, err := frameAt(p.f, at, maxRecords)
	if err == nil {
		err = s.read(fr.payload, &b)
	}
	return b, int64(len(fr.raw)), err
}

// gather returns one frame of b and what follows it in p between at and end: a login that came alone would else cost the
// control plane a transaction.
func (s *Spool) gather(p *part, b packed, at, end int64) ([]byte, error) {
	size := 0
	for _, r := range b.Records {
		size += len(r)
	}
	for at < end {
		next, n, err := s.readPacked(p, at)
		if err != nil {
			return nil, err
		}
		if size += int(n); size > chunk || len(b.Records)+len(next.Records) > maxBatch || next.First != b.Last+1 {
			break
		}
		at, b.Last, b.Records = at+n, next.Last, append(b.Records, next.Records...)
	}
	payload, err := s.enc.Marshal(b)
	if err != nil {
		return nil, err
	}
	return appendFrame(nil, kindRecords, payload), nil
}

// drop removes the older file.
func (s *Spool) drop(p *part) error {
	s.disk.Lock()
	defer s.disk.Unlock()
	if err := errors.Join(os.Remove(p.path), p.f.Close()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parts = s.parts[1:]
	return nil
}

// news returns a channel that is closed when there may be something to take that was not there before.
func (s *Spool) news() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// begun returns the name of the numbers.
func (s *Spool) begun() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queue
}

// judge looks at what the control plane says that it has. A number that was never given means that somebody else has used
// this gateway's credential, or that this disk is not what it was: all that waits is then sent under numbers of another name,
// and may be there twice.
func (s *Spool) judge(last int64) error {
	s.mu.Lock()
	known := last < s.next
	s.mu.Unlock()
	if known {
		return nil
	}
	s.log.Error("the control plane has audit records that this gateway did not send: what waits is sent anew", "last", last)
	return errors.Join(errors.New("the numbers of audit records begin anew"), s.rename())
}

// rename gives the numbers another name.
func (s *Spool) rename() error {
	s.disk.Lock()
	defer s.disk.Unlock()
	queue := newQueue()
	s.mu.Lock()
	parts := s.parts
	s.mu.Unlock()
	for _, p := range parts {
		if err := p.note(func(h *spoolHead) { h.queue = queue }); err != nil {
			return err
		}
		if err := p.f.Sync(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = queue
	return nil
}

// note changes the head of a file. It is not synced: what is there then says less, and the control plane knows better.
func (p *part) note(change func(*spoolHead)) error {
	head := make([]byte, spoolHeader)
	if _, err := p.f.ReadAt(head, 0); err != nil {
		return err
	}
	h, err := parseSpoolHead(head)
	if err != nil {
		return err
	}
	change(&h)
	if head, err = h.bytes(); err != nil {
		return err
	}
	_, err = p.f.WriteAt(head, 0)
	return err
}
