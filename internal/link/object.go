package link

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/fxamacker/cbor/v2"

	"berth/internal/compute"
)

// What is in frames, in CBOR (RFC 8949): maps with numbers for names, of which unknown ones are passed over, so that a later
// Berth may say more. A replica's file that an older gateway wrote lacks what it did not know: who adds a field raises
// fileFormat.

type wireVersion struct {
	Installation string `cbor:"1,keyasint"`
	Epoch        int64  `cbor:"2,keyasint"`
	Seq          int64  `cbor:"3,keyasint"`
	At           int64  `cbor:"4,keyasint,omitempty"` // unix milliseconds
}

func toWireVersion(v compute.Version) wireVersion {
	w := wireVersion{Installation: v.Installation, Epoch: v.Epoch, Seq: v.Seq}
	if !v.At.IsZero() {
		w.At = v.At.UnixMilli()
	}
	return w
}

func (w wireVersion) version() compute.Version {
	v := compute.Version{Installation: w.Installation, Epoch: w.Epoch, Seq: w.Seq}
	if w.At != 0 {
		v.At = time.UnixMilli(w.At).UTC()
	}
	return v
}

// hello is a gateway's first word: the version that it has durably, or none, and the name of the numbers of its audit records.
type hello struct {
	Version wireVersion `cbor:"1,keyasint"`
	Queue   string      `cbor:"2,keyasint,omitempty"`
}

// recorded says that the records up to a number are stored.
type recorded struct {
	Last int64 `cbor:"1,keyasint"`
}

// answer says that all up to the last end or ping is done, and which number is durable.
type answer struct {
	Seq int64 `cbor:"1,keyasint"`
}

// begin opens what takes a copy from one version to another; a full one takes the place of whatever there was.
type begin struct {
	Full bool        `cbor:"1,keyasint,omitempty"`
	From wireVersion `cbor:"2,keyasint"` // of a change alone
	To   wireVersion `cbor:"3,keyasint"`
}

// end closes it, with how many objects there were.
type end struct {
	Accounts   int `cbor:"1,keyasint"`
	Containers int `cbor:"2,keyasint"`
}

type ping struct {
	Version wireVersion `cbor:"1,keyasint"`
}

// bye is the control plane's last word.
type bye struct {
	Code   string `cbor:"1,keyasint"`
	Reason string `cbor:"2,keyasint"`
}

type wireKey struct {
	_           struct{} `cbor:",toarray"`
	ID          int64
	Fingerprint string
}

type wireAccount struct {
	ID       int64     `cbor:"1,keyasint"`
	Username string    `cbor:"2,keyasint"`
	Role     string    `cbor:"3,keyasint"`
	Disabled bool      `cbor:"4,keyasint,omitempty"`
	Created  int64     `cbor:"5,keyasint,omitempty"`
	Keys     []wireKey `cbor:"6,keyasint,omitempty"`
}

// wireContainer is a container as gateways know it, or that it is gone. What an engine alone needs is left out. 16 is for
// the rules of ingress.
type wireContainer struct {
	ID      string  `cbor:"1,keyasint"`
	Gone    bool    `cbor:"2,keyasint,omitempty"`
	Owner   int64   `cbor:"3,keyasint,omitempty"`
	Name    string  `cbor:"4,keyasint,omitempty"`
	Type    string  `cbor:"5,keyasint,omitempty"`
	Memory  int     `cbor:"6,keyasint,omitempty"`
	Storage int     `cbor:"7,keyasint,omitempty"`
	Keys    []int64 `cbor:"8,keyasint,omitempty"`
	SSH     bool    `cbor:"9,keyasint,omitempty"`
	HTTPS   bool    `cbor:"10,keyasint,omitempty"`
	Slot    int     `cbor:"11,keyasint,omitempty"`
	Created int64   `cbor:"12,keyasint,omitempty"`
	Desired string  `cbor:"13,keyasint,omitempty"`
	Status  string  `cbor:"14,keyasint,omitempty"`
	Message string  `cbor:"15,keyasint,omitempty"`
}

