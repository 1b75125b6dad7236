package app

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"berth/internal/compute"
)

// invoker is the person at the keyboard: whoever called sudo, else whoever runs this process.
type invoker struct {
	uid, gid int
	name     string
	home     string
}

func findInvoker() (invoker, error) {
	u, err := user.Current()
	if id := os.Getenv("SUDO_UID"); err == nil && os.Geteuid() == 0 && id != "" {
		u, err = user.LookupId(id)
	}
	if err != nil {
		return invoker{}, fmt.Errorf("find out who you are: %w", err)
	}
	in := invoker{name: u.Username, home: u.HomeDir}
	if in.uid, err = strconv.Atoi(u.Uid); err != nil {
		return invoker{}, fmt.Errorf("find out who you are: %w", err)
	}
	if in.gid, err = strconv.Atoi(u.Gid); err != nil {
		return invoker{}, fmt.Errorf("find out who you are: %w", err)
	}
	return in, nil
}

// username returns the name of the invoker's account: their login name as a DNS label, or "admin" for root.
func (in invoker) username() string {
	if name := compute.UsernameFrom(in.name); name != "" && in.uid != 0 {
		return name
	}
	return "admin"
}

// identity is a public key of the invoker's and the file that ssh_config names for it.
type identity struct {
	line string // authorized_keys form
	file string // the private key, or the public one where the private one is elsewhere, as with an agent
}

// identities returns the invoker's usable keys in ~/.ssh, at most limit.
func (in invoker) identities(l compute.Limits) []identity {
	paths, _ := filepath.Glob(filepath.Join(in.home, ".ssh", "*.pub")) // fails only on a bad pattern
	slices.Sort(paths)
	var out []identity
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		line, _, comment, err := compute.ParsePublicKey(string(text), l)
		if err != nil {
			continue
		}
		id := identity{line: strings.TrimSpace(line + " " + comment), file: p}
		if private := strings.TrimSuffix(p, ".pub"); exists(private) {
			id.file = private
		}
		if out = append(out, id); len(out) == l.KeysPerUser {
			break
		}
	}
	return out
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// give makes the invoker the owner of a file that was made for them.
func (in invoker) give(path string) error {
	if os.Geteuid() != 0 || in.uid == 0 {
		return nil
	}
	return os.Lchown(path, in.uid, in.gid)
}

// writeFile replaces path at once with text, for the invoker. A symlink that stands there is replaced, not followed.
func (in invoker) writeFile(path, text string, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // after the rename there is nothing to remove
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Chmod(mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = in.give(f.Name())
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}
