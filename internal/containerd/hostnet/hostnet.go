// Package hostnet is the tenants' network of one Berth instance on one machine: a routed veth to each container, one
// nftables table that isolates and masquerades them, and a DNS forwarder at their gateway's address.
//
// A container reaches the Internet and DNS; it reaches no other container, no private range and nothing else of the
// host, by any of the host's addresses. Nothing reaches a container from outside: sessions use a unix socket. There is
// no bridge, because on one a container's ARP takes over another's address; see docs/adr/0005.
//
// The kernel holds the state: an attachment is a veth whose name carries the container's id and whose peer address is
// the container's. So a run that was killed leaves nothing to repair, and the next one adopts what it finds. Berth's
// table is one among the machine's: a firewall of the operator's that drops what this one lets pass is not overruled,
// only reported.
package hostnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"berth/internal/compute"
)

// Options says which instance's network to open. DataDir alone is required.
type Options struct {
	DataDir   string           // its hash gives the instance's names and its first choice of a subnet
	Subnet    netip.Prefix     // zero: a free one, kept in the data directory
	Upstreams []netip.AddrPort // DNS servers to ask; none: those of /etc/resolv.conf, read again when it changes
	Log       *slog.Logger     // nil: slog.Default()

	// MaxConns bounds what one container may hold in the host's connection tracking table; 0: a share of the host's
	// limit.
	MaxConns int
	// NewConnsPerSecond bounds the rate at which one container opens connections; 0: 1000.
	NewConnsPerSecond int
}

// Attachment is one container's place in the network.
type Attachment struct {
	ID      string     // the container's
	Addr    netip.Addr // the container's; a /32 on its eth0
	Gateway netip.Addr // where its default route leads and its resolver listens
	HostIf  string     // the host's end
}

// Network is an instance's network. Its methods may be called concurrently.
type Network struct {
	names    names
	subnet   netip.Prefix
	gateway  netip.Addr
	limits   limits
	log      *slog.Logger
	resolver *resolver

	// rules is what the table holds since it was built last; none when that is not known. Guarded by ops.
	rules map[string]bool

	// ops lets one change of the kernel's state go on at a time: a rebuild of the table reads the links, and must not
	// miss one that is being made.
	ops chan struct{}

	cancel context.CancelCauseFunc
	stop   func()         // closes the sockets that goroutines read
	owned  sync.WaitGroup // goroutines of ours, ended by cancel and stop
}

var errClosed = errors.New("the network is closed")

// Open makes the instance's table, turns on forwarding where it is needed and starts the forwarder. What an earlier run
// left is adopted: its containers stay connected throughout.
func Open(ctx context.Context, o Options) (*Network, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	nm, err := namesOf(o.DataDir)
	if err != nil {
		return nil, err
	}
	n := &Network{names: nm, log: o.Log.With("network", nm.table), ops: make(chan struct{}, 1)}
	n.limits = limitsOf(o)

	lock, err := lockHost(ctx)
	if err != nil {
		return nil, err
	}
	defer lock.release()
	if n.subnet, err = chooseSubnet(nm, o.DataDir, o.Subnet); err != nil {
		return nil, err
	}
	n.gateway = n.subnet.Addr().Next()
	if n.resolver, err = listenResolver(ctx, n.subnet, n.gateway, upstreamsOf(o), n.log); err != nil {
		return nil, err
	}
	if err := n.run(ctx, lock); err != nil {
		n.resolver.close()
		if attached, aerr := listAttached(nm); aerr == nil && len(attached) == 0 {
			err = errors.Join(err, destroyLocked(lock, nm, o.DataDir))
		}
		return nil, err
	}
	warnings, err := Warnings(o)
	if err != nil {
		n.log.Warn("Other firewalls could not be read.", "err", err)
	}
	for _, w := range warnings {
		n.log.Warn(w)
	}
	return n, nil
}

