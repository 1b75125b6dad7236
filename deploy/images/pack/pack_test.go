package pack

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// input compiles the smallest program there is for both architectures, and has a base image in the form that mkimage writes.
func input(t *testing.T) Input {
	t.Helper()
	in := Input{Programs: map[string]string{}, Version: "v1.2.3", Authorities: filepath.Join(t.TempDir(), "authorities.pem")}
	if err := os.WriteFile(in.Authorities, []byte("-----BEGIN CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		dir := t.TempDir()
		compile(t, dir+"/berth-api", arch, "0")
		for _, other := range []string{"berth", "berth-gateway", "berth-agent-linux-" + arch} {
			if err := os.Link(dir+"/berth-api", filepath.Join(dir, other)); err != nil {
				t.Fatal(err)
			}
		}
		in.Programs[arch] = dir
	}
	in.Bases = []string{baseArchive(t)}
	return in
}

func compile(t *testing.T, to, arch, cgo string) {
	t.Helper()
	source := filepath.Join(t.TempDir(), "main.go")
	text := "package main\nfunc main() {}\n"
	if cgo == "1" {
		text = "package main\nimport \"C\"\nfunc main() {}\n"
	}
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", to, source)
	cmd.Env = append(os.Environ(), "GOARCH="+arch, "CGO_ENABLED="+cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
}

// baseArchive writes an OCI archive with one layer that is not compressed.
func baseArchive(t *testing.T) string {
	t.Helper()
	layer, err := filesLayer(file{"etc/debian_version", 0o644, []byte("12\n")})
	if err != nil {
		t.Fatal(err)
	}
	img, err := assemble([]v1.Layer{plain{layer}}, &v1.ConfigFile{OS: "linux", Architecture: "amd64", Config: v1.Config{WorkingDir: "/root"}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	index, err := join([]v1.Image{img})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := layout.Write(dir, index); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "base.tar")
	if out, err := exec.CommandContext(t.Context(), "tar", "-C", dir, "-cf", archive, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	return archive
}

// plain is a layer that is stored as it is.
type plain struct{ v1.Layer }

func (p plain) Compressed() (io.ReadCloser, error) { return p.Uncompressed() }
func (p plain) Digest() (v1.Hash, error)           { return p.DiffID() }
func (p plain) Size() (int64, error) {
	r, err := p.Uncompressed()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.Copy(io.Discard, r)
}

func TestImagesArriveInARegistry(t *testing.T) {
	in := input(t)
	dir := filepath.Join(t.TempDir(), "images")
	if err := Write(dir, in); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	at := strings.TrimPrefix(server.URL, "http://") + "/some/place"

	var said []string
	where, err := Push(t.Context(), dir, at, "v1.2.3+dirty", func(s string) { said = append(said, s) })
	if err != nil {
		t.Fatal(err)
	}
	if len(where) != 4 || len(said) != 4 {
		t.Fatalf("pushed %v, said %q", where, said)
	}
	for image, want := range map[string]struct {
		arches, files []string
		entrypoint    string
		user          string
	}{
		API: {
			[]string{"amd64", "arm64"},
			[]string{"bin/berth", "bin/berth-api", "etc/group", "etc/passwd", "etc/ssl/certs/ca-certificates.crt"},
			"/bin/berth-api", "65532",
		},
		Gateway: {
			[]string{"amd64", "arm64"},
			[]string{"bin/berth-gateway", "etc/group", "etc/passwd", "etc/ssl/certs/ca-certificates.crt"},
			"/bin/berth-gateway", "65532",
		},
		Agent: {[]string{"amd64", "arm64"}, []string{"agent"}, "/agent", ""},
		Base:  {[]string{"amd64"}, []string{"etc/debian_version"}, "", ""},
	} {
		// By digest and by tag, it is the same.
		ref, err := name.ParseReference(where[image].Ref)
		if err != nil {
			t.Fatal(err)
		}
		tagged, err := remote.Head(ref.Context().Tag("v1.2.3-dirty"))
		if err != nil || tagged.Digest.String() != ref.Identifier() {
			t.Errorf("%s: the tag says %v, %v", image, tagged, err)
		}
		index, err := remote.Index(ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Index(index); err != nil {
			t.Errorf("%s: %v", image, err)
		}
		manifest, err := index.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		var arches []string
		for _, m := range manifest.Manifests {
			arches = append(arches, m.Platform.Architecture)
			img, err := index.Image(m.Digest)
			if err != nil {
				t.Fatal(err)
			}
			config, err := img.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if config.Architecture != m.Platform.Architecture || config.OS != "linux" || config.Config.User != want.user ||
				strings.Join(config.Config.Entrypoint, " ") != want.entrypoint {
				t.Errorf("%s for %s: config %+v", image, m.Platform, config)
			}
			if files := names(t, img); !slices.Equal(files, want.files) {
				t.Errorf("%s for %s has %v", image, m.Platform, files)
			}
		}
		if !slices.Equal(arches, want.arches) || !slices.Equal(where[image].Architectures, want.arches) {
			t.Errorf("%s is for %v", image, arches)
		}
	}
}

// names lists an image's files, without directories.
func names(t *testing.T, img v1.Image) []string {
	t.Helper()
	content := mutate.Extract(img)
	defer content.Close()
	var list []string
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(list)
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Mode&0o022 != 0 || !h.ModTime.Equal(epoch) {
			t.Errorf("%s: owner %d:%d, mode %o, time %v", h.Name, h.Uid, h.Gid, h.Mode, h.ModTime)
		}
		if h.Typeflag != tar.TypeDir {
			list = append(list, h.Name)
		}
	}
}

func TestSameInputSameDigests(t *testing.T) {
	in := input(t)
	var made [2][]byte
	for i := range made {
		dir := filepath.Join(t.TempDir(), "images")
		for range i + 1 { // the second time over what is there
			if err := Write(dir, in); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		if made[i], err = os.ReadFile(dir + "/index.json"); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(made[0], made[1]) {
		t.Errorf("made from the same:\n%s\n%s", made[0], made[1])
	}
	in.Version = "v1.2.4"
	dir := filepath.Join(t.TempDir(), "images")
	if err := Write(dir, in); err != nil {
		t.Fatal(err)
	}
	if other, err := os.ReadFile(dir + "/index.json"); err != nil || bytes.Equal(made[0], other) {
		t.Errorf("another version makes the same images: %v", err)
	}
}

func TestWhatCannotRunIsRefused(t *testing.T) {
	good := input(t)
	for want, spoil := range map[string]func(in *Input){
		"make images":     func(in *Input) { in.Programs = map[string]string{"amd64": t.TempDir()} },
		"not for arm64":   func(in *Input) { in.Programs = map[string]string{"arm64": good.Programs["amd64"]} },
		"choose amd64":    func(in *Input) { in.Programs = map[string]string{"mips": good.Programs["amd64"]} },
		"no programs":     func(in *Input) { in.Programs = nil },
		"ca-certificates": func(in *Input) { in.Authorities = "/nowhere" },
		"no OCI archive":  func(in *Input) { in.Bases = []string{emptyTar(t)} },
		"two are for":     func(in *Input) { in.Bases = append(in.Bases, in.Bases[0]) },
		"not static": func(in *Input) {
			dir := t.TempDir()
			compile(t, dir+"/berth-api", "amd64", "1")
			in.Programs = map[string]string{"amd64": dir}
		},
		"no program for Linux": func(in *Input) {
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/berth-api", []byte("#!/bin/sh\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			in.Programs = map[string]string{"amd64": dir}
		},
	} {
		in := Input{Programs: good.Programs, Bases: slices.Clone(good.Bases), Authorities: good.Authorities, Version: good.Version}
		spoil(&in)
		dir := filepath.Join(t.TempDir(), "images")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/before", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		err := Write(dir, in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got: %v", want, err)
		}
		left, err := os.ReadDir(filepath.Dir(dir))
		if err != nil || len(left) != 1 {
			t.Errorf("%s: left %v, %v", want, left, err)
		}
		if _, err := os.Stat(dir + "/before"); err != nil {
			t.Errorf("%s: what was there has changed: %v", want, err)
		}
	}
}

func emptyTar(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "empty.tar")
	if err := os.WriteFile(path, make([]byte, 1024), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhereNoRegistryIs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	if err := Write(dir, input(t)); err != nil {
		t.Fatal(err)
	}
	quiet := func(string) {}
	for _, registry := range []string{"", "https://registry.example.com", "registry.example.com/", "registry.example.com/Berth", "berth", "a b/c"} {
		if _, err := Push(t.Context(), dir, registry, "v1", quiet); err == nil || !strings.Contains(err.Error(), "such as registry.example.com/berth") {
			t.Errorf("%q: %v", registry, err)
		}
	}
	if _, err := Push(t.Context(), dir, "127.0.0.1:1/berth", "v1", quiet); err == nil || !strings.Contains(err.Error(), "registry's address") {
		t.Errorf("a registry that is not there: %v", err)
	}
	if _, err := Push(t.Context(), t.TempDir(), "127.0.0.1:1/berth", "v1", quiet); err == nil || !strings.Contains(err.Error(), "make images") {
		t.Errorf("no images: %v", err)
	}
}

func TestTag(t *testing.T) {
	for version, want := range map[string]string{
		"v1.2.3": "v1.2.3", "v1.2.3-4-gabc-dirty": "v1.2.3-4-gabc-dirty", "1+2/3": "1-2-3", "-x": "x", strings.Repeat("a", 200): strings.Repeat("a", 128),
	} {
		if got := Tag(version); got != want {
			t.Errorf("%q: %q, want %q", version, got, want)
		}
	}
}
