// Package link keeps gateways in step with the control plane. A Server streams the state that logins need, a snapshot and
// then changes, over mutual TLS; on the other side a Client feeds a Replica, which answers from memory, keeps all of it in a
// file, and goes on answering while the control plane is away.
//
// A copy has a version: installation, epoch, and the number of the newest event in it. What is sent is how things are now,
// never how they came to be, so that a change may be sent twice and a snapshot may be read while the state goes on changing:
// its version is that of before the first page, and the changes after it make up for the rest. A change names the version
// that it follows; whatever does not fit is repaired by a new snapshot.
//
// The other way go the audit records of what a gateway saw: a Spool keeps them on its disk until the Server has stored them in
// its Trail, under the name of the gateway's credential.
//
// A Replica makes a change durable before it is acknowledged, and trusts no file that is not whole. The Server trusts no
// gateway: what one may send is small and counted, and one that is slow is dropped. The package knows no database and no
// SSH: it reads through Source, and answers in the words of internal/compute.
package link

import (
	"context"
	"time"

	"berth/internal/compute"
)

// Source is the state that a Server streams, and the credentials that it accepts.
type Source interface {
	// Version returns the version of the state as it is now.
	Version(ctx context.Context) (compute.Version, error)
	// AccountsAfter and ContainersAfter return up to limit of what has a higher id, in order. Each page is at least as new
	// as a Version that was read before it.
	AccountsAfter(ctx context.Context, after compute.UserID, limit int) ([]compute.Account, error)
	ContainersAfter(ctx context.Context, after compute.ContainerID, limit int) ([]compute.Container, error)
	// ChangesSince returns the present state of what up to limit events after v touched, all of one moment; not ok when v is
	// of another history, or too old.
	ChangesSince(ctx context.Context, v compute.Version, limit int) (c compute.Changes, ok bool, err error)

	// Gateway returns the credential of a fingerprint, a revoked one too; CodeNotFound when there is none.
	Gateway(ctx context.Context, fingerprint string) (compute.Gateway, error)
	Gateways(ctx context.Context) ([]compute.Gateway, error)
	// SeeGateway records that the gateway is connected now.
	SeeGateway(ctx context.Context, fingerprint string) error
}

// DefaultMaxStale is how long a gateway goes on admitting people without a word from the control plane.
const DefaultMaxStale = 24 * time.Hour

// The defaults of both sides. A side that hears nothing for defaultTimeout takes the other for gone.
const (
	defaultHeartbeat = 5 * time.Second
	defaultTimeout   = 20 * time.Second
)

// protocol is what both sides must speak (RFC 7301).
const protocol = "berth-link/1"
