package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
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

// Bounds on files that a tenant writes and PID 1 reads.
const (
	maxAccountFile = 4 << 20
	maxGroups      = 1024
)

var errNoAccount = errors.New("there is no such user in the container")

// findAccount looks a user up. Root exists in an image without /etc/passwd too.
func findAccount(passwd, group, name string) (account, error) {
	a, err := readPasswd(passwd, name)
	if errors.Is(err, errNoAccount) && name == "root" {
		a, err = account{name: "root", home: "/root"}, nil
	}
	if err != nil {
		return account{}, err
	}
	a.groups, err = readGroups(group, a)
	return a, err
}

func readPasswd(path, name string) (account, error) {
	var found account
	err := eachLine(path, func(line string) bool {
		a, ok := parsePasswd(line)
		if ok && a.name == name {
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
	uid, err := strconv.ParseUint(f[2], 10, 32)
	if err != nil {
		return account{}, false
	}
	gid, err := strconv.ParseUint(f[3], 10, 32)
	if err != nil {
		return account{}, false
	}
	return account{name: f[0], uid: uint32(uid), gid: uint32(gid), home: f[5], shell: f[6]}, true
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
	gid, err := strconv.ParseUint(f[2], 10, 32)
	return uint32(gid), err == nil
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
	for s.Scan() && f(s.Text()) {
	}
	return s.Err()
}
