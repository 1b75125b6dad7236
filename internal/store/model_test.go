package store

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"berth/internal/compute"
)

// model is what the store should hold, written down as plainly as can be.
type model struct {
	s   *Store
	clk *clock

	users     map[compute.UserID]bool // → disabled
	keys      map[int64]compute.SSHKey
	boxes     []*modelBox // oldest first
	ids       map[compute.ContainerID]bool
	released  map[compute.UserID]map[int]time.Time
	events    []compute.Event // without Seq and At
	limit     int
	keyLimit  int
	nextNames int
	compared  int // how many events were found equal
}

type modelBox struct {
	compute.Container
	purged bool
	rules  []compute.IngressRule // without ids, oldest first
}

// A random walk through everything that the store does, step by step equal to the model: rows, events in order, limits,
// slots and generations.
func TestStoreAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		clk := newClock()
		s, err := Open(t.Context(), newSource(t), Options{Now: clk.now})
		if err != nil {
			rt.Fatal(err)
		}
		defer s.Close()
		hasten(t, s)
		m := &model{
			s: s, clk: clk, limit: 3, keyLimit: 4,
			users: make(map[compute.UserID]bool), keys: make(map[int64]compute.SSHKey),
			ids:      make(map[compute.ContainerID]bool),
			released: make(map[compute.UserID]map[int]time.Time),
		}
		m.addUser(rt)
		rt.Repeat(map[string]func(*rapid.T){
			"":          m.check,
			"user":      m.addUser,
			"disable":   m.disable,
			"key":       m.addKey,
			"deleteKey": m.deleteKey,
			"create":    m.create,
			"start":     m.desire(compute.DesiredRunning),
			"stop":      m.desire(compute.DesiredStopped),
			"delete":    m.desire(compute.DesiredDeleted),
			"ssh":       m.ssh,
			"storage":   m.storage,
			"status":    m.status,
			"observe":   m.status, // twice as likely
			"purge":     m.purge,
			"rule":      m.addRule,
			"unrule":    m.deleteRule,
			"mounts":    m.mounts,
			"time":      func(t *rapid.T) { clk.add(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second) },
			"slots":     m.slots,
		})
		checkInvariants(t, s)
	})
}

func (m *model) event(kind compute.EventKind, owner compute.UserID, c compute.ContainerID, key int64) {
	m.events = append(m.events, compute.Event{Kind: kind, Owner: owner, Container: c, KeyID: key})
}

func (m *model) want(t *rapid.T, err error, code compute.Code) {
	t.Helper()
	if code == "" && err != nil {
		t.Fatalf("unexpected error: %v", err)
	}
	if code != "" && (err == nil || compute.CodeOf(err) != code) {
		t.Fatalf("got error %v, want %s", err, code)
	}
}

func (m *model) anyUser(t *rapid.T) compute.UserID {
	return rapid.SampledFrom(slices.Sorted(maps.Keys(m.users))).Draw(t, "user")
}

// anyBox draws a container, whatever became of it, with a user who mostly is its owner.
func (m *model) anyBox(t *rapid.T) (*modelBox, compute.UserID) {
	if len(m.boxes) == 0 {
		t.Skip("no container yet")
	}
	b := rapid.SampledFrom(m.boxes).Draw(t, "box")
	if rapid.IntRange(0, 9).Draw(t, "as another") == 0 {
		return b, m.anyUser(t)
	}
	return b, b.Owner
}

func (m *model) addUser(t *rapid.T) {
	m.nextNames++
	u, err := m.s.CreateUser(t.Context(), fmt.Sprint("user", m.nextNames), compute.RoleUser)
	m.want(t, err, "")
	m.users[u.ID] = false
	m.event(compute.EventUserChanged, u.ID, "", 0)
}

func (m *model) disable(t *rapid.T) {
	id, disabled := m.anyUser(t), rapid.Bool().Draw(t, "disabled")
	_, err := m.s.SetUserDisabled(t.Context(), id, disabled)
	m.want(t, err, "")
	if m.users[id] != disabled {
		m.users[id] = disabled
		m.event(compute.EventUserChanged, id, "", 0)
	}
}

func (m *model) addKey(t *rapid.T) {
	k := keyNamed(m.anyUser(t), rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "key"))
	count, has := 0, false
	for _, old := range m.keys {
		if old.Owner == k.Owner {
			count++
			has = has || old.Fingerprint == k.Fingerprint
		}
	}
	got, err := m.s.AddKey(t.Context(), k, m.keyLimit)
	switch {
	case m.users[k.Owner]:
		m.want(t, err, compute.CodeForbidden)
	case has:
		m.want(t, err, compute.CodeConflict)
	case count >= m.keyLimit:
		m.want(t, err, compute.CodeLimit)
	default:
		m.want(t, err, "")
		if _, taken := m.keys[got.ID]; taken {
			t.Fatalf("key %d is there twice", got.ID)
		}
		m.keys[got.ID] = got
		m.event(compute.EventKeyAdded, k.Owner, "", got.ID)
	}
}

