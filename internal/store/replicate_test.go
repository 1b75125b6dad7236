package store

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"berth/internal/compute"
)

// copied is a copy of the state, kept by pages and changes alone.
type copied struct {
	version    compute.Version
	accounts   map[compute.UserID]compute.Account
	containers map[compute.ContainerID]compute.Container
}

// copyAll reads all pages.
func copyAll(t *testing.T, r *Reader, limit int) *copied {
	t.Helper()
	ctx := t.Context()
	c := &copied{accounts: map[compute.UserID]compute.Account{}, containers: map[compute.ContainerID]compute.Container{}}
	var err error
	if c.version, err = r.Version(ctx); err != nil {
		t.Fatal(err)
	}
	for after := compute.UserID(0); ; {
		list, err := r.AccountsAfter(ctx, after, limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			break
		}
		for _, a := range list {
			c.accounts[a.ID] = a
		}
		after = list[len(list)-1].ID
	}
	for after := compute.ContainerID(""); ; {
		list, err := r.ContainersAfter(ctx, after, limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			return c
		}
		for _, b := range list {
			c.containers[b.ID] = b
		}
		after = list[len(list)-1].ID
	}
}

// follow takes the copy on until there is nothing newer.
func (c *copied) follow(t *testing.T, r *Reader, limit int) {
	t.Helper()
	for {
		changes, ok, err := r.ChangesSince(t.Context(), c.version, limit)
		if err != nil || !ok {
			t.Fatalf("changes since %+v: %v, %v", c.version, ok, err)
		}
		if len(changes.Accounts)+len(changes.Containers)+len(changes.Gone) > limit {
			t.Fatalf("%d events are about more: %+v", limit, changes)
		}
		for _, a := range changes.Accounts {
			c.accounts[a.ID] = a
		}
		for _, b := range changes.Containers {
			c.containers[b.ID] = b
		}
		for _, id := range changes.Gone {
			delete(c.containers, id)
		}
		if changes.To == c.version {
			return
		}
		if changes.To.Seq <= c.version.Seq || changes.To.Seq > c.version.Seq+int64(limit) {
			t.Fatalf("from %d it goes to %d", c.version.Seq, changes.To.Seq)
		}
		c.version = changes.To
	}
}

// same holds the copy to a new one.
func (c *copied) same(t *testing.T, r *Reader) {
	t.Helper()
	want := copyAll(t, r, 1000)
	for id, b := range c.containers { // what only the loop sees is no event
		b.StorageMade = want.containers[id].StorageMade
		c.containers[id] = b
	}
	if !reflect.DeepEqual(c, want) {
		t.Fatalf("the copy is\n%+v, want\n%+v", c, want)
	}
}

