package clustertest

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Registry is an image registry of a test's own, in plain HTTP, from which the cluster pulls.
type Registry struct {
	Address        string // HOST:PORT, with which references begin
	User, Password string // that it asks for; empty: nobody is asked
}

// OwnRegistry starts one that runs until the test ends. With a user it turns away who does not have the password.
func (c *Cluster) OwnRegistry(t testing.TB, user, password string) *Registry {
	t.Helper()
	var h http.Handler = registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if user != "" {
		h = asking(h, user, password)
	}
	r := &Registry{Address: c.Serve(t, h), User: user, Password: password}
	c.AllowPlain(t, r.Address)
	return r
}

// AllowPlain has the node pull from a registry in plain HTTP.
func (c *Cluster) AllowPlain(t testing.TB, address string) {
	t.Helper()
	dir := filepath.Join(c.Registries, address)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	hosts := fmt.Sprintf("[host.%q]\n", "http://"+address)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o644); err != nil {
		t.Fatal(err)
	}
}

func asking(h http.Handler, user, password string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Push puts an image there and returns its reference, by tag.
func (r *Registry) Push(t testing.TB, img v1.Image, repository string) string {
	t.Helper()
	ref, err := name.ParseReference(r.Address+"/"+repository, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithAuth(&authn.Basic{Username: r.User, Password: r.Password})); err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
	return ref.String()
}

// Serve answers HTTP where pods and the node reach it, until the test ends, and returns the address.
func (c *Cluster) Serve(t testing.TB, h http.Handler) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", c.Machine+":0")
	if err != nil {
		t.Fatal(err)
	}
	server := http.Server{Handler: h}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener) // ErrServerClosed
	}()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	return listener.Addr().String()
}
