package containerd

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Bounds of what an archive of an image may hold beside its layers.
const (
	maxArchiveEntries = 10000
	maxArchiveJSON    = 4 << 20
	maxLayers         = 128
	maxIndexDepth     = 4
)

// archive is an image in a tar file: an OCI image layout (image-spec, image-layout.md) or what `docker save` writes.
type archive struct {
	file    io.ReaderAt
	entries map[string]entry
	close   func() error

	config ocispec.Image
	id     digest.Digest // of the configuration, which names every layer's content: the image's identity
	layers []entry       // lowest first, maybe compressed
}

// entry is where a file's content lies in the archive.
type entry struct{ at, size int64 }

func openArchive(name string) (*archive, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	a, err := readArchive(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	a.close = f.Close
	return a, nil
}

// readArchive reads everything but the layers. Content is found by seeking past it, so a large archive opens at once.
func readArchive(f interface {
	io.ReadSeeker
	io.ReaderAt
},
) (*archive, error) {
	a := &archive{file: f, entries: make(map[string]entry)}
	tr := tar.NewReader(f)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("not an archive of an image: %w", err)
		}
		if n == maxArchiveEntries {
			return nil, fmt.Errorf("not an archive of an image: more than %d files", maxArchiveEntries)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		a.entries[path.Clean(h.Name)] = entry{at, h.Size}
	}
	err := a.readDocker()
	if errors.Is(err, os.ErrNotExist) {
		err = a.readLayout()
	}
	if err != nil {
		return nil, err
	}
	return a, a.check()
}

// check holds the configuration against this machine and the layers.
func (a *archive) check() error {
	switch {
	case a.config.OS != "linux" || a.config.Architecture != runtime.GOARCH:
		return fmt.Errorf("the image is for %s/%s, this machine is linux/%s", a.config.OS, a.config.Architecture, runtime.GOARCH)
	case len(a.layers) == 0 || len(a.layers) > maxLayers:
		return fmt.Errorf("the image has %d layers; 1 to %d are possible", len(a.layers), maxLayers)
	case len(a.config.RootFS.DiffIDs) != len(a.layers):
		return fmt.Errorf("the image has %d layers and names %d", len(a.layers), len(a.config.RootFS.DiffIDs))
	}
	for _, id := range a.config.RootFS.DiffIDs {
		if err := id.Validate(); err != nil {
			return fmt.Errorf("layer %q: %w", id, err)
		}
	}
	return nil
}

func (a *archive) bytes(name string) ([]byte, error) {
	e, ok := a.entries[path.Clean(name)]
	if !ok {
		return nil, fmt.Errorf("the archive has no %s: %w", name, os.ErrNotExist)
	}
	if e.size > maxArchiveJSON {
		return nil, fmt.Errorf("%s has %d bytes; at most %d are possible", name, e.size, maxArchiveJSON)
	}
	b := make([]byte, e.size)
	if _, err := a.file.ReadAt(b, e.at); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

func (a *archive) json(name string, v any) error {
	b, err := a.bytes(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (a *archive) setConfig(b []byte) error {
	if err := json.Unmarshal(b, &a.config); err != nil {
		return fmt.Errorf("the image's configuration: %w", err)
	}
	a.id = digest.FromBytes(b)
	return nil
}

func (a *archive) addLayer(name string) error {
	e, ok := a.entries[path.Clean(name)]
	if !ok {
		return fmt.Errorf("the archive lacks the layer %s", name)
	}
	a.layers = append(a.layers, e)
	return nil
}

// readDocker reads manifest.json. A link in place of a layer, which old versions wrote, is not followed.
func (a *archive) readDocker() error {
	var images []struct {
		Config string
		Layers []string
	}
	if err := a.json("manifest.json", &images); err != nil {
		return err
	}
	if len(images) != 1 {
		return fmt.Errorf("the archive has %d images; give one with a single image", len(images))
	}
	b, err := a.bytes(images[0].Config)
	if err != nil {
		return noLonger(err)
	}
	if err := a.setConfig(b); err != nil {
		return err
	}
	for _, l := range images[0].Layers {
		if err := a.addLayer(l); err != nil {
			return err
		}
	}
	return nil
}

// noLonger keeps an error's text, so that a file missing further down is not taken for another kind of archive.
func noLonger(err error) error { return errors.New(err.Error()) }

// readLayout reads index.json, and takes this machine's image where there are several.
func (a *archive) readLayout() error {
	var ix ocispec.Index
	if err := a.json("index.json", &ix); err != nil {
		return err
	}
	for range maxIndexDepth {
		d, err := choose(ix.Manifests)
		if err != nil {
			return err
		}
		b, err := a.blob(d)
		if err != nil {
			return err
		}
		if strings.Contains(d.MediaType, "index") || strings.Contains(d.MediaType, "manifest.list") {
			ix = ocispec.Index{}
			if err := json.Unmarshal(b, &ix); err != nil {
				return fmt.Errorf("index %s: %w", d.Digest, err)
			}
			continue
		}
		var m ocispec.Manifest
		if err := json.Unmarshal(b, &m); err != nil {
			return fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		if b, err = a.blob(m.Config); err != nil {
			return err
		}
		if err := a.setConfig(b); err != nil {
			return err
		}
		for _, l := range m.Layers {
			name, err := blobName(l)
			if err != nil {
				return err
			}
			if err := a.addLayer(name); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("the archive's indexes are nested deeper than %d", maxIndexDepth)
}

func choose(list []ocispec.Descriptor) (ocispec.Descriptor, error) {
	for _, d := range list {
		if d.Platform != nil && d.Platform.OS == "linux" && d.Platform.Architecture == runtime.GOARCH {
			return d, nil
		}
	}
	if len(list) == 1 && list[0].Platform == nil {
		return list[0], nil
	}
	return ocispec.Descriptor{}, fmt.Errorf("the archive has no single image for linux/%s", runtime.GOARCH)
}

func blobName(d ocispec.Descriptor) (string, error) {
	if err := d.Digest.Validate(); err != nil {
		return "", fmt.Errorf("blob %q: %w", d.Digest, err)
	}
	return path.Join("blobs", d.Digest.Algorithm().String(), d.Digest.Encoded()), nil
}

// blob returns a small blob whose content is what its name says.
func (a *archive) blob(d ocispec.Descriptor) ([]byte, error) {
	name, err := blobName(d)
	if err != nil {
		return nil, err
	}
	b, err := a.bytes(name)
	if err != nil {
		return nil, noLonger(err)
	}
	if d.Digest.Algorithm().FromBytes(b) != d.Digest {
		return nil, fmt.Errorf("blob %s is damaged", d.Digest)
	}
	return b, nil
}
