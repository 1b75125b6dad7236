package hostnet

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSpentThread changes threads' namespaces often enough for the first thread to have its turn, and finds the process where
// it was.
func TestSpentThread(t *testing.T) {
	before, err := os.Readlink("/proc/self/ns/uts")
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if err := OnSpentThread(func() error { return unix.Unshare(unix.CLONE_NEWUTS) }); err != nil {
			t.Fatal(err)
		}
		if now, err := os.Readlink("/proc/self/ns/uts"); err != nil || now != before {
			t.Fatalf("the process is in %s, and was in %s: %v", now, before, err)
		}
	}
}
