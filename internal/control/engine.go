package control

import (
	"context"

	"berth/internal/compute"
)

// Engine runs containers. Every method is idempotent, may be called again after a kill -9 at any instant, and returns early
// with ctx's error when it is cancelled. Errors that owners may read are *compute.Error. Methods for different containers
// run concurrently; control never has two calls under way that change the same one.
type Engine interface {
	// Admit is asked before a container is created, so that the request is refused and nothing stored: CodeInvalid for mount
	// paths that, once the image's symlinks are resolved, break the rules of compute.CheckMountTargets; CodeCapacity when
	// there is no room for its storage or memory now, or no node of its architecture.
	Admit(ctx context.Context, s compute.Spec) error

	// AdmitChange is asked before a container that exists is changed from was to s: CodeInvalid as Admit's where its mount
	// paths are others, CodeCapacity when there is no room now for what it is to have more of.
	AdmitChange(ctx context.Context, was, s compute.Spec) error

	// Provision makes the container's storage if it is not there. It is called until it succeeds once and that is recorded;
	// never again after. CodeCapacity when there is no room.
	Provision(ctx context.Context, s compute.Spec) error

	// Apply drives the container to s and returns when it is there: running with its agent accepting connections, or
	// stopped with its processes and network gone. Storage that is missing is CodeStorageMissing, and is never made here.
	Apply(ctx context.Context, s compute.Spec) error

	// Remove destroys the container, its storage too, and returns when nothing is left. Control calls it only for a
	// container whose owner deleted it.
	Remove(ctx context.Context, r compute.Ref) error

	// Stored lists what the engine holds of containers, whether the database knows of them or not.
	Stored(ctx context.Context) ([]compute.Stored, error)

	// Discard destroys what Stored lists of a container, another installation's too; CodeNotFound when there is nothing.
	// Control calls it only because an administrator says so. It calls unknown first, whose error it returns with nothing
	// changed, and no other call changes the container from then until Discard returns.
	Discard(ctx context.Context, r compute.Ref, unknown func(context.Context) error) error

	// Watch calls f for every container that this installation has on the engine, then synced once, then f for every
	// change that was not asked for by Apply or Remove (a process that died, say), until ctx ends or the engine fails.
	Watch(ctx context.Context, f func(compute.Observation), synced func()) error

	// Usage measures a running container, or says what it measured of it some seconds ago; CodeNotRunning when it does not
	// run. When ctx ends, what was known before is an answer, too.
	Usage(ctx context.Context, r compute.Ref) (compute.Usage, error)
}
