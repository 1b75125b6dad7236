// Package leakcheck says what a run left on the host: processes, mounts, loop devices, network links and namespaces,
// nftables tables and chains, cgroup directories, files of containerd and berth under /run and /opt, and the
// forwarding switch. Tests take a Snapshot before and after, or call Check and let it fail them.
//
// Its boundary: it only looks, and never removes anything. It sees the whole machine, so a test that runs beside others
// names what is its own (its data directory, its interface prefix) and is held to that alone.
package leakcheck

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// Kind says what sort of thing was found.
type Kind string

// The kinds that a Snapshot holds.
const (
	Process Kind = "process"
	Mount   Kind = "mount"
	Loop    Kind = "loop device"
	Link    Kind = "network link"
	NetNS   Kind = "network namespace"
	Table   Kind = "nftables"
	Cgroup  Kind = "cgroup"
	File    Kind = "file"
	Setting Kind = "setting"
)

// Thing is one piece of the host's state.
type Thing struct {
	Kind Kind
	Name string // what identifies it: a path, a device, a process with its start time
	Note string // what helps to tell whose it is: a command line, a backing file; not part of the identity
}

func (t Thing) String() string {
	if t.Note == "" {
		return string(t.Kind) + " " + t.Name
	}
	return string(t.Kind) + " " + t.Name + ": " + t.Note
}

type identity struct {
	kind Kind
	name string
}

// Snapshot is the host's state at one time.
type Snapshot struct {
	things map[identity][]string // identity → the note of each; one path may carry several mounts
}

func (s *Snapshot) add(k Kind, name, note string) {
	id := identity{k, name}
	s.things[id] = append(s.things[id], note)
}

// Take looks at the host. It needs root to see other users' network namespaces and the firewall.
func Take() (*Snapshot, error) {
	s := &Snapshot{things: map[identity][]string{}}
	for _, look := range []func(*Snapshot) error{processes, mounts, loops, links, tables, cgroups, files, settings} {
		if err := look(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Since returns what is in s and was not in before, sorted.
func (s *Snapshot) Since(before *Snapshot) []Thing {
	var out []Thing
	for id, notes := range s.things {
		for _, note := range notes[min(len(before.things[id]), len(notes)):] {
			out = append(out, Thing{Kind: id.kind, Name: id.name, Note: note})
		}
	}
	slices.SortFunc(out, func(a, b Thing) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// MarshalJSON writes the snapshot for another process to compare with.
func (s *Snapshot) MarshalJSON() ([]byte, error) {
	return json.Marshal(s.Since(&Snapshot{}))
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (s *Snapshot) UnmarshalJSON(b []byte) error {
	var list []Thing
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	s.things = map[identity][]string{}
	for _, t := range list {
		s.add(t.Kind, t.Name, t.Note)
	}
	return nil
}

// About keeps the things whose name or note contains one of the words.
func About(things []Thing, words ...string) []Thing {
	return slices.DeleteFunc(slices.Clone(things), func(t Thing) bool {
		return !slices.ContainsFunc(words, func(w string) bool {
			return strings.Contains(t.Name, w) || strings.Contains(t.Note, w)
		})
	})
}

// programs are the names by which Ours knows a process, or a prefix of them.
var programs = []string{"berth", "agent", "containerd", "runc", "ssh-agent", "devcluster", "kube"}

// groups are in the names of all control groups that berth, its containerd and runc make, wherever they would put them.
var groups = []string{"berth", "compute-", "containerd", "runc"}

// Ours keeps what berth could have left and drops what a machine does by itself meanwhile: processes that are none of
// ours nor their network namespaces, and the control groups of logins, units and other programs.
func Ours(things []Thing) []Thing {
	return slices.DeleteFunc(slices.Clone(things), func(t Thing) bool {
		switch t.Kind {
		case Process, NetNS:
			name := t.Note[:max(strings.IndexByte(t.Note, ' '), 0)]
			return !slices.ContainsFunc(programs, func(p string) bool { return strings.HasPrefix(name, p) })
		case Cgroup:
			return !slices.ContainsFunc(groups, func(g string) bool { return strings.Contains(t.Name, g) })
		default:
			return false
		}
	})
}

// Patience is how long Check waits for what ends by itself: a namespace and its links, for instance, are taken down by a
// kernel worker some time after their last process, which announces nothing to wait on.
const Patience = 15 * time.Second

// Check fails the test if, when it ends, the host has something about one of the words that it had not when Check was
// called; without words, anything of Ours. Call it before the test starts anything, so that its clean-up runs last.
func Check(t testing.TB, words ...string) {
	t.Helper()
	before, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := Settled(before, Patience, words...)
		if err != nil {
			t.Error(err)
		}
		for _, thing := range left {
			t.Errorf("left behind: %v", thing)
		}
	})
}

// Settled looks again until nothing about the words (of Ours, without words) is new since before, or patience runs out,
// and returns what is left then.
func Settled(before *Snapshot, patience time.Duration, words ...string) ([]Thing, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		after, err := Take()
		if err != nil {
			return nil, err
		}
		left := after.Since(before)
		if len(words) > 0 {
			left = About(left, words...)
		} else {
			left = Ours(left)
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left, nil
		}
	}
}
