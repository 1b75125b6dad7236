package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func TestRecipesAddUp(t *testing.T) {
	base, more := t.TempDir(), t.TempDir()
	write(t, base+"/packages", "# a comment\nless   # a pager\ngit\n", 0o644)
	write(t, base+"/config.json", `{"Env": ["A=1"], "WorkingDir": "/root"}`, 0o644)
	write(t, more+"/packages", "openssh-server git\n", 0o644)
	write(t, more+"/config.json", `{"Cmd": ["/bin/x"]}`, 0o644)
	r, err := loadRecipes([]string{base, more})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"git", "less", "openssh-server"}; !slices.Equal(r.packages, want) {
		t.Errorf("packages = %v, want %v", r.packages, want)
	}
	if r.config.WorkingDir != "/root" || len(r.config.Env) != 1 || len(r.config.Cmd) != 1 {
		t.Errorf("config = %+v", r.config)
	}
	write(t, more+"/config.json", `{"cmdd": 1}`, 0o644)
	if _, err := loadRecipes([]string{base, more}); err == nil {
		t.Error("a misspelt setting was accepted")
	}
}

func TestEveryInputChangesTheKey(t *testing.T) {
	dir := t.TempDir()
	seen := map[string]string{}
	try := func(change string) {
		t.Helper()
		r, err := loadRecipes([]string{dir})
		if err != nil {
			t.Fatal(err)
		}
		key := r.key("x")
		if other, ok := seen[key]; ok {
			t.Errorf("after %q the key is that of %q", change, other)
		}
		seen[key] = change
		if again := r.key("x"); again != key {
			t.Errorf("the key changed by being asked for")
		}
	}
	write(t, dir+"/packages", "less\n", 0o644)
	try("the start")
	write(t, dir+"/packages", "less git\n", 0o644)
	try("another package")
	write(t, dir+"/rootfs/etc/motd", "hello\n", 0o644)
	try("another file")
	write(t, dir+"/rootfs/etc/motd", "hallo\n", 0o644)
	try("other content")
	if err := os.Chmod(dir+"/rootfs/etc/motd", 0o755); err != nil {
		t.Fatal(err)
	}
	try("another mode")
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	try("another epoch")
}

func TestArchiveIsBuiltOnlyForOtherInputs(t *testing.T) {
	dir := t.TempDir()
	out, keyFile := dir+"/image.tar", dir+"/image.inputs"
	if upToDate(out, keyFile, "k") {
		t.Error("an absent archive is up to date")
	}
	write(t, keyFile, "k", 0o644)
	if upToDate(out, keyFile, "k") {
		t.Error("a key without its archive is up to date")
	}
	write(t, out, "", 0o644)
	if !upToDate(out, keyFile, "k") || upToDate(out, keyFile, "other") {
		t.Error("the key does not decide")
	}
}

func TestOnlyDebiansMirrors(t *testing.T) {
	for _, c := range []struct{ name, targets, want string }{
		{
			"a plain machine",
			`Debian|Debian|http://mirror.example/debian/
Debian|Debian|http://mirror.example/debian/
Debian|Debian-Security|http://mirror.example/security/
`,
			`deb http://mirror.example/debian/ bookworm main
deb http://mirror.example/debian/ bookworm-updates main
deb http://mirror.example/security/ bookworm-security main
`,
		},
		{
			"other vendors, a backport repository of Debian's and a CD",
			`Docker|Docker CE|https://vendor.example/linux/debian/
Debian|Debian|cdrom:[Debian]/
Debian|Debian Backports|http://mirror.example/debian/
`,
			`deb http://deb.debian.org/debian bookworm main
deb http://deb.debian.org/debian bookworm-updates main
deb http://deb.debian.org/debian-security bookworm-security main
`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := parseTargets(c.targets).sourcesList(); got != c.want {
				t.Errorf("sources.list:\n%swant:\n%s", got, c.want)
			}
		})
	}
}

