// Package route turns the names that clients type into the containers that they mean: SSH user names on the apex, and
// the host names of jumps.
//
// It is pure: it parses and never looks anything up, so that an id it returns may well not exist. What it cannot read
// as the name of a container it refuses, and it never guesses: a wrong machine is worse than none.
package route

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"berth/internal/compute"
)

// DefaultUser is who logs in where the client named a container alone.
const DefaultUser = "root"

// SSHPort is the one port that a jump may name.
const SSHPort = 22

// maxUser bounds a user name inside a container; useradd(8) allows 32 bytes, directories of people allow more.
const maxUser = 128

// Login is what a user name on the apex asks for: a user of a container, or, with Container empty, the lobby.
type Login struct {
	Container compute.ContainerID
	User      string // in the container; in the lobby what was typed, which may be the name of an account
}

// Lobby says whether the login names no container.
func (l Login) Lobby() bool { return l.Container == "" }

// ParseLogin reads "<id>" as root of that container and "<user>+<id>" as one of its users; anything else is for the
// lobby. A name that ends in +<id> with a user that cannot exist is CodeNotFound, never the lobby.
func ParseLogin(name string) (Login, error) {
	if id, err := compute.ParseContainerID(name); err == nil {
		return Login{Container: id, User: DefaultUser}, nil
	}
	// The last plus: what comes before it is the container's business, and may contain another.
	i := strings.LastIndexByte(name, '+')
	if i < 0 {
		return Login{User: name}, nil
	}
	id, err := compute.ParseContainerID(name[i+1:])
	if err != nil {
		return Login{User: name}, nil
	}
	if !ValidUser(name[:i]) {
		return Login{}, compute.NotFound("user")
	}
	return Login{Container: id, User: name[:i]}, nil
}

// ValidUser says whether s can be the name of a user in a container's passwd file (passwd(5)): not empty, of bounded
// length, printable, without a colon or a slash, and not to be taken for an option.
func ValidUser(s string) bool {
	if s == "" || len(s) > maxUser || s[0] == '-' || !utf8.ValidString(s) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r == ':' || r == '/' || unicode.IsSpace(r) || !unicode.IsPrint(r)
	})
}

// Zone is a DNS zone of containers' host names, in lower case and without the final dot.
type Zone string

// ParseZone returns s as a zone; CodeInvalid when it is no host name (RFC 1123, section 2.1).
func ParseZone(s string) (Zone, error) {
	z := fold(s)
	if len(z) > 253 {
		return "", compute.Invalid("zone", "A zone's name has at most 253 characters.")
	}
	for label := range strings.SplitSeq(z, ".") {
		if !validLabel(label) {
			return "", compute.Invalid("zone", "%q is not the name of a zone; it looks like compute.example.com.", s)
		}
	}
	return Zone(z), nil
}

// validLabel is the rule of RFC 1123 for one part of a host name.
func validLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	})
}

// fold brings a host name to the form in which names are compared: DNS ignores case and one final dot.
func fold(host string) string {
	lower := []byte(strings.TrimSuffix(host, "."))
	for i, c := range lower { // ASCII alone: RFC 4343
		if 'A' <= c && c <= 'Z' {
			lower[i] = c + 'a' - 'A'
		}
	}
	return string(lower)
}

// Hostname returns the container's host name.
func (z Zone) Hostname(id compute.ContainerID) string { return string(id) + "." + string(z) }

// Container returns the container that a host name of the zone names; CodeNotFound when it names none.
func (z Zone) Container(host string) (compute.ContainerID, error) {
	label, ok := strings.CutSuffix(fold(host), "."+string(z))
	if !ok {
		return "", compute.NotFound("container")
	}
	return compute.ParseContainerID(label)
}

// Jump returns the container to which a direct-tcpip on the apex (RFC 4254, section 7.2) is a jump. Every other
// destination is CodeForbidden, with words for the client: the apex connects to nothing else.
func (z Zone) Jump(host string, port uint32) (compute.ContainerID, error) {
	id, err := z.Container(host)
	switch {
	case err != nil && fold(host) == string(z):
		return "", compute.Errorf(compute.CodeForbidden, "this is %s already; jump to <id>.%s", z, z)
	case err != nil:
		return "", compute.Errorf(compute.CodeForbidden, "this gateway connects to <id>.%s alone; ssh %s ls lists yours", z, z)
	case port != SSHPort:
		return "", compute.Errorf(compute.CodeForbidden,
			"a jump is to port %d; log in to %s and forward from there", SSHPort, z.Hostname(id))
	}
	return id, nil
}
