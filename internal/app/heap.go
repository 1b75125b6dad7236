package app

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// heapFloor is how much is allocated, at the least, from one garbage collection to the next. x/crypto allocates each packet
// that it reads. With a live heap of some 10 MB, the collector then ran a hundred times in a GB of upload, and took a third
// of the gateway's CPU time (measured).
const heapFloor = 32 << 20

// After clients moved data, memory goes back to the system once little was allocated for a while.
const (
	trimEvery  = 10 * time.Second
	quiet      = 4 << 20 // allocated in that time
	worthATrim = 4 << 20 // allocated since the last one
)

// keepHeap does both until ctx ends.
func keepHeap(ctx context.Context) error {
	// The collector waits until the heap has grown by its live size. Nobody writes to these bytes: they count as live, and
	// take no memory.
	ballast := make([]byte, heapFloor)
	defer runtime.KeepAlive(ballast)
	t := time.NewTicker(trimEvery)
	defer t.Stop()
	trim := trimmer{last: allocated()}
	trim.freed = trim.last
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if trim.due(allocated()) {
				debug.FreeOSMemory()
			}
		}
	}
}

// trimmer decides when memory goes back to the system, from how much was allocated since the process began.
type trimmer struct{ last, freed uint64 }

func (t *trimmer) due(allocated uint64) bool {
	calm := allocated-t.last < quiet
	t.last = allocated
	if !calm || allocated-t.freed < worthATrim {
		return false
	}
	t.freed = allocated
	return true
}

func allocated() uint64 { return metric("/gc/heap/allocs:bytes") }

func metric(name string) uint64 {
	s := []metrics.Sample{{Name: name}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