func TestProxiesAndDatesAreThoseOfTheMachine(t *testing.T) {
	got := parseAcquire(`APT::Architecture "amd64";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::Languages:: "none";
Acquire::Check-Valid-Until "false";
Acquire::IndexTargets::deb::Packages::MetaKey "x";
`)
	want := []string{`Acquire::http::Proxy "http://proxy.example:3128";`, `Acquire::Check-Valid-Until "false";`}
	if !slices.Equal(got, want) {
		t.Errorf("settings = %q, want %q", got, want)
	}
}

func TestLayerHoldsNothingThatAUserNamespaceRefuses(t *testing.T) {
	latest := time.Unix(1700000000, 0)
	var in, out bytes.Buffer
	w := tar.NewWriter(&in)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
		{Typeflag: tar.TypeChar, Name: "./dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3},
		{
			Typeflag: tar.TypeReg, Name: "./usr/bin/ping", Mode: 0o4755, Size: 4, Uid: 1, Gid: 2, ModTime: latest.Add(time.Hour),
			PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02"},
		},
		{Typeflag: tar.TypeLink, Name: "./usr/bin/ping4", Linkname: "./usr/bin/ping"},
		{Typeflag: tar.TypeSymlink, Name: "./bin", Linkname: "usr/bin"},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte("ping")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), filter(tar.NewWriter(&out), tar.NewReader(&in), latest)); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name+">"+h.Linkname)
		for record := range h.PAXRecords {
			if strings.Contains(record, "xattr") {
				t.Errorf("%s has kept %s", h.Name, record)
			}
		}
		if h.ModTime.After(latest) {
			t.Errorf("%s is of %v, later than the epoch", h.Name, h.ModTime)
		}
		if h.Name == "usr/bin/ping" && (h.Mode != 0o4755 || h.Uid != 1 || h.Gid != 2) {
			t.Errorf("mode or owner lost: %+v", h)
		}
	}
	if want := []string{"./>", "usr/bin/ping>", "usr/bin/ping4>usr/bin/ping", "bin>usr/bin"}; !slices.Equal(names, want) {
		t.Errorf("entries = %v, want %v", names, want)
	}
}

// TestContainerdImportsTheArchive reads the archive as the engine's containerd does.
func TestContainerdImportsTheArchive(t *testing.T) {
	dir := t.TempDir()
	r := &recipe{created: time.Unix(epoch, 0), config: v1.Config{Env: []string{"LANG=C.UTF-8"}, WorkingDir: "/root"}}
	var rootfs bytes.Buffer
	if err := tar.NewWriter(&rootfs).Close(); err != nil {
		t.Fatal(err)
	}
	l, err := writeLayer(dir+"/layer", &rootfs, r.created)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := writeArchive(dir+"/image.tar", "berth.local/x", l, r)
	if err != nil {
		t.Fatal(err)
	}
	again, err := writeArchive(dir+"/again.tar", "berth.local/x", l, r)
	if err != nil || again != ref {
		t.Errorf("the same image is once %s and once %s (%v)", ref, again, err)
	}
	r.config.Env = nil
	if other, err := writeArchive(dir+"/other.tar", "berth.local/x", l, r); err != nil || other == ref {
		t.Errorf("another image is also %s (%v)", ref, err)
	}

	store, err := local.NewStore(dir + "/content")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir + "/image.tar")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	index, err := archive.ImportIndex(t.Context(), store, f)
	if err != nil {
		t.Fatal(err)
	}
	children, err := images.Children(t.Context(), store, index)
	if err != nil || len(children) != 1 {
		t.Fatalf("images in the archive: %v, %v", children, err)
	}
	if name := children[0].Annotations[images.AnnotationImageName]; name != ref {
		t.Errorf("containerd names the image %q, want %q", name, ref)
	}
	config, err := images.Config(t.Context(), store, children[0], platforms.DefaultStrict())
	if err != nil {
		t.Fatal(err)
	}
	diffs, err := images.RootFS(t.Context(), store, config)
	if err != nil || len(diffs) != 1 || diffs[0].Encoded() != l.digest {
		t.Errorf("layers = %v, %v; want %s", diffs, err, l.digest)
	}
	if _, err := content.ReadBlob(t.Context(), store, children[0]); err != nil {
		t.Error(err)
	}
}
