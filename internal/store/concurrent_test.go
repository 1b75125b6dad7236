package store

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"berth/internal/compute"
)

// atOnce calls f from n goroutines that begin together, and counts the results by code; "" are those without an error.
func atOnce(n int, f func(i int) error) map[compute.Code]int {
	var mu sync.Mutex
	codes := make(map[compute.Code]int)
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-begin
			err := f(i)
			code := compute.Code("")
			if err != nil {
				code = compute.CodeOf(err)
			}
			mu.Lock()
			defer mu.Unlock()
			codes[code]++
		})
	}
	close(begin)
	wg.Wait()
	return codes
}

// Limits hold when requests race, within one process and between several that have the same file open.
func TestLimitsUnderConcurrency(t *testing.T) {
	ctx := t.Context()
	path := newSource(t)
	stores := []*Store{openAt(t, path, Options{}), openAt(t, path, Options{}), openAt(t, path, Options{})}
	s := stores[0]
	alice := addUser(t, s, "alice")
	key := addKey(t, s, alice, "one")

	got := atOnce(100, func(i int) error {
		_, err := stores[i%3].CreateContainer(ctx, boxOf(alice, key), 3)
		return err
	})
	if got[""] != 3 || got[compute.CodeLimit] != 97 {
		t.Fatalf("100 creates at once: %v", got)
	}
	mustCount(t, s.db, 3, `SELECT count(DISTINCT slot) FROM containers`)

	got = atOnce(100, func(i int) error {
		_, err := stores[i%3].AddKey(ctx, keyNamed(alice, fmt.Sprint("key", i)), 10)
		return err
	})
	if got[""] != 9 || got[compute.CodeLimit] != 91 {
		t.Fatalf("100 new keys at once: %v", got)
	}

	list, err := s.Containers(ctx, alice)
	if err != nil {
		t.Fatal(err)
	}
	box := list[0].ID
	got = atOnce(100, func(i int) error {
		_, err := stores[i%3].AddIngressRule(ctx, alice, box, compute.IngressRule{Port: 8000 + i, TargetPort: 80}, 32)
		return err
	})
	if got[""] != 32 || got[compute.CodeLimit] != 68 {
		t.Fatalf("100 new ingress rules at once: %v", got)
	}
	got = atOnce(50, func(i int) error {
		_, err := stores[i%3].AddIngressRule(ctx, alice, list[1].ID, compute.IngressRule{Port: 443, TargetPort: 443}, 32)
		return err
	})
	if got[""] != 1 || got[compute.CodeConflict] != 49 {
		t.Fatalf("one port 50 times at once: %v", got)
	}

	bob := addUser(t, s, "bob")
	got = atOnce(50, func(i int) error {
		_, err := stores[i%3].AddKey(ctx, keyNamed(bob, "same"), 10)
		return err
	})
	if got[""] != 1 || got[compute.CodeConflict] != 49 {
		t.Fatalf("one key 50 times at once: %v", got)
	}

	got = atOnce(50, func(i int) error {
		_, err := stores[i%3].CreateUser(ctx, "carol", compute.RoleUser)
		return err
	})
	if got[""] != 1 || got[compute.CodeConflict] != 49 {
		t.Fatalf("one name 50 times at once: %v", got)
	}
}

// A delete makes room at once for exactly one more.
func TestLimitWhileDeleting(t *testing.T) {
	ctx := t.Context()
	s := openNew(t, Options{})
	alice := addUser(t, s, "alice")
	key := addKey(t, s, alice, "one")
	var list []compute.Container
	for range 3 {
		list = append(list, addContainer(t, s, alice, key))
	}
	var created atomic.Int64
	codes := atOnce(60, func(i int) error {
		if i < 3 {
			_, err := s.SetDesired(ctx, alice, list[i].ID, compute.DesiredDeleted)
			return err
		}
		_, err := s.CreateContainer(ctx, boxOf(alice, key), 3)
		if err == nil {
			created.Add(1)
		}
		return err
	})
	if created.Load() > 3 || codes[compute.CodeLimit] != 57-int(created.Load()) {
		t.Fatalf("%d created, %v", created.Load(), codes)
	}
	now, err := s.Containers(ctx, alice)
	if err != nil || int64(len(now)) != created.Load() {
		t.Fatalf("%d containers, %d created, %v", len(now), created.Load(), err)
	}
}

