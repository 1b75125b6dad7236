package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// blob is one content-addressed file of an OCI archive.
type blob struct {
	digest v1.Hash
	size   int64
	open   func() (io.ReadCloser, error)
}

func (b blob) descriptor(kind types.MediaType) v1.Descriptor {
	return v1.Descriptor{MediaType: kind, Size: b.size, Digest: b.digest}
}

func jsonBlob(value any) (blob, error) {
	content, err := json.Marshal(value)
	if err != nil {
		return blob{}, err
	}
	sum := sha256.Sum256(content)
	return blob{
		digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])},
		size:   int64(len(content)),
		open:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
	}, nil
}

// writeArchive writes an OCI archive of one image with one layer to path and returns the image's reference, which ends in a
// hash of the image: another content is another image, whatever made it so.
func writeArchive(path, name string, l layer, r *recipe) (ref string, err error) {
	layerBlob := blob{
		digest: v1.Hash{Algorithm: "sha256", Hex: l.digest},
		size:   l.size,
		open:   func() (io.ReadCloser, error) { return os.Open(l.path) },
	}
	config, err := jsonBlob(&v1.ConfigFile{
		Architecture: runtime.GOARCH,
		OS:           "linux",
		Created:      v1.Time{Time: r.created.UTC()},
		Config:       r.config,
		RootFS:       v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{layerBlob.digest}},
		History:      []v1.History{{Created: v1.Time{Time: r.created.UTC()}, CreatedBy: "mkimage " + suite}},
	})
	if err != nil {
		return "", err
	}
	manifest, err := jsonBlob(&v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		Config:        config.descriptor(types.OCIConfigJSON),
		Layers:        []v1.Descriptor{layerBlob.descriptor(types.OCIUncompressedLayer)},
	})
	if err != nil {
		return "", err
	}
	ref = name + ":" + manifest.digest.Hex[:16]
	top := manifest.descriptor(types.OCIManifestSchema1)
	top.Platform = &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	// containerd takes the name from the first, other tools from the second.
	top.Annotations = map[string]string{"io.containerd.image.name": ref, "org.opencontainers.image.ref.name": ref}
	index, err := jsonBlob(&v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{top},
	})
	if err != nil {
		return "", err
	}
	layout, err := jsonBlob(map[string]string{"imageLayoutVersion": "1.0.0"})
	if err != nil {
		return "", err
	}

	f, err := os.Create(path + ".partial")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	w := tar.NewWriter(f)
	blobs := "blobs/sha256/"
	for _, entry := range []struct {
		name string
		blob
	}{
		{"oci-layout", layout},
		{"index.json", index},
		{blobs + manifest.digest.Hex, manifest},
		{blobs + config.digest.Hex, config},
		{blobs + layerBlob.digest.Hex, layerBlob},
	} {
		if err := writeEntry(w, entry.name, entry.blob, r); err != nil {
			return "", err
		}
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	return ref, os.Rename(f.Name(), path)
}

func writeEntry(w *tar.Writer, name string, b blob, r *recipe) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: b.size, Mode: 0o644, ModTime: r.created}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	from, err := b.open()
	if err != nil {
		return err
	}
	defer from.Close()
	_, err = io.Copy(w, from)
	return err
}
