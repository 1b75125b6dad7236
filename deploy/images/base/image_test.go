// Package base_test boots nothing: it unpacks the image that `make image` built, as an engine does, and looks from the
// inside, in a user namespace without the capabilities that containers lack, whether a person would be at home there.
package base_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const archive = "../../../build/base-image.tar"

// firstID is where the test's user namespace starts on the host.
const firstID = 1 << 20

// image is the unpacked image.
type image struct {
	root   string
	config v1.ConfigFile
	size   int64
}

// inUserNamespace makes cmd root of a user namespace of its own, and of nothing else.
func inUserNamespace(cmd *exec.Cmd, flags uintptr) *exec.Cmd {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: firstID, Size: 1 << 16}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | flags, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{}, Pdeathsig: syscall.SIGKILL,
	}
	return cmd
}

// open unpacks the image.
func open(t *testing.T) image {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatalf("%v: `make image` builds it", err)
	}
	defer f.Close()
	root, err := os.MkdirTemp("", "image") // t.TempDir lets no other user in
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	im := image{root: root}
	if err := os.Chown(im.root, firstID, firstID); err != nil {
		t.Fatal(err)
	}
	var index v1.IndexManifest
	var manifest v1.Manifest
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return im
		} else if err != nil {
			t.Fatal(err)
		}
		digest := filepath.Base(h.Name)
		switch {
		case h.Name == "index.json":
			decode(t, r, &index)
		case len(index.Manifests) == 1 && digest == index.Manifests[0].Digest.Hex:
			decode(t, r, &manifest)
		case digest == manifest.Config.Digest.Hex:
			decode(t, r, &im.config)
		case len(manifest.Layers) == 1 && digest == manifest.Layers[0].Digest.Hex:
			im.size = h.Size
			cmd := inUserNamespace(exec.Command("tar", "-xp", "--numeric-owner", "-C", im.root), 0)
			cmd.Stdin = r
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("unpack: %v: %s", err, out)
			}
		}
	}
}

func decode(t *testing.T, r io.Reader, into any) {
	t.Helper()
	if err := json.NewDecoder(r).Decode(into); err != nil {
		t.Fatal(err)
	}
}

