package app

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/config"
)

// An address that is taken is known before there is a directory; all of them are told at once, and the gateway's to those who
// have one.
func TestTakenAddresses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := config.Default()
	c.DataDir = filepath.Join(t.TempDir(), "data")
	c.HTTPAddr, c.SSHAddr = "127.0.0.1:0", "127.0.0.1:0"
	if err := tryAddresses(c, true); err != nil {
		t.Error(err)
	}
	c.SSHAddr, c.AdminAddr = l.Addr().String(), l.Addr().String()
	err = tryAddresses(c, true)
	if err == nil || strings.Count(err.Error(), "already in use") != 2 || !strings.Contains(err.Error(), "--ssh-addr") ||
		!strings.Contains(err.Error(), "--admin-addr") {
		t.Error(err)
	}
	if err := tryAddresses(c, false); err == nil || strings.Contains(err.Error(), "--ssh-addr") {
		t.Error(err)
	}
	if _, err := os.Stat(c.DataDir); err == nil {
		t.Error("there is a directory")
	}
	// Where a Berth has been, its lock says more.
	if err := os.MkdirAll(c.DataDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.DataDir, databaseFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tryAddresses(c, true); err != nil {
		t.Error(err)
	}
}