func toWireAccount(a compute.Account) wireAccount {
	w := wireAccount{
		ID: int64(a.ID), Username: a.Username, Role: string(a.Role), Disabled: a.Disabled, Created: a.CreatedAt.UnixMilli(),
		Keys: make([]wireKey, len(a.Keys)),
	}
	for i, k := range a.Keys {
		w.Keys[i] = wireKey{ID: k.ID, Fingerprint: k.Fingerprint}
	}
	return w
}

func toWireContainer(c compute.Container) wireContainer {
	return wireContainer{
		ID: string(c.ID), Owner: int64(c.Owner), Name: c.Name, Type: c.InstanceType,
		Memory: c.MemoryMB, Storage: c.StorageGB,
		Keys: c.SSHKeyIDs, SSH: c.SSHEnabled, HTTPS: c.HTTPSEnabled, Slot: c.Slot, Created: c.CreatedAt.UnixMilli(),
		Desired: string(c.Desired), Status: string(c.Status), Message: c.StatusMessage,
	}
}

// codec turns what is in frames to bytes and back.
type codec struct {
	enc cbor.EncMode
	dec cbor.DecMode
}

func newCodec() codec {
	enc, err := cbor.EncOptions{}.EncMode()
	if err != nil {
		panic(err) // the options are constants
	}
	dec, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		MaxNestedLevels: 8, MaxArrayElements: 1 << 16, MaxMapPairs: 1 << 10,
		// Text is what the control plane has, whoever wrote it: one bad byte in a container's message, which may quote its
		// agent, must not keep every gateway from all that is new.
		UTF8: cbor.UTF8DecodeInvalid,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return codec{enc, dec}
}

// read decodes the one thing that is in a payload.
func (c codec) read(payload []byte, v any) error {
	if err := c.dec.Unmarshal(payload, v); err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	return nil
}

var errMalformed = errors.New("a frame holds what none may hold")

// readAll calls f with each of the objects that stand one after the other in a payload.
func readAll[T any](c codec, payload []byte, f func(T) error) error {
	for len(payload) > 0 {
		var v T
		rest, err := c.dec.UnmarshalFirst(payload, &v)
		if err != nil {
			return fmt.Errorf("%w: %w", errMalformed, err)
		}
		if err := f(v); err != nil {
			return err
		}
		payload = rest
	}
	return nil
}

// writer writes frames. Objects are packed: some to a frame.
type writer struct {
	codec
	w      io.Writer
	frame  []byte
	pack   kind // of what is packed
	packed []byte
	counts end
}

func newWriter(w io.Writer) *writer { return &writer{codec: newCodec(), w: w} }

// send writes one frame.
func (w *writer) send(k kind, v any) error {
	payload, err := w.enc.Marshal(v)
	if err != nil {
		return err
	}
	return w.put(k, payload)
}

func (w *writer) put(k kind, payload []byte) error {
	if 1+len(payload) > maxFrame {
		return fmt.Errorf("%w: %d bytes", errFrameSize, 1+len(payload))
	}
	w.frame = appendFrame(w.frame[:0], k, payload)
	_, err := w.w.Write(w.frame)
	return err
}

// begin opens what takes a copy to a version.
func (w *writer) begin(b begin) error {
	w.counts = end{}
	return w.send(kindBegin, b)
}

func (w *writer) account(a wireAccount) error {
	w.counts.Accounts++
	return w.add(kindAccounts, a)
}

func (w *writer) container(c wireContainer) error {
	w.counts.Containers++
	return w.add(kindContainers, c)
}

func (w *writer) add(k kind, v any) error {
	b, err := w.enc.Marshal(v)
	if err != nil {
		return err
	}
	if w.pack != k || len(w.packed)+len(b) > chunk {
		if err := w.flushPack(); err != nil {
			return err
		}
	}
	w.pack, w.packed = k, append(w.packed, b...)
	return nil
}

func (w *writer) flushPack() error {
	if len(w.packed) == 0 {
		return nil
	}
	err := w.put(w.pack, w.packed)
	w.packed = w.packed[:0]
	return err
}

// end closes it.
func (w *writer) end() error {
	if err := w.flushPack(); err != nil {
		return err
	}
	return w.send(kindEnd, w.counts)
}
