package leakcheck_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/leakcheck"
)

// makers make one thing of each kind, really, and return how to remove it. Each carries the word.
var makers = map[leakcheck.Kind]func(t *testing.T, dir, word string) (remove func()){
	leakcheck.Process: func(t *testing.T, _, word string) func() {
		cmd := exec.Command("cat")
		cmd.Args = []string{"cat", "-", word}
		return start(t, cmd)
	},
	leakcheck.NetNS: func(t *testing.T, _, word string) func() {
		cmd := exec.Command("unshare", "--net", "sh", "-c", "echo ready >&2; exec cat - "+word)
		return start(t, cmd)
	},
	leakcheck.Mount: func(t *testing.T, dir, _ string) func() {
		must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
		return func() { must(t, unix.Unmount(dir, 0)) }
	},
	leakcheck.Loop: func(t *testing.T, dir, _ string) func() {
		image := filepath.Join(dir, "image")
		must(t, os.WriteFile(image, make([]byte, 1<<20), 0o600))
		device := run(t, "losetup", "--find", "--show", image)
		return func() { run(t, "losetup", "--detach", device) }
	},
	leakcheck.Link: func(t *testing.T, _, word string) func() {
		run(t, "ip", "link", "add", word, "type", "veth", "peer", "name", word+"p")
		return func() { run(t, "ip", "link", "del", word) }
	},
	leakcheck.Table: func(t *testing.T, _, word string) func() {
		run(t, "nft", "add", "table", "inet", word)
		return func() { run(t, "nft", "delete", "table", "inet", word) }
	},
	leakcheck.Cgroup: func(t *testing.T, _, word string) func() {
		dir := "/sys/fs/cgroup/" + word // version 2
		if paths, err := filepath.Glob("/sys/fs/cgroup/pids"); err == nil && len(paths) == 1 {
			dir = "/sys/fs/cgroup/pids/" + word
		}
		must(t, os.Mkdir(dir, 0o755))
		return func() { must(t, os.Remove(dir)) }
	},
	leakcheck.File: func(t *testing.T, _, word string) func() {
		path := "/run/berth-" + word
		must(t, os.WriteFile(path, nil, 0o600))
		return func() { must(t, os.Remove(path)) }
	},
}

// start runs cmd with its input open and returns once it said "ready" or, saying nothing, once its image is in place,
// which exec.Cmd waits for.
func start(t *testing.T, cmd *exec.Cmd) func() {
	in, err := cmd.StdinPipe()
	must(t, err)
	errs, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	if slices.Contains(cmd.Args, "--net") {
		if _, err := errs.Read(make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		_ = in.Close()
		_ = cmd.Wait() // cat fails on the file that the word is not
	}
}

func TestSeesEachKindComeAndGo(t *testing.T) {
	for kind, makeOne := range makers {
		t.Run(string(kind), func(t *testing.T) {
			word := "lk" + strings.ReplaceAll(t.Name()[len("TestSeesEachKindComeAndGo/"):], "_", "")[:4]
			dir := filepath.Join(t.TempDir(), word)
			must(t, os.Mkdir(dir, 0o700))
			before, err := leakcheck.Take()
			must(t, err)

			remove := makeOne(t, dir, word)
			after, err := leakcheck.Take()
			must(t, err)
			left := leakcheck.About(after.Since(before), word)
			if !slices.ContainsFunc(left, func(x leakcheck.Thing) bool { return x.Kind == kind }) {
				t.Errorf("a %s with the word %q was made and not seen; seen: %v", kind, word, left)
			}

			remove()
			left, err = leakcheck.Settled(before, 10*time.Second, word)
			must(t, err)
			if len(left) > 0 {
				t.Errorf("removed, and still seen: %v", left)
			}
		})
	}
}

func TestSeesASecondMountOnOnePath(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	before, err := leakcheck.Take()
	must(t, err)
	must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	after, err := leakcheck.Take()
	must(t, err)
	if left := leakcheck.About(after.Since(before), dir); len(left) != 1 {
		t.Errorf("one mount more on %s, seen: %v", dir, left)
	}
}

func TestSnapshotIsTheSameAfterJSON(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
		t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	}
	before, err := leakcheck.Take()
	must(t, err)
	text, err := json.Marshal(before)
	must(t, err)
	var read leakcheck.Snapshot
	must(t, json.Unmarshal(text, &read))
	if left := append(before.Since(&read), read.Since(before)...); len(left) > 0 {
		t.Errorf("differs after being written and read: %v", left)
	}
	if len(leakcheck.About(read.Since(&leakcheck.Snapshot{}), dir)) != 2 {
		t.Errorf("two mounts on one path are not two any more")
	}
}

func TestOursKeepsOurProgramsAlone(t *testing.T) {
	things := []leakcheck.Thing{
		{Kind: leakcheck.Process, Name: "1", Note: "containerd-shim (S) /x -id y"},
		{Kind: leakcheck.Process, Name: "2", Note: "sshd (S) sshd: berth"},
		{Kind: leakcheck.Process, Name: "3", Note: "berth (Z)"},
		{Kind: leakcheck.Cgroup, Name: "/sys/fs/cgroup/system.slice/cron.service"},
		{Kind: leakcheck.Cgroup, Name: "/sys/fs/cgroup/memory/another-program/job"},
		{Kind: leakcheck.Cgroup, Name: "/sys/fs/cgroup/berth-1a2b"},
		{Kind: leakcheck.Link, Name: "eth9"},
	}
	var got []string
	for _, thing := range leakcheck.Ours(things) {
		got = append(got, thing.Name)
	}
	if want := []string{"1", "3", "/sys/fs/cgroup/berth-1a2b", "eth9"}; !slices.Equal(got, want) {
		t.Errorf("Ours = %v, want %v", got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}
