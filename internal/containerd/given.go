package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/internal/compute"
)

// A containerd that is given runs already, and for others too: it is not ours to start, end or clear up. Ours in it is one
// namespace, named after the instance. See ADR 25.

const givenTimeout = 5 * time.Second // for the answer of a containerd that runs

// join connects to the containerd that was given.
func (e *Engine) join(ctx context.Context) error {
	if err := endDaemon(e.layout); err != nil { // of a run that had one of its own
		return err
	}
	if err := checkGiven(ctx, e.layout); err != nil {
		return err
	}
	var err error
	e.client, err = connect(e.layout.address(), e.layout.name)
	return err
}

// checkGiven says why the containerd that was given cannot be used.
func checkGiven(ctx context.Context, l layout) error {
	if err := checkListener(l.given); err != nil {
		return fmt.Errorf("containerd-address: %w", err)
	}
	c, err := connect(l.given, l.name)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	ctx, cancel := context.WithTimeout(ctx, givenTimeout)
	defer cancel()
	v, err := c.version.Version(ctx, &emptypb.Empty{})
	if err != nil {
		return fmt.Errorf("containerd-address: what listens at %s does not answer as containerd does: look whether that hangs, or give the "+
			"address in its configuration (%w)", l.given, err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(strings.TrimPrefix(v.Version, "v"), "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("containerd-address: the containerd at %s has the unknown version %q: install one from 1.5 on", l.given, v.Version)
	}
	if major < 1 || major == 1 && minor < 5 {
		return fmt.Errorf("containerd-address: the containerd at %s is %s: install 1.5 or later", l.given, v.Version)
	}
	return nil
}

// checkListener says why who listens at a socket cannot be a containerd for us: it makes processes of file systems that we
// mount, and passes on to others what the machine's root alone may do.
func checkListener(path string) error {
	nc, err := net.DialTimeout("unix", path, givenTimeout)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("there is no socket %s: start containerd, or give the address in its configuration", path)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("nobody listens at %s: start containerd, or give the address in its configuration", path)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("berth may not connect to %s: run it as the machine's root, and permit it by what confines it", path)
	case err != nil:
		return err
	}
	defer nc.Close()
	raw, err := nc.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var optErr error
	err = raw.Control(func(fd uintptr) { peer, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, optErr); err != nil {
		return err
	}
	if peer.Uid != 0 {
		return fmt.Errorf("who listens at %s runs as user %d: give a containerd that root runs", path, peer.Uid)
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	// Without a process (0) it is in another pid namespace, and so in another mount namespace.
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", peer.Pid))
	if err != nil || its != own {
		return fmt.Errorf("who listens at %s does not see what berth mounts: run both on the machine itself, or in one container, "+
			"without a mount namespace (such as systemd's PrivateMounts) between them", path)
	}
	return nil
}

// checkShims refuses to go on where containers of this instance run under another containerd than the one that it has now:
// they would run beside their successors.
func checkShims(l layout) error {
	var other string
	_, err := findProcesses(func(args []string) bool {
		if isShim(args, l, "") {
			if a := flagOf(args, "-address"); !sameFile(a, l.address()) {
				other = a
			}
		}
		return false
	})
	switch {
	case err != nil || other == "":
		return err
	case other == l.ownAddress():
		return errors.New("containers of this directory run under a containerd of berth's own: leave out containerd-address, or first end " +
			"them with `berth down` without it")
	}
	return fmt.Errorf("containers of this directory run under the containerd at %[1]s: give --containerd-address %[1]s, or first end them "+
		"with that and `berth down`", other)
}

func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	fa, errA := os.Stat(a)
	fb, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(fa, fb)
}

// flagOf returns what follows a flag in a command line.
func flagOf(args []string, flag string) string {
	if i := slices.Index(args, flag); i > 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// withdraw removes the instance's namespace from a containerd that was given. What else somebody put there stays, with it.
func (e *Engine) withdraw(ctx context.Context) error {
	list, err := e.client.list(ctx)
	if err != nil {
		return err
	}
	for _, c := range list {
		if _, err := compute.ParseRef(c.ID); err != nil {
			continue
		}
		if _, err := e.client.containers.Delete(ctx, &containers.DeleteContainerRequest{ID: c.ID}); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove the record of %s: %w", c.ID, err)
		}
	}
	_, err = e.client.namespaces.Delete(ctx, &namespaces.DeleteNamespaceRequest{Name: e.layout.name})
	switch {
	case errdefs.IsFailedPrecondition(err):
		e.log.Warn("containerd's namespace stays: somebody has something else there", "namespace", e.layout.name, "err", err)
	case err != nil && !errdefs.IsNotFound(err):
		return fmt.Errorf("remove containerd's namespace %s: %w", e.layout.name, err)
	}
	return nil
}

// resolved is the path without symlinks, where it exists: containerd names its shims' sockets by its own path.
func resolved(socket string) string {
	if real, err := filepath.EvalSymlinks(socket); err == nil {
		return real
	}
	return socket
}
