package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// suite is the Debian release of the images.
const suite = "bookworm"

// epoch bounds the files' times, so that the same packages make the same image; SOURCE_DATE_EPOCH overrides it.
const epoch = 1793491200 // 1 November 2026

// sources of this program are inputs of the images it makes.
//
//go:embed *.go
var sources embed.FS

// recipe is what an image is made from.
type recipe struct {
	dirs     []string
	packages []string
	config   v1.Config
	created  time.Time
	digest   hash.Hash // of all files read
}

// loadRecipes reads the recipes in order.
func loadRecipes(dirs []string) (*recipe, error) {
	r := &recipe{created: time.Unix(epoch, 0), digest: sha256.New()}
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		seconds, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
		r.created = time.Unix(seconds, 0)
	}
	if err := hashTree(r.digest, sources, func(path string) bool { return !strings.HasSuffix(path, "_test.go") }); err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		dir, err := filepath.Abs(dir)
		if err != nil {
			return nil, err
		}
		tree := os.DirFS(dir)
		if err := hashTree(r.digest, tree, func(path string) bool { return filepath.Ext(path) != ".go" }); err != nil {
			return nil, fmt.Errorf("recipe %s: %w", dir, err)
		}
		packages, err := fs.ReadFile(tree, "packages")
		if err != nil {
			return nil, fmt.Errorf("recipe %s: %w", dir, err)
		}
		r.packages = append(r.packages, parsePackages(packages)...)
		switch config, err := fs.ReadFile(tree, "config.json"); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		default:
			d := json.NewDecoder(bytes.NewReader(config))
			d.DisallowUnknownFields()
			if err := d.Decode(&r.config); err != nil {
				return nil, fmt.Errorf("%s/config.json: %w", dir, err)
			}
		}
		r.dirs = append(r.dirs, dir)
	}
	slices.Sort(r.packages)
	r.packages = slices.Compact(r.packages)
	return r, nil
}

// key identifies all inputs but the packages' versions.
func (r *recipe) key(name string) string {
	h := sha256.New()
	fmt.Fprintln(h, name, suite, runtime.GOARCH, r.created.Unix(), hex.EncodeToString(r.digest.Sum(nil)))
	return hex.EncodeToString(h.Sum(nil)) + "\n"
}

// parsePackages takes the names from a list with # comments.
func parsePackages(list []byte) []string {
	var names []string
	for lines := bufio.NewScanner(bytes.NewReader(list)); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		names = append(names, strings.Fields(line)...)
	}
	return names
}

// hashTree adds the names, modes and contents of the chosen files to h.
func hashTree(h hash.Hash, tree fs.FS, choose func(path string) bool) error {
	return fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !choose(path) {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content, err := fs.ReadFile(tree, path)
		if err != nil {
			return err
		}
		// Git keeps no more of a mode than whether the owner may execute.
		fmt.Fprintf(h, "%q %v %d\n", path, info.Mode()&0o100 != 0, len(content))
		_, err = h.Write(content)
		return err
	})
}