// run builds the kernel's part and starts the goroutines that Close ends. It listens for changes first, so as to miss
// none.
func (n *Network) run(ctx context.Context, lock *hostLock) error {
	tables, err := subscribe(tableChanges)
	if err != nil {
		return err
	}
	routes, err := subscribe(routeChanges)
	if err != nil {
		tables.close()
		return err
	}
	n.stop = func() {
		n.resolver.close()
		tables.close()
		routes.close()
	}
	if err := n.build(lock); err != nil {
		n.stop()
		return err
	}
	ctx, n.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	n.owned.Go(func() { n.resolver.serve(ctx) })
	n.owned.Go(func() { tables.read(tableChanges) })
	n.owned.Go(func() { routes.read(routeChanges) })
	n.owned.Go(func() { n.watch(ctx, tables, routes) })
	return nil
}

// build installs the table and turns forwarding on.
func (n *Network) build(lock *hostLock) error {
	attached, err := listAttached(n.names)
	if err != nil {
		return err
	}
	count, err := installTable(n.names, n.subnet, n.gateway, n.limits, attached)
	if err != nil {
		return err
	}
	if n.rules, err = fingerprint(n.names); err != nil {
		return err
	}
	if len(n.rules) != count {
		// Changed since: the event of that change has watch look again, which must then find the table damaged.
		n.rules = nil
	}
	return enableForwarding(lock, n.names)
}

// Close ends the forwarder. The table and the links stay for running containers; Destroy removes them.
func (n *Network) Close() error {
	n.cancel(errClosed)
	n.stop()
	n.owned.Wait()
	return nil
}

// Gateway returns the address that containers' resolv.conf names.
func (n *Network) Gateway() netip.Addr { return n.gateway }

// Subnet returns the range that containers' addresses are of.
func (n *Network) Subnet() netip.Prefix { return n.subnet }

// exclusive runs f alone among the operations that change the kernel's state.
func (n *Network) exclusive(ctx context.Context, f func() error) error {
	select {
	case n.ops <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-n.ops }()
	return f()
}

// Attach connects the network namespace at netnsPath, for the container id, with addr or, when that is zero, with a
// free address. Attaching again repairs what is missing and keeps the address.
func (n *Network) Attach(ctx context.Context, id string, addr netip.Addr, netnsPath string) (Attachment, error) {
	if err := checkID(id); err != nil {
		return Attachment{}, err
	}
	if addr.IsValid() && !n.assignable(addr) {
		return Attachment{}, fmt.Errorf("attach %s: %s is not an address of %s for a container", id, addr, n.subnet)
	}
	ns, err := openNetns(netnsPath)
	if err != nil {
		return Attachment{}, fmt.Errorf("attach %s: %w", id, err)
	}
	defer func() { _ = unix.Close(ns) }()
	var at Attachment
	err = n.exclusive(ctx, func() (err error) {
		at, err = n.attach(ctx, id, addr, ns)
		return err
	})
	if err != nil {
		return Attachment{}, fmt.Errorf("attach %s: %w", id, err)
	}
	return at, nil
}

func (n *Network) attach(ctx context.Context, id string, addr netip.Addr, ns int) (Attachment, error) {
	attached, err := listAttached(n.names)
	if err != nil {
		return Attachment{}, err
	}
	taken := make(map[netip.Addr]string, len(attached))
	var old Attachment
	for _, a := range attached {
		taken[a.Addr] = a.ID
		if a.ID == id {
			old = a
		}
	}
	switch {
	case !addr.IsValid() && old.Addr.IsValid() && n.assignable(old.Addr):
		addr = old.Addr
	case !addr.IsValid():
		if addr, err = freeAddr(n.subnet, id, taken); err != nil {
			return Attachment{}, err
		}
	case taken[addr] != "" && taken[addr] != id:
		return Attachment{}, fmt.Errorf("%s belongs to container %s", addr, taken[addr])
	}
	at := Attachment{ID: id, Addr: addr, Gateway: n.gateway, HostIf: n.names.link(id)}
	if old.Addr.IsValid() && old.Addr != addr {
		if err := n.detach(id, old.Addr); err != nil {
			return Attachment{}, err
		}
	}
	// The table first: the link's first packet meets rules that know it.
	if err := n.assign(ctx, at); err != nil {
		return Attachment{}, err
	}
	if err := connect(at, ns); err != nil {
		return Attachment{}, errors.Join(err, n.detach(id, addr))
	}
	return at, nil
}

