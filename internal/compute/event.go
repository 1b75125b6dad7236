package compute

import "time"

// EventKind says what an Event tells of.
type EventKind string

// The kinds of events. What a reader needs beyond the ids it reads from the store.
const (
	EventContainerCreated EventKind = "container.created"
	EventContainerChanged EventKind = "container.changed" // desired state, mount paths, ingress, SSH, keys, name, …
	EventContainerStatus  EventKind = "container.status"  // Status and StatusMessage are set
	EventContainerDeleted EventKind = "container.deleted" // its owner deleted it
	EventContainerPurged  EventKind = "container.purged"  // the engine reports it absent
	EventKeyAdded         EventKind = "key.added"
	EventKeyDeleted       EventKind = "key.deleted"
	EventUserChanged      EventKind = "user.changed"    // made, disabled, enabled, role
	EventTokenRevoked     EventKind = "token.revoked"   // Token is set: what it opened must close
	EventGatewayChanged   EventKind = "gateway.changed" // a credential was made or revoked; it has no owner
)

// Event is one committed change, numbered in commit order without gaps.
type Event struct {
	Seq           int64
	At            time.Time
	Kind          EventKind
	Owner         UserID
	Container     ContainerID // empty where the event is not about one
	KeyID         int64       // 0 where the event is not about one
	Token         string      // a token's id; empty where the event is not about one
	Status        Status
	StatusMessage string
}