func (m *model) deleteKey(t *rapid.T) {
	if len(m.keys) == 0 {
		t.Skip("no key")
	}
	id := rapid.SampledFrom(slices.Sorted(maps.Keys(m.keys))).Draw(t, "key")
	as := m.keys[id].Owner
	if rapid.IntRange(0, 9).Draw(t, "as another") == 0 {
		as = m.anyUser(t)
	}
	err := m.s.DeleteKey(t.Context(), as, id)
	if as != m.keys[id].Owner {
		m.want(t, err, compute.CodeNotFound)
		return
	}
	m.want(t, err, "")
	delete(m.keys, id)
	m.event(compute.EventKeyDeleted, as, "", id)
	for _, b := range m.boxes {
		if i := slices.Index(b.SSHKeyIDs, id); i >= 0 {
			b.SSHKeyIDs = slices.Delete(b.SSHKeyIDs, i, i+1)
			if !b.purged && b.Desired != compute.DesiredDeleted {
				m.event(compute.EventContainerChanged, as, b.ID, 0)
			}
		}
	}
}

func (m *model) create(t *rapid.T) {
	owner := m.anyUser(t)
	var mine []int64
	for _, id := range slices.Sorted(maps.Keys(m.keys)) {
		if m.keys[id].Owner == owner {
			mine = append(mine, id)
		}
	}
	live := 0
	for _, b := range m.boxes {
		if b.Owner == owner && !b.purged && b.Desired != compute.DesiredDeleted {
			live++
		}
	}
	request := boxOf(owner, mine...)
	foreign := rapid.IntRange(0, 9).Draw(t, "foreign key") == 0
	if foreign {
		request.SSHKeyIDs = append(request.SSHKeyIDs, 1_000_000)
	}
	c, err := m.s.CreateContainer(t.Context(), request, m.limit)
	switch {
	case m.users[owner]:
		m.want(t, err, compute.CodeForbidden)
	case live >= m.limit:
		m.want(t, err, compute.CodeLimit)
	case foreign:
		m.want(t, err, compute.CodeInvalid)
	default:
		m.want(t, err, "")
		if m.ids[c.ID] {
			t.Fatalf("id %s came back", c.ID)
		}
		m.ids[c.ID] = true
		b := &modelBox{Container: request}
		b.ID, b.CreatedAt, b.Generation, b.Slot = c.ID, m.clk.now(), 1, compute.NoSlot
		b.Desired, b.Status = compute.DesiredRunning, compute.StatusPending
		b.SSHKeyIDs = append([]int64{}, mine...)
		m.boxes = append(m.boxes, b)
		m.event(compute.EventContainerCreated, owner, b.ID, 0)
		m.events = append(m.events, compute.Event{
			Kind: compute.EventContainerStatus, Owner: owner, Container: b.ID, Status: compute.StatusPending,
		})
		m.giveSlots(owner, b)
	}
}

// giveSlots gives the smallest free slot to each that has none, oldest first.
func (m *model) giveSlots(owner compute.UserID, made *modelBox) {
	for _, b := range m.boxes {
		if b.Owner != owner || b.purged || b.Desired == compute.DesiredDeleted || b.Slot != compute.NoSlot {
			continue
		}
		for slot := 0; slot <= m.limit; slot++ {
			at, resting := m.released[owner][slot]
			resting = resting && m.clk.now().Sub(at) < time.Minute
			taken := slices.ContainsFunc(m.boxes, func(o *modelBox) bool {
				return o.Owner == owner && !o.purged && o.Slot == slot
			})
			if !taken && !resting {
				b.Slot = slot
				if b != made {
					m.event(compute.EventContainerChanged, owner, b.ID, 0)
				}
				break
			}
		}
	}
}

func (m *model) desire(d compute.Desired) func(*rapid.T) {
	return func(t *rapid.T) {
		b, as := m.anyBox(t)
		_, err := m.s.SetDesired(t.Context(), as, b.ID, d)
		if as != b.Owner || b.purged || b.Desired == compute.DesiredDeleted {
			m.want(t, err, compute.CodeNotFound)
			return
		}
		m.want(t, err, "")
		retry := d == compute.DesiredRunning && b.Status == compute.StatusFailed
		if b.Desired == d && !retry {
			return
		}
		b.Desired = d
		b.Generation++
		if d == compute.DesiredDeleted {
			b.rules, b.HTTPSEnabled = nil, false
			m.event(compute.EventContainerDeleted, b.Owner, b.ID, 0)
			return
		}
		m.event(compute.EventContainerChanged, b.Owner, b.ID, 0)
		if d == compute.DesiredRunning {
			m.walk(b, compute.StatusPending, "")
		}
		m.giveSlots(b.Owner, nil)
	}
}

