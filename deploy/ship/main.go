// Command ship brings Berth to a Kubernetes: it puts the programs into images, pushes them to a registry, applies the manifests
// under deploy/kubernetes, waits until all of it serves, makes the first administrator, and leaves on this machine what a
// person needs to use it. It does to any cluster what it does to the development cluster (deploy/devcluster), which only has a
// registry and addresses of its own. The cluster it asks by kubectl, as an operator would.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"berth/deploy/images/pack"
)

const usage = `usage: ship VERB [flags]
  images   put the programs into images, in an OCI layout
  push     push them to a registry, and no more
  up       bring Berth to the cluster, or its programs and manifests up to date
  down     remove Berth from the cluster; containers go on running, and the database stays
flags of images:
  --to DIR             where (default: build/images)
  --program ARCH=DIR   a directory of programs for an architecture; repeated
  --base ARCHIVE       a base image, from mkimage; repeated
  --version VERSION    what the images say
flags of up and down:
  --cluster DIR        the development cluster's directory (default: build/devcluster/state); it is used where it runs, and
                       where KUBECONFIG does not say another
  --overlay DIR        a kustomization of yours on top of deploy/kubernetes (default: base, or overlays/dev)
flags of push and up:
  --images DIR         what images made (default: build/images)
  --registry PLACE     where to push them, such as registry.example.com/berth
  --version VERSION    the images' tag
flags of up:
  --zone ZONE          DNS zone of the containers' names, such as compute.example.com
  --data DIR           where ssh_config, token and ready.json go (default: data)
flags of down:
  --data DIR           where up has left them
  --delete             remove the database too, and all containers with their storage
  --yes                do not ask
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	err := run(ctx, os.Args[1:], os.Stdin, os.Stderr)
	if err == nil {
		return
	}
	if errors.Is(err, errUsage) {
		fmt.Fprint(os.Stderr, usage)
	}
	fmt.Fprintln(os.Stderr, "ship:", err)
	os.Exit(1)
}

var errUsage = errors.New("bad command line")

// options are the flags.
type options struct {
	tree string // the source tree

	images, version string
	in              pack.Input

	cluster, kubeconfig, overlay string
	registry, zone, data         string
	remove, yes                  bool
}

func run(ctx context.Context, args []string, stdin *os.File, out io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("%w: no verb", errUsage)
	}
	verb := args[0]
	o := options{kubeconfig: os.Getenv("KUBECONFIG"), in: pack.Input{
		Programs: map[string]string{}, Authorities: "/etc/ssl/certs/ca-certificates.crt",
	}}
	flags := flag.NewFlagSet(verb, flag.ContinueOnError)
	flags.Usage = func() {}
	flags.SetOutput(io.Discard)
	switch verb {
	case "images":
		flags.StringVar(&o.images, "to", "build/images", "")
		flags.Func("program", "", o.addProgram)
		flags.Func("base", "", func(s string) error {
			o.in.Bases = append(o.in.Bases, s)
			return nil
		})
	case "push", "up":
		flags.StringVar(&o.images, "images", "build/images", "")
		flags.StringVar(&o.registry, "registry", "", "")
	case "down":
		flags.BoolVar(&o.remove, "delete", false, "")
		flags.BoolVar(&o.yes, "yes", false, "")
	default:
		return fmt.Errorf("%w: no verb is called %q", errUsage, verb)
	}
	if verb == "up" || verb == "down" {
		flags.StringVar(&o.cluster, "cluster", "build/devcluster/state", "")
		flags.StringVar(&o.overlay, "overlay", "", "")
		flags.StringVar(&o.data, "data", "data", "")
	}
	if verb == "up" {
		flags.StringVar(&o.zone, "zone", "", "")
	}
	if verb != "down" {
		flags.StringVar(&o.version, "version", "unknown", "")
	}
	if err := flags.Parse(args[1:]); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%w: %s", errUsage, strings.Join(args, " "))
	}
	var err error
	if o.tree, err = sourceTree(); err != nil {
		return err
	}
	began := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(out, "%-6s %4.0f s  %s\n", verb, time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	switch verb {
	case "images":
		o.in.Version = o.version
		if err := pack.Write(o.images, o.in); err != nil {
			return err
		}
		say("wrote %s", o.images)
		return nil
	case "push":
		_, err := pack.Push(ctx, o.images, o.registry, o.version, func(s string) { say("%s", s) })
		if err == nil {
			say("all are in %s, tagged %s", o.registry, pack.Tag(o.version))
		}
		return err
	case "up":
		return up(ctx, o, say, out)
	}
	return down(ctx, o, say, stdin, out)
}

func (o *options) addProgram(s string) error {
	arch, dir, ok := strings.Cut(s, "=")
	if !ok || arch == "" || dir == "" {
		return errors.New("give ARCH=DIR, such as amd64=bin")
	}
	o.in.Programs[arch] = dir
	return nil
}

// sourceTree is where the manifests are: the directory that has them, at the working directory or above.
func sourceTree() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "deploy/kubernetes/base/kustomization.yaml")); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("%s is not in Berth's source tree, whose deploy/kubernetes has the manifests", dir)
		}
	}
}
