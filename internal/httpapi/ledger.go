package httpapi

import (
	"berth/internal/compute"
	"berth/internal/control"
)

// ledger is how far one client of the feed is in the stream of events, and what it has been shown of each container. It
// keeps what is read from the database, which may be ahead of the stream, from showing a client a state whose event it
// has yet to get: without it a list read for a new container could show it running, and the states before that would
// then be skipped, or would come after it.
type ledger struct {
	seq   int64 // the last event that is told
	shown map[compute.ContainerID]condition
}

// condition is what events tell of a container.
type condition struct {
	status  compute.Status
	message string
}

// act is what an event asks of the feed.
type act int

const (
	actNothing act = iota
	actStatus      // tell the event's status
	actList        // tell the list again
	actVerify      // something about the account: see whether the client may still listen
)

// begin takes a list, and the number of the last event whose change it shows, as told.
func (l *ledger) begin(list []control.ContainerView, seq int64) {
	l.seq, l.shown = seq, make(map[compute.ContainerID]condition, len(list))
	for _, v := range list {
		l.shown[v.ID] = condition{v.Status, v.StatusMessage}
	}
}

// take takes the next event of the owner's.
func (l *ledger) take(e compute.Event) act {
	if e.Seq <= l.seq { // the list that was told shows it already
		return actNothing
	}
	l.seq = e.Seq
	switch e.Kind {
	case compute.EventContainerStatus:
		if _, ok := l.shown[e.Container]; !ok {
			return actNothing // of one that is deleted already
		}
		l.shown[e.Container] = condition{e.Status, e.StatusMessage}
		return actStatus
	case compute.EventContainerCreated:
		l.shown[e.Container] = condition{status: compute.StatusPending}
		return actList
	case compute.EventContainerDeleted:
		delete(l.shown, e.Container)
		return actList
	case compute.EventContainerChanged, compute.EventContainerPurged:
		return actNothing
	default: // a user disabled, a key or a token gone: also kinds that are to come
		return actVerify
	}
}

// asOf returns a list, read after the last event, as it stood at that event: without containers that are made later, and
// with the statuses of then. A container deleted later is not in the list any more, and nothing more is told of it.
func (l *ledger) asOf(list []control.ContainerView) []control.ContainerView {
	shown := make(map[compute.ContainerID]condition, len(list))
	out := make([]control.ContainerView, 0, len(list))
	for _, v := range list {
		then, ok := l.shown[v.ID]
		if !ok {
			continue
		}
		shown[v.ID] = then
		if v.Status, v.StatusMessage = then.status, then.message; v.Status != compute.StatusRunning {
			v.Usage = compute.Usage{}
		}
		out = append(out, v)
	}
	l.shown = shown
	return out
}
