package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Install puts this program into a directory that a container will have read-only at /.berth, with a place for its socket's
// directory, and a file for /etc/hosts that knows the container's name. It may be cut off and done again.
func Install(dir, hostname string) error {
	if err := os.MkdirAll(filepath.Join(dir, "run"), 0o700); err != nil {
		return fmt.Errorf("make the socket's place: %w", err)
	}
	kernel, err := os.Hostname() // a pod may be called otherwise
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts"), []byte(hostsFile(hostname, kernel)), 0o644); err != nil {
		return fmt.Errorf("write the hosts file: %w", err)
	}
	if err := copySelf(filepath.Join(dir, "agent")); err != nil {
		return fmt.Errorf("install the agent: %w", err)
	}
	return nil
}

// hostsFile gives the container's names the first of them as the canonical one.
func hostsFile(names ...string) string {
	short, _, _ := strings.Cut(names[0], ".")
	var line []string
	for _, name := range slices.Insert(names, 1, short) {
		if !slices.Contains(line, name) {
			line = append(line, name)
		}
	}
	return "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t" + strings.Join(line, " ") + "\n"
}

// copySelf writes this program's file. It counts only when it is whole.
func copySelf(to string) (err error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	tmp := to + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, self); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Chmod(0o755); err != nil { // whatever the umask is
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}
