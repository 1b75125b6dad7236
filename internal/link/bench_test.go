package link

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/compute"
	"berth/internal/store"
)

// fill puts users into a database, each with a key of their own, one that ten share, and three containers.
func fill(tb testing.TB, path string, users int) {
	tb.Helper()
	s, err := store.Open(context.Background(), path, store.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	if err := s.Close(); err != nil {
		tb.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		tb.Fatal(err)
	}
	defer db.Close()
	for _, query := range []string{
		`INSERT INTO users (id, username, role, created_at)
			WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
			SELECT i, 'user' || i, 'user', 0 FROM n`,
		`INSERT INTO ssh_keys (id, owner, ordinal, quota, name, public_key, fingerprint, created_at)
			SELECT id, id, 0, 10, 'laptop', printf('ssh-ed25519 %068d', id), printf('SHA256:%043d', id), 0 FROM users WHERE ?1`,
		`INSERT INTO ssh_keys (owner, ordinal, quota, name, public_key, fingerprint, created_at)
			SELECT id, 1, 10, 'shared', printf('ssh-ed25519 s%067d', id / 10), printf('SHA256:s%042d', id / 10), 0 FROM users WHERE ?1`,
		`INSERT INTO container_ids (id, owner, created_at)
			SELECT printf('%08x', id + p * ?1), id, 0 FROM users, (SELECT 0 AS p UNION ALL SELECT 1 UNION ALL SELECT 2)`,
		`INSERT INTO containers (id, owner, ordinal, quota, slot, name, instance_type, memory_mb, storage_gb, ssh_enabled,
			mount_paths, created_at, desired, generation, status)
			SELECT printf('%08x', id + p * ?1), id, p, 3, p, 'dev-box ' || id, 'nano', 512, 5, 1, '["/root"]', 0, 'running', 1, 'running'
			FROM users, (SELECT 0 AS p UNION ALL SELECT 1 UNION ALL SELECT 2)`,
		`INSERT INTO container_keys (container, key, owner) SELECT c.id, k.id, c.owner
			FROM containers c JOIN ssh_keys k ON k.owner = c.owner WHERE ?1`,
	} {
		if _, err := db.Exec(query, users); err != nil {
			tb.Fatal(err)
		}
	}
}

// heap is the memory in use once all garbage is gone.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// processor is the time that this process has had of it: on a machine that does other things, too, it says more than the clock.
func processor(b *testing.B) time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkLink measures a gateway beside a control plane with 100,000 users and 300,000 containers.
func BenchmarkLink(b *testing.B) {
	const users = 100_000
	p := &plane{t: b, dir: b.TempDir(), opt: ServerOptions{Heartbeat: time.Second}}
	fill(b, filepath.Join(p.dir, "berth.db"), users)
	p.start()
	b.Cleanup(p.stop)
	cred := p.credential("edge")
	g := &gateway{t: b, path: filepath.Join(b.TempDir(), "replica"), cred: cred, dial: dialer(p.addr), timeout: time.Minute}
	b.Run("Snapshot", func(b *testing.B) { // from the database, over the link, to the disk
		before, began := heap(), processor(b)
		for b.Loop() {
			if g.replica != nil {
				b.StopTimer()
				g.stop()
				g.path += "x"
				b.StartTimer()
			}
			g.start()
			p.await(g)
		}
		b.ReportMetric((processor(b)-began).Seconds()/float64(b.N), "cpu-s/op")
		b.ReportMetric(float64(int64(heap())-int64(before))/(3*users), "heap-B/container")
		b.ReportMetric(float64(g.replica.file.length)/(3*users), "disk-B/container")
	})
	b.Run("Restart", func(b *testing.B) { // from the disk
		began := processor(b)
		for b.Loop() {
			b.StopTimer()
			g.stop()
			b.StartTimer()
			g.start()
			if err := g.replica.Ready(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric((processor(b)-began).Seconds()/float64(b.N), "cpu-s/op")
		p.await(g)
	})
	b.Run("Apply", func(b *testing.B) { // a snapshot that is there already, as the gateway takes it
		data := readAllFile(b, g.path)[headerSize:]
		began := processor(b)
		for b.Loop() {
			r := OpenReplica(filepath.Join(b.TempDir(), "replica"), ReplicaOptions{})
			apply(b, r, data)
			if err := r.Close(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric((processor(b)-began).Seconds()/float64(b.N), "cpu-s/op")
	})
	id := func() compute.ContainerID { return compute.ContainerID(fmt.Sprintf("%08x", 1+rand.Int64N(3*users))) }
	b.Run("Target", func(b *testing.B) {
		for b.Loop() {
			if _, err := g.replica.Target(b.Context(), id()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Accounts", func(b *testing.B) {
		for b.Loop() {
			if l, err := g.replica.Accounts(b.Context(), fmt.Sprintf("SHA256:%043d", 1+rand.Int64N(users))); err != nil || len(l) != 1 {
				b.Fatal(l, err)
			}
		}
	})
	b.Run("Revocation", func(b *testing.B) { // from the commit to the acknowledgement of what is durable
		on := false
		for b.Loop() {
			b.StopTimer()
			box := id()
			n := int64(0)
			if _, err := fmt.Sscanf(string(box), "%x", &n); err != nil {
				b.Fatal(err)
			}
			if _, err := p.store.SetSSH(b.Context(), compute.UserID((n-1)%users+1), box, on); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			p.await(g)
		}
	})
	g.stop()
}
