package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// pauseImage is what pods' sandboxes run.
const pauseImage = "berth.local/pause:1"

// writePauseImage makes an archive with the image of one static program, in the form that `docker save` writes.
func writePauseImage(archive, program string) error {
	content, err := os.ReadFile(program)
	if err != nil {
		return fmt.Errorf("%w (make cluster-up builds it)", err)
	}
	layer, err := tarOf(file{"pause", 0o755, content})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(layer)
	// Without a platform, containerd takes an image for somebody else's.
	config, err := json.Marshal(v1.ConfigFile{
		Architecture: runtime.GOARCH,
		OS:           "linux",
		RootFS:       v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}},
		Config:       v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{
		{"Config": "config.json", "RepoTags": []string{pauseImage}, "Layers": []string{"layer.tar"}},
	})
	if err != nil {
		return err
	}
	image, err := tarOf(file{"manifest.json", 0o644, manifest}, file{"config.json", 0o644, config}, file{"layer.tar", 0o644, layer})
	if err != nil {
		return err
	}
	return os.WriteFile(archive, image, 0o644)
}

type file struct {
	name    string
	mode    int64
	content []byte
}

func tarOf(files ...file) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.content)), Mode: f.mode}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}
