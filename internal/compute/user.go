package compute

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
	"time"
)

// Role is what a user may do beyond their own containers.
type Role string

// The roles.
const (
	RoleUser  Role = "user"
	RoleAdmin Role = "admin"
)

// User is an account.
type User struct {
	ID        UserID
	Username  string // a unique DNS label, to show and to type; never a key
	Role      Role
	Disabled  bool
	CreatedAt time.Time
}

// SSHKey is a public key of one account. The same key may stand under several accounts.
type SSHKey struct {
	ID          int64
	Owner       UserID
	Name        string
	PublicKey   string // one authorized_keys line: type and base64, with the comment if there was one
	Fingerprint string // SHA256:…, as ssh-keygen -l prints it
	CreatedAt   time.Time
}

// Principal is who acts, proven by a token or an SSH key.
type Principal struct {
	User     UserID
	Username string
	Role     Role
}

var username = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// ValidateUsername accepts a DNS label of at most 32 characters (RFC 1123, section 2.1). A name that looks like a
// container id is refused, since both are typed before the @ of an ssh command.
func ValidateUsername(s string) error {
	if !username.MatchString(s) {
		return Invalid("username", "A username is 1 to 32 lowercase letters, digits and hyphens, and begins and ends with a letter or digit.")
	}
	if containerID.MatchString(s) {
		return Invalid("username", "A username of 8 hex digits looks like a container's id; choose another.")
	}
	return nil
}

var notInUsername = regexp.MustCompile(`[^a-z0-9]+`)

// UsernameFrom returns what a name is as a username, or "" where too little of it is left.
func UsernameFrom(name string) string {
	return usernameOf(name, 32)
}

func usernameOf(name string, length int) string {
	name = strings.Trim(notInUsername.ReplaceAllString(strings.ToLower(name), "-"), "-")
	if len(name) > length {
		name = strings.Trim(name[:length], "-")
	}
	if ValidateUsername(name) != nil {
		return ""
	}
	return name
}

// UsernameCandidates returns usernames for somebody who would like to have a certain one, the nearest first: it alone, then
// with more and more of a number that is made of seed, which names the person for ever.
func UsernameCandidates(wish, seed string) []string {
	sum := sha256.Sum256([]byte(seed))
	digits := hex.EncodeToString(sum[:])
	var list []string
	if name := UsernameFrom(wish); name != "" {
		list = append(list, name)
	}
	for _, n := range []int{4, 10, 20} {
		base := usernameOf(wish, 32-1-n)
		if base == "" {
			base = "user"
		}
		list = append(list, base+"-"+digits[:n])
	}
	return list
}
