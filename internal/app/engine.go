package app

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"berth/internal/compute"
	"berth/internal/config"
	"berth/internal/containerd"
	"berth/internal/control"
	"berth/internal/session"
)

// engine is what runs containers, on this machine or on a cluster.
type engine interface {
	control.Engine
	session.Dialer
	// Answers says whether what it drives does.
	Answers(ctx context.Context) error
	Close() error
}

// openEngine starts what runs containers; its progress goes to p. Where the state is in a database that others may share, it is
// driven in terms.
func (b *berth) openEngine(ctx context.Context, p *progress) error {
	installation, err := b.store.InstallationID(ctx)
	if err != nil {
		return err
	}
	if b.cfg.OnKubernetes() {
		return b.openCluster(ctx, installation, p)
	}
	options, err := engineOptions(b.cfg)
	if err != nil {
		return err
	}
	options.InstallationID, options.Log, options.Progress = installation, b.log.With("part", "containerd"), p.step
	if b.cfg.Database != "" {
		if b.dialer, err = containerd.NewDialer(options.DataDir); err != nil {
			return err
		}
		return b.shareMachine(options)
	}
	e, err := containerd.Open(ctx, options)
	if err != nil {
		return err
	}
	b.ownEngine(e)
	return nil
}

// ownEngine has the only control plane drive its engine.
func (b *berth) ownEngine(e engine) {
	b.onClose(e.Close)
	b.dialer = e
	b.watchEngine(func() engine { return e })
	b.openControl(e)
	b.inner = append(b.inner, b.control.Run)
}

// engineOptions are the embedded engine's, from the settings.
func engineOptions(c config.Config) (containerd.Options, error) {
	o := containerd.Options{
		DataDir: c.EnginePath(), ContainerdPath: c.Containerd, ContainerdAddress: c.ContainerdAddress, AcceptEnv: c.AcceptEnv,
		ImageArchive: c.Image, AgentPath: c.Agent,
		ReserveBytes: int64(c.ReserveGB) << 30, MemoryBytes: int64(c.MemoryMB) << 20,
	}
	if o.ImageArchive == "" {
		if o.ImageArchive = config.Beside("../build/base-image.tar", "base-image.tar"); o.ImageArchive == "" {
			return o, errors.New("the base image is not there; `make image` makes it, or name one with --image")
		}
	}
	if o.AgentPath == "" {
		name := "berth-agent-linux-" + architecture
		if o.AgentPath = config.Beside(name); o.AgentPath == "" {
			return o, fmt.Errorf("%s is not beside this program; `make build` makes it, or name one with --agent", name)
		}
	}
	for setting, path := range map[string]string{"image": o.ImageArchive, "agent": o.AgentPath} {
		if _, err := os.Stat(path); err != nil {
			return o, fmt.Errorf("--%s: %w", setting, err)
		}
	}
	var err error
	if c.Subnet != "" {
		if o.Subnet, err = netip.ParsePrefix(c.Subnet); err != nil {
			return o, err
		}
	}
	if c.DNSUpstream != "" {
		upstream, err := netip.ParseAddrPort(c.DNSUpstream)
		if err != nil {
			return o, err
		}
		o.Upstreams = []netip.AddrPort{upstream}
	}
	return o, nil
}

// instanceTypes is the table of instance types. A machine's engine has no other architecture than its own.
func instanceTypes(c config.Config) []compute.InstanceType {
	types := compute.DefaultInstanceTypes()
	only := c.Architecture
	if !c.OnKubernetes() {
		only = architecture
	}
	if only == "" {
		return types
	}
	for i := range types {
		types[i].Architecture = only
	}
	return types
}
