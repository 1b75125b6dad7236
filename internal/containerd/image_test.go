package containerd

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/internal/compute"
)

// file is an entry of a layer.
type file struct {
	name, content, link string
	kind                byte
	uid                 int
	mode                int64
	xattr               map[string]string
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{
			Name: f.name, Typeflag: f.kind, Linkname: f.link, Uid: f.uid, Gid: f.uid, Mode: f.mode, Size: int64(len(f.content)),
			Format: tar.FormatPAX, PAXRecords: map[string]string{},
		}
		if f.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if f.mode == 0 {
			h.Mode = 0o755
		}
		for k, v := range f.xattr {
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func marshal(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func configOf(layers ...[]byte) ocispec.Image {
	c := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   ocispec.ImageConfig{Env: []string{"A=b"}, Cmd: []string{"/run"}},
	}
	c.RootFS.Type = "layers"
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(l))
	}
	return c
}

// dockerArchive is what `docker save` writes.
func dockerArchive(t testing.TB, c ocispec.Image, layers ...[]byte) []byte {
	t.Helper()
	m := []struct {
		Config string
		Layers []string
	}{{Config: "config.json"}}
	files := []file{{name: "config.json", content: marshal(t, c)}}
	for i, l := range layers {
		name := string(rune('a'+i)) + "/layer.tar"
		m[0].Layers = append(m[0].Layers, name)
		files = append(files, file{name: name, content: string(l)})
	}
	return tarOf(t, append(files, file{name: "manifest.json", content: marshal(t, m)})...)
}

// layoutArchive is an OCI image layout with compressed layers, and an index within the index.
func layoutArchive(t testing.TB, c ocispec.Image, layers ...[]byte) []byte {
	t.Helper()
	var files []file
	blob := func(mediaType, content string) ocispec.Descriptor {
		d := digest.FromString(content)
		files = append(files, file{name: "blobs/sha256/" + d.Encoded(), content: content})
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
	}
	m := ocispec.Manifest{Config: blob(ocispec.MediaTypeImageConfig, marshal(t, c))}
	for _, l := range layers {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, err := w.Write(l)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		m.Layers = append(m.Layers, blob(ocispec.MediaTypeImageLayerGzip, b.String()))
	}
	d := blob(ocispec.MediaTypeImageManifest, marshal(t, m))
	d.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	foreign := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("x"),
		Platform: &ocispec.Platform{OS: "linux", Architecture: "s390x"},
	}
	inner := blob(ocispec.MediaTypeImageIndex, marshal(t, ocispec.Index{Manifests: []ocispec.Descriptor{foreign, d}}))
	outer := ocispec.Index{Manifests: []ocispec.Descriptor{inner}}
	return tarOf(t, append(files, file{name: "./index.json", content: marshal(t, outer)})...)
}

// imported unpacks an archive as an instance would.
func imported(t *testing.T, content []byte) (image, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	im := importer{dir: dir, ids: idRangeOf(installation), progress: func(int64, int64) {}}
	img, err := im.load(t.Context(), path)
	if err != nil {
		if list, _ := os.ReadDir(dir); len(list) > 0 {
			t.Errorf("a refused archive left %v", list)
		}
		return img, err
	}
	again, err := im.load(t.Context(), path)
	if err != nil || again.id != img.id {
		t.Errorf("loaded again: %+v, %v", again, err)
	}
	return img, nil
}

