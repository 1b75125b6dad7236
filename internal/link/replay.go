package link

import (
	"errors"
	"fmt"
	"io"
)

// Faults of a stream that a new snapshot repairs.
var (
	errLost  = errors.New("something was lost on the way")
	errOrder = errors.New("a frame comes where none of its kind may")
)

// transaction is what stands between a begin and its end: it takes a copy from one version to another.
type transaction struct {
	begin
	got  end
	open bool
}

// start reads a begin. At is the version of the copy, zero where there is none.
func (t *transaction) start(c codec, payload []byte, at wireVersion) error {
	if t.open {
		return errOrder
	}
	*t = transaction{open: true}
	if err := c.read(payload, &t.begin); err != nil {
		return err
	}
	from, to := t.From, t.To
	if to.Installation == "" {
		return fmt.Errorf("%w: a copy of no installation", errMalformed)
	}
	if t.Full {
		return nil
	}
	if at == (wireVersion{}) || from != at {
		return fmt.Errorf("%w: a change of version %d.%d came, and the copy is at %d.%d", errLost,
			from.Epoch, from.Seq, at.Epoch, at.Seq)
	}
	if to.Installation != from.Installation || to.Epoch != from.Epoch || to.Seq <= from.Seq {
		return fmt.Errorf("%w: a change from %d.%d to %d.%d", errMalformed, from.Epoch, from.Seq, to.Epoch, to.Seq)
	}
	return nil
}

// objects hands on what a frame of objects holds.
func (t *transaction) objects(
	c codec, f frame, accounts func(wireAccount) error, containers func(wireContainer) error,
) error {
	if !t.open {
		return errOrder
	}
	if f.kind == kindAccounts {
		return readAll(c, f.payload, func(a wireAccount) error {
			t.got.Accounts++
			return accounts(a)
		})
	}
	return readAll(c, f.payload, func(b wireContainer) error {
		t.got.Containers++
		return containers(b)
	})
}

// finish reads an end.
func (t *transaction) finish(c codec, payload []byte) error {
	if !t.open {
		return errOrder
	}
	t.open = false
	var e end
	if err := c.read(payload, &e); err != nil {
		return err
	}
	if e != t.got {
		return fmt.Errorf("%w: %d of %d accounts and %d of %d containers came", errLost,
			t.got.Accounts, e.Accounts, t.got.Containers, e.Containers)
	}
	return nil
}

// replay makes a state of a snapshot and the changes that follow it, up to the end of r. Base is the snapshot's length.
func replay(r io.Reader, c codec) (st *state, base int64, err error) {
	st = newState()
	var t transaction
	var read int64
	setAccount := func(a wireAccount) error {
		_, err := st.setAccount(a)
		return err
	}
	setContainer := func(b wireContainer) error { return st.setContainer(b) }
	for in := newFrameReader(r, maxFrame); ; {
		f, err := in.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, 0, err
		}
		read += int64(len(f.raw))
		switch f.kind {
		case kindBegin:
			if err := t.start(c, f.payload, st.version); err != nil {
				return nil, 0, err
			}
			if t.Full != (st.version == wireVersion{}) {
				return nil, 0, errOrder
			}
		case kindAccounts, kindContainers:
			if err := t.objects(c, f, setAccount, setContainer); err != nil {
				return nil, 0, err
			}
		case kindEnd:
			if err := t.finish(c, f.payload); err != nil {
				return nil, 0, err
			}
			if st.version = t.To; t.Full {
				base = read
			}
		default:
			return nil, 0, errOrder
		}
	}
	if t.open || st.version == (wireVersion{}) {
		return nil, 0, io.ErrUnexpectedEOF
	}
	return st, base, nil
}
