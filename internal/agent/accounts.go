package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// account is a user of the container, as /etc/passwd and /etc/group tell.
type account struct {
	name   string
	uid    uint32
	gid    uint32
	groups []uint32 // supplementary ones
	home   string
	shell  string // empty where the file names none
}

// nonblock opens what a tenant may have put in place of a file: a FIFO must not hold PID 1 up.
const nonblock = unix.O_NONBLOCK | unix.O_CLOEXEC

// Bounds on files that a tenant writes and PID 1 reads.
const (
	maxAccountFile = 4 << 20
	maxGroups      = 1024
)

var errNoAccount = errors.New("there is no such user in the container")

// noID is what setuid(2) takes for "leave it".
const noID = math.MaxUint32

// findAccount looks a user up; no name is root's. Root is there whatever these files hold, or else its owner could lock
// himself out.
func findAccount(passwd, group, name string) (account, error) {
	if name == "" {
		name = "root"
	}
	a, err := readPasswd(passwd, func(a account) bool { return a.name == name })
	if err != nil && name == "root" {
		a, err = account{name: "root", home: "/root"}, nil
	}
	if err != nil {
		return account{}, err
	}
	a.groups, err = readGroups(group, a)
	if err != nil && a.uid == 0 {
		a.groups, err = []uint32{a.gid}, nil
	}
	return a, err
}

// imageAccount is whom an image's configuration names: NAME or UID, with :GROUP or :GID, as the OCI image specification has it.
// A number needs no line in the account files. Nothing named is root.
func imageAccount(passwd, group, user string) (account, error) {
	if user == "" {
		return findAccount(passwd, group, "root")
	}
	name, groupName, withGroup := strings.Cut(user, ":")
	a, err := findAccount(passwd, group, name)
	if uid, ok := parseID(name); ok {
		a, err = readPasswd(passwd, func(a account) bool { return a.uid == uid })
		if err == nil {
			a.groups, err = readGroups(group, a)
		} else if errors.Is(err, errNoAccount) {
			a, err = account{uid: uid, home: "/"}, nil
		}
	}
	if err != nil {
		return account{}, fmt.Errorf("the image's user %q: %w", user, err)
	}
	if !withGroup {
		return a, nil
	}
	gid, ok := parseID(groupName)
	if !ok {
		err := eachLine(group, func(line string) bool {
			f := strings.Split(line, ":")
			if len(f) == 4 && f[0] == groupName {
				gid, ok = parseID(f[2])
			}
			return !ok
		})
		if err != nil {
			return account{}, err
		}
	}
	if !ok {
		return account{}, fmt.Errorf("the image's user %q: there is no such group in the container", user)
	}
	a.gid = gid
	return a, nil
}

func readPasswd(path string, is func(account) bool) (account, error) {
	var found account
	err := eachLine(path, func(line string) bool {
		a, ok := parsePasswd(line)
		if ok && is(a) {
			found = a
			return false
		}
		return true
	})
	if err != nil {
		return account{}, err
	}
	if found.name == "" {
		return account{}, errNoAccount
	}
	return found, nil
}

// parsePasswd reads a line of passwd(5).
func parsePasswd(line string) (account, bool) {
	f := strings.Split(line, ":")
	if len(f) != 7 || f[0] == "" {
		return account{}, false
	}
	uid, okUID := parseID(f[2])
	gid, okGID := parseID(f[3])
	return account{name: f[0], uid: uid, gid: gid, home: f[5], shell: f[6]}, okUID && okGID
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != noID
}

func readGroups(path string, a account) ([]uint32, error) {
	groups := []uint32{a.gid}
	err := eachLine(path, func(line string) bool {
		if gid, ok := parseGroup(line, a.name); ok && !slices.Contains(groups, gid) {
			groups = append(groups, gid)
		}
		return len(groups) < maxGroups
	})
	return groups, err
}

// parseGroup reads a line of group(5) and says whether the user is in it.
func parseGroup(line, user string) (uint32, bool) {
	f := strings.Split(line, ":")
	if len(f) != 4 || !slices.Contains(strings.Split(f[3], ","), user) {
		return 0, false
	}
	return parseID(f[2])
}

// eachLine calls f for the lines of a regular file until f says stop. A file that is not there has none.
func eachLine(path string, f func(line string) bool) error {
	file, err := os.OpenFile(path, os.O_RDONLY|nonblock, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if st, err := file.Stat(); err != nil || !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	s := bufio.NewScanner(io.LimitReader(file, maxAccountFile))
	s.Buffer(nil, maxAccountFile+1) // a group may have a very long line
	for s.Scan() && f(s.Text()) {
	}
	return s.Err()
}
