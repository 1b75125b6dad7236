package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"

	"berth/internal/compute"
	"berth/internal/config"
	"berth/internal/containerd"
	"berth/internal/control"
	"berth/internal/k8s"
	"berth/internal/link"
	"berth/internal/route"
	"berth/internal/session"
)

// replicaFile is the gateway's copy of the control plane's state.
const replicaFile = "link_replica"

// Gateway runs the SSH gateway alone. It follows the control plane over the link, keeps what it knows in a file, and reaches
// the agents by their sockets on this machine, or by way of the cluster.
func Gateway(ctx context.Context, c config.Config, out io.Writer) (err error) {
	if err := needRoot(c); err != nil {
		return err
	}
	b := &berth{cfg: c, log: newLogger(c, out), audit: newAuditing()}
	defer func() { err = errors.Join(err, b.close()) }()
	if b.in, err = findInvoker(); err != nil {
		return err
	}
	b.files = clientFiles{dir: c.DataDir, in: b.in}
	if b.zone, err = route.ParseZone(c.Zone); err != nil {
		return err
	}
	if _, err := b.readCredential(); err != nil {
		return err
	}
	lock, err := takeLock(c.DataDir, gatewayLockFile)
	if err != nil {
		return err
	}
	b.onClose(lock.release)
	if err := b.openMonitor(); err != nil {
		return err
	}
	gateway, err := b.listenTCP("ssh-addr", c.SSHAddr)
	if err != nil {
		return err
	}
	replica := link.OpenReplica(b.files.path(replicaFile), link.ReplicaOptions{
		MaxStale: c.MaxStale, Log: b.log.With("part", "link"),
	})
	b.onClose(replica.Close)
	b.watchReplica(replica)
	if err := b.openGatewayLink(replica); err != nil {
		return err
	}
	dialer, err := b.gatewayDialer()
	if err != nil {
		return err
	}
	b.openSessions(dialer)
	if err := b.openGateway(gateway, replica, replica.Changes, listing{replica}); err != nil {
		return err
	}
	return b.serve(ctx, func(ctx context.Context) error { return b.announceGateway(ctx, replica, gateway.Addr(), out) })
}

// gatewayDialer returns what reaches the agents from a process that does not drive the engine.
func (b *berth) gatewayDialer() (session.Dialer, error) {
	if !b.cfg.OnKubernetes() {
		return containerd.NewDialer(b.cfg.EnginePath())
	}
	d, err := k8s.NewDialer(k8s.DialerOptions{
		Kubeconfig: b.cfg.Kubeconfig, Addresses: b.cfg.AgentTransport == config.TransportPod, Log: b.log.With("part", "kubernetes"),
	})
	if err != nil {
		return nil, err
	}
	b.onClose(d.Close)
	return d, nil
}

// readCredential returns what this gateway proves itself with.
func (b *berth) readCredential() (link.Credential, error) {
	path := b.cfg.LinkCredential
	if path == "" {
		path = b.files.path(localCredential)
	}
	credential, err := link.ReadCredential(path)
	if errors.Is(err, fs.ErrNotExist) && b.cfg.LinkCredential == "" {
		const advice = "start berth-api with this --data-dir first, or give this gateway's own --link-credential"
		err = fmt.Errorf("there is no berth in %s yet; %s", b.cfg.DataDir, advice)
	}
	return credential, err
}

// dialLink connects to the control plane.
func (b *berth) dialLink(ctx context.Context) (net.Conn, error) {
	if b.cfg.LinkAddress == "" {
		return dialSocket(ctx, b.cfg.DataDir, linkSocket)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", b.cfg.LinkAddress)
}

// announceGateway says that people can log in, as soon as it is known who may.
func (b *berth) announceGateway(ctx context.Context, replica *link.Replica, addr net.Addr, out io.Writer) error {
	if err := replica.Ready(ctx); err != nil {
		return nil // it ends before it began
	}
	a, err := b.findAdmin(ctx, replica)
	switch {
	case err != nil:
		return err
	case a.user.ID == 0:
		b.log.Warn("no administrator is enabled: ssh_config is not written")
	default:
		if err := b.files.writeSSH(b.cfg.Zone, addr, a.user.Username, b.hostKeys, a.identities); err != nil {
			return fmt.Errorf("write ssh_config: %w", err)
		}
	}
	_, err = fmt.Fprintf(out, "The gateway is ready: ssh at %s\n", dialable(addr))
	return err
}

// listing is what the lobby needs, from the replica: without the usage that only an engine measures.
type listing struct{ replica *link.Replica }

func (l listing) ListContainers(ctx context.Context, p compute.Principal) ([]control.ContainerView, error) {
	list, err := l.replica.Containers(ctx, p.User)
	views := make([]control.ContainerView, len(list))
	for i, c := range list {
		views[i] = control.ContainerView{Container: c}
	}
	return views, err
}
