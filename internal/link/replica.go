package link

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"berth/internal/compute"
)

// Replica is a gateway's copy of the state. Who asks it is answered from memory, or told that it cannot say. A Client feeds
// it; its methods may be called concurrently.
type Replica struct {
	path string
	opt  ReplicaOptions
	log  *slog.Logger
	codec

	keeper // of the one goroutine that feeds it

	mu      sync.RWMutex // guards what follows; no I/O under it
	state   *state       // nil while there is nothing that is known to be right
	revoked bool         // the control plane said that this gateway is one no more
	heard   time.Time    // when the control plane was last heard from
	able    chan struct{}
	subs    map[*subscription]struct{}
	closed  bool
}

// ReplicaOptions adjusts a Replica. The zero value is ready to use.
type ReplicaOptions struct {
	MaxStale time.Duration    // 0 is DefaultMaxStale
	Now      func() time.Time // nil is time.Now
	Log      *slog.Logger     // nil discards
}

// clockSlack is how far back a clock may have been set before a file's last contact cannot be judged by it any more.
const clockSlack = 5 * time.Minute

// OpenReplica returns a Replica that is kept in the file at path. Where that file is not there, or is not whole, it knows
// nothing until a Client has filled it. One process may have it open.
func OpenReplica(path string, o ReplicaOptions) *Replica {
	if o.MaxStale <= 0 {
		o.MaxStale = DefaultMaxStale
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &Replica{
		path: path, opt: o, log: o.Log, codec: newCodec(),
		able: make(chan struct{}), subs: make(map[*subscription]struct{}),
	}
	r.slack = compactSlack
	for _, left := range ReplicaFiles(path)[1:] {
		if err := os.Remove(left); err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.log.Warn("remove what a crash left", "err", err)
		}
	}
	f, st, err := readFile(path, r.codec)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r
	case err != nil:
		r.log.Error("the copy of the control plane's state is not trusted: nobody logs in until a new one has come",
			"file", path, "err", err)
		return r
	}
	r.file, r.state, r.heard = f, st, f.contact
	r.durable, r.noted = st.version, f.contact
	if r.usable() == nil {
		close(r.able)
	}
	return r
}

// Close ends all subscriptions and closes the file. No Client may run any more.
func (r *Replica) Close() error {
	r.mu.Lock()
	r.closed = true
	r.endSubscriptions()
	r.mu.Unlock()
	r.stopCompaction()
	err := r.file.close()
	r.file = nil
	return err
}

// Ready waits until the replica can answer.
func (r *Replica) Ready(ctx context.Context) error {
	r.mu.RLock()
	able := r.able
	r.mu.RUnlock()
	select {
	case <-able:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// usable says why the replica cannot answer, if so: CodeForbidden when it is for good. r.mu is held, or nobody else has r
// yet.
func (r *Replica) usable() error {
	switch {
	case r.revoked:
		return compute.Errorf(compute.CodeForbidden, "This gateway was taken out of service; use another one.")
	case r.state == nil:
		return compute.Errorf(compute.CodeUnavailable,
			"This gateway has no word from its control plane yet; try again in a moment.")
	case r.stale():
		return compute.Errorf(compute.CodeUnavailable,
			"This gateway has not heard from its control plane for more than %v and admits nobody; tell your operator.",
			r.opt.MaxStale)
	}
	return nil
}

// stale says whether the last contact is too long ago. Time counts by the clock on the wall and by the one that nobody sets,
// as far as it reaches, whichever says more.
func (r *Replica) stale() bool {
	now := r.opt.Now()
	wall := now.Round(0).Sub(r.heard.Round(0))
	return wall > r.opt.MaxStale || now.Sub(r.heard) > r.opt.MaxStale || now.Sub(r.heard) < -clockSlack
}

// Age is how long ago the control plane was last heard from, by the clock that says more.
func (r *Replica) Age() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.opt.Now()
	return max(now.Round(0).Sub(r.heard.Round(0)), now.Sub(r.heard))
}

// Target returns a container with the keys that open it, of which only ids and fingerprints are known here; CodeNotFound
// when there is none or its owner is disabled.
func (r *Replica) Target(_ context.Context, id compute.ContainerID) (compute.Target, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable(); err != nil {
		return compute.Target{}, err
	}
	return r.state.target(id)
}

// Accounts returns the users that have the key and are not disabled.
func (r *Replica) Accounts(_ context.Context, fingerprint string) ([]compute.User, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable(); err != nil {
		return nil, err
	}
	return r.state.users(fingerprint), nil
}

// Containers returns the owner's containers, oldest first.
func (r *Replica) Containers(_ context.Context, owner compute.UserID) ([]compute.Container, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable(); err != nil {
		return nil, err
	}
	return r.state.containersOf(owner), nil
}

// Users returns every account, oldest first.
func (r *Replica) Users(context.Context) ([]compute.User, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable(); err != nil {
		return nil, err
	}
	list := make([]compute.User, 0, len(r.state.accounts))
	for _, id := range slices.Sorted(maps.Keys(r.state.accounts)) {
		list = append(list, r.state.user(r.state.accounts[id]))
	}
	return list, nil
}

// Keys returns the ids and fingerprints of the owner's keys.
func (r *Replica) Keys(_ context.Context, owner compute.UserID) ([]compute.SSHKey, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable(); err != nil {
		return nil, err
	}
	list := []compute.SSHKey{}
	if a := r.state.accounts[owner]; a != nil {
		for _, k := range a.keys {
			list = append(list, compute.SSHKey{ID: k.id, Owner: owner, Fingerprint: k.fingerprint})
		}
	}
	return list, nil
}

// subscription is one reader of changes.
type subscription struct{ c chan compute.Event }

// pending is how many changes wait for a slow reader.
const pending = 1024

// Changes subscribes to what changes from now on: which account or container it was, and whether it may have taken something
// from somebody. The channel is closed when the reader is too slow, when something took the place of all there was, and at
// the end; the reader then looks at everything anew.
func (r *Replica) Changes() (events <-chan compute.Event, cancel func()) {
	s := &subscription{c: make(chan compute.Event, pending)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		close(s.c)
		return s.c, func() {}
	}
	r.subs[s] = struct{}{}
	return s.c, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.unsubscribe(s)
	}
}

// unsubscribe ends a subscription that is open. r.mu is held.
func (r *Replica) unsubscribe(s *subscription) {
	if _, open := r.subs[s]; open {
		delete(r.subs, s)
		close(s.c)
	}
}

func (r *Replica) endSubscriptions() {
	for s := range r.subs {
		r.unsubscribe(s)
	}
}

// publish tells of changes. r.mu is held.
func (r *Replica) publish(events []compute.Event) {
	for s := range r.subs {
		for _, e := range events {
			select {
			case s.c <- e:
				continue
			default:
			}
			r.unsubscribe(s)
			break
		}
	}
}
