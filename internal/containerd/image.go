package containerd

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	tararchive "github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	securejoin "github.com/cyphar/filepath-securejoin"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"berth/internal/compute"
)

// image is a base image unpacked for this instance: its files belong to the instance's range of ids. It is made once and
// never changes, so no tree of a tenant's is below it.
type image struct {
	id     string // also its directory's name
	dir    string
	config ocispec.ImageConfig
}

// importer makes images from archives.
type importer struct {
	dir      string // of all images
	ids      idRange
	progress func(done, total int64)
}

// load returns the image of an archive, unpacking it first where that was not done. A kill at any instant leaves at most
// a temporary directory, which the next load clears away.
func (im importer) load(ctx context.Context, archivePath string) (image, error) {
	a, err := openArchive(archivePath)
	if err != nil {
		return image{}, err
	}
	defer a.close()
	id := fmt.Sprintf("%s-%d", a.id.Encoded(), im.ids.root())
	img := image{id: id, dir: filepath.Join(im.dir, id)}
	if img.config, err = readConfig(img.dir); err == nil {
		return img, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return image{}, err
	}
	tmp := img.dir + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return image{}, err
	}
	if err := im.unpack(ctx, a, tmp); err != nil {
		return image{}, errors.Join(fmt.Errorf("unpack %s: %w", archivePath, err), os.RemoveAll(tmp))
	}
	if err := os.Rename(tmp, img.dir); err != nil {
		return image{}, err
	}
	if err := syncDir(im.dir); err != nil {
		return image{}, err
	}
	img.config = a.config.Config
	return img, nil
}

// prune removes every image but those to keep.
func (im importer) prune(keep map[string]bool) error {
	list, err := os.ReadDir(im.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range list {
		if !keep[d.Name()] {
			errs = append(errs, os.RemoveAll(filepath.Join(im.dir, d.Name())))
		}
	}
	return errors.Join(errs...)
}

func readConfig(dir string) (ocispec.ImageConfig, error) {
	var c ocispec.ImageConfig
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("%s: %w", dir, err)
	}
	return c, nil
}

func (img image) rootfs() string { return filepath.Join(img.dir, "rootfs") }

// unpack writes the image to dir, on disk when it returns.
func (im importer) unpack(ctx context.Context, a *archive, dir string) error {
	root := filepath.Join(dir, "rootfs")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	var done, total int64
	for _, l := range a.layers {
		total += l.size
	}
	for i, l := range a.layers {
		src := &progressReader{r: io.NewSectionReader(a.file, l.at, l.size), f: func(n int64) {
			done += n
			im.progress(done, total)
		}}
		if err := im.applyLayer(ctx, root, src, a, i); err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	if err := im.own(root); err != nil {
		return err
	}
	b, err := json.Marshal(a.config.Config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		return err
	}
	return syncFS(dir)
}

type progressReader struct {
	r io.Reader
	f func(n int64)
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.f(int64(n))
	return n, err
}

// applyLayer unpacks one layer over those below and checks it against its digest.
func (im importer) applyLayer(ctx context.Context, root string, src io.Reader, a *archive, i int) error {
	plain, err := compression.DecompressStream(src)
	if err != nil {
		return err
	}
	defer plain.Close()
	want := a.config.RootFS.DiffIDs[i]
	verifier := want.Verifier()
	content := io.TeeReader(plain, verifier)
	if _, err := tararchive.Apply(ctx, root, content, tararchive.WithFilter(im.adapt)); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, content); err != nil { // the padding after the last file
		return err
	}
	if !verifier.Verified() {
		return fmt.Errorf("its content is not %s; the archive is damaged", want)
	}
	return nil
}

// adapt changes a file of a layer for a container in a user namespace: ids are shifted into the range, devices are left
// out (nodev mounts make them useless), and of the extended attributes only the user's stay. A file capability counts only
// in the host's own namespace, and one outside a container's bounding set keeps its program from running at all.
func (im importer) adapt(h *tar.Header) (bool, error) {
	if h.Typeflag == tar.TypeBlock || h.Typeflag == tar.TypeChar {
		return false, nil
	}
	if h.Uid < 0 || h.Uid >= idCount || h.Gid < 0 || h.Gid >= idCount {
		return false, fmt.Errorf("%s belongs to %d:%d; ids up to %d are possible", h.Name, h.Uid, h.Gid, idCount-1)
	}
	h.Uid += im.ids.root()
	h.Gid += im.ids.root()
	for k := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok && !strings.HasPrefix(name, "user.") {
			delete(h.PAXRecords, k)
		}
	}
	return true, nil
}

// own gives the container's root what no layer named: the root itself, and parents that were only implied.
func (im importer) own(root string) error {
	if err := os.Chmod(root, 0o755); err != nil {
		return err
	}
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) < im.ids.root() || int(st.Gid) < im.ids.root() {
			return os.Lchown(p, im.ids.root(), im.ids.root())
		}
		return nil
	})
}

// resolve returns where p is in the image once its symlinks are followed, as the container would, from its root. What is
// not there counts as written.
func (img image) resolve(p string) (string, error) {
	full, err := securejoin.SecureJoin(img.rootfs(), p)
	if err != nil {
		return "", compute.Invalid("mount_paths", "Mount path %s leads in circles in the image; choose another.", p)
	}
	rel, err := filepath.Rel(img.rootfs(), full)
	if err != nil {
		return "", err
	}
	return filepath.Join("/", rel), nil
}

// resolveMounts resolves mount paths and holds the result against the rules.
func (img image) resolveMounts(paths []string) ([]string, error) {
	resolved := make([]string, 0, len(paths))
	for _, p := range paths {
		r, err := img.resolve(p)
		if err != nil {
			return nil, err
		}
		if r != p {
			if err := compute.CheckMountTargets([]string{r}); err != nil {
				return nil, compute.Invalid("mount_paths", "Mount path %s is %s in the image. %s", p, r, compute.UserMessage(err))
			}
		}
		for q := r; q != "/"; q = filepath.Dir(q) {
			fi, err := os.Lstat(filepath.Join(img.rootfs(), q))
			if err == nil && !fi.IsDir() {
				return nil, compute.Invalid("mount_paths", "Mount path %s cannot be a directory: %s is a file in the image.", p, q)
			}
			if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
				return nil, compute.Internal("look at a mount path in the image", err)
			}
		}
		resolved = append(resolved, r)
	}
	return resolved, compute.CheckMountTargets(resolved)
}

// syncFS writes a whole file system out, as cheap as syncing a tree of many files one by one is not.
func syncFS(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync the file system of %s: %w", path, err)
	}
	return nil
}
