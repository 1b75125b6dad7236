package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// settle is how long changes of routes are gathered before they are looked at: they come in bursts.
const settle = 100 * time.Millisecond

// netlinkGroup is a multicast group of the kernel's, and which of its messages matter; nil for all.
type netlinkGroup struct {
	protocol int
	group    uint
	matters  func(messageType uint16) bool
}

var (
	linkChanges  = netlinkGroup{protocol: unix.NETLINK_ROUTE, group: unix.RTNLGRP_LINK}
	routeChanges = netlinkGroup{protocol: unix.NETLINK_ROUTE, group: unix.RTNLGRP_IPV4_ROUTE}
	tableChanges = netlinkGroup{
		protocol: unix.NETLINK_NETFILTER, group: unix.NFNLGRP_NFTABLES,
		matters: func(t uint16) bool {
			if t>>8 != unix.NFNL_SUBSYS_NFTABLES {
				return false
			}
			switch t & 0xff {
			case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE:
				return true
			}
			return false
		},
	}
)

// subscription tells that something happened in a group; what, its reader looks up for itself. So nothing is lost when
// messages are.
type subscription struct {
	f *os.File
	C chan struct{}
}

func subscribe(g netlinkGroup) (*subscription, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, g.protocol)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (g.group - 1)}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("join netlink group: %w", err)
	}
	return &subscription{f: os.NewFile(uintptr(fd), "netlink"), C: make(chan struct{}, 1)}, nil
}

// read signals C until close.
func (s *subscription) read(g netlinkGroup) {
	buf := make([]byte, 64<<10)
	for {
		n, err := s.f.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		// An error is an overrun: anything may have happened.
		if err == nil && g.matters != nil && !anyMessage(buf[:n], g.matters) {
			continue
		}
		select {
		case s.C <- struct{}{}:
		default:
		}
	}
}

func (s *subscription) close() { _ = s.f.Close() }

// anyMessage says whether a message of a netlink datagram matters.
func anyMessage(b []byte, matters func(uint16) bool) bool {
	for len(b) >= unix.NLMSG_HDRLEN {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.NLMSG_HDRLEN {
			return false
		}
		if matters(binary.NativeEndian.Uint16(b[4:])) {
			return true
		}
		aligned := (length + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1)
		b = b[min(aligned, len(b)):]
	}
	return false
}

// watch repairs the table when somebody removes it ("nft flush ruleset" is how distributions reload their firewall),
// and makes new uplinks forward, until ctx ends.
func (n *Network) watch(ctx context.Context, tables, routes *subscription) {
	settled := time.NewTimer(0)
	if !settled.Stop() {
		<-settled.C
	}
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-tables.C:
			err = n.exclusive(ctx, func() error { return n.repairTable(ctx) })
		case <-routes.C:
			settled.Reset(settle)
		case <-settled.C:
			err = n.exclusive(ctx, func() error { return n.followRoutes(ctx) })
		}
		if err != nil && ctx.Err() == nil {
			n.log.Error("The containers' network could not be repaired.", "err", err)
		}
	}
}

// repairTable makes the table anew if any of its rules is gone.
func (n *Network) repairTable(ctx context.Context) error {
	seen, err := fingerprint(n.names)
	if err != nil {
		return err
	}
	whole := len(n.rules) > 0
	for r := range n.rules {
		whole = whole && seen[r]
	}
	if whole {
		return nil
	}
	lock, err := lockHost(ctx)
	if err != nil {
		return err
	}
	defer lock.release()
	n.log.Warn("Somebody removed rules of the containers' firewall; it is made anew.")
	return n.build(lock)
}

func (n *Network) followRoutes(ctx context.Context) error {
	lock, err := lockHost(ctx)
	if err != nil {
		return err
	}
	defer lock.release()
	return enableForwarding(lock, n.names)
}
