package compute

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"
)

// Limits bounds what one account may have. The database enforces the counts.
type Limits struct {
	ContainersPerUser  int
	KeysPerUser        int
	RulesPerContainer  int // of ingress
	MinMemoryMB        int
	MaxMemoryMB        int
	MinStorageGB       int
	MaxStorageGB       int
	MaxMountPaths      int
	MaxMountPathBytes  int
	MaxNameRunes       int
	MaxPublicKeyBytes  int
	MinRSABits         int
	DefaultMemoryMB    int
	DefaultStorageGB   int
	DefaultType        string
	DefaultMountPaths  []string
	MaxKeysOfContainer int
}

// DefaultLimits is the contract's limits, and ours where it is silent.
func DefaultLimits() Limits {
	return Limits{
		ContainersPerUser: 3, KeysPerUser: 10, RulesPerContainer: 32,
		MinMemoryMB: 64, MaxMemoryMB: 16384,
		MinStorageGB: 1, MaxStorageGB: 100,
		MaxMountPaths: 16, MaxMountPathBytes: 255,
		MaxNameRunes: 64, MaxPublicKeyBytes: 8192, MinRSABits: 2048,
		DefaultMemoryMB: 512, DefaultStorageGB: 5, DefaultType: "nano", DefaultMountPaths: []string{"/root"},
		MaxKeysOfContainer: 10,
	}
}

// ContainerRequest is what a user asks for when creating a container. Nil and empty optional fields take defaults.
type ContainerRequest struct {
	Name         string
	InstanceType string
	MemoryMB     *int
	StorageGB    *int
	SSHKeyIDs    []int64
	SSHEnabled   bool
	MountPaths   []string // nil: the default; empty: none persists
}

// Validate checks the request against the limits and the table of types, and returns the container it asks for, without
// id, owner and times. The error is CodeInvalid and names the field.
func (r ContainerRequest) Validate(l Limits, types []InstanceType) (Container, error) {
	name, err := ValidateName(r.Name, l.MaxNameRunes)
	if err != nil {
		return Container{}, err
	}
	c := Container{
		Name: name, InstanceType: l.DefaultType, MemoryMB: l.DefaultMemoryMB, StorageGB: l.DefaultStorageGB,
		SSHEnabled: r.SSHEnabled, MountPaths: slices.Clone(l.DefaultMountPaths),
		Desired: DesiredRunning, Status: StatusPending,
	}
	if r.InstanceType != "" {
		c.InstanceType = r.InstanceType
	}
	if !slices.ContainsFunc(types, func(t InstanceType) bool { return t.Name == c.InstanceType }) {
		var names []string
		for _, t := range types {
			names = append(names, t.Name)
		}
		return Container{}, Invalid("instance_type", "There is no such instance type; choose one of %s.", strings.Join(names, ", "))
	}
	if r.MemoryMB != nil {
		c.MemoryMB = *r.MemoryMB
	}
	if err := l.checkMemory(c.MemoryMB); err != nil {
		return Container{}, err
	}
	if r.StorageGB != nil {
		c.StorageGB = *r.StorageGB
	}
	if err := l.checkStorage(c.StorageGB); err != nil {
		return Container{}, err
	}
	if c.SSHKeyIDs, err = l.checkKeyIDs(r.SSHKeyIDs); err != nil {
		return Container{}, err
	}
	if r.MountPaths != nil {
		if c.MountPaths, err = ValidateMountPaths(r.MountPaths, l); err != nil {
			return Container{}, err
		}
	}
	return c, nil
}

// ValidateName trims and checks a display name: 1 to maxRunes characters of valid UTF-8, none of them a control or
// format character (a name is printed on terminals).
func ValidateName(s string, maxRunes int) (string, error) {
	if !utf8.ValidString(s) {
		return "", Invalid("name", "A name is valid UTF-8.")
	}
	s = strings.TrimSpace(s)
	if s == "" {
		return "", Invalid("name", "Give a name of 1 to %d characters.", maxRunes)
	}
	if utf8.RuneCountInString(s) > maxRunes {
		return "", Invalid("name", "A name has at most %d characters.", maxRunes)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return "", Invalid("name", "A name has no control or invisible characters.")
		}
	}
	return s, nil
}

// deniedMounts are the trees that must come from the image or the kernel.
var deniedMounts = []string{"/proc", "/sys", "/dev", "/.berth"}

