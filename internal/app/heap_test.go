package app

import (
	"context"
	"runtime"
	"testing"
	"time"
)

// packets is where the test's garbage goes, so that the compiler makes it.
var packets [4][]byte

func TestTheCollectorRunsSeldom(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- keepHeap(ctx) }()
	for deadline := time.Now().Add(time.Minute); metric("/gc/heap/live:bytes") < heapFloor; runtime.GC() {
		if time.Now().After(deadline) {
			t.Fatal("keepHeap has not begun")
		}
	}
	const (
		moved  = 1 << 30
		cycles = "/gc/cycles/total:gc-cycles"
	)
	before := metric(cycles)
	for i := range moved / (32 << 10) {
		packets[i%len(packets)] = make([]byte, 32<<10)
	}
	if n := metric(cycles) - before; n > moved/heapFloor {
		t.Errorf("%d collections in 1 GiB", n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestMemoryGoesBackOnceQuiet(t *testing.T) {
	trim := trimmer{}
	for i, step := range []struct {
		allocated uint64
		want      bool
	}{
		{1 << 20, false},              // quiet, and nothing to gain
		{1 << 30, false},              // data moves
		{2 << 30, false},              // it still does
		{2<<30 + 1<<20, true},         // it stopped
		{2<<30 + 2<<20, false},        // done already
		{2<<30 + 4<<20, false},        // a little at a time …
		{2<<30 + 1<<20 + 4<<20, true}, // … adds up
	} {
		if got := trim.due(step.allocated); got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
}
