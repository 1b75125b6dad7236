package httpapi

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"berth/internal/compute"
	"berth/internal/control"
)

// history is a stream of events and the state after each, as the store makes them.
type history struct {
	events []compute.Event
	states [][]control.ContainerView // states[n] is after event n; states[0] before any
}

func (h *history) add(state []control.ContainerView, e compute.Event) {
	e.Seq = int64(len(h.events)) + 1
	h.events = append(h.events, e)
	h.states = append(h.states, slices.Clone(state))
}

// drawHistory makes a stream in which containers are made, go through statuses and are deleted.
func drawHistory(t *rapid.T) *history {
	h := &history{states: [][]control.ContainerView{nil}}
	var state []control.ContainerView
	status := func(i int, s compute.Status) {
		state[i].Status, state[i].StatusMessage = s, fmt.Sprint("because of ", len(h.events))
		if state[i].Usage = (compute.Usage{}); s == compute.StatusRunning {
			state[i].Usage = compute.Usage{MemoryMB: 128}
		}
		h.add(state, compute.Event{
			Kind: compute.EventContainerStatus, Container: state[i].ID, Status: s, StatusMessage: state[i].StatusMessage,
		})
	}
	for n := range rapid.IntRange(1, 40).Draw(t, "steps") {
		what := rapid.IntRange(0, 9).Draw(t, "what")
		switch {
		case what < 3 && len(state) < 4 || len(state) == 0:
			// The store adds both in one transaction, so no list is read between them.
			id := compute.ContainerID(fmt.Sprintf("%08x", n))
			state = append(state, control.ContainerView{Container: compute.Container{ID: id, Status: compute.StatusPending}})
			h.add(state, compute.Event{Kind: compute.EventContainerCreated, Container: id})
			h.add(state, compute.Event{Kind: compute.EventContainerStatus, Container: id, Status: compute.StatusPending})
		case what == 3:
			i := rapid.IntRange(0, len(state)-1).Draw(t, "which")
			id := state[i].ID
			state = slices.Delete(state, i, i+1)
			h.add(state, compute.Event{Kind: compute.EventContainerDeleted, Container: id})
		case what == 4:
			h.add(state, compute.Event{Kind: compute.EventContainerPurged, Container: "ffffffff"})
		default:
			all := []compute.Status{
				compute.StatusPending, compute.StatusInitializing, compute.StatusRunning, compute.StatusStopped, compute.StatusFailed,
			}
			status(rapid.IntRange(0, len(state)-1).Draw(t, "which"), rapid.SampledFrom(all).Draw(t, "status"))
		}
	}
	return h
}

// However far the database is ahead of the stream whenever a list is read, what a client sees of a container is what the
// events say, one after the other.
func TestLedgerFollowsTheStream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		last := len(h.events)
		// readAt is where the database stands when it is read after event n: it never steps back.
		ahead := 0
		readAt := func(n int) int {
			ahead = rapid.IntRange(max(n, ahead), last).Draw(t, "read at")
			return ahead
		}
		begin := rapid.IntRange(0, last).Draw(t, "begin")
		from := rapid.IntRange(0, begin).Draw(t, "subscribed") // events from before the list are in the subscription too
		ahead = begin
		var l ledger
		l.begin(h.states[begin], int64(begin))
		seen := map[compute.ContainerID]condition{}
		for _, v := range h.states[begin] {
			seen[v.ID] = condition{v.Status, v.StatusMessage}
		}
		for n := from + 1; n <= last; n++ {
			e := h.events[n-1]
			act := l.take(e)
			if n <= begin {
				if act != actNothing {
					t.Fatalf("event %d is told after a list of event %d", n, begin)
				}
				continue
			}
			switch act {
			case actStatus:
				seen[e.Container] = condition{e.Status, e.StatusMessage}
			case actList:
				at := readAt(n)
				list := l.asOf(h.states[at])
				checkList(t, h, list, n, at)
				next := map[compute.ContainerID]condition{}
				for _, v := range list {
					now := condition{v.Status, v.StatusMessage}
					if before, ok := seen[v.ID]; ok && before != now {
						t.Fatalf("the list of event %d moves %s from %v to %v", n, v.ID, before, now)
					}
					next[v.ID] = now
				}
				seen = next
			}
		}
		for _, v := range h.states[last] {
			if got, ok := seen[v.ID]; !ok || got != (condition{v.Status, v.StatusMessage}) {
				t.Fatalf("in the end %s is seen as %v, %v and is %v", v.ID, got, ok, v.Status)
			}
		}
		if len(seen) != len(h.states[last]) {
			t.Fatalf("in the end %d are seen, there are %d", len(seen), len(h.states[last]))
		}
	})
}

// checkList holds a list told with event n, read at event at, to the state after n without what is deleted by then.
func checkList(t *rapid.T, h *history, list []control.ContainerView, n, at int) {
	var want []control.ContainerView
	for _, v := range h.states[n] {
		if slices.ContainsFunc(h.states[at], func(w control.ContainerView) bool { return w.ID == v.ID }) {
			want = append(want, v)
		}
	}
	if len(list) != len(want) {
		t.Fatalf("the list of event %d read at %d has %d, want %d", n, at, len(list), len(want))
	}
	for i := range want {
		got, want := list[i], want[i]
		if got.ID != want.ID || got.Status != want.Status || got.StatusMessage != want.StatusMessage {
			t.Fatalf("the list of event %d read at %d has %+v, want %+v", n, at, got, want)
		}
		if got.Status != compute.StatusRunning && got.Usage != (compute.Usage{}) {
			t.Fatalf("%s is %s and uses %+v", got.ID, got.Status, got.Usage)
		}
	}
}

// What is about the account has the token looked at again, also kinds of events that are not there yet; other changes of
// containers are nothing to the feed.
func TestLedgerKinds(t *testing.T) {
	for kind, want := range map[compute.EventKind]act{
		compute.EventContainerChanged: actNothing, compute.EventContainerPurged: actNothing, compute.EventContainerCreated: actList,
		compute.EventContainerDeleted: actList, compute.EventContainerStatus: actNothing, // of a container that is not shown
		compute.EventUserChanged: actVerify, compute.EventKeyAdded: actVerify, compute.EventKeyDeleted: actVerify, "token.revoked": actVerify,
	} {
		var l ledger
		l.begin(nil, 6)
		if got := l.take(compute.Event{Seq: 7, Kind: kind, Container: "00000001"}); got != want {
			t.Errorf("%s: %d, want %d", kind, got, want)
		}
		if got := l.take(compute.Event{Seq: 7, Kind: kind}); got != actNothing {
			t.Errorf("%s again: %d", kind, got)
		}
	}
}
