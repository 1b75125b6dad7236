package hostnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Check says whether Open would succeed, without changing anything: one line with the cure for each thing that is
// missing. It may be called beside an open Network.
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
	return OnSpentThread(func() error {
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
		_, err := installTable(nm, subnet, subnet.Addr().Next(), limitsOf(Options{}), nil)
		return err
	})
}

// OnSpentThread runs f, which may change its thread's namespaces, on a thread that ends with it. That is never the process's
// first one, which cannot end, and whose namespaces others take for the process's.
func OnSpentThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			err := OnSpentThread(f) // on another thread, while this one is held
			runtime.UnlockOSThread()
			result <- err
			return
		}
		result <- f()
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

// Warnings lists what would keep containers from the network although Open succeeds: other firewalls that drop by
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
	families := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyINet: "inet"}
	var warnings []string
	for _, ch := range chains {
		family, ok := families[ch.Table.Family]
		if !ok || ch.Hooknum == nil || strings.HasPrefix(ch.Table.Name, tablePrefix) {
			continue
		}
		// firewalld accepts by default, and rejects in its last rule.
		drops := ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop || ch.Table.Name == "firewalld"
		harm := ""
		switch *ch.Hooknum {
		case *nftables.ChainHookForward:
			harm = "containers may not reach the Internet"
		case *nftables.ChainHookInput:
			harm = "names may not resolve in containers"
		}
		if ch.Type != nftables.ChainTypeFilter || !drops || harm == "" || mentions(c, chains, ch.Table, nm.links) {
			continue
		}
		chain := fmt.Sprintf("%s %s %s", family, ch.Table.Name, ch.Name)
		warnings = append(warnings, fmt.Sprintf("another firewall drops what it does not know (nftables chain %s), so %s; "+
			"let it accept the interfaces %s*, as with: %s", chain, harm, nm.links, cure(ch, chain, nm.links)))
	}
	return warnings, nil
}

// cure is what to type.
func cure(ch *nftables.Chain, chain, links string) string {
	if ch.Table.Name == "firewalld" {
		return fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-interface=%s+; firewall-cmd --reload", links)
	}
	rule := func(direction string) string {
		return fmt.Sprintf("nft insert rule %s %sifname '\"%s*\"' accept", chain, direction, links)
	}
	if *ch.Hooknum == *nftables.ChainHookInput {
		return rule("i")
	}
	return rule("i") + "; " + rule("o")
}

// mentions says whether a rule of the table names our links: the operator took care of them.
func mentions(c *nftables.Conn, chains []*nftables.Chain, t *nftables.Table, links string) bool {
	for _, ch := range chains {
		if ch.Table.Name != t.Name || ch.Table.Family != t.Family {
			continue
		}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			continue // one with parts that the library does not know; then it is a warning too many
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if cmp, ok := e.(*expr.Cmp); ok && strings.HasPrefix(string(cmp.Data), links) {
					return true
				}
			}
		}
	}
	return false
}
