package k8s

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"berth/internal/compute"
)

// image is what must be known of the containers' image before one runs: its command, whose that is, and where its directories
// and links are. Environment and working directory are the container runtime's to give.
type image struct {
	reference string // as pods have it: by digest where it comes from a registry, so that it is what was read
	command   []string
	user      string
	tree      map[string]entry // by clean absolute path
}

type entry struct {
	directory bool
	link      string // a symlink's target; empty where it is none
}

// Bounds on a foreign image.
const (
	maxEntries = 2_000_000
	maxLinks   = 40 // as the kernel counts
)

// readImage reads an image's configuration and the names of its files from its registry.
func readImage(ctx context.Context, reference string, registries authn.Keychain) (image, error) {
	read := image{reference: reference}
	ref, err := name.ParseReference(reference)
	if err != nil {
		return read, err
	}
	there, err := remote.Get(ref, remote.WithContext(ctx), remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}),
		remote.WithAuthFromKeychain(authn.NewMultiKeychain(registries, authn.DefaultKeychain)))
	if err != nil {
		return read, err
	}
	img, err := there.Image()
	if err != nil {
		return read, err
	}
	read.reference = ref.Context().Digest(there.Digest.String()).String() // of all platforms
	config, err := img.ConfigFile()
	if err != nil {
		return read, err
	}
	read.command, read.user = slices.Concat(config.Config.Entrypoint, config.Config.Cmd), config.Config.User
	files := mutate.Extract(img)
	defer files.Close()
	tree, err := readTree(ctx, tar.NewReader(files))
	if err != nil {
		return read, err
	}
	read.tree = tree
	return read, nil
}

func readTree(ctx context.Context, files *tar.Reader) (map[string]entry, error) {
	tree := map[string]entry{"/": {directory: true}}
	for {
		h, err := files.Next()
		switch {
		case errors.Is(err, io.EOF):
			return tree, nil
		case err != nil:
			return nil, err
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case len(tree) > maxEntries:
			return nil, fmt.Errorf("it has more than %d files", maxEntries)
		}
		e := entry{directory: h.Typeflag == tar.TypeDir}
		if h.Typeflag == tar.TypeSymlink {
			e.link = h.Linkname
		}
		at := path.Join("/", h.Name)
		tree[at] = e
		for dir := path.Dir(at); ; dir = path.Dir(dir) { // layers need not name parents
			if _, ok := tree[dir]; ok {
				break
			}
			tree[dir] = entry{directory: true}
		}
	}
}

// resolve returns where p is in the image once its symlinks are followed from its root. What is not there counts as written.
func (img image) resolve(p string) (string, error) {
	todo, at, links := strings.Split(strings.Trim(p, "/"), "/"), "/", 0
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		at = path.Join(at, part) // ".." at the root stays there
		e := img.tree[at]
		if e.link == "" {
			continue
		}
		if links++; links > maxLinks {
			return "", compute.Invalid("mount_paths", "Mount path %s leads in circles in the image; choose another.", p)
		}
		if path.IsAbs(e.link) {
			at = "/"
		} else {
			at = path.Dir(at)
		}
		todo = append(strings.Split(e.link, "/"), todo...)
	}
	return at, nil
}

// checkMounts refuses mount paths that the image makes impossible.
func (img image) checkMounts(paths []string) error {
	if img.tree == nil {
		return nil // it could not be read: the pod's own start says what is wrong
	}
	resolved := make([]string, 0, len(paths))
	for _, p := range paths {
		r, err := img.resolve(p)
		if err != nil {
			return err
		}
		if r != p {
			if err := compute.CheckMountTargets([]string{r}); err != nil {
				return compute.Invalid("mount_paths", "Mount path %s is %s in the image. %s", p, r, compute.UserMessage(err))
			}
		}
		for q := r; q != "/"; q = path.Dir(q) {
			if e, ok := img.tree[q]; ok && !e.directory {
				return compute.Invalid("mount_paths", "Mount path %s cannot be a directory: %s is a file in the image.", p, q)
			}
		}
		resolved = append(resolved, r)
	}
	return compute.CheckMountTargets(resolved)
}
