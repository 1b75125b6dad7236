package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// Sockets in the data directory are root's alone. Their paths go through a descriptor of the directory, since a socket's
// path has at most 107 bytes (unix(7)).

// listenSocket opens a socket in dir, in the place of one that a crash left.
func listenSocket(dir, name string) (net.Listener, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // that path is gone with the descriptor; closing removes the file by name
	return l, os.Chmod(filepath.Join(dir, name), 0o600)
}

func dialSocket(ctx context.Context, dir, name string) (net.Conn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
}