// walk is the transition function, said as a table of what a reader must see.
func (m *model) walk(b *modelBox, to compute.Status, message string) {
	if b.Status == to && b.StatusMessage == message {
		return
	}
	steps := []compute.Status{to}
	switch {
	case to == running && b.Status == pending:
		steps = []compute.Status{initializing, running}
	case to == running && (b.Status == stopped || b.Status == failed):
		steps = []compute.Status{pending, initializing, running}
	case to == initializing && b.Status != initializing && b.Status != pending:
		steps = []compute.Status{pending, initializing}
	}
	for _, status := range steps {
		m.events = append(m.events, compute.Event{
			Kind: compute.EventContainerStatus, Owner: b.Owner, Container: b.ID, Status: status,
		})
	}
	m.events[len(m.events)-1].StatusMessage = message
	b.Status, b.StatusMessage = to, message
}

func (m *model) ssh(t *rapid.T) {
	b, as := m.anyBox(t)
	on := rapid.Bool().Draw(t, "on")
	_, err := m.s.SetSSH(t.Context(), as, b.ID, on)
	if as != b.Owner || b.purged || b.Desired == compute.DesiredDeleted {
		m.want(t, err, compute.CodeNotFound)
		return
	}
	m.want(t, err, "")
	if b.SSHEnabled != on {
		b.SSHEnabled = on
		m.event(compute.EventContainerChanged, b.Owner, b.ID, 0)
	}
}

func (m *model) storage(t *rapid.T) {
	b, _ := m.anyBox(t)
	err := m.s.RecordStorage(t.Context(), b.ID)
	if b.purged {
		m.want(t, err, compute.CodeNotFound)
		return
	}
	m.want(t, err, "")
	b.StorageMade = true
}

func (m *model) status(t *rapid.T) {
	b, _ := m.anyBox(t)
	generation := b.Generation - int64(rapid.SampledFrom([]int{0, 0, 0, 1, -1}).Draw(t, "generations behind"))
	to := rapid.SampledFrom([]compute.Status{pending, initializing, running, stopped, failed}).Draw(t, "status")
	message := rapid.SampledFrom([]string{"", "no room"}).Draw(t, "message")
	err := m.s.SetStatus(t.Context(), b.ID, generation, to, message)
	if b.purged {
		m.want(t, err, compute.CodeNotFound)
		return
	}
	m.want(t, err, "")
	if generation == b.Generation && b.Desired != compute.DesiredDeleted {
		m.walk(b, to, message)
	}
}

func (m *model) purge(t *rapid.T) {
	b, _ := m.anyBox(t)
	err := m.s.Purge(t.Context(), b.ID)
	if b.Desired != compute.DesiredDeleted {
		m.want(t, err, compute.CodeConflict)
		return
	}
	m.want(t, err, "")
	if b.purged {
		return
	}
	b.purged = true
	if b.Slot != compute.NoSlot {
		if m.released[b.Owner] == nil {
			m.released[b.Owner] = make(map[int]time.Time)
		}
		m.released[b.Owner][b.Slot] = m.clk.now()
	}
	m.event(compute.EventContainerPurged, b.Owner, b.ID, 0)
	m.giveSlots(b.Owner, nil)
}

func (m *model) slots(t *rapid.T) {
	_, err := m.s.AssignSlots(t.Context())
	m.want(t, err, "")
	for _, id := range slices.Sorted(maps.Keys(m.users)) {
		m.giveSlots(id, nil)
	}
}

// check compares the rows, one target and the new events with the model.
func (m *model) check(t *rapid.T) {
	var rows []compute.Container
	for _, b := range m.boxes {
		if !b.purged {
			rows = append(rows, b.Container)
		}
	}
	got, err := m.s.Reconcilable(t.Context())
	if err != nil || len(got) != len(rows) || (len(rows) > 0 && !reflect.DeepEqual(got, rows)) {
		t.Fatalf("rows\n got  %+v\n want %+v\n %v", got, rows, err)
	}
	if len(rows) > 0 {
		m.checkTarget(t, rapid.SampledFrom(rows).Draw(t, "target"))
		m.checkRules(t)
	}
	events, err := m.s.Events(t.Context(), int64(m.compared), 1_000_000)
	want := m.events[m.compared:]
	if err != nil || len(events) != len(want) {
		t.Fatalf("%d events, want %d: %+v; %v", len(events), len(want), events, err)
	}
	for i, e := range events {
		m.compared++
		if e.Seq != int64(m.compared) {
			t.Fatalf("event %d has number %d", m.compared, e.Seq)
		}
		e.Seq, e.At = 0, time.Time{}
		if e != want[i] {
			t.Fatalf("event %d is %+v, want %+v", m.compared, e, want[i])
		}
	}
}

func (m *model) checkTarget(t *rapid.T, c compute.Container) {
	target, err := m.s.Target(t.Context(), c.ID)
	if m.users[c.Owner] || c.Desired == compute.DesiredDeleted {
		m.want(t, err, compute.CodeNotFound)
		return
	}
	m.want(t, err, "")
	var keys []compute.SSHKey
	for _, id := range c.SSHKeyIDs {
		keys = append(keys, m.keys[id])
	}
	if !reflect.DeepEqual(target.Container, c) || len(target.Keys) != len(keys) ||
		(len(keys) > 0 && !reflect.DeepEqual(target.Keys, keys)) || target.Owner.ID != c.Owner {
		t.Fatalf("target %+v of %+v with %+v", target, c, keys)
	}
}
