package agent

import (
	"net"
	"path"
	"slices"
	"strings"
)

// Bounds on what a client may set.
const (
	maxEnv      = 128
	maxEnvName  = 128
	maxEnvValue = 32 << 10
)

const (
	rootPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	userPath = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
)

// AcceptEnv says which environment variables a client may set: patterns with * and ?, as in sshd_config(5).
type AcceptEnv []string

// DefaultAcceptEnv is what a client may set where nothing is configured.
func DefaultAcceptEnv() AcceptEnv { return AcceptEnv{"LANG", "LC_*", "TERM", "COLORTERM"} }

// accepts says whether a client may set name to value.
func (a AcceptEnv) accepts(name, value string) bool {
	if name == "" || len(name) > maxEnvName || len(value) > maxEnvValue || strings.ContainsAny(name, "=\x00") ||
		strings.Contains(value, "\x00") {
		return false
	}
	return slices.ContainsFunc(a, func(pattern string) bool {
		ok, err := path.Match(pattern, name)
		return err == nil && ok
	})
}

// environ is an environment under construction; later settings win.
type environ []string

func (e *environ) set(name, value string) {
	prefix := name + "="
	*e = slices.DeleteFunc(*e, func(s string) bool { return strings.HasPrefix(s, prefix) })
	*e = append(*e, prefix+value)
}

func (e environ) has(name string) bool {
	return slices.ContainsFunc(e, func(s string) bool { return strings.HasPrefix(s, name+"=") })
}

// loginEnviron is the environment of a login: the image's, then what the client may set, then what sshd would set for
// the account, which no client changes.
func loginEnviron(image []string, a account, remote, local, tty, term string, client []string) []string {
	e := environ(slices.Clone(image))
	for _, setting := range client {
		name, value, _ := strings.Cut(setting, "=")
		e.set(name, value)
	}
	e.set("USER", a.name)
	e.set("LOGNAME", a.name)
	e.set("HOME", a.home)
	e.set("SHELL", a.shellPath())
	if !e.has("PATH") || a.uid != 0 && e.value("PATH") == rootPath {
		e.set("PATH", rootPath)
		if a.uid != 0 {
			e.set("PATH", userPath)
		}
	}
	if from, fromPort, err := net.SplitHostPort(remote); err == nil {
		if to, toPort, err := net.SplitHostPort(local); err == nil {
			e.set("SSH_CLIENT", strings.Join([]string{from, fromPort, toPort}, " "))
			e.set("SSH_CONNECTION", strings.Join([]string{from, fromPort, to, toPort}, " "))
		}
	}
	if tty != "" {
		e.set("SSH_TTY", tty)
		e.set("TERM", term)
	}
	return e
}

// imageEnviron is the environment of the image's command: what the image says. A runtime adds root's home where that names none.
func imageEnviron(image []string, as account) environ {
	e := environ(slices.Clone(image))
	if home := e.value("HOME"); as.uid != 0 && (home == "" || home == "/root") {
		e.set("HOME", as.home)
	}
	return e
}

func (e environ) value(name string) string {
	for _, s := range e {
		if v, ok := strings.CutPrefix(s, name+"="); ok {
			return v
		}
	}
	return ""
}