// enter runs a script in the image as its root would, and fails the test if the script does.
func (im image) enter(t *testing.T, flags uintptr, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := inUserNamespace(exec.CommandContext(ctx, "bash", "-c", `set -e
mount --rbind /dev "$0/dev"
mount -t proc proc "$0/proc"
hostname box
exec chroot "$0" bash -c '
	if ip link set lo up 2>/dev/null; then echo 0 65535 >/proc/sys/net/ipv4/ping_group_range; fi
	cd "$0"
	exec setpriv --bounding-set=-net_raw,-mknod --inh-caps=-net_raw,-mknod bash -c "$1"' "$1" "$2"`,
		im.root, im.config.Config.WorkingDir, script), flags|syscall.CLONE_NEWNS|syscall.CLONE_NEWPID|syscall.CLONE_NEWUTS)
	cmd.Env = append(slices.Clone(im.config.Config.Env), "HOME=/root", "TERM=xterm-256color")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%v: %s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestBaseImage(t *testing.T) {
	im := open(t)

	t.Run("is small", func(t *testing.T) {
		if limit := int64(350e6); im.size > limit {
			t.Errorf("the image has %d MB, more than %d", im.size/1e6, limit/1e6)
		}
	})
	t.Run("tools", func(t *testing.T) {
		im.enter(t, 0, `for tool in bash curl file git htop ip less lsof nano ping ps rsync ssh sudo tar tmux top unzip vi vim xz
			do command -v $tool >/dev/null || { echo no $tool; exit 1; }; done`)
	})
	t.Run("prompt", func(t *testing.T) {
		prompt := im.enter(t, 0, `bash -ic 'printf %s "${PS1@P}"' 2>/dev/null`)
		if !strings.Contains(prompt, "root@box") || !strings.Contains(prompt, "\x1b[") || !strings.HasSuffix(prompt, "#") {
			t.Errorf("root's prompt is %q", prompt)
		}
	})
	for _, c := range []struct{ name, script, want string }{
		{"utf-8", "locale charmap", "UTF-8"},
		{"the usual client's locale", "LC_ALL=en_US.UTF-8 perl -e 'print qq(fine)'", "fine"},
		{"completion", "bash -ic 'complete -p -D' 2>/dev/null", "complete -F _completion_loader -D"},
		{
			"a user of one's own", `useradd -m -s /bin/bash -G sudo alice
			su - alice -c 'sudo id -u && bash -ic "declare -F __load_completion" 2>/dev/null'`,
			"0\n__load_completion",
		},
		{"working directory", "pwd", "/root"},
		{
			"apt's sources", "cd /etc/apt && ls -d sources.list* apt.conf.d/99* 2>/dev/null; grep -h ^URIs: sources.list.d/*",
			"sources.list.d\nURIs: http://deb.debian.org/debian\nURIs: http://deb.debian.org/debian-security",
		},
		{"no server", "command -v sshd; ls /etc/ssh | grep host_; true", ""},
		{"no identity", "cat /etc/machine-id /etc/resolv.conf; ls /etc/hostname 2>/dev/null; stat -c %a /etc/resolv.conf", "644"},
		{"localhost", "getent hosts localhost | tr -s ' '", "::1 localhost ip6-localhost ip6-loopback"},
		{"packages are whole", "dpkg --audit; apt-get check -qq", ""},
		{"no documents of the essential packages either", "find /usr/share/doc /usr/share/man -type f ! -name copyright", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := im.enter(t, 0, c.script); got != c.want {
				t.Errorf("%s\nsays %q, want %q", c.script, got, c.want)
			}
		})
	}
	t.Run("motd", func(t *testing.T) {
		motd := im.enter(t, 0, "cat /etc/motd")
		if !strings.Contains(motd, "/root") || strings.Count(motd, "\n") > 5 {
			t.Errorf("the motd must say, shortly, what survives a stop: %q", motd)
		}
	})
	t.Run("ping without a capability", func(t *testing.T) {
		im.enter(t, syscall.CLONE_NEWNET, "test ! -u /usr/bin/ping && ping -c 1 -W 5 127.0.0.1 && ping -c 1 -W 5 ::1")
	})
	t.Run("apt", func(t *testing.T) { testApt(t, im) })
}

// testApt installs a package from a mirror of the test's own, downloading as apt's sandbox user.
func testApt(t *testing.T, im image) {
	pool := t.TempDir()
	deb := filepath.Join(pool, "greeting.deb")
	tree := filepath.Join(t.TempDir(), "greeting")
	for path, content := range map[string]string{
		"DEBIAN/control":            "Package: greeting\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.com>\nDescription: x\n",
		"usr/bin/greeting":          "#!/bin/sh\necho hello\n",
		"usr/share/doc/greeting/en": "left out by dpkg's configuration\n",
	} {
		path = filepath.Join(tree, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("dpkg-deb", "--build", "--root-owner-group", tree, deb).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	content, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	list := fmt.Sprintf("Package: greeting\nVersion: 1\nArchitecture: all\nFilename: greeting.deb\nSize: %d\nSHA256: %x\nDescription: x\n",
		len(content), sha256.Sum256(content))
	if err := os.WriteFile(filepath.Join(pool, "Packages"), []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
	mirror := httptest.NewServer(http.FileServer(http.Dir(pool)))
	defer mirror.Close()

	out := im.enter(t, 0, `echo "deb [trusted=yes] `+mirror.URL+` ./" >/tmp/test.list
apt="apt-get -qq -o Dir::Etc::SourceList=/tmp/test.list -o Dir::Etc::SourceParts=/nowhere"
$apt update && $apt install greeting 2>&1 && greeting && test ! -e /usr/share/doc/greeting/en`)
	if !bytes.HasSuffix([]byte(out), []byte("hello")) || strings.Contains(out, "unsandboxed") {
		t.Errorf("apt said %s", out)
	}
	if strings.Contains(out, "debconf:") {
		t.Errorf("an installation complains: %s", out)
	}
}
