package main

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// layer is a tar file of a whole root file system.
type layer struct {
	path   string
	digest string // sha256, in hex
	size   int64
}

// makeLayer runs mmdebstrap and writes what it makes to path, as a layer.
func (r *recipe) makeLayer(ctx context.Context, path string, say func(string, ...any)) (layer, error) {
	argv := append(privilege(r.created), r.mmdebstrap(hostAcquire(ctx))...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// Asked to end, mmdebstrap unmounts and removes what it made; killed, it could not.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	cmd.Stdin = strings.NewReader(hostMirrors(ctx).sourcesList())
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return layer{}, err
	}
	log, stderr, err := os.Pipe()
	if err != nil {
		return layer{}, err
	}
	defer log.Close()
	cmd.Stderr = stderr
	err = cmd.Start()
	stderr.Close()
	if err != nil {
		return layer{}, fmt.Errorf("start %s (make image installs it): %w", argv[0], err)
	}
	words := make(chan string, 1)
	go func() { words <- follow(log, say) }()
	made, err := writeLayer(path, stdout, r.created)
	if err != nil {
		_ = cmd.Cancel()
	}
	last := <-words // before Wait, which would not wait for a pipe of ours
	if failed := cmd.Wait(); failed != nil {
		os.Remove(path)
		if ctx.Err() != nil {
			return layer{}, context.Cause(ctx)
		}
		return layer{}, fmt.Errorf("mmdebstrap: %w; it said:\n%s", failed, last)
	}
	if err != nil {
		os.Remove(path)
		return layer{}, err
	}
	return made, nil
}

// privilege is the command line before mmdebstrap's own name: it needs root, or else subordinate ids.
func privilege(created time.Time) []string {
	env := []string{
		"env", fmt.Sprintf("SOURCE_DATE_EPOCH=%d", created.Unix()), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", // its helpers run Debian's Python a hundred times, not a slow shim in front of it
	}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy", "TMPDIR"} {
		if value := os.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	if os.Geteuid() != 0 {
		if sudo, err := exec.LookPath("sudo"); err == nil {
			return slices.Concat([]string{sudo}, env, []string{"mmdebstrap", "--mode=root"})
		}
	}
	return append(env, "mmdebstrap", "--mode=auto")
}

// mmdebstrap is its arguments. The sources come on its standard input, the tar goes to its standard output.
func (r *recipe) mmdebstrap(acquire []string) []string {
	args := []string{
		"--variant=minbase", "--format=tar", "--include=" + strings.Join(r.packages, ","),
		"--dpkgopt=force-unsafe-io", // a build that a crash interrupts is done again
		// Or usrmerge is installed to merge them, with the parts of Perl that it needs.
		"--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
	}
	for _, line := range acquire {
		args = append(args, "--aptopt="+line)
	}
	for _, dir := range r.dirs {
		if _, err := os.Stat(filepath.Join(dir, "rootfs")); err == nil {
			args = append(args, "--setup-hook=umask 022; cp --recursive --no-preserve=mode,ownership "+quote(dir+"/rootfs/.")+` "$1"`)
		}
	}
	for _, hook := range []string{"extract", "customize"} {
		for _, dir := range r.dirs {
			if _, err := os.Stat(filepath.Join(dir, hook)); err == nil {
				args = append(args, "--"+hook+"-hook=umask 022; "+quote(dir+"/"+hook)+` "$1"`)
			}
		}
	}
	return append(args, suite, "-", "-")
}

func quote(path string) string { return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'" }

// follow tells of the stages that mmdebstrap enters, and returns the end of all it said.
func follow(log io.Reader, say func(string, ...any)) string {
	var last []string
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		stage, ok := strings.CutPrefix(line, "I: ")
		if stage, more := strings.CutSuffix(stage, "..."); ok && more && !strings.HasPrefix(stage, "removing") &&
			!strings.Contains(stage, "signal") {
			say("%s", stage)
		}
		last = append(last, line)
		last = last[max(0, len(last)-40):]
	}
	_, _ = io.Copy(io.Discard, log) // past a line too long for the Scanner, or the pipe would fill
	return strings.Join(last, "\n")
}

// writeLayer copies the tar to path with the changes that an image for user namespaces needs.
func writeLayer(path string, from io.Reader, latest time.Time) (_ layer, err error) {
	f, err := os.Create(path)
	if err != nil {
		return layer{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	buffered := bufio.NewWriterSize(f, 1<<20)
	in := bufio.NewReaderSize(from, 1<<20)
	if err := filter(tar.NewWriter(io.MultiWriter(buffered, h)), tar.NewReader(in), latest); err != nil {
		return layer{}, err
	}
	if _, err := io.Copy(io.Discard, in); err != nil { // the padding after the tar's end
		return layer{}, err
	}
	if err := buffered.Flush(); err != nil {
		return layer{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return layer{}, err
	}
	return layer{path: path, digest: hex.EncodeToString(h.Sum(nil)), size: info.Size()}, nil
}

// filter drops device nodes, which a user namespace cannot make and the engine's /dev covers; extended attributes, since a
// file capability that the container's bounding set lacks makes exec fail; and times later than the build's epoch.
func filter(to *tar.Writer, from *tar.Reader, latest time.Time) error {
	for {
		header, err := from.Next()
		if errors.Is(err, io.EOF) {
			return to.Close()
		} else if err != nil {
			return fmt.Errorf("read mmdebstrap's tar: %w", err)
		}
		if header.Typeflag == tar.TypeChar || header.Typeflag == tar.TypeBlock {
			continue
		}
		clean := &tar.Header{
			Typeflag: header.Typeflag, Name: strings.TrimPrefix(header.Name, "./"), Linkname: header.Linkname,
			Size: header.Size, Mode: header.Mode, Uid: header.Uid, Gid: header.Gid, ModTime: header.ModTime,
		}
		if clean.Name == "" {
			clean.Name = "./"
		}
		if clean.Typeflag == tar.TypeLink {
			clean.Linkname = strings.TrimPrefix(clean.Linkname, "./")
		}
		if clean.ModTime.After(latest) {
			clean.ModTime = latest
		}
		if err := to.WriteHeader(clean); err != nil {
			return fmt.Errorf("%s: %w", header.Name, err)
		}
		if _, err := io.Copy(to, from); err != nil {
			return fmt.Errorf("%s: %w", header.Name, err)
		}
	}
}
