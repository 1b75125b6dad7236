package hostnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Check says whether Open would succeed, without changing anything: one line with the cure for each thing that is missing.
// It may be called beside an open Network.
func Check(ctx context.Context, o Options) error {
	nm, err := namesOf(o.DataDir)
	if err != nil {
		return err
	}
	if err := trial(nm); err != nil {
		return err // the rest would say the same in other words
	}
	return errors.Join(checkSysctl(), checkAddresses(ctx, nm, o))
}

// trial makes a link and a table in a network namespace that ends with it.
func trial(nm names) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread, in a namespace of its own, ends with the goroutine
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("cannot make a network namespace: run as root, on a kernel with CONFIG_NET_NS: %w", err)
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name = nm.link("00000000")
			veth := netlink.NewVeth(attrs)
			veth.PeerName = innerName
			if err := netlink.LinkAdd(veth); err != nil {
				return fmt.Errorf("cannot make a veth pair: modprobe veth, or install the distribution's full kernel: %w", err)
			}
			subnet := nthSubnet(pools[0], 0)
			return installTable(nm, subnet, subnet.Addr().Next(), limitsOf(Options{}), nil)
		}()
	}()
	return <-result
}

func checkSysctl() error {
	f, err := os.OpenFile("/proc/sys/net/ipv4/conf/all/forwarding", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("cannot turn on forwarding: run Berth as root on the machine itself, or in a container with a "+
			"writable /proc/sys/net: %w", err)
	}
	return f.Close()
}

// checkAddresses looks for a subnet, and for a DNS server that listens on every address of the machine.
func checkAddresses(ctx context.Context, nm names, o Options) error {
	lock, err := lockHost(ctx)
	if err != nil {
		return err
	}
	subnet, err := findSubnet(nm, o.DataDir, o.Subnet)
	lock.release()
	if err != nil {
		return err
	}
	// Any address of the subnet tells; the gateway's own is in use while Berth runs.
	r, err := listenResolver(ctx, subnet, lastAddr(subnet).Prev(), upstreamsOf(o), nil)
	if err != nil {
		return err
	}
	r.close()
	return nil
}

// Warnings lists what would keep containers from the network although Open succeeds: chains of other firewalls that drop by
// default, which Berth's table cannot overrule and leaves alone. Each is one line with the cure.
func Warnings(o Options) ([]string, error) {
	nm, err := namesOf(o.DataDir)
	if err != nil {
		return nil, err
	}
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	var warnings []string
	for _, ch := range chains {
		f := ch.Table.Family
		if ch.Hooknum == nil || strings.HasPrefix(ch.Table.Name, tablePrefix) ||
			f != nftables.TableFamilyIPv4 && f != nftables.TableFamilyINet {
			continue
		}
		drops := ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
		where := fmt.Sprintf("chain %s of nftables table %s", ch.Name, ch.Table.Name)
		switch {
		case drops && *ch.Hooknum == *nftables.ChainHookForward:
			warnings = append(warnings, fmt.Sprintf("%s drops what it does not know, so containers may not reach the Internet; "+
				"accept there what comes from and goes to the interfaces %s*", where, nm.links))
		case drops && *ch.Hooknum == *nftables.ChainHookInput:
			warnings = append(warnings, fmt.Sprintf("%s drops what it does not know, so names may not resolve in containers; "+
				"accept there UDP and TCP port 53 from the interfaces %s*", where, nm.links))
		}
	}
	return warnings, nil
}
