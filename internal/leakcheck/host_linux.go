package leakcheck

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// processes adds every process but kernel threads and this one, and the network namespaces that they live in.
func processes(s *Snapshot) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	seen := map[string]bool{own: true}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it ended meanwhile
		}
		comm, state, ppid, started, ok := parseStat(stat)
		if !ok {
			return fmt.Errorf("unexpected %s/stat: %q", dir, stat)
		}
		if pid == 2 || ppid == 2 { // kthreadd and its children
			continue
		}
		note := comm + " (" + state + ")"
		if cmdline, err := os.ReadFile(dir + "/cmdline"); err == nil && len(cmdline) > 0 {
			note += " " + string(bytes.ReplaceAll(bytes.TrimRight(cmdline, "\x00"), []byte{0}, []byte{' '}))
		}
		s.add(Process, fmt.Sprintf("%d started at %s", pid, started), note)
		if ns, err := os.Readlink(dir + "/ns/net"); err == nil && !seen[ns] {
			seen[ns] = true
			s.add(NetNS, ns, note)
		}
	}
	return nil
}

// parseStat takes the fields of proc(5)'s stat that are needed; comm may itself hold spaces and parentheses.
func parseStat(stat []byte) (comm, state string, ppid int, started string, ok bool) {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return "", "", 0, "", false
	}
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) < 20 {
		return "", "", 0, "", false
	}
	ppid, err := strconv.Atoi(fields[1])
	return string(stat[open+1 : end]), fields[0], ppid, fields[19], err == nil
}

func mounts(s *Snapshot) error {
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return err
	}
	for _, m := range infos {
		s.add(Mount, m.Mountpoint, m.FSType+" of "+m.Source+" "+m.Root)
	}
	return nil
}

func loops(s *Snapshot) error {
	attached, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, path := range attached {
		file, err := os.ReadFile(path)
		if err != nil {
			continue // detached meanwhile
		}
		s.add(Loop, "/dev/"+strings.Split(path, "/")[3], strings.TrimSpace(string(file)))
	}
	return nil
}

func links(s *Snapshot) error {
	list, err := netlink.LinkList()
	for range 100 { // links that come and go meanwhile interrupt the kernel's list
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
		list, err = netlink.LinkList()
	}
	if err != nil {
		return fmt.Errorf("list network links: %w", err)
	}
	for _, l := range list {
		s.add(Link, l.Attrs().Name, l.Type())
	}
	return nil
}

func tables(s *Snapshot) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	list, err := conn.ListTables()
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil // a kernel without nftables has none to leave behind
	} else if err != nil {
		return fmt.Errorf("list nftables tables: %w", err)
	}
	family := map[nftables.TableFamily]string{
		nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
		nftables.TableFamilyARP: "arp", nftables.TableFamilyNetdev: "netdev", nftables.TableFamilyBridge: "bridge",
	}
	for _, t := range list {
		s.add(Table, "table "+family[t.Family]+" "+t.Name, "")
	}
	chains, err := conn.ListChains()
	if err != nil {
		return fmt.Errorf("list nftables chains: %w", err)
	}
	for _, c := range chains {
		s.add(Table, "chain "+family[c.Table.Family]+" "+c.Table.Name+" "+c.Name, "")
	}
	return nil
}

func cgroups(s *Snapshot) error {
	return walk("/sys/fs/cgroup", true, func(path string, d fs.DirEntry) {
		if d.IsDir() {
			s.add(Cgroup, path, "")
		}
	})
}

// places are where containerd, runc, CNI and berth keep what outlives a process, outside of any data directory.
var places = []string{
	"/run/berth*", "/run/containerd", "/run/netns", "/run/runc", "/run/cni", "/opt/containerd", "/opt/cni",
	"/var/lib/berth*", "/var/lib/cni", "/var/lib/containerd",
}

func files(s *Snapshot) error {
	for _, pattern := range places {
		roots, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, root := range roots {
			if err := walk(root, false, func(path string, _ fs.DirEntry) { s.add(File, path, "") }); err != nil {
				return err
			}
		}
	}
	return nil
}

func settings(s *Snapshot) error {
	for _, path := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		value, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6
		} else if err != nil {
			return err
		}
		s.add(Setting, path+" = "+strings.TrimSpace(string(value)), "")
	}
	return nil
}

// walk visits what is below root, into mounts too where it says so; what vanishes under it is not there.
func walk(root string, intoMounts bool, visit func(string, fs.DirEntry)) error {
	var top unix.Stat_t
	if err := unix.Lstat(root, &top); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		} else if err != nil {
			return err
		}
		visit(path, d)
		var st unix.Stat_t
		if !intoMounts && d.IsDir() && unix.Lstat(path, &st) == nil && st.Dev != top.Dev {
			return fs.SkipDir // a mount: what is in it is not on the host
		}
		return nil
	})
}
