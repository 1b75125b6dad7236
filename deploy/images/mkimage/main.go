// Command mkimage builds a container image from Debian's packages and recipes under deploy/images: mmdebstrap makes the
// root file system from the mirrors that this machine uses, and one pass over its tar makes an OCI archive of one
// uncompressed layer. It needs no registry and no daemon. An archive whose inputs have not changed is left as it is.
//
// A recipe is a folder with any of: packages (one a line), rootfs/ (copied over the empty root), extract and customize (run
// as root with the root's path, before the first package is installed and after the last) and config.json (the image's run
// configuration). Later recipes add to earlier ones.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	out := flag.String("o", "", "the archive to write")
	name := flag.String("name", "", "the image's name; its tag is the hash of its content")
	force := flag.Bool("force", false, "build even if no input has changed, to take in Debian's updates")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: mkimage -o archive.tar -name registry/name [-force] recipe…")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *out == "" || *name == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *out, *name, *force, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

// run brings the archive up to date.
func run(ctx context.Context, out, name string, force bool, dirs []string) error {
	r, err := loadRecipes(dirs)
	if err != nil {
		return err
	}
	key := r.key(name)
	keyFile := strings.TrimSuffix(out, ".tar") + ".inputs"
	if !force && upToDate(out, keyFile, key) {
		return nil
	}
	// Written last, so that an interrupted build is never taken for a finished one.
	if err := os.Remove(keyFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}

	began := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "image %4.0f s  %s: %s\n", time.Since(began).Seconds(), filepath.Base(name),
			fmt.Sprintf(format, args...))
	}
	layer, err := r.makeLayer(ctx, out+".layer", say)
	if err != nil {
		return err
	}
	defer os.Remove(layer.path)
	ref, err := writeArchive(out, name, layer, r)
	if err != nil {
		return err
	}
	say("wrote %s, %s, %d MB", out, ref, layer.size/1e6)
	return os.WriteFile(keyFile, []byte(key), 0o644)
}

// upToDate says whether the archive is there and was made from the inputs that key stands for.
func upToDate(out, keyFile, key string) bool {
	if _, err := os.Stat(out); err != nil {
		return false
	}
	was, err := os.ReadFile(keyFile)
	return err == nil && string(was) == key
}
