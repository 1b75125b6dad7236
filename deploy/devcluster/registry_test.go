package main

import (
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func TestRegistryKeepsWhatItHas(t *testing.T) {
	dir := t.TempDir()
	index, err := random.Index(1000, 2, 2)
	if err != nil {
		t.Fatal(err)
	}
	want, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	serve := func() (name.Tag, func()) {
		s, err := openRegistry(dir)
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewServer(s)
		ref, err := name.NewTag(strings.TrimPrefix(server.URL, "http://") + "/some/image:1")
		if err != nil {
			t.Fatal(err)
		}
		return ref, func() {
			server.Close()
			s.manifests.Close()
		}
	}

	ref, stop := serve()
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	stop()
	// What a process was killed in the middle of writing is as if it had never come.
	f, err := os.OpenFile(dir+"/manifests.json", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"path": "/v2/some/im`); err != nil {
		t.Fatal(err)
	}
	f.Close()

	for range 2 {
		ref, stop := serve()
		got, err := remote.Index(ref)
		if err != nil {
			t.Fatal(err)
		}
		if digest, err := got.Digest(); err != nil || digest != want {
			t.Errorf("%v, %v; want %v", digest, err, want)
		}
		if err := validate.Index(got); err != nil {
			t.Error(err)
		}
		if _, err := remote.Head(ref.Context().Tag("2")); err == nil {
			t.Error("it has what nobody put there")
		}
		if err := remote.Tag(ref.Context().Tag("3"), got); err != nil {
			t.Fatal(err)
		}
		stop()
	}
}