// ValidateMountPaths checks the paths as text and returns them cleaned, in the order given. Engines apply the same rules
// once more after the image's symlinks are resolved: see CheckMountTargets.
func ValidateMountPaths(paths []string, l Limits) ([]string, error) {
	if len(paths) > l.MaxMountPaths {
		return nil, Invalid("mount_paths", "A container takes at most %d mount paths.", l.MaxMountPaths)
	}
	clean := make([]string, 0, len(paths))
	for _, p := range paths {
		switch {
		case !utf8.ValidString(p) || strings.ContainsFunc(p, func(r rune) bool { return !unicode.IsPrint(r) }):
			return nil, Invalid("mount_paths", "A mount path has no control characters.")
		case len(p) > l.MaxMountPathBytes:
			return nil, Invalid("mount_paths", "A mount path has at most %d bytes.", l.MaxMountPathBytes)
		case !path.IsAbs(p):
			return nil, Invalid("mount_paths", "Mount path %q is not absolute; begin it with /.", p)
		case slices.Contains(strings.Split(p, "/"), ".."):
			return nil, Invalid("mount_paths", "Mount path %q contains ..; write it without.", p)
		case strings.ContainsAny(p, ":,\\"):
			return nil, Invalid("mount_paths", "Mount path %q contains one of : , \\ which paths here cannot.", p)
		}
		clean = append(clean, path.Clean(p))
	}
	return clean, CheckMountTargets(clean)
}

// CheckMountTargets refuses clean absolute paths that are the root, lie in a tree that must not be replaced, or are equal
// to or within one another.
func CheckMountTargets(paths []string) error {
	for i, p := range paths {
		if p == "/" {
			return Invalid("mount_paths", "The root directory cannot be a mount path; name directories in it.")
		}
		for _, d := range deniedMounts {
			if Within(p, d) {
				return Invalid("mount_paths", "%s cannot be a mount path; it belongs to the system.", p)
			}
		}
		for _, q := range paths[:i] {
			if p == q {
				return Invalid("mount_paths", "Mount path %s is there twice.", p)
			}
			if Within(p, q) || Within(q, p) {
				return Invalid("mount_paths", "Mount paths %s and %s lie within one another; keep the outer one.", q, p)
			}
		}
	}
	return nil
}

// Within says whether the clean absolute path p is dir or lies below it.
func Within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

// ParsePublicKey checks a public key that a user posts and returns it as a canonical authorized_keys line, its SHA-256
// fingerprint and its comment. Refused are private keys, options, several lines, types that the contract does not list and
// RSA keys shorter than l.MinRSABits.
func ParsePublicKey(line string, l Limits) (canonical, fingerprint, comment string, err error) {
	line = strings.TrimSpace(line)
	switch {
	case line == "":
		return "", "", "", Invalid("public_key", "Give a public key: the one line of a file such as ~/.ssh/id_ed25519.pub.")
	case strings.Contains(line, "PRIVATE KEY"):
		return "", "", "", Invalid("public_key", "That is a private key. Keep it secret, and post the .pub file beside it; if others saw it, make a new one.")
	case len(line) > l.MaxPublicKeyBytes:
		return "", "", "", Invalid("public_key", "A public key has at most %d bytes.", l.MaxPublicKeyBytes)
	case strings.ContainsFunc(line, unicode.IsControl) || !utf8.ValidString(line):
		return "", "", "", Invalid("public_key", "A public key is one line of text.")
	}
	key, comment, options, rest, perr := ssh.ParseAuthorizedKey([]byte(line))
	if perr != nil || len(rest) > 0 {
		return "", "", "", Invalid("public_key", "That is not a public key: it looks like \"ssh-ed25519 AAAA… comment\".")
	}
	if len(options) > 0 {
		return "", "", "", Invalid("public_key", "A public key here has no options before its type; remove them.")
	}
	if err := checkKeyType(key, l.MinRSABits); err != nil {
		return "", "", "", err
	}
	canonical = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
	return canonical, ssh.FingerprintSHA256(key), comment, nil
}

func checkKeyType(key ssh.PublicKey, minRSABits int) error {
	switch t := key.Type(); t {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
		return nil
	case ssh.KeyAlgoRSA:
		bits, err := rsaBits(key)
		if err != nil {
			return Invalid("public_key", "That RSA key is malformed.")
		}
		if bits < minRSABits {
			return Invalid("public_key", "That RSA key has %d bits and at least %d are needed; ssh-keygen -t ed25519 makes a better one.", bits, minRSABits)
		}
		return nil
	default:
		return Invalid("public_key", "Keys of type %s are not supported; use %s.", t, strings.Join(SupportedKeyTypes(), ", "))
	}
}

// SupportedKeyTypes lists the key types of the contract.
func SupportedKeyTypes() []string {
	return []string{ssh.KeyAlgoRSA, ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521}
}

// rsaBits reads the size of the modulus from the wire form (RFC 4253, section 6.6).
func rsaBits(key ssh.PublicKey) (int, error) {
	var w struct {
		Name string
		E, N []byte
		Rest []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(key.Marshal(), &w); err != nil {
		return 0, fmt.Errorf("unmarshal RSA key: %w", err)
	}
	n := w.N
	for len(n) > 0 && n[0] == 0 {
		n = n[1:]
	}
	if len(n) == 0 {
		return 0, fmt.Errorf("empty modulus")
	}
	bits := len(n) * 8
	for b := n[0]; b&0x80 == 0; b <<= 1 {
		bits--
	}
	return bits, nil
}
