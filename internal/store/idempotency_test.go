package store

import (
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/internal/compute"
)

func TestOnce(t *testing.T) {
	ctx := t.Context()
	now := time.UnixMilli(1_800_000_000_000)
	s := openNew(t, Options{Now: func() time.Time { return now }})
	alice, bob := addUser(t, s, "alice"), addUser(t, s, "bob")
	one, two := [32]byte{1}, [32]byte{2}
	begin := func(u compute.UserID, key string, request [32]byte, code compute.Code, want *compute.SavedAnswer) {
		t.Helper()
		got, err := s.BeginOnce(ctx, u, key, request)
		if (err != nil || code != "") && compute.CodeOf(err) != code || !reflect.DeepEqual(got, want) {
			t.Errorf("%s of %d: %+v, %v; want %+v, %q", key, u, got, err, want, code)
		}
	}
	answer := compute.SavedAnswer{Status: 201, Location: "/there", Body: []byte(`{"a":1}`)}

	begin(alice, "k", one, "", nil)
	begin(alice, "k", one, compute.CodeConflict, nil) // under way
	if err := s.FinishOnce(ctx, alice, "k", answer); err != nil {
		t.Fatal(err)
	}
	begin(alice, "k", one, "", &answer)
	begin(alice, "k", two, compute.CodeConflict, nil) // another request
	begin(bob, "k", two, "", nil)                     // another's key

	// A refused one may come again; what was answered stays.
	if err := s.ForgetOnce(ctx, bob, "k"); err != nil {
		t.Fatal(err)
	}
	begin(bob, "k", one, "", nil)
	if err := s.ForgetOnce(ctx, alice, "k"); err != nil {
		t.Fatal(err)
	}
	begin(alice, "k", one, "", &answer)

	now = now.Add(keepOnce)
	begin(alice, "k", two, "", nil)

	// Those of an account are bounded: the oldest are forgotten.
	for i := range keepOnceNumber {
		now = now.Add(time.Millisecond)
		begin(alice, fmt.Sprint("n", i), one, "", nil)
	}
	begin(alice, "n0", one, compute.CodeConflict, nil)
	begin(alice, "k", one, "", nil)
	begin(alice, "n0", one, "", nil)
}

func TestOnceAtOnce(t *testing.T) {
	s := openNew(t, Options{})
	alice := addUser(t, s, "alice")
	var first atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			switch got, err := s.BeginOnce(t.Context(), alice, "k", [32]byte{}); {
			case err == nil && got == nil:
				first.Add(1)
			case compute.CodeOf(err) != compute.CodeConflict:
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	wg.Wait()
	if n := first.Load(); n != 1 {
		t.Errorf("%d were the first", n)
	}
}