// A reader that asks for what comes after its last number misses nothing, while many write: commit order is number order.
func TestEventsInCommitOrder(t *testing.T) {
	ctx := t.Context()
	path := newSource(t)
	var commits [3]chan struct{} // one for each reader
	for i := range commits {
		commits[i] = make(chan struct{}, 1)
	}
	hint := func() {
		for _, c := range commits {
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}
	a, b := openAt(t, path, Options{OnCommit: hint}), openAt(t, path, Options{OnCommit: hint})
	const writers, rounds = 8, 12
	type owned struct {
		owner compute.UserID
		c     compute.Container
	}
	var boxes []owned
	for i := range writers {
		u := addUser(t, a, fmt.Sprint("user", i))
		boxes = append(boxes, owned{u, addContainer(t, a, u, addKey(t, a, u, "one"))})
	}
	var g, readers errgroup.Group
	done := make(chan struct{})
	start, err := a.LastEvent(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range []*Reader{a.Reader, b.Reader, openAt(t, path, Options{}).Reader} {
		readers.Go(func() error {
			last := start
			finished := false
			for {
				list, err := r.Events(ctx, last, 7)
				if err != nil {
					return err
				}
				for _, e := range list {
					if e.Seq != last+1 {
						return fmt.Errorf("after event %d came %d", last, e.Seq)
					}
					last = e.Seq
				}
				switch {
				case len(list) > 0:
					continue
				case finished:
					return nil
				}
				select {
				case <-done:
					finished = true // and read once more
				case <-commits[i]:
				}
			}
		})
	}
	for i, box := range boxes {
		s := []*Store{a, b}[i%2]
		g.Go(func() error {
			for n := range rounds {
				if _, err := s.SetSSH(ctx, box.owner, box.c.ID, n%2 == 0); err != nil {
					return err
				}
				if err := s.SetStatus(ctx, box.c.ID, 1, running, fmt.Sprint(n)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	close(done)
	if err := readers.Wait(); err != nil {
		t.Fatal(err)
	}
}

// The rule for port 443 and the container's HTTPS change together, whatever else happens to the container meanwhile.
func TestHTTPSWhileDeleting(t *testing.T) {
	ctx := t.Context()
	path := newSource(t)
	stores := []*Store{openAt(t, path, Options{}), openAt(t, path, Options{})}
	s := stores[0]
	alice := addUser(t, s, "alice")
	c := addContainer(t, s, alice, addKey(t, s, alice, "one"))
	codes := atOnce(60, func(i int) error {
		s := stores[i%2]
		switch {
		case i == 40:
			_, err := s.SetDesired(ctx, alice, c.ID, compute.DesiredDeleted)
			return err
		case i%3 == 0:
			return s.DeleteIngressRule(ctx, alice, c.ID, 443)
		default:
			_, err := s.AddIngressRule(ctx, alice, c.ID, compute.IngressRule{Port: 443, TargetPort: 443}, 32)
			return err
		}
	})
	if codes[""]+codes[compute.CodeNotFound]+codes[compute.CodeConflict] != 60 {
		t.Fatalf("codes %v", codes)
	}
	mustCount(t, s.db, 0, `SELECT count(*) FROM ingress_rules`)
	mustCount(t, s.db, 0, `SELECT count(*) FROM containers WHERE https_enabled = 1`)
}

// Many processes' worth of stores may open a file that is not there yet; one of them makes it.
func TestOpenAtOnce(t *testing.T) {
	path := newSource(t)
	var mu sync.Mutex
	var stores []*Store
	codes := atOnce(8, func(int) error {
		s, err := Open(t.Context(), path, Options{})
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			stores = append(stores, s)
		}
		return err
	})
	ids := make(map[string]bool)
	for _, s := range stores {
		id, err := s.InstallationID(t.Context())
		if err != nil {
			t.Error(err)
		}
		ids[id] = true
	}
	for _, s := range stores {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if codes[""] != 8 || len(ids) != 1 {
		t.Fatalf("codes %v, installations %v", codes, ids)
	}
}
