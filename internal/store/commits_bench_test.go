package store

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"berth/internal/compute"
	"berth/internal/pgtest"
)

// BenchmarkCommits measures durable changes with an event each, and what a login asks, on both databases.
func BenchmarkCommits(b *testing.B) {
	server, err := pgtest.Start()
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := server.Close(); err != nil {
			b.Error(err)
		}
	}()
	for name, source := range map[string]string{
		"SQLite": filepath.Join(b.TempDir(), "berth.db"), "PostgreSQL": server.URL("postgres"),
	} {
		s, err := Open(b.Context(), source, Options{})
		if err != nil {
			b.Fatal(err)
		}
		u := addUser(b, s, "alice")
		c := addContainer(b, s, u)
		var n atomic.Int64
		change := func() error {
			return s.SetStatus(b.Context(), c.ID, 1, compute.StatusRunning, fmt.Sprint(n.Add(1)))
		}
		b.Run(name+"/one", func(b *testing.B) {
			for b.Loop() {
				if err := change(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/target", func(b *testing.B) {
			for b.Loop() {
				if _, err := s.Target(b.Context(), c.ID); err != nil {
					b.Fatal(err)
				}
			}
		})
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	}
}