// assign puts an attachment into the table, which it repairs first if somebody has just removed it.
func (n *Network) assign(ctx context.Context, at Attachment) error {
	err := setAssigned(n.names, at, true)
	if errors.Is(err, unix.ENOENT) {
		if err = n.repairTable(ctx); err == nil {
			err = setAssigned(n.names, at, true)
		}
	}
	return err
}

// assignable says whether a container may have the address.
func (n *Network) assignable(a netip.Addr) bool {
	return n.subnet.Contains(a) && a != n.gateway && a != n.subnet.Addr() && a != lastAddr(n.subnet)
}

// Detach removes the container's link, its place in the table and its tracked connections. It succeeds when there are
// none.
func (n *Network) Detach(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	err := n.exclusive(ctx, func() error {
		attached, err := listAttached(n.names)
		if err != nil {
			return err
		}
		assigned, err := assignedAddrs(n.names)
		if err != nil {
			return err
		}
		addr := assigned[n.names.link(id)]
		for _, a := range attached {
			if a.ID == id && a.Addr.IsValid() {
				addr = a.Addr
			}
		}
		return n.detach(id, addr)
	})
	if err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	return nil
}

func (n *Network) detach(id string, addr netip.Addr) error {
	if err := deleteLink(n.names.link(id)); err != nil {
		return err
	}
	if !addr.IsValid() {
		return nil
	}
	if err := setAssigned(n.names, Attachment{Addr: addr, HostIf: n.names.link(id)}, false); err != nil {
		return err
	}
	// A later container with this address must not receive this one's replies.
	return forgetConns(netip.PrefixFrom(addr, addr.BitLen()))
}

// Attached lists the containers that have a link, in no order.
func (n *Network) Attached(ctx context.Context) ([]Attachment, error) {
	var attached []Attachment
	err := n.exclusive(ctx, func() (err error) {
		attached, err = listAttached(n.names)
		return err
	})
	for i := range attached {
		attached[i].Gateway = n.gateway
	}
	return attached, err
}

// Destroy removes the instance's links and table, open or not, and turns off the forwarding that Berth turned on when
// no other instance is left. The choice of subnet stays in the data directory. Close the Network first.
func Destroy(ctx context.Context, dataDir string) error {
	nm, err := namesOf(dataDir)
	if err != nil {
		return err
	}
	lock, err := lockHost(ctx)
	if err != nil {
		return err
	}
	defer lock.release()
	return destroyLocked(lock, nm, dataDir)
}

func destroyLocked(lock *hostLock, nm names, dataDir string) error {
	attached, err := listAttached(nm)
	if err != nil {
		return err
	}
	for _, a := range attached {
		if err := deleteLink(a.HostIf); err != nil {
			return err
		}
	}
	subnet, err := keptSubnet(nm, dataDir)
	if err != nil {
		return err
	}
	if subnet.IsValid() {
		if err := forgetConns(subnet); err != nil {
			return err
		}
	}
	if err := removeTable(nm); err != nil {
		return err
	}
	return restoreForwarding(lock)
}

func checkID(id string) error {
	if _, err := compute.ParseContainerID(id); err != nil {
		return fmt.Errorf("%q is not a container's id", id)
	}
	return nil
}

// canonical returns one spelling of a directory for all ways to name it, also before it is made and after it is gone.
func canonical(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("hostnet: no data directory given")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	rest := ""
	for parent := abs; ; {
		real, err := filepath.EvalSymlinks(parent)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		if !errors.Is(err, os.ErrNotExist) || parent == "/" {
			return "", fmt.Errorf("data directory: %w", err)
		}
		rest = filepath.Join(filepath.Base(parent), rest)
		parent = filepath.Dir(parent)
	}
}
