package containerd

import (
	"crypto/sha256"
	"encoding/binary"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// idCount is how many user and group ids a container has: 0 to 65535, as on any machine.
const idCount = 1 << 16

// idRange is the host's ids that stand for an instance's containers' ids. Its first one is root in there.
type idRange uint32

// idRangeOf derives the range from the installation's id, which is kept with the data: images and volumes hold these
// ids, and must still do so when the data directory was moved or restored. It lies above what useradd hands out as
// subordinate ids, in 2^30 to 2^31.
func idRangeOf(installation string) idRange {
	sum := sha256.Sum256([]byte("berth ids " + installation))
	return idRange(1<<30 | uint32(binary.BigEndian.Uint16(sum[:])&0x3fff)<<16)
}

func (r idRange) root() int { return int(r) }

func (r idRange) mapping() []specs.LinuxIDMapping {
	return []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(r), Size: idCount}}
}
