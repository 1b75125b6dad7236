// Command devcluster is a real Kubernetes of one node for development and tests, on this machine alone: etcd, the API server,
// the controllers, the scheduler, the kubelet, kube-proxy and CoreDNS from their published modules (./kube), on Debian's
// containerd. The node is a set of namespaces with a root of its own, as a container is: what runs in it, mounts in it and
// filters packets in it ends with its first process, and the machine sees one network link and one control group.
//
// It is no place for anybody's data: etcd does not wait for the disk, and volumes have no quota.
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
)

const usage = `usage: devcluster VERB [flags] [argument…]
  up                   start the cluster and wait until it is ready; where it runs already, say so
  down [--delete]      stop it, and its pods; --delete removes what it stored too
  status               say whether it runs, and where
  load ARCHIVE…        put images, in OCI or Docker archives, on the node
  start|stop COMPONENT, restart [--kill] COMPONENT
                       one of etcd, containerd, registry, apiserver, controller-manager, scheduler, kubelet,
                       proxy
flags of each verb:
  --dir DIR            what the cluster keeps (default: state, beside this program); several run side by side
  --json               print ready.json, for scripts (up, status)
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	if err == nil {
		return
	}
	if errors.Is(err, errUsage) {
		fmt.Fprint(os.Stderr, usage)
	}
	fmt.Fprintln(os.Stderr, "devcluster:", err)
	if errors.Is(err, errUsage) {
		os.Exit(2)
	}
	os.Exit(1)
}

var errUsage = errors.New("bad command line")

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("%w: no verb", errUsage)
	}
	verb, args := args[0], args[1:]
	switch verb { // what the program starts itself as
	case initVerb:
		return initProcess()
	case nodeVerb:
		return nodeProcess(ctx)
	case registryVerb:
		if len(args) != 2 {
			return errUsage
		}
		return registryProcess(ctx, args[0], args[1])
	}

	programs, err := os.Executable()
	if err != nil {
		return err
	}
	programs = filepath.Dir(programs)
	flags := flag.NewFlagSet(verb, flag.ContinueOnError)
	flags.Usage = func() {}
	flags.SetOutput(os.Stderr)
	dir := flags.String("dir", filepath.Join(programs, "state"), "")
	asJSON := flags.Bool("json", false, "")
	remove := flags.Bool("delete", false, "")
	kill := flags.Bool("kill", false, "")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	args = flags.Args()
	wrong := *asJSON && verb != "up" && verb != "status" || *remove && verb != "down" || *kill && verb != "restart"
	l, err := layoutOf(*dir, programs)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("a node needs root: sudo")
	}
	switch {
	case wrong:
	case verb == "up" && len(args) == 0:
		return up(ctx, l, *asJSON)
	case verb == "down" && len(args) == 0:
		return down(ctx, l, *remove)
	case verb == "status" && len(args) == 0:
		return status(l, *asJSON)
	case verb == "load" && len(args) > 0:
		return load(ctx, l, args)
	case (verb == "start" || verb == "stop" || verb == "restart") && len(args) == 1:
		if *kill {
			verb = "kill"
		}
		return l.control(ctx, verb, args[0])
	}
	return fmt.Errorf("%w: %s %s", errUsage, verb, strings.Join(args, " "))
}
