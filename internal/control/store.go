package control

import (
	"context"

	"berth/internal/compute"
)

// Store keeps the desired and the observed state. Every method is one transaction; those that change something append the
// events that tell of it in the same transaction. Errors are *compute.Error: CodeNotFound for what is absent, owned by
// somebody else or deleted.
type Store interface {
	// Users. CreateUser stores the owner's first keys with the account; CodeConflict when the name is taken.
	CreateUser(ctx context.Context, username string, role compute.Role, keys ...compute.SSHKey) (compute.User, error)
	Users(ctx context.Context) ([]compute.User, error)
	User(ctx context.Context, id compute.UserID) (compute.User, error)
	UserByName(ctx context.Context, username string) (compute.User, error)
	// SetUserDisabled and ChangeUser refuse, with CodeConflict, to leave no administrator who is enabled.
	SetUserDisabled(ctx context.Context, id compute.UserID, disabled bool) (compute.User, error)
	ChangeUser(ctx context.Context, id compute.UserID, change compute.UserChange) (compute.LimitedUser, error)
	LimitedUser(ctx context.Context, id compute.UserID) (compute.LimitedUser, error)
	// LimitedUsersAfter lists accounts with higher ids, in their order; AllContainers lists containers with higher numbers, in
	// theirs, without deleted ones. Both return limit of them, or fewer where there are no more.
	LimitedUsersAfter(ctx context.Context, after compute.UserID, limit int) ([]compute.LimitedUser, error)
	AllContainers(ctx context.Context, f compute.ContainerFilter, after int64, limit int) ([]compute.OwnedContainer, error)

	// SSH keys. AddKey takes the owner, name, canonical line and fingerprint of k; CodeConflict when the owner has that key,
	// CodeLimit at limit, or at the limit that the owner has of its own. DeleteKey also takes the key out of the owner's containers.
	AddKey(ctx context.Context, k compute.SSHKey, limit int) (compute.SSHKey, error)
	Keys(ctx context.Context, owner compute.UserID) ([]compute.SSHKey, error)
	DeleteKey(ctx context.Context, owner compute.UserID, id int64) error

	// Containers, as their owners see them: deleted ones are absent.
	//
	// CreateContainer inserts c under a new id, with the smallest free slot; CodeInvalid on ssh_key_ids for ids that are
	// not keys of c.Owner, CodeLimit at limit, or at the limit that the owner has of its own.
	CreateContainer(ctx context.Context, c compute.Container, limit int) (compute.Container, error)
	Containers(ctx context.Context, owner compute.UserID) ([]compute.Container, error)
	// ContainersAt also returns the number of the last event whose change the list shows; both are of one snapshot.
	ContainersAt(ctx context.Context, owner compute.UserID) ([]compute.Container, int64, error)
	Container(ctx context.Context, owner compute.UserID, id compute.ContainerID) (compute.Container, error)
	// ContainerHistory returns up to limit changes of the container's status after an event's number, of one snapshot.
	ContainerHistory(
		ctx context.Context, owner compute.UserID, id compute.ContainerID, after int64, limit int,
	) (compute.History, error)
	// SetDesired stores d with a new generation. It changes nothing when d stands already, except that DesiredRunning on a
	// failed container is a new attempt. A start sets the status to pending; a stop leaves it to what is observed.
	SetDesired(ctx context.Context, owner compute.UserID, id compute.ContainerID, d compute.Desired) (compute.Container, error)
	SetSSH(ctx context.Context, owner compute.UserID, id compute.ContainerID, enabled bool) (compute.Container, error)
	// SetMountPaths stores paths with a new generation, and says whether that changed anything; their order means nothing. A
	// container that is to run shows as pending then, as at a start.
	SetMountPaths(
		ctx context.Context, owner compute.UserID, id compute.ContainerID, paths []string,
	) (c compute.Container, changed bool, err error)

	// ChangeContainer stores what f makes of a container's name, memory, storage and keys, and says whether that changed
	// anything; other sizes are a new generation. f runs within the transaction, and its error is returned. CodeInvalid on
	// ssh_key_ids as CreateContainer's.
	ChangeContainer(
		ctx context.Context, owner compute.UserID, id compute.ContainerID, f func(compute.Container) (compute.Container, error),
	) (c compute.Container, changed bool, err error)

	// Ingress rules of a container, as its owner sees it. AddIngressRule takes the ports of r; CodeConflict when the container
	// has a rule for that port, CodeLimit at limit. HTTPSEnabled of the container follows the rule for port 443. A deleted
	// container has no rules.
	IngressRules(ctx context.Context, owner compute.UserID, id compute.ContainerID) ([]compute.IngressRule, error)
	AddIngressRule(
		ctx context.Context, owner compute.UserID, id compute.ContainerID, r compute.IngressRule, limit int,
	) (compute.IngressRule, error)
	DeleteIngressRule(ctx context.Context, owner compute.UserID, id compute.ContainerID, port int) error

	// What gateways read. Target and Accounts leave out disabled users and what is theirs.
	Target(ctx context.Context, id compute.ContainerID) (compute.Target, error)
	Accounts(ctx context.Context, fingerprint string) ([]compute.User, error) // those with that key; empty when none

	// What the reconcile loop reads and writes.
	//
	// Reconcilable lists every container whose row is not purged, the deleted ones too. ReconcileState is one of them.
	Reconcilable(ctx context.Context) ([]compute.Container, error)
	ReconcileState(ctx context.Context, id compute.ContainerID) (compute.Container, error)
	RecordStorage(ctx context.Context, id compute.ContainerID) error
	// SetStatus is the one transition function: it moves the container to status through compute.Between, an event each. It
	// changes nothing when the generation is no longer the row's, or when status and message stand already.
	SetStatus(ctx context.Context, id compute.ContainerID, generation int64, s compute.Status, message string) error
	// Purge ends a deleted container's row once the engine has it no more. Its id stays taken for ever, its slot for 60 s.
	Purge(ctx context.Context, id compute.ContainerID) error

	// Events returns up to limit events with Seq > after, in order.
	Events(ctx context.Context, after int64, limit int) ([]compute.Event, error)
	// InstallationID names this database for ever; every resource of an engine carries it.
	InstallationID(ctx context.Context) (string, error)
}
