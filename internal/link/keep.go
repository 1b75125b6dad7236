package link

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"berth/internal/compute"
)

// keeper is how a replica is kept on disk. It belongs to the goroutine that feeds the replica.
type keeper struct {
	file       *file       // nil while there is none that says what memory says
	durable    wireVersion // what a start from the disk would give, at least
	suspect    bool        // something was lost: only a snapshot can tell what
	mendAfter  time.Time
	noted      time.Time // the contact that the file has
	slack      int64
	compaction *compaction
}

const (
	mendPause    = 5 * time.Second // between two attempts on a disk that refuses
	noteInterval = time.Minute     // between two writes of the last contact alone
	compactSlack = 4 << 20         // a file is written anew when changes take more than this and the snapshot together
	compactPage  = 256
)

// position is the version to go on from; none to begin with a snapshot.
func (r *Replica) position() wireVersion {
	if r.suspect {
		return wireVersion{}
	}
	return r.durable
}

// install puts a snapshot in the place of all there was. The draft is nil where the disk refused it.
func (r *Replica) install(next *state, d *draft) {
	now := r.opt.Now()
	r.stopCompaction()
	old := r.file
	r.file = nil
	if d != nil {
		f, err := d.finish(r.path, now)
		if err != nil {
			r.log.Error("keep the snapshot", "err", err)
		} else {
			r.file, r.durable, r.noted = f, next.version, now
		}
	}
	if err := old.close(); err != nil {
		r.log.Warn("close the last snapshot", "err", err)
	}
	r.suspect = false
	r.mu.Lock()
	r.state, r.revoked = next, false
	r.hear(now)
	r.endSubscriptions()
	r.mu.Unlock()
	r.mend()
}

// apply makes a change true here, and then durable: who waits for it, in or out, need not wait for the disk. A change that
// the disk refuses holds all the same, and is not acknowledged.
func (r *Replica) apply(to wireVersion, accounts []wireAccount, containers []wireContainer, raw []byte) error {
	now := r.opt.Now()
	r.mu.Lock()
	events, err := r.state.change(to, accounts, containers)
	r.hear(now)
	r.publish(events)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if r.file != nil {
		if err := r.file.append(raw, now); err != nil {
			r.log.Error("keep a change", "err", err)
			r.dropFile()
		} else {
			r.durable, r.noted = to, now
		}
	}
	r.mend()
	r.tend()
	return nil
}

// change applies one and tells what it was about.
func (s *state) change(to wireVersion, accounts []wireAccount, containers []wireContainer) ([]compute.Event, error) {
	var events []compute.Event
	var errs []error
	for _, a := range accounts {
		takes, err := s.setAccount(a)
		e := compute.Event{Seq: to.Seq, Kind: compute.EventKeyAdded, Owner: compute.UserID(a.ID)}
		if takes {
			e.Kind = compute.EventUserChanged
		}
		events, errs = append(events, e), append(errs, err)
	}
	for _, c := range containers {
		e := compute.Event{
			Seq: to.Seq, Kind: compute.EventContainerChanged,
			Owner: compute.UserID(c.Owner), Container: compute.ContainerID(c.ID),
		}
		if c.Gone {
			e.Kind = compute.EventContainerDeleted
		}
		events, errs = append(events, e), append(errs, s.setContainer(c))
	}
	s.version = to
	return events, errors.Join(errs...)
}

// contact records that the control plane has nothing newer.
func (r *Replica) contact() {
	now := r.opt.Now()
	r.mu.Lock()
	r.hear(now)
	r.mu.Unlock()
	if r.file != nil && now.Sub(r.noted) >= noteInterval {
		if err := r.file.note(now); err != nil {
			r.log.Warn("record the last contact", "err", err)
		}
		r.noted = now
	}
	r.mend()
	r.tend()
}

// hear notes the time of a contact in memory. r.mu is held.
func (r *Replica) hear(now time.Time) {
	r.heard = now
	select {
	case <-r.able:
	default:
		close(r.able)
	}
}

// forget gives up all there is: the control plane said that this gateway is to admit nobody. It tells of no change any more,
// so whoever is in must go too.
func (r *Replica) forget() {
	r.mu.Lock()
	r.state, r.revoked = nil, true
	r.endSubscriptions()
	r.mu.Unlock()
	r.stopCompaction()
	r.dropFile()
	r.durable = wireVersion{}
	err := os.Remove(r.path)
	if err == nil {
		err = syncDir(filepath.Dir(r.path))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Error("remove the copy of the control plane's state", "err", err)
	}
}

// dropFile closes a file that is of no more use. What it says stays on the disk.
func (r *Replica) dropFile() {
	r.stopCompaction()
	if err := r.file.close(); err != nil {
		r.log.Warn("close the file", "err", err)
	}
	r.file = nil
}

