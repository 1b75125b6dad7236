package control

import (
	"context"

	"berth/internal/compute"
)

// Spec is what an engine must make true of one container.
type Spec struct {
	compute.Ref
	Generation int64
	Running    bool
	Hostname   string
	MilliCPU   int
	Arch       string // GOARCH of the instance type
	MemoryMB   int
	StorageGB  int
	MountPaths []string
}

// Phase is where an engine sees a container.
type Phase string

// The phases that engines report.
const (
	PhaseAbsent   Phase = "absent"   // nothing of it is left: no process, network or storage
	PhaseStopped  Phase = "stopped"  // storage alone
	PhaseStarting Phase = "starting" // being made
	PhaseRunning  Phase = "running"  // its agent accepts connections
	PhaseFailed   Phase = "failed"   // cannot go on by itself; Message says why
)

// Observation is one container as an engine saw it.
type Observation struct {
	compute.Ref
	Generation int64 // of the Spec it was made from; 0 where unknown
	Phase      Phase
	Message    string // for the owner: a reason in words; empty where there is none
}

// Engine runs containers. Every method is idempotent, may be called again after a kill -9 at any instant, and returns early
// with ctx's error when it is cancelled. Errors that owners may read are *compute.Error. Methods for different containers
// run concurrently; control never has two calls under way that change the same one.
type Engine interface {
	// CheckMounts refuses mount paths that, once the image's symlinks are resolved, break the rules of
	// compute.CheckMountTargets.
	CheckMounts(ctx context.Context, paths []string) error

	// Provision makes the container's storage if it is not there. It is called until it succeeds once and that is recorded;
	// never again after. CodeCapacity when there is no room.
	Provision(ctx context.Context, s Spec) error

	// Apply drives the container to s and returns when it is there: running with its agent accepting connections, or
	// stopped with its processes and network gone. Storage that is missing is CodeStorageMissing, and is never made here.
	Apply(ctx context.Context, s Spec) error

	// Remove destroys the container, its storage too, and returns when nothing is left. Control calls it only for a
	// container whose owner deleted it.
	Remove(ctx context.Context, r compute.Ref) error

	// Watch calls f for every container that this installation has on the engine, then synced once, then f for every
	// change that was not asked for by Apply or Remove (a process that died, say), until ctx ends or the engine fails.
	Watch(ctx context.Context, f func(Observation), synced func()) error

	// Usage measures a running container; CodeNotRunning when it is not.
	Usage(ctx context.Context, r compute.Ref) (compute.Usage, error)
}
