package compute

// History is what happened to a container's status after an event.
type History struct {
	Container Container // as it is now
	Seq       int64     // of the newest event of all, whose change Container shows
	Events    []Event   // of the kind EventContainerStatus, in order
	Missed    bool      // it cannot be told in full: events are removed after a while, and after a restore numbers begin anew
}
