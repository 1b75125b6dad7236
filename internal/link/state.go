package link

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"time"

	"berth/internal/compute"
)

// state is a copy of what gateways need, in memory. It is packed: there may be a million containers. Who uses it sees to it
// that nobody changes it meanwhile.
type state struct {
	version    wireVersion
	accounts   map[compute.UserID]*account
	containers map[uint32]*container
	holders    map[string][]compute.UserID // of a key, by fingerprint
	owned      map[compute.UserID][]uint32 // containers of an account, which may come later
	words      []string                    // what is said again and again; a word is an index
	wordOf     map[string]word
}

type word uint16

type account struct {
	id       compute.UserID
	created  int64
	username string
	keys     []heldKey
	role     word
	disabled bool
}

type heldKey struct {
	id          int64
	fingerprint string
}

type container struct {
	id              uint32
	slot            int32
	owner           compute.UserID
	created         int64
	name            string
	message         string
	keys            []int64
	memory, storage int32
	kind            word
	desired, status word
	ssh, https      bool
}

func newState() *state {
	return &state{
		accounts: make(map[compute.UserID]*account), containers: make(map[uint32]*container),
		holders: make(map[string][]compute.UserID), owned: make(map[compute.UserID][]uint32), wordOf: make(map[string]word),
	}
}

func (s *state) word(text string) (word, error) {
	if w, ok := s.wordOf[text]; ok {
		return w, nil
	}
	if len(s.words) > math.MaxUint16 {
		return 0, fmt.Errorf("%w: too many words", errMalformed)
	}
	w := word(len(s.words))
	s.words, s.wordOf[text] = append(s.words, text), w
	return w, nil
}

// number is the id as a number, and idOf is its inverse.
func number(id string) (uint32, error) {
	if _, err := compute.ParseContainerID(id); err != nil {
		return 0, fmt.Errorf("%w: container %q", errMalformed, id)
	}
	b, err := hex.DecodeString(id)
	if err != nil {
		return 0, err
	}
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]), nil
}

func idOf(n uint32) compute.ContainerID { return compute.ContainerID(fmt.Sprintf("%08x", n)) }

// setAccount puts an account in the place of what there was of it, and says whether that took something from somebody.
func (s *state) setAccount(w wireAccount) (takes bool, err error) {
	role, err := s.word(w.Role)
	if err != nil {
		return false, err
	}
	a := &account{
		id: compute.UserID(w.ID), created: w.Created, username: w.Username, role: role, disabled: w.Disabled,
		keys: make([]heldKey, len(w.Keys)),
	}
	for i, k := range w.Keys {
		a.keys[i] = heldKey{id: k.ID, fingerprint: k.Fingerprint}
	}
	old := s.accounts[a.id]
	s.accounts[a.id] = a
	if old != nil {
		takes = old.username != a.username || old.role != a.role || old.disabled != a.disabled
		for i, k := range old.keys {
			if !slices.Contains(a.keys, k) {
				takes = true
			}
			if !a.holds(k.fingerprint) && !heldBefore(old.keys[:i], k.fingerprint) {
				s.dropHolder(k.fingerprint, a.id)
			}
		}
	}
	for i, k := range a.keys {
		if (old == nil || !old.holds(k.fingerprint)) && !heldBefore(a.keys[:i], k.fingerprint) {
			s.holders[k.fingerprint] = append(s.holders[k.fingerprint], a.id)
		}
	}
	return takes, nil
}

func (a *account) holds(fingerprint string) bool { return heldBefore(a.keys, fingerprint) }

func heldBefore(keys []heldKey, fingerprint string) bool {
	return slices.ContainsFunc(keys, func(k heldKey) bool { return k.fingerprint == fingerprint })
}

func (s *state) dropHolder(fingerprint string, id compute.UserID) {
	left := slices.DeleteFunc(s.holders[fingerprint], func(h compute.UserID) bool { return h == id })
	if len(left) == 0 {
		delete(s.holders, fingerprint)
		return
	}
	s.holders[fingerprint] = left
}

