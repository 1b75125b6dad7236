package pack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Pushed is where an image is in a registry.
type Pushed struct {
	Ref           string // by digest
	Architectures []string
}

// Push brings the images of a layout to a registry, such as registry.example.com/berth, each under its name and the tag, and
// returns where each is. What the registry has already is not sent. It logs in as docker does. say is told of
// each image.
func Push(ctx context.Context, dir, registry, tag string, say func(string)) (map[string]Pushed, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there are no images in %s; `make images` makes them", dir)
	}
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if err := checkRegistry(registry); err != nil {
		return nil, err
	}
	where := map[string]Pushed{}
	for _, m := range manifest.Manifests {
		image := m.Annotations[refName]
		ref, err := name.NewTag(registry+"/"+image+":"+Tag(tag), name.StrictValidation)
		if err != nil {
			return nil, err
		}
		part, err := index.ImageIndex(m.Digest)
		if err != nil {
			return nil, err
		}
		updates := make(chan v1.Update, 16)
		var told sync.WaitGroup
		told.Go(func() { tell(updates, image, say) })
		err = remote.WriteIndex(ref, part, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithProgress(updates))
		told.Wait() // the library has closed the channel
		if err != nil {
			return nil, fmt.Errorf("push %s: %w; is this the registry's address, and are you logged in there (docker login, crane auth login)?", ref, err)
		}
		pushed := Pushed{Ref: ref.Context().Digest(m.Digest.String()).String()}
		if pushed.Architectures, err = architectures(part); err != nil {
			return nil, err
		}
		where[image] = pushed
		say(fmt.Sprintf("%s (%s)", pushed.Ref, strings.Join(pushed.Architectures, ", ")))
	}
	return where, nil
}

// tellEvery is how often a push says how far it is.
const tellEvery = 5 * time.Second

func tell(updates <-chan v1.Update, image string, say func(string)) {
	last := time.Now()
	for u := range updates {
		if u.Error == nil && u.Complete < u.Total && time.Since(last) > tellEvery {
			last = time.Now()
			say(fmt.Sprintf("%s: %d of %d MB", image, u.Complete/1e6, u.Total/1e6))
		}
	}
}

// architectures are what an image is there for.
func architectures(index v1.ImageIndex) ([]string, error) {
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var list []string
	for _, m := range manifest.Manifests {
		list = append(list, m.Platform.Architecture)
	}
	return list, nil
}

// checkRegistry refuses what is no place for images.
func checkRegistry(registry string) error {
	advice := "give its address without a scheme, and a path of your own below it, such as registry.example.com/berth"
	if strings.Contains(registry, "://") || strings.HasSuffix(registry, "/") {
		return fmt.Errorf("%q is no place in a registry; %s", registry, advice)
	}
	if _, err := name.NewRepository(registry+"/"+API, name.StrictValidation); err != nil {
		return fmt.Errorf("%q is no place in a registry; %s: %w", registry, advice, err)
	}
	return nil
}

var notInTag = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// Tag is a version as a registry takes it.
func Tag(version string) string {
	tag := strings.TrimLeft(notInTag.ReplaceAllString(version, "-"), ".-")
	return tag[:min(len(tag), 128)]
}