// mend writes a new file where there is none that says what memory says.
func (r *Replica) mend() {
	now := r.opt.Now()
	if r.file != nil || r.state == nil || now.Before(r.mendAfter) {
		return
	}
	f, err := r.writeAll(now)
	if err != nil {
		r.log.Error("keep the control plane's state: until it is kept, nothing is acknowledged", "err", err)
		r.mendAfter = now.Add(mendPause)
		return
	}
	r.file, r.durable, r.noted = f, r.state.version, now
}

// writeAll writes what memory says to a new file.
func (r *Replica) writeAll(now time.Time) (*file, error) {
	d, err := r.writeDraft(context.Background(), r.state, r.state.version)
	if err != nil {
		return nil, err
	}
	return d.finish(r.path, now)
}

// writeDraft writes a snapshot of st, which is at that version or a later one. What changes on the way is in it in part, and
// must follow it.
func (r *Replica) writeDraft(ctx context.Context, st *state, version wireVersion) (*draft, error) {
	d, err := newDraft(r.path + compactDraft)
	if err != nil {
		return nil, err
	}
	if err := r.dump(ctx, st, version, d); err != nil {
		return nil, errors.Join(err, d.discard())
	}
	return d, nil
}

func (r *Replica) dump(ctx context.Context, st *state, version wireVersion, to io.Writer) error {
	r.mu.RLock()
	accounts, containers := slices.Collect(maps.Keys(st.accounts)), slices.Collect(maps.Keys(st.containers))
	r.mu.RUnlock()
	buffered := bufio.NewWriterSize(to, 256<<10)
	w := newWriter(buffered)
	if err := w.begin(begin{Full: true, To: version}); err != nil {
		return err
	}
	for page := range slices.Chunk(accounts, compactPage) {
		list := make([]wireAccount, 0, len(page))
		r.mu.RLock()
		for _, id := range page {
			list = append(list, st.wireAccount(st.accounts[id])) // accounts stay
		}
		r.mu.RUnlock()
		for _, a := range list {
			if err := w.account(a); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	for page := range slices.Chunk(containers, compactPage) {
		list := make([]wireContainer, 0, len(page))
		r.mu.RLock()
		for _, id := range page {
			if c := st.containers[id]; c != nil {
				list = append(list, st.wireContainer(c))
			}
		}
		r.mu.RUnlock()
		for _, c := range list {
			if err := w.container(c); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if err := w.end(); err != nil {
		return err
	}
	return buffered.Flush()
}

// compaction writes a file anew while the old one goes on.
type compaction struct {
	from   int64 // the old file's length when it began: what comes after must follow
	cancel context.CancelFunc
	done   chan struct{} // closed when draft and err are there
	draft  *draft
	err    error
}

// tend begins a compaction when it is time for one, and ends one that is done.
func (r *Replica) tend() {
	if c := r.compaction; c != nil {
		select {
		case <-c.done:
			r.compaction = nil
			c.cancel()
			r.settle(c)
		default:
		}
		return
	}
	if r.file == nil || r.file.length <= 2*r.file.base+r.slack {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &compaction{from: r.file.length, cancel: cancel, done: make(chan struct{})}
	st, version := r.state, r.state.version
	go func() {
		defer close(c.done)
		c.draft, c.err = r.writeDraft(ctx, st, version)
	}()
	r.compaction = c
}

// settle lets the changes that came meanwhile follow the new snapshot, and puts it in the old file's place.
func (r *Replica) settle(c *compaction) {
	if c.err != nil {
		r.log.Warn("write the copy of the control plane's state anew", "err", c.err)
		r.file.base = r.file.length // not again at once
		return
	}
	base, contact := c.draft.length, r.file.contact
	if _, err := io.Copy(c.draft, io.NewSectionReader(r.file.f, c.from, r.file.length-c.from)); err != nil {
		r.log.Warn("write the copy of the control plane's state anew", "err", errors.Join(err, c.draft.discard()))
		r.file.base = r.file.length
		return
	}
	r.dropFile() // which of the two stands at path when the next step fails is not known
	f, err := c.draft.finish(r.path, contact)
	if err != nil {
		r.log.Error("write the copy of the control plane's state anew", "err", err)
		r.mend()
		return
	}
	f.base = base
	r.file = f
}

// stopCompaction ends one that is under way, and waits for its end.
func (r *Replica) stopCompaction() {
	c := r.compaction
	if c == nil {
		return
	}
	r.compaction = nil
	c.cancel()
	<-c.done
	if c.draft != nil {
		if err := c.draft.discard(); err != nil {
			r.log.Warn("discard a compaction", "err", err)
		}
	}
}
