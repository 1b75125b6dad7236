// Package pack puts Berth's programs into container images, without a container engine: a static program, certificate
// authorities, a list of users, and nothing else; for each architecture one, behind one index. The same programs give the same
// digests. What it makes is an OCI layout in a directory, and Push brings that to a registry. The containers' base image, which
// mkimage makes, is carried along. Its boundary: it compiles nothing, and refuses programs that are not static or are for
// another architecture than they are given as.
package pack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Names of the images, which are their repositories' below a registry's address.
const (
	API     = "api"
	Gateway = "gateway"
	Agent   = "agent"
	Base    = "base"
)

// Names lists them.
func Names() []string { return []string{API, Gateway, Agent, Base} }

// refName is the annotation by which an OCI layout names an image.
const refName = "org.opencontainers.image.ref.name"

// user runs what needs no root. Its number is the one that other images without a distribution use, too.
const user = "65532"

// epoch is the time of all files, so that the same programs make the same images.
var epoch = time.Unix(1793491200, 0).UTC() // 1 November 2026

// Input is what the images are made from.
type Input struct {
	// Programs has a directory for each architecture, as `make build` fills bin/.
	Programs map[string]string
	// Bases are archives of the base image, one an architecture.
	Bases []string
	// Authorities is a file of certificates in PEM.
	Authorities string
	// Version is a label of the images.
	Version string
}

// recipe says what is in an image.
type recipe struct {
	name, title string
	programs    []program // the first is what it runs
	system      bool      // with certificates and users
	user        string
}

type program struct{ file, at string }

func recipes(arch string) []recipe {
	return []recipe{
		{API, "Berth's control plane", []program{{"berth-api", "bin/berth-api"}, {"berth", "bin/berth"}}, true, user},
		{Gateway, "Berth's SSH gateway", []program{{"berth-gateway", "bin/berth-gateway"}}, true, user},
		// It begins as a container's root, in a pod that brings all else.
		{Agent, "Berth's agent", []program{{"berth-agent-linux-" + arch, "agent"}}, false, ""},
	}
}

// Write makes the images in an OCI layout, in dir, in place of what was there.
func Write(dir string, in Input) (err error) {
	if len(in.Programs) == 0 {
		return errors.New("no programs to put into images")
	}
	indexes := map[string][]v1.Image{}
	for _, arch := range slices.Sorted(maps.Keys(in.Programs)) {
		system, err := systemLayer(in.Authorities)
		if err != nil {
			return err
		}
		for _, r := range recipes(arch) {
			img, err := r.image(arch, in.Programs[arch], in.Version, system)
			if err != nil {
				return fmt.Errorf("image %s for %s: %w", r.name, arch, err)
			}
			indexes[r.name] = append(indexes[r.name], img)
		}
	}
	for _, archive := range in.Bases {
		img, err := readBase(archive)
		if err != nil {
			return fmt.Errorf("base image %s: %w", archive, err)
		}
		indexes[Base] = append(indexes[Base], img)
	}

	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	made, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+".*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(made)
	to, err := layout.Write(made, empty.Index)
	if err != nil {
		return err
	}
	for _, name := range Names() {
		if len(indexes[name]) == 0 {
			continue
		}
		index, err := join(indexes[name])
		if err == nil {
			err = to.AppendIndex(index, layout.WithAnnotations(map[string]string{refName: name}))
		}
		if err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
	}
	if err := os.Chmod(made, 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(made, dir)
}

// join makes one index of the images for several architectures.
func join(images []v1.Image) (v1.ImageIndex, error) {
	var parts []mutate.IndexAddendum
	var seen []string
	for _, img := range images {
		config, err := img.ConfigFile()
		if err != nil {
			return nil, err
		}
		if slices.Contains(seen, config.Architecture) {
			return nil, fmt.Errorf("two are for %s", config.Architecture)
		}
		seen = append(seen, config.Architecture)
		parts = append(parts, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: config.OS, Architecture: config.Architecture},
		}})
	}
	return mutate.AppendManifests(empty.Index, parts...), nil
}

// image makes the image for one architecture.
func (r recipe) image(arch, dir, version string, system v1.Layer) (v1.Image, error) {
	var layers []v1.Layer
	if r.system {
		layers = append(layers, system)
	}
	for _, p := range r.programs {
		content, err := readProgram(filepath.Join(dir, p.file), arch)
		if err != nil {
			return nil, err
		}
		layer, err := filesLayer(file{p.at, 0o755, content})
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	return assemble(layers, &v1.ConfigFile{
		OS: "linux", Architecture: arch, Created: v1.Time{Time: epoch},
		Config: v1.Config{
			Entrypoint: []string{"/" + r.programs[0].at}, User: r.user, Env: []string{"PATH=/bin"}, WorkingDir: "/",
			Labels: map[string]string{
				"org.opencontainers.image.title":    r.title,
				"org.opencontainers.image.version":  version,
				"org.opencontainers.image.licenses": "Apache-2.0",
			},
		},
	})
}

// assemble makes an OCI image of layers and a configuration, which it completes.
func assemble(layers []v1.Layer, config *v1.ConfigFile) (v1.Image, error) {
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layers...)
	if err != nil {
		return nil, err
	}
	config.RootFS = v1.RootFS{Type: "layers"}
	for _, l := range layers {
		id, err := l.DiffID()
		if err != nil {
			return nil, err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, id)
	}
	return mutate.ConfigFile(img, config)
}

// systemLayer has what a static program may look for on any system.
func systemLayer(authorities string) (v1.Layer, error) {
	certificates, err := os.ReadFile(authorities)
	if err != nil {
		return nil, fmt.Errorf("certificate authorities: %w; Debian has them in the package ca-certificates", err)
	}
	return filesLayer(
		file{"etc/passwd", 0o644, []byte("root:x:0:0:root:/:/sbin/nologin\nberth:x:" + user + ":" + user + ":berth:/:/sbin/nologin\n")},
		file{"etc/group", 0o644, []byte("root:x:0:\nberth:x:" + user + ":\n")},
		file{"etc/ssl/certs/ca-certificates.crt", 0o644, certificates},
	)
}

type file struct {
	name    string
	mode    int64
	content []byte
}

// filesLayer makes a layer of files and the directories above them.
func filesLayer(files ...file) (v1.Layer, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	made := map[string]bool{".": true}
	for _, f := range files {
		for _, dir := range above(f.name) {
			if made[dir] {
				continue
			}
			made[dir] = true
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: epoch}); err != nil {
				return nil, err
			}
		}
		if err := w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.content)), ModTime: epoch,
		}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return compressed(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil })
}

// compressed makes a layer of a tar file.
func compressed(open tarball.Opener) (v1.Layer, error) {
	return tarball.LayerFromOpener(open, tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithMediaType(types.OCILayer),
		tarball.WithCompressedCaching)
}

// above lists the directories above a file, from the top.
func above(name string) []string {
	var dirs []string
	for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
		dirs = append(dirs, dir)
	}
	slices.Reverse(dirs)
	return dirs
}
