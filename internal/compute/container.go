// Package compute is Berth's domain: containers, SSH keys, ingress rules, users and the principals that act on them,
// with their limits, their validation and the one error type that crosses package boundaries.
//
// It imports nothing of Berth's, does no I/O and knows neither SQL, HTTP nor SSH sessions: every other package speaks
// in its words.
package compute

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// UserID is Berth's own number for a user. It appears in names of resources and never changes.
type UserID int64

// ContainerID is a container's name in hostnames and URLs: 8 lowercase hex digits, never reused.
type ContainerID string

var containerID = regexp.MustCompile(`^[0-9a-f]{8}$`)

// NewContainerID returns 32 random bits as an id. The store rejects one that was ever taken; callers then try again. It has a
// letter, since the id is a host's name too, and resolvers take a name of digits alone for an address: inet_aton(3) reads
// 25918258 as 1.139.123.50.
func NewContainerID() ContainerID {
	for {
		var b [4]byte
		_, _ = rand.Read(b[:]) // never fails: see crypto/rand
		if id := hex.EncodeToString(b[:]); strings.ContainsAny(id, "abcdef") {
			return ContainerID(id)
		}
	}
}

// ParseContainerID returns s as an id, or CodeNotFound: an id that cannot exist looks like one that does not.
func ParseContainerID(s string) (ContainerID, error) {
	if !containerID.MatchString(s) {
		return "", NotFound("container")
	}
	return ContainerID(s), nil
}

// Status is what a container's owner sees of its life.
type Status string

// The statuses, in the order that a create or a start goes through.
const (
	StatusPending      Status = "pending"      // desired, and no engine has begun
	StatusInitializing Status = "initializing" // the engine is making storage, network and processes
	StatusRunning      Status = "running"      // the agent is PID 1 and answers
	StatusStopped      Status = "stopped"      // no process; storage is kept
	StatusFailed       Status = "failed"       // see StatusMessage; a start tries again
)

// Between lists the statuses that a container passes on its way from one to another, the last included, so that a
// reader of events sees none skipped: pending, initializing, running are always visited in that order.
func Between(from, to Status) []Status {
	rise := []Status{StatusPending, StatusInitializing, StatusRunning}
	switch {
	case from == to:
		return nil
	case to == StatusInitializing, to == StatusRunning:
		at := 0
		for i, s := range rise {
			if s == from {
				at = i + 1
			}
		}
		var path []Status
		for _, s := range rise[at:] {
			path = append(path, s)
			if s == to {
				return path
			}
		}
		// running → initializing: a restart begins again at pending.
		for _, s := range rise {
			path = append(path, s)
			if s == to {
				break
			}
		}
		return path
	default:
		return []Status{to}
	}
}

// Desired is what a container's owner asked for last.
type Desired string

// The desired states. DesiredDeleted is final: it is the tombstone that permits the engine to destroy storage.
const (
	DesiredRunning Desired = "running"
	DesiredStopped Desired = "stopped"
	DesiredDeleted Desired = "deleted"
)

// NoSlot is the slot of a container while none is free for it.
const NoSlot = -1

// Container is a user's machine: what was asked for, and what was last observed of it.
type Container struct {
	ID           ContainerID
	Owner        UserID
	Name         string
	InstanceType string
	MemoryMB     int
	StorageGB    int
	SSHKeyIDs    []int64
	SSHEnabled   bool
	HTTPSEnabled bool
	MountPaths   []string
	Slot         int // among the owner's containers: 0, 1, 2, …, or NoSlot
	CreatedAt    time.Time

	Desired    Desired
	Generation int64 // one more at every change of what is desired
	// StorageMade says that the engine made this container's storage and that it was recorded: from then on missing
	// storage is a failure, and is never made anew.
	StorageMade bool

	Status        Status
	StatusMessage string // a reason in words for the owner; empty where there is none
}

// Usage is what a running container uses, as its engine measures it.
type Usage struct {
	MemoryMB  int     // usage less inactive file cache
	StorageGB float64 // bytes written to its storage, in GB of 2^30
}

// Ref names a container with its owner: what an engine needs to find its resources.
type Ref struct {
	Owner UserID
	ID    ContainerID
}

// Ref returns the container's reference.
func (c Container) Ref() Ref { return Ref{Owner: c.Owner, ID: c.ID} }

// String returns the name of the container's resources: "compute-<owner>-<id>".
func (r Ref) String() string { return fmt.Sprintf("compute-%d-%s", r.Owner, r.ID) }

// ParseRef is the inverse of Ref.String.
func ParseRef(s string) (Ref, error) {
	var r Ref
	rest, ok := strings.CutPrefix(s, "compute-")
	owner, id, ok2 := strings.Cut(rest, "-")
	if !ok || !ok2 || !containerID.MatchString(id) {
		return Ref{}, fmt.Errorf("%q is not the name of a container's resources", s)
	}
	if _, err := fmt.Sscanf(owner, "%d", &r.Owner); err != nil || fmt.Sprint(int64(r.Owner)) != owner {
		return Ref{}, fmt.Errorf("%q is not the name of a container's resources", s)
	}
	r.ID = ContainerID(id)
	return r, nil
}

// InstanceType is a row of the operator's table of machine sizes.
type InstanceType struct {
	Name         string `json:"name"`
	Architecture string `json:"architecture"` // a GOARCH: amd64, arm64
	MilliCPU     int    `json:"milli_cpu"`    // thousandths of a core
}

// DefaultInstanceTypes is the contract's table.
func DefaultInstanceTypes() []InstanceType {
	return []InstanceType{
		{"nano", "arm64", 500},
		{"micro", "arm64", 1000},
		{"mini", "arm64", 2000},
		{"tiny", "amd64", 1000},
		{"small", "amd64", 2000},
		{"medium", "amd64", 4000},
	}
}
