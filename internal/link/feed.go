package link

import (
	"fmt"
)

// maxChange bounds what of one change is held until all of it is there.
const maxChange = 64 << 20

// byeError is the control plane's word on why it ends the connection.
type byeError bye

func (e byeError) Error() string { return e.Reason }

// The codes of a bye.
const (
	byeRevoked  = "revoked"  // the credential is good no more, and this gateway admits nobody
	byeUnknown  = "unknown"  // the credential is not one of this control plane's
	byeReplaced = "replaced" // another connection with the same credential came
	byeStopping = "stopping"
	byeSlow     = "slow"
)

// feed takes the frames of one connection and makes them true in a replica.
type feed struct {
	r  *Replica
	at wireVersion // as the control plane knows it
	t  transaction

	// Of a change, until its end.
	accounts   []wireAccount
	containers []wireContainer
	raw        []byte

	// Of a snapshot. The draft is nil where the disk refused it.
	next  *state
	draft *draft
}

func newFeed(r *Replica) *feed { return &feed{r: r, at: r.position()} }

// frame takes the next one, and says whether it is to be answered. After an error nothing more fits.
func (f *feed) frame(fr frame) (answer bool, err error) {
	c := f.r.codec
	switch fr.kind {
	case kindBegin:
		if err := f.t.start(c, fr.payload, f.at); err != nil {
			return false, err
		}
		f.open(fr)
		return false, nil
	case kindAccounts, kindContainers:
		return false, f.objects(fr)
	case kindEnd:
		if err := f.t.finish(c, fr.payload); err != nil {
			return false, err
		}
		return true, f.close(fr)
	case kindPing:
		var p ping
		if err := c.read(fr.payload, &p); err != nil {
			return false, err
		}
		if f.t.open || p.Version != f.at {
			return false, fmt.Errorf("%w: the control plane is at %d.%d, and the copy at %d.%d", errLost,
				p.Version.Epoch, p.Version.Seq, f.at.Epoch, f.at.Seq)
		}
		f.r.contact()
		return true, nil
	case kindBye:
		var b bye
		if err := c.read(fr.payload, &b); err != nil {
			return false, err
		}
		return false, byeError(b)
	}
	return false, errOrder
}

func (f *feed) open(fr frame) {
	f.accounts, f.containers, f.raw = f.accounts[:0], f.containers[:0], f.raw[:0]
	if !f.t.Full {
		f.raw = append(f.raw, fr.raw...)
		return
	}
	f.next = newState()
	d, err := newDraft(f.r.path + snapshotDraft)
	if err != nil {
		f.r.log.Error("keep the snapshot", "err", err)
		return
	}
	f.draft = d
	f.keep(fr)
}

// keep writes a frame of a snapshot. A disk that refuses it does not keep the snapshot from being used.
func (f *feed) keep(fr frame) {
	if f.draft == nil {
		return
	}
	if _, err := f.draft.Write(fr.raw); err != nil {
		f.r.log.Error("keep the snapshot", "err", err)
		f.abandon()
	}
}

// abandon gives up the draft, if there is one.
func (f *feed) abandon() {
	if f.draft == nil {
		return
	}
	if err := f.draft.discard(); err != nil {
		f.r.log.Warn("discard a snapshot", "err", err)
	}
	f.draft = nil
}

func (f *feed) objects(fr frame) error {
	if f.t.Full {
		f.keep(fr)
		return f.t.objects(f.r.codec, fr, func(a wireAccount) error {
			_, err := f.next.setAccount(a)
			return err
		}, f.next.setContainer)
	}
	if len(f.raw)+len(fr.raw) > maxChange {
		return errFrameSize
	}
	f.raw = append(f.raw, fr.raw...)
	return f.t.objects(f.r.codec, fr, func(a wireAccount) error {
		f.accounts = append(f.accounts, a)
		return nil
	}, func(c wireContainer) error {
		_, err := number(c.ID) // what is kept on disk must be readable again
		f.containers = append(f.containers, c)
		return err
	})
}

func (f *feed) close(fr frame) error {
	f.at = f.t.To
	if !f.t.Full {
		f.raw = append(f.raw, fr.raw...)
		return f.r.apply(f.t.To, f.accounts, f.containers, f.raw)
	}
	f.keep(fr)
	next, d := f.next, f.draft
	f.next, f.draft = nil, nil
	next.version = f.t.To
	f.r.install(next, d)
	return nil
}
