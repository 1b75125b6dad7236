package containerd

import (
	"context"
	"net"

	"berth/internal/compute"
)

// Dialer reaches the agents of an instance that another process runs. It implements session.Dialer.
type Dialer struct{ layout layout }

// NewDialer returns a Dialer for the instance of a data directory.
func NewDialer(dataDir string) (*Dialer, error) {
	l, err := layoutOf(dataDir)
	return &Dialer{l}, err
}

// DialAgent connects to the container's agent, as Engine's does.
func (d *Dialer) DialAgent(ctx context.Context, r compute.Ref) (net.Conn, error) {
	return (&Engine{layout: d.layout}).DialAgent(ctx, r)
}