// setContainer puts a container in the place of what there was of it, or removes it.
func (s *state) setContainer(w wireContainer) error {
	id, err := number(w.ID)
	if err != nil {
		return err
	}
	old := s.containers[id]
	if w.Gone {
		delete(s.containers, id)
		s.disown(old)
		return nil
	}
	c := &container{
		id: id, slot: int32(w.Slot), owner: compute.UserID(w.Owner), created: w.Created, name: w.Name, message: w.Message,
		keys: w.Keys, memory: int32(w.Memory), storage: int32(w.Storage), ssh: w.SSH, https: w.HTTPS,
	}
	for _, field := range []struct {
		to   *word
		text string
	}{{&c.kind, w.Type}, {&c.desired, w.Desired}, {&c.status, w.Status}} {
		if *field.to, err = s.word(field.text); err != nil {
			return err
		}
	}
	s.containers[id] = c
	if old == nil || old.owner != c.owner {
		s.disown(old)
		s.owned[c.owner] = append(s.owned[c.owner], id)
	}
	return nil
}

func (s *state) disown(c *container) {
	if c == nil {
		return
	}
	left := slices.DeleteFunc(s.owned[c.owner], func(id uint32) bool { return id == c.id })
	if len(left) == 0 {
		delete(s.owned, c.owner)
		return
	}
	s.owned[c.owner] = left
}

func (s *state) wireAccount(a *account) wireAccount {
	w := wireAccount{
		ID: int64(a.id), Username: a.username, Role: s.words[a.role], Disabled: a.disabled, Created: a.created,
		Keys: make([]wireKey, len(a.keys)),
	}
	for i, k := range a.keys {
		w.Keys[i] = wireKey{ID: k.id, Fingerprint: k.fingerprint}
	}
	return w
}

func (s *state) wireContainer(c *container) wireContainer {
	return wireContainer{
		ID: string(idOf(c.id)), Owner: int64(c.owner), Name: c.name, Type: s.words[c.kind], Memory: int(c.memory),
		Storage: int(c.storage), Keys: c.keys, SSH: c.ssh, HTTPS: c.https, Slot: int(c.slot), Created: c.created,
		Desired: s.words[c.desired], Status: s.words[c.status], Message: c.message,
	}
}

func (s *state) user(a *account) compute.User {
	return compute.User{
		ID: a.id, Username: a.username, Role: compute.Role(s.words[a.role]), Disabled: a.disabled,
		CreatedAt: time.UnixMilli(a.created).UTC(),
	}
}

func (s *state) container(c *container) compute.Container {
	return compute.Container{
		ID: idOf(c.id), Owner: c.owner, Name: c.name, InstanceType: s.words[c.kind], MemoryMB: int(c.memory),
		StorageGB: int(c.storage), SSHKeyIDs: slices.Clone(c.keys), SSHEnabled: c.ssh, HTTPSEnabled: c.https,
		Slot: int(c.slot), CreatedAt: time.UnixMilli(c.created).UTC(), Desired: compute.Desired(s.words[c.desired]),
		Status: compute.Status(s.words[c.status]), StatusMessage: c.message,
	}
}

// target returns a container whose owner is not disabled, with those of the owner's keys that open it.
func (s *state) target(id compute.ContainerID) (compute.Target, error) {
	n, err := number(string(id))
	if err != nil {
		return compute.Target{}, compute.NotFound("container")
	}
	c := s.containers[n]
	if c == nil {
		return compute.Target{}, compute.NotFound("container")
	}
	a := s.accounts[c.owner]
	if a == nil || a.disabled {
		return compute.Target{}, compute.NotFound("container")
	}
	t := compute.Target{Container: s.container(c), Owner: s.user(a), Keys: []compute.SSHKey{}}
	for _, k := range a.keys {
		if slices.Contains(c.keys, k.id) {
			t.Keys = append(t.Keys, compute.SSHKey{ID: k.id, Owner: a.id, Fingerprint: k.fingerprint})
		}
	}
	return t, nil
}

// users returns the accounts of a fingerprint that are not disabled.
func (s *state) users(fingerprint string) []compute.User {
	list := []compute.User{}
	for _, id := range s.holders[fingerprint] {
		if a := s.accounts[id]; a != nil && !a.disabled {
			list = append(list, s.user(a))
		}
	}
	slices.SortFunc(list, func(a, b compute.User) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// containersOf returns an account's containers, oldest first.
func (s *state) containersOf(owner compute.UserID) []compute.Container {
	list := []compute.Container{}
	for _, id := range s.owned[owner] {
		list = append(list, s.container(s.containers[id]))
	}
	slices.SortFunc(list, func(a, b compute.Container) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return list
}