func TestImport(t *testing.T) {
	lower := tarOf(t,
		file{name: "etc", kind: tar.TypeDir},
		file{name: "etc/passwd", content: "root"},
		file{name: "etc/gone", content: "x"},
		file{name: "opaque/old", content: "x"}, // its parent is only implied
		file{name: "bin/ping", content: "x", mode: 0o4755, xattr: map[string]string{"security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "user.k": "v"}},
		file{name: "bin/hard", kind: tar.TypeLink, link: "bin/ping", mode: 0o4755},
		file{name: "dev/sda", kind: tar.TypeBlock},
		file{name: "var/mail/nobody", content: "x", uid: 65534},
	)
	upper := tarOf(t,
		file{name: "etc/.wh.gone"},
		file{name: "opaque/.wh..wh..opq"},
		file{name: "opaque/new", content: "x"},
		file{name: "etc/passwd", content: "root and more"},
	)
	for name, content := range map[string][]byte{
		"docker": dockerArchive(t, configOf(lower, upper), lower, upper),
		"layout": layoutArchive(t, configOf(lower, upper), lower, upper),
	} {
		t.Run(name, func(t *testing.T) {
			img, err := imported(t, content)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(img.config.Env, []string{"A=b"}) || !slices.Equal(img.config.Cmd, []string{"/run"}) {
				t.Errorf("configuration is %+v", img.config)
			}
			if b, err := os.ReadFile(img.rootfs() + "/etc/passwd"); err != nil || string(b) != "root and more" {
				t.Errorf("/etc/passwd is %q, %v", b, err)
			}
			for _, gone := range []string{"etc/gone", "opaque/old", "dev/sda", "etc/.wh.gone"} {
				if _, err := os.Lstat(filepath.Join(img.rootfs(), gone)); !os.IsNotExist(err) {
					t.Errorf("%s is there (%v)", gone, err)
				}
			}
			root := idRangeOf(installation).root()
			for p, uid := range map[string]int{"": 0, "etc": 0, "opaque": 0, "var": 0, "bin/ping": 0, "var/mail/nobody": 65534} {
				fi, err := os.Lstat(filepath.Join(img.rootfs(), p))
				if err != nil {
					t.Fatal(err)
				}
				if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != root+uid || int(st.Gid) != root+uid {
					t.Errorf("/%s belongs to %d:%d, want the container's %d", p, int(st.Uid)-root, int(st.Gid)-root, uid)
				}
			}
			fi, err := os.Stat(img.rootfs() + "/bin/ping")
			if err != nil || fi.Mode()&os.ModeSetuid == 0 || fi.Sys().(*syscall.Stat_t).Nlink != 2 {
				t.Errorf("/bin/ping: %v, %v", fi.Mode(), err)
			}
			var b [64]byte
			if n, err := syscall.Getxattr(img.rootfs()+"/bin/ping", "security.capability", b[:]); err == nil {
				t.Errorf("it kept its file capability: %x", b[:n])
			}
			if n, err := syscall.Getxattr(img.rootfs()+"/bin/ping", "user.k", b[:]); err != nil || string(b[:n]) != "v" {
				t.Errorf("it lost its attribute: %q, %v", b[:max(0, n)], err)
			}
		})
	}
}

func TestImportRefuses(t *testing.T) {
	layer := tarOf(t, file{name: "f", content: "x"})
	foreign := configOf(layer)
	foreign.Architecture = "s390x"
	for what, c := range map[string]struct {
		content []byte
		want    string
	}{
		"another architecture":  {dockerArchive(t, foreign, layer), "this machine is"},
		"another layer":         {dockerArchive(t, configOf(layer), tarOf(t, file{name: "g"})), "damaged"},
		"a layer too few":       {dockerArchive(t, configOf(layer, layer), layer), "names 2"},
		"no layers":             {dockerArchive(t, configOf()), "0 layers"},
		"ids beyond the range":  {dockerArchive(t, configOf(tarOf(t, file{name: "f", uid: 65536})), tarOf(t, file{name: "f", uid: 65536})), "65536"},
		"not a tar":             {[]byte("hello, world, this is no archive at all"), "not an archive"},
		"an empty file":         {nil, "index.json"},
		"some other tar":        {tarOf(t, file{name: "f"}), "index.json"},
		"a manifest of nothing": {tarOf(t, file{name: "manifest.json", content: "[]"}), "0 images"},
		"no configuration":      {tarOf(t, file{name: "manifest.json", content: `[{"Config":"c","Layers":["l"]}]`}), "no c"},
		"broken JSON":           {tarOf(t, file{name: "manifest.json", content: `[`}), "manifest.json"},
	} {
		if _, err := imported(t, c.content); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want an error with %q", what, err, c.want)
		}
	}
	cut := dockerArchive(t, configOf(layer), layer)
	for n := 0; n < len(cut)-1024; n += 512 {
		if _, err := imported(t, cut[:n]); err == nil {
			t.Errorf("accepted when cut to %d of %d bytes", n, len(cut))
		}
	}
}

// TestImportCutOff leaves nothing that counts as an image, and the next import succeeds.
func TestImportCutOff(t *testing.T) {
	layer := tarOf(t, file{name: "f", content: strings.Repeat("x", 1<<20)})
	path, dir := filepath.Join(t.TempDir(), "image.tar"), t.TempDir()
	if err := os.WriteFile(path, dockerArchive(t, configOf(layer), layer), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var last int64
	im := importer{dir: dir, ids: idRangeOf(installation), progress: func(done, total int64) {
		if done < last || done > total {
			t.Errorf("progress of %d after %d, of %d", done, last, total)
		}
		last = done
		cancel()
	}}
	if _, err := im.load(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("cut off: %v", err)
	}
	last = 0
	img, err := im.load(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 || list[0].Name() != img.id {
		t.Errorf("there are %v, %v", list, err)
	}
}

// TestMountsInHostileImage resolves mount paths in an image whose symlinks lead everywhere.
func TestMountsInHostileImage(t *testing.T) {
	link := func(name, to string) file { return file{name: name, kind: tar.TypeSymlink, link: to} }
	layer := tarOf(t,
		link("proc2", "/proc"), link("up", "../../../../../../sys"), link("self", "self"), link("a", "b"), link("b", "a"),
		link("root2", "/"), link("berth", ".berth"), link("out", "/../../../../etc"), link("ok", "srv/deep"), link("dangling", "/nowhere/x"),
		file{name: "srv/deep/file", content: "x"}, file{name: "plain", content: "x"}, file{name: "etc/passwd", content: "image's"},
	)
	img, err := imported(t, dockerArchive(t, configOf(layer), layer))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{
		"/proc2", "/proc2/1", "/up", "/up/fs", "/self", "/self/x", "/a/x", "/root2", "/root2/proc", "/root2/root2/sys/x", "/berth",
		"/berth/run", "/plain", "/plain/x", "/ok/file", "/ok/file/x", "/root2/dev",
	} {
		_, err := img.resolveMounts([]string{p})
		if err == nil || compute.CodeOf(err) != compute.CodeInvalid || compute.AsError(err).Field != "mount_paths" {
			t.Errorf("%s: %v; want it refused", p, err)
		}
	}
	for p, want := range map[string]string{
		"/ok": "/srv/deep", "/ok/new": "/srv/deep/new", "/dangling": "/nowhere/x", "/out": "/etc", "/new/dir": "/new/dir",
	} {
		got, err := img.resolveMounts([]string{p})
		if err != nil || got[0] != want {
			t.Errorf("%s resolves to %v, %v; want %s", p, got, err, want)
		}
	}
	for _, p := range [][]string{{"/ok", "/srv/deep"}, {"/srv", "/ok"}, {"/ok/x", "/srv/deep"}} {
		if _, err := img.resolveMounts(p); compute.CodeOf(err) != compute.CodeInvalid || err == nil {
			t.Errorf("%v: %v; want it refused", p, err)
		}
	}
}

func FuzzReadArchive(f *testing.F) {
	layer := tarOf(f, file{name: "f", content: "x"})
	f.Add(dockerArchive(f, configOf(layer), layer))
	f.Add(layoutArchive(f, configOf(layer), layer))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := readArchive(bytes.NewReader(b))
		if err != nil {
			return
		}
		if len(a.layers) != len(a.config.RootFS.DiffIDs) || a.id.Validate() != nil {
			t.Errorf("accepted %+v", a)
		}
		for _, l := range a.layers {
			if l.at < 0 || l.size < 0 {
				t.Errorf("layer at %d of %d bytes", l.at, l.size)
			}
		}
	})
}

func TestEnvironment(t *testing.T) {
	for _, c := range []struct{ image, path string }{
		{"PATH=/opt/bin", "PATH=/opt/bin"},
		{"PATHS=/opt/bin", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	} {
		var paths []string
		for _, v := range environment([]string{"A=b", c.image}) {
			if strings.HasPrefix(v, "PATH=") {
				paths = append(paths, v)
			}
		}
		if len(paths) != 1 || paths[0] != c.path {
			t.Errorf("with %s: %q", c.image, paths)
		}
	}
}