// A copy that is begun and kept while others write, at whatever pace, is what the database says in the end.
func TestCopiesAreKept(t *testing.T) {
	ctx := t.Context()
	commits := make(chan struct{}, 1)
	s := openNew(t, Options{KeepEvents: 1 << 30, OnCommit: func() {
		select {
		case commits <- struct{}{}:
		default:
		}
	}})
	users := make([]compute.UserID, 5)
	for i := range users {
		users[i] = addUser(t, s, fmt.Sprintf("user%d", i))
		addKey(t, s, users[i], "first")
	}
	var writers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 1))
			for i := range 30 {
				u := users[random.IntN(len(users))]
				err := mutate(ctx, s, random, u, fmt.Sprintf("%d-%d", w, i))
				if err != nil && compute.CodeOf(err) == compute.CodeInternal { // what is refused is none
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	var copies []*copied
	for over := false; !over; {
		select {
		case <-done:
			over = true
		case <-commits:
		}
		if len(copies) < 6 {
			copies = append(copies, copyAll(t, s.Reader, 1+len(copies)))
		}
		for i, c := range copies {
			if i%3 != 0 { // some lag behind
				c.follow(t, s.Reader, 1+10*i)
			}
		}
	}
	for i, c := range copies {
		c.follow(t, s.Reader, 1+10*i)
		c.same(t, s.Reader)
	}
	if v, err := s.Version(ctx); err != nil || v.Seq < 30 {
		t.Fatalf("version %+v, %v", v, err)
	}
}

// mutate does something to what is a user's.
func mutate(ctx context.Context, s *Store, random *rand.Rand, u compute.UserID, name string) error {
	boxes, err := s.Containers(ctx, u)
	if err != nil {
		return err
	}
	keys, err := s.Keys(ctx, u)
	if err != nil {
		return err
	}
	box := func() compute.Container { return boxes[random.IntN(len(boxes))] }
	switch n := random.IntN(8); {
	case n == 0 && len(keys) > 1:
		return s.DeleteKey(ctx, u, keys[random.IntN(len(keys))].ID)
	case n <= 1 || len(keys) == 0:
		_, err = s.AddKey(ctx, keyNamed(u, name), 10)
	case n <= 3 || len(boxes) == 0:
		_, err = s.CreateContainer(ctx, boxOf(u, keys[0].ID), 3)
	case n == 4:
		_, err = s.SetSSH(ctx, u, box().ID, random.IntN(2) == 0)
	case n == 5:
		b := box()
		err = s.SetStatus(ctx, b.ID, b.Generation, compute.StatusRunning, "")
	case n == 6:
		b := box()
		if _, err = s.SetDesired(ctx, u, b.ID, compute.DesiredDeleted); err == nil {
			err = s.Purge(ctx, b.ID)
		}
	default:
		_, err = s.SetUserDisabled(ctx, u, random.IntN(2) == 0)
	}
	return err
}

// What is of another history is not taken on.
func TestChangesOfAnotherHistory(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{KeepEvents: 10})
	nothing, err := s.Version(ctx)
	if err != nil || nothing.Seq != 0 || !nothing.At.IsZero() || nothing.Epoch != 1 {
		t.Fatalf("an empty database is at %+v, %v", nothing, err)
	}
	if c, ok, err := s.ChangesSince(ctx, nothing, 5); err != nil || !ok || c.To != nothing {
		t.Errorf("nothing changed: %+v, %v, %v", c, ok, err)
	}
	u := addUser(t, s, "alice")
	if c, ok, err := s.ChangesSince(ctx, nothing, 5); err != nil || !ok || c.To.Seq != 1 || len(c.Accounts) != 1 {
		t.Errorf("after the first event: %+v, %v, %v", c, ok, err)
	}
	for i := range 9 {
		addKey(t, s, u, fmt.Sprint(i))
	}
	now, err := s.Version(ctx)
	if err != nil {
		t.Fatal(err)
	}
	tell := func(what string, v compute.Version, want bool) {
		t.Helper()
		if _, ok, err := s.ChangesSince(ctx, v, 5); err != nil || ok != want {
			t.Errorf("%s: %v, %v", what, ok, err)
		}
	}
	tell("the version itself", now, true)
	other := func(f func(*compute.Version)) compute.Version {
		v := now
		f(&v)
		return v
	}
	tell("another installation", other(func(v *compute.Version) { v.Installation = "x" }), false)
	tell("another epoch", other(func(v *compute.Version) { v.Epoch++ }), false)
	tell("the future", other(func(v *compute.Version) { v.Seq++ }), false)
	tell("another event of that number", other(func(v *compute.Version) { v.At = v.At.Add(-time.Millisecond) }), false)
	events := allEvents(t, s.Reader)
	tell("an event before", other(func(v *compute.Version) { v.Seq, v.At = 5, events[4].At }), true)
	tell("another event before", other(func(v *compute.Version) { v.Seq, v.At = 5, events[4].At.Add(time.Second) }), false)
	tell("nothing at all", compute.Version{}, false)

	for range 260 { // by then, old ones are removed
		on, err := s.User(ctx, u)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.SetUserDisabled(ctx, u, !on.Disabled); err != nil {
			t.Fatal(err)
		}
	}
	tell("the events are gone", now, false)
	tell("the beginning is gone", nothing, false)
}

// Pages have everything once, in order.
func TestPages(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	var want []compute.ContainerID
	for i := range 7 {
		u := addUser(t, s, fmt.Sprintf("user%d", i))
		if i == 3 {
			continue // without keys and containers
		}
		k := addKey(t, s, u, "a")
		addKey(t, s, u, "b")
		want = append(want, addContainer(t, s, u, k).ID)
		gone := addContainer(t, s, u, k)
		if _, err := s.SetDesired(ctx, u, gone.ID, compute.DesiredDeleted); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(want)
	for limit := 1; limit < 9; limit++ {
		c := copyAll(t, s.Reader, limit)
		if got := slices.Sorted(maps.Keys(c.containers)); !slices.Equal(got, want) {
			t.Errorf("pages of %d have %q, want %q", limit, got, want)
		}
		for id, a := range c.accounts {
			keys, err := s.Keys(ctx, id)
			if err != nil || !slices.Equal(a.Keys, keys) {
				t.Errorf("account %d has keys %+v, want %+v, %v", id, a.Keys, keys, err)
			}
		}
		if len(c.accounts) != 7 {
			t.Errorf("pages of %d have %d accounts", limit, len(c.accounts))
		}
	}
}
