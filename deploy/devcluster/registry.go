package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/registry"
)

// registryPort is where the node serves images, over HTTP: its containerd is told so, and clients take it for granted at a
// private address.
const registryPort = "5000"

func (l layout) registry() string { return net.JoinHostPort(l.node().String(), registryPort) }

// hostsFile has containerd reach the registry.
func (l layout) hostsFile() string {
	return fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", l.registry())
}

// registryProcess serves images until ctx ends: it is the component "registry".
func registryProcess(ctx context.Context, address, dir string) error {
	handler, err := openRegistry(dir)
	if err != nil {
		return err
	}
	server := &http.Server{Addr: address, Handler: handler}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// shelf is a registry that keeps what it has. The one below keeps blobs in files, and manifests in memory alone: they are
// written to a file, and put there again at the next start.
type shelf struct {
	http.Handler

	mu        sync.Mutex // held while a manifest is put, so that the file has them in order
	manifests *os.File
}

// kept is a line of that file.
type kept struct {
	Path string `json:"path"`
	Type string `json:"type"`
	Body []byte `json:"body"`
}

// maxManifest bounds a manifest, as other registries do.
const maxManifest = 4 << 20

func openRegistry(dir string) (*shelf, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	s := &shelf{Handler: registry.New(
		registry.WithBlobHandler(registry.NewDiskBlobHandler(dir)), registry.Logger(log.New(io.Discard, "", 0)),
	)}
	path := filepath.Join(dir, "manifests.json")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	whole := 0
	for line := range bytes.Lines(text) {
		var k kept
		if json.Unmarshal(line, &k) != nil || line[len(line)-1] != '\n' {
			break // a killed process wrote it; nobody was told that it is there
		}
		s.Handler.ServeHTTP(httptest.NewRecorder(), k.request())
		whole += len(line)
	}
	if s.manifests, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644); err != nil {
		return nil, err
	}
	if err := s.manifests.Truncate(int64(whole)); err != nil {
		return nil, err
	}
	_, err = s.manifests.Seek(0, io.SeekEnd)
	return s, err
}

func (k kept) request() *http.Request {
	r := httptest.NewRequest(http.MethodPut, k.Path, bytes.NewReader(k.Body))
	r.Header.Set("Content-Type", k.Type)
	return r
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/manifests/") {
		s.Handler.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := kept{Path: r.URL.Path, Type: r.Header.Get("Content-Type"), Body: body}
	answer := httptest.NewRecorder()
	s.Handler.ServeHTTP(answer, k.request())
	if answer.Code == http.StatusCreated {
		line, err := json.Marshal(k)
		if err == nil {
			_, err = s.manifests.Write(append(line, '\n'))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes()) // a client that is gone needs no answer
}
