package agentproto

import (
	"encoding/json"
	"fmt"
	"slices"
)

// The versions of the protocol that this code speaks. A gateway serves every released agent: containers outlive
// upgrades.
const (
	minVersion = 1
	maxVersion = 1
)

const (
	maxHello    = 4 << 10
	maxFeatures = 64
)

// Hello is what each end says first: the versions that it speaks, and what it can do beyond them.
type Hello struct {
	Min      uint32   `json:"min"`
	Max      uint32   `json:"max"`
	Features []string `json:"features,omitempty"`
	Software string   `json:"software,omitempty"` // for logs: foreign text
}

// Has says whether the peer has a feature.
func (h Hello) Has(feature string) bool { return slices.Contains(h.Features, feature) }

func (h Hello) withVersions() Hello {
	if h.Max == 0 {
		h.Min, h.Max = minVersion, maxVersion
	}
	return h
}

func (h Hello) encode() ([]byte, error) { return json.Marshal(h) }

func decodeHello(b []byte) (h Hello, err error) {
	if len(b) > maxHello {
		return h, fmt.Errorf("%w: a hello of %d bytes", errFrame, len(b))
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return Hello{}, fmt.Errorf("%w: hello: %w", errFrame, err)
	}
	if len(h.Features) > maxFeatures || h.Min == 0 || h.Max < h.Min {
		return Hello{}, fmt.Errorf("%w: hello", errFrame)
	}
	return h, nil
}

// agree returns the highest version that both ends speak.
func agree(a, b Hello) (uint32, error) {
	v := min(a.Max, b.Max)
	if v < a.Min || v < b.Min {
		return 0, fmt.Errorf(
			"no common version: one end speaks %d to %d, the other %d to %d", a.Min, a.Max, b.Min, b.Max)
	}
	return v, nil
}

// Attach is one client's presence in a container: who it is there, and where it comes from.
type Attach struct {
	User   string `json:"user"`             // the account in the container
	Remote string `json:"remote,omitempty"` // the client's address, ip:port
	Local  string `json:"local,omitempty"`  // the gateway's address that the client reached, ip:port
}

const maxAttach = 4 << 10

func (a Attach) encode() ([]byte, error) {
	b, err := json.Marshal(a)
	if err == nil && len(b) > maxAttach {
		err = fmt.Errorf("an attach of %d bytes is too long", len(b))
	}
	return b, err
}

func decodeAttach(b []byte) (a Attach, err error) {
	if len(b) > maxAttach {
		return a, fmt.Errorf("%w: an attach of %d bytes", errFrame, len(b))
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return Attach{}, fmt.Errorf("%w: attach: %w", errFrame, err)
	}
	return a, nil
}
