package hostnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	runDir         = "/run/berth"
	lockFile       = runDir + "/network.lock"
	forwardingFile = runDir + "/forwarding.json"
	lockRetry      = 5 * time.Millisecond
)

// hostLock is held by whoever changes what instances share: the subnets, and forwarding.
type hostLock struct{ f *os.File }

// lockHost takes the lock. It tries again and again, because a blocked flock cannot be given up when ctx ends; holders
// keep it for milliseconds.
func lockHost(ctx context.Context) (*hostLock, error) {
	for {
		l, err := tryLockHost()
		if err != nil {
			return nil, fmt.Errorf("lock the host's network: %w", err)
		}
		if l != nil {
			return l, nil
		}
		select {
		case <-time.After(lockRetry):
		case <-ctx.Done():
			return nil, fmt.Errorf("lock the host's network: %w", context.Cause(ctx))
		}
	}
}

// tryLockHost returns nil when another holds the lock, or removed it meanwhile.
func tryLockHost() (*hostLock, error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(lockFile, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // the last instance went just now
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		var held, named unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &held); err != nil {
			_ = f.Close()
			return nil, err
		}
		if unix.Stat(lockFile, &named) == nil && named.Ino == held.Ino && named.Dev == held.Dev {
			return &hostLock{f: f}, nil
		}
	}
	_ = f.Close()
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, err
	}
	return nil, nil //nolint:nilnil // see above
}

// release gives the lock up. The last instance's call takes the file with it; whoever waits for it makes a new one.
func (l *hostLock) release() {
	if left, err := berthTables(); err == nil && len(left) == 0 {
		if _, err := os.Stat(forwardingFile); errors.Is(err, fs.ErrNotExist) {
			_ = os.Remove(lockFile)
			_ = os.Remove(runDir) // unless others keep something there
		}
	}
	_ = l.f.Close()
}

// forwardingState is which of the host's links Berth made forward: those, and no others, it sets back.
type forwardingState struct {
	Boot  string   `json:"boot"` // a file that survives a reboot says nothing
	Links []string `json:"links"`
}

func bootID() string {
	data, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data))
}

func (*hostLock) forwarding() (forwardingState, error) {
	var s forwardingState
	data, err := os.ReadFile(forwardingFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("read forwarding state: %w", err)
	}
	if err == nil && (json.Unmarshal(data, &s) != nil || s.Boot != bootID()) {
		s = forwardingState{}
	}
	return s, nil
}

func (*hostLock) setForwarding(s forwardingState) error {
	s.Boot = bootID()
	data, err := json.Marshal(s)
	if err == nil {
		err = writeFile(forwardingFile, append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write forwarding state: %w", err)
	}
	return nil
}

// enableForwarding makes the uplinks forward: the links over which anything is routed that containers may reach, since
// the answers come in there. The global switch would make a router of every link, and turning it off again resets them
// all.
func enableForwarding(lock *hostLock, nm names) error {
	uplinks, err := uplinks(nm)
	if err != nil {
		return err
	}
	state, err := lock.forwarding()
	if err != nil {
		return err
	}
	for _, name := range uplinks {
		on, err := forwards(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone meanwhile
		}
		if err != nil {
			return err
		}
		if on {
			continue
		}
		// Recorded first: after a crash in between, a link is set back that needs it or that is off anyway.
		if !slices.Contains(state.Links, name) {
			state.Links = append(state.Links, name)
			if err := lock.setForwarding(state); err != nil {
				return err
			}
		}
		if err := writeSysctl("net/ipv4/conf/"+name+"/forwarding", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// restoreForwarding sets back what enableForwarding did, if no instance is left.
func restoreForwarding(lock *hostLock) error {
	if left, err := berthTables(); err != nil || len(left) > 0 {
		return err
	}
	state, err := lock.forwarding()
	if err != nil {
		return err
	}
	// Someone turned the whole machine into a router since: then it is no longer ours to undo.
	global, err := forwards("all")
	if err != nil {
		return err
	}
	for _, name := range state.Links {
		if global {
			break
		}
		err := writeSysctl("net/ipv4/conf/"+name+"/forwarding", "0")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(forwardingFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove forwarding state: %w", err)
	}
	return nil
}

func forwards(link string) (bool, error) {
	data, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv4/conf", link, "forwarding"))
	if err != nil {
		return false, fmt.Errorf("read forwarding of %s: %w", link, err)
	}
	return !bytes.Equal(bytes.TrimSpace(data), []byte("0")), nil
}

// uplinks lists the links over which the machine routes anything that containers may reach.
func uplinks(nm names) ([]string, error) {
	links, err := linkNames()
	if err != nil {
		return nil, err
	}
	routes, err := allRoutes()
	if err != nil {
		return nil, err
	}
	var up []string
	add := func(index int) {
		name := links[index]
		if name == "" || name == "lo" || slices.Contains(up, name) {
			return
		}
		if _, ours := nm.id(name); !ours {
			up = append(up, name)
		}
	}
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST || !leadsOut(r) {
			continue
		}
		add(r.LinkIndex)
		for _, hop := range r.MultiPath {
			add(hop.LinkIndex)
		}
	}
	slices.Sort(up)
	return up, nil
}

// leadsOut says whether a route's destination is not wholly blocked.
func leadsOut(r netlink.Route) bool {
	p, ok := prefixOf(r.Dst)
	if r.Dst == nil {
		p, ok = netip.PrefixFrom(netip.IPv4Unspecified(), 0), true
	}
	if !ok {
		return false
	}
	return !slices.ContainsFunc(blocked, func(b netip.Prefix) bool {
		return b.Bits() <= p.Bits() && b.Contains(p.Addr())
	})
}
