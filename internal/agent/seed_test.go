package agent_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/agent"
)

// beneathRoot makes a directory on the file system of /, as an image's are.
func beneathRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "berth-seed-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// A mount path's directory is as the image has it, down to owners, set-id bits, links, times and attributes.
func TestSeedCopiesTheImage(t *testing.T) {
	image, volume := beneathRoot(t), t.TempDir()
	src := filepath.Join(image, "home")
	old := time.Unix(1_000_000_000, 5)
	must(t,
		os.Mkdir(src, 0o751), os.Chmod(src, 0o751), os.Chown(src, 7, 8),
		os.WriteFile(src+"/tool", []byte("#!/bin/true"), 0o755), os.Chown(src+"/tool", 7, 8), os.Chmod(src+"/tool", 0o755|fs.ModeSetuid),
		os.Link(src+"/tool", src+"/same"), os.Symlink("/nowhere", src+"/link"), os.Mkdir(src+"/d", 0o700),
		unix.Mkfifo(src+"/d/fifo", 0o640), unix.Setxattr(src+"/d", "user.a", []byte("b"), 0),
		os.Chtimes(src+"/tool", old, old), os.Symlink("home", image+"/also"),
	)
	must(t, agent.Seed(volume, []string{"one:" + src, "two:" + image + "/also", "three:" + image + "/absent/x"}))
	for _, name := range []string{"one", "two"} {
		got := filepath.Join(volume, "mounts", name)
		var d, tool, same unix.Stat_t
		must(t, unix.Stat(got, &d), unix.Stat(got+"/tool", &tool), unix.Stat(got+"/same", &same))
		if d.Mode&0o7777 != 0o751 || d.Uid != 7 || d.Gid != 8 {
			t.Errorf("the directory is %o of %d:%d", d.Mode, d.Uid, d.Gid)
		}
		if tool.Mode&0o7777 != 0o4755 || tool.Uid != 7 || tool.Ino != same.Ino || tool.Mtim.Nano() != old.UnixNano() {
			t.Errorf("the program is %+v, its other name %+v", tool, same)
		}
		if to, err := os.Readlink(got + "/link"); err != nil || to != "/nowhere" {
			t.Errorf("the link leads to %q, %v", to, err)
		}
		value := make([]byte, 10)
		if n, err := unix.Getxattr(got+"/d", "user.a", value); err != nil || !bytes.Equal(value[:n], []byte("b")) {
			t.Errorf("the attribute is %q, %v", value[:n], err)
		}
	}
	if list, err := os.ReadDir(filepath.Join(volume, "mounts", "three")); err != nil || len(list) != 0 {
		t.Errorf("of what the image lacks there is %v, %v", list, err)
	}
}

// What was seeded is never seeded again, and what a kill left unfinished is done anew.
func TestSeedOnce(t *testing.T) {
	image, volume := beneathRoot(t), t.TempDir()
	must(t,
		os.WriteFile(image+"/f", []byte("image"), 0o644),
		os.MkdirAll(volume+"/seed/half", 0o755),
		agent.Seed(volume, []string{"a:" + image}),
		os.Remove(volume+"/mounts/a/f"),
		agent.Seed(volume, []string{"a:" + image, "b:" + image}),
	)
	if list, err := os.ReadDir(volume + "/mounts/a"); err != nil || len(list) != 0 {
		t.Errorf("seeded again: %v, %v", list, err)
	}
	if _, err := os.Stat(volume + "/mounts/b/f"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(volume + "/seed"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

// A kubelet makes the directory of a mount path that is not seeded yet; with something in it, it is a tenant's.
func TestSeedOverAnEmptyDirectory(t *testing.T) {
	image, volume := beneathRoot(t), t.TempDir()
	must(t,
		os.WriteFile(image+"/f", []byte("image"), 0o644),
		os.MkdirAll(volume+"/mounts/empty", 0o755), os.MkdirAll(volume+"/mounts/used", 0o755),
		os.WriteFile(volume+"/mounts/used/mine", nil, 0o644),
	)
	for range 2 {
		must(t, agent.Seed(volume, []string{"empty:" + image, "used:" + image}))
		if _, err := os.Stat(volume + "/mounts/empty/f"); err != nil {
			t.Error(err)
		}
	}
	must(t, os.Remove(volume+"/mounts/used/mine"), agent.Seed(volume, []string{"used:" + image}))
	if list, err := os.ReadDir(volume + "/mounts/used"); err != nil || len(list) != 0 {
		t.Errorf("seeded over what a tenant had: %v, %v", list, err)
	}
}

func TestSeedRefuses(t *testing.T) {
	image, volume := beneathRoot(t), t.TempDir()
	must(t, os.WriteFile(image+"/f", nil, 0o644), os.Symlink("/proc", image+"/p"))
	for mount, why := range map[string]string{
		"a:" + image + "/f": "a file in the image", "a:" + image + "/p": "belongs to the system", "a": "not NAME:PATH",
		"../a:/srv": "not NAME:PATH", "a:srv": "not NAME:PATH", "a/b:/srv": "not NAME:PATH",
	} {
		if err := agent.Seed(volume, []string{mount}); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", mount, err, why)
		}
		if list, err := os.ReadDir(volume + "/mounts"); err != nil || len(list) != 0 {
			t.Errorf("%s: there is %v, %v", mount, list, err)
		}
	}
}

// The installed program is this one, whole, and runs.
func TestInstall(t *testing.T) {
	dir := t.TempDir()
	must(t, agent.Install(dir, "deadbeef.compute.example"), agent.Install(dir, "deadbeef.compute.example"))
	if out, err := exec.Command(dir+"/agent", "-test.list", "^TestInstall$").CombinedOutput(); err != nil || !strings.Contains(string(out), "TestInstall") {
		t.Errorf("it says %q, %v", out, err)
	}
	kernel, err := os.Hostname()
	must(t, err)
	hosts, err := os.ReadFile(dir + "/hosts")
	if err != nil || !strings.HasSuffix(string(hosts), "127.0.1.1\tdeadbeef.compute.example deadbeef "+kernel+"\n") {
		t.Errorf("hosts is %q, %v", hosts, err)
	}
}
