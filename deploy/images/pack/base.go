package pack

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// maxDocument bounds an index, a manifest or a configuration.
const maxDocument = 4 << 20

// readBase makes an image of an archive as mkimage writes it: one image, with layers that are not compressed. In a registry
// they are, so its digest there is another.
func readBase(archive string) (v1.Image, error) {
	index, err := document[v1.IndexManifest](archive, "index.json")
	if err != nil {
		return nil, err
	}
	if len(index.Manifests) != 1 {
		return nil, fmt.Errorf("it holds %d images, not one", len(index.Manifests))
	}
	manifest, err := document[v1.Manifest](archive, blobPath(index.Manifests[0].Digest))
	if err != nil {
		return nil, err
	}
	config, err := document[v1.ConfigFile](archive, blobPath(manifest.Config.Digest))
	if err != nil {
		return nil, err
	}
	var layers []v1.Layer
	for _, l := range manifest.Layers {
		layer, err := compressed(func() (io.ReadCloser, error) { return openEntry(archive, blobPath(l.Digest)) })
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	return assemble(layers, &config)
}

func blobPath(h v1.Hash) string { return path.Join("blobs", h.Algorithm, h.Hex) }

// document reads a JSON file of the archive.
func document[T any](archive, name string) (value T, err error) {
	f, err := openEntry(archive, name)
	if err != nil {
		return value, err
	}
	defer f.Close()
	if err := json.NewDecoder(io.LimitReader(f, maxDocument)).Decode(&value); err != nil {
		return value, fmt.Errorf("%s: %w", name, err)
	}
	return value, nil
}

// entry is one file of an archive, open.
type entry struct {
	io.Reader
	io.Closer
}

func openEntry(archive, name string) (_ io.ReadCloser, err error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	for files := tar.NewReader(f); ; {
		header, err := files.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("it is no OCI archive: %s is missing", name)
		case err != nil:
			return nil, err
		case path.Clean(header.Name) == name:
			return entry{files, f}, nil
		}
	}
}
