package agent

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Stats is what the container uses, as it sees it itself. It is shown, and decides nothing: a tenant can forge it.
type Stats struct {
	MemoryBytes    int64 `json:"memory_bytes"` // usage less inactive file cache
	CPUNanoseconds int64 `json:"cpu_nanoseconds"`
	DiskUsedBytes  int64 `json:"disk_used_bytes"` // of the root file system
	DiskTotalBytes int64 `json:"disk_total_bytes"`
}

// readStats reads the control group's files, of version 2 or 1, and the root file system's figures. What cannot be read
// is 0.
func readStats() Stats {
	const root = "/sys/fs/cgroup/"
	var s Stats
	if usage, ok := readInt(root + "memory.current"); ok {
		s.MemoryBytes = usage - readKey(root+"memory.stat", "inactive_file")
		s.CPUNanoseconds = readKey(root+"cpu.stat", "usage_usec") * 1000
	} else {
		usage, _ := readInt(root + "memory/memory.usage_in_bytes")
		s.MemoryBytes = usage - readKey(root+"memory/memory.stat", "total_inactive_file")
		s.CPUNanoseconds, _ = readInt(root + "cpuacct/cpuacct.usage")
	}
	s.MemoryBytes = max(s.MemoryBytes, 0)
	var fs unix.Statfs_t
	if unix.Statfs("/", &fs) == nil {
		s.DiskTotalBytes = int64(fs.Blocks) * fs.Bsize
		s.DiskUsedBytes = int64(fs.Blocks-fs.Bfree) * fs.Bsize
	}
	return s
}

func readInt(path string) (int64, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n, err == nil
}

// readKey returns the value after key in a file of lines "key value".
func readKey(path, key string) int64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, _ := strings.Cut(s.Text(), " "); k == key {
			n, _ := strconv.ParseInt(v, 10, 64) // 0 where it is none
			return n
		}
	}
	return 0
}
