package k8s

import (
	"archive/tar"
	"bytes"
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"berth/internal/compute"
)

func treeOf(t *testing.T, headers ...tar.Header) image {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.Mode = 0o755
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	tree, err := readTree(context.Background(), tar.NewReader(&b))
	if err != nil {
		t.Fatal(err)
	}
	return image{tree: tree}
}

func link(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
}

// Mount paths are held against the image as the kernel would walk it.
func TestMountPathsInAnImage(t *testing.T) {
	img := treeOf(t,
		tar.Header{Name: "./etc/passwd", Typeflag: tar.TypeReg}, tar.Header{Name: "run/", Typeflag: tar.TypeDir},
		link("var/run", "/run"), link("var/up", "../../../run"), link("p", "/proc"), link("a", "b"), link("b", "a"), link("opt/x", "../etc"),
	)
	for path, want := range map[string]string{
		"/root": "/root", "/var/run/x": "/run/x", "/var/up/y/z": "/run/y/z", "/opt/x/ssl": "/etc/ssl", "/run": "/run",
	} {
		if got, err := img.resolve(path); err != nil || got != want {
			t.Errorf("%s is %s, %v; want %s", path, got, err, want)
		}
	}
	for _, c := range []struct {
		why   string
		paths []string
	}{
		{"a file in the image", []string{"/etc/passwd"}},
		{"a file in the image", []string{"/opt/x/passwd/y"}},
		{"leads in circles", []string{"/a/x"}},
		{"is /proc/self in the image", []string{"/p/self"}},
		{"twice", []string{"/var/run/x", "/run/x"}},
		{"within one another", []string{"/var/run", "/run/x"}},
	} {
		if err := img.checkMounts(c.paths); err == nil || compute.CodeOf(err) != compute.CodeInvalid || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%q: %v, want %q", c.paths, err, c.why)
		}
	}
	if err := img.checkMounts([]string{"/root", "/opt/x", "/srv/new"}); err != nil {
		t.Error(err)
	}
}

// A registry that takes connections and never answers is given up, and the log says so.
func TestRegistryThatSaysNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // connections wait in its backlog
	var said bytes.Buffer
	e := &Engine{log: slog.New(slog.NewTextHandler(&said, nil)), opt: Options{Image: l.Addr().String() + "/base:1"}}
	learned := make(chan bool, 1)
	go func() { learned <- e.learnImage(t.Context(), 50*time.Millisecond) }()
	select {
	case ok := <-learned:
		if m := e.makerNow(); ok || m.image.reference != e.opt.Image || !strings.Contains(said.String(), "cannot be read") {
			t.Errorf("it learned %+v, %v, and said %s", m.image, ok, &said)
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits yet")
	}
}

// A link of a foreign image leads nowhere outside of it, however it is written.
func FuzzResolve(f *testing.F) {
	f.Add("var/run", "/run", "/var/run/x")
	f.Add("a", "../../..", "/a/../b")
	f.Fuzz(func(t *testing.T, name, to, path string) {
		img := image{tree: map[string]entry{"/": {directory: true}}}
		img.tree["/"+strings.Trim(name, "/")] = entry{link: to}
		if got, err := img.resolve(path); err == nil && (!strings.HasPrefix(got, "/") || strings.Contains(got+"/", "/../")) {
			t.Errorf("%s -> %s: %s is %s", name, to, path, got)
		}
	})
}
