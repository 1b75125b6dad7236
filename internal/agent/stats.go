package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	var disk unix.Statfs_t
	if unix.Statfs("/", &disk) == nil {
		s.DiskTotalBytes = int64(disk.Blocks) * disk.Bsize
		s.DiskUsedBytes = int64(disk.Blocks-disk.Bfree) * disk.Bsize
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

// Usage is what the container uses, and what lies on its storage. As Stats, it decides nothing.
type Usage struct {
	MemoryBytes  int64 `json:"memory_bytes"` // usage less inactive file cache
	StorageBytes int64 `json:"storage_bytes"`
}

// ReadUsage measures the container and the directories that are on its storage. They are counted file by file: a storage
// that others share says nothing of this container's part.
func ReadUsage(dirs []string) (Usage, error) {
	u := Usage{MemoryBytes: readStats().MemoryBytes}
	for _, dir := range dirs {
		n, err := diskUsage(dir)
		if err != nil {
			return u, err
		}
		u.StorageBytes += n
	}
	return u, nil
}

// diskUsage counts what a directory's files take of its file system, each once whatever its names.
func diskUsage(dir string) (bytes int64, err error) {
	var top unix.Stat_t
	if err := unix.Lstat(dir, &top); err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	linked := make(map[uint64]bool)
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted meanwhile
		}
		if err != nil {
			return err
		}
		if err := unix.Lstat(p, &st); errors.Is(err, unix.ENOENT) {
			return nil
		} else if err != nil {
			return fmt.Errorf("measure %s: %w", p, err)
		}
		if st.Dev != top.Dev {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			if linked[st.Ino] {
				return nil
			}
			if len(linked) < maxLinked { // beyond that some count twice
				linked[st.Ino] = true
			}
		}
		bytes += st.Blocks * 512
		return nil
	})
	return bytes, err
}

const maxLinked = 1 << 20 // files of several names that are remembered
