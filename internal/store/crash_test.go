package store

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"berth/internal/compute"
)

// A process that is killed in the middle of its writes loses nothing that it acknowledged, and leaves a database that holds
// every invariant.
func TestKilledWhileWriting(t *testing.T) {
	path := newSource(t)
	var installation string
	acked := make(map[string]string) // a container → the last thing acknowledged of it
	for round := range 6 {
		cmd := child(t, "crash", path, fmt.Sprint(round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		kill := 20 + rand.IntN(150)
		n := 0
		for lines.Scan() { // to the end: what was written before the kill was acknowledged
			if n++; n == kill {
				if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			what, id, _ := strings.Cut(lines.Text(), " ")
			acked[id] = what
		}
		_ = cmd.Wait() // killed
		if n < kill {
			t.Fatalf("round %d: the child ended by itself after %d lines", round, n)
		}

		s, err := Open(t.Context(), path, Options{})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		checkInvariants(t, s)
		checkAcknowledged(t, s, acked)
		id, err := s.InstallationID(t.Context())
		if err != nil || (installation != "" && id != installation) {
			t.Fatalf("installation %s, was %s; %v", id, installation, err)
		}
		installation = id
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// checkAcknowledged compares what a killed process said last of each container with what is stored. One step more may be
// stored, whose word did not come through.
func checkAcknowledged(t *testing.T, s *Store, acked map[string]string) {
	t.Helper()
	for id, what := range acked {
		var storageMade, deleted, purged bool
		err := s.db.QueryRow(`SELECT i.deleted_at IS NOT NULL, i.purged_at IS NOT NULL, coalesce(c.storage_made, 0)
			FROM container_ids i LEFT JOIN containers c USING (id) WHERE i.id = ?`, id).Scan(&deleted, &purged, &storageMade)
		if err != nil {
			t.Fatalf("container %s was acknowledged as %s: %v", id, what, err)
		}
		ok := false
		switch what {
		case "created":
			ok = true
		case "stored":
			ok = storageMade || purged
		case "deleted":
			ok = deleted
		case "purged":
			ok = purged
		}
		if !ok {
			t.Fatalf("container %s was acknowledged as %s: deleted %v, purged %v, storage %v", id, what, deleted, purged, storageMade)
		}
	}
}

// crashChild goes on until it is killed.
func crashChild() error {
	ctx := newContext()
	s, err := Open(ctx, os.Args[1], Options{})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	failures := make(chan error, 4)
	for i := range 4 {
		wg.Go(func() {
			failures <- crashLife(s, fmt.Sprintf("user%s-%d", os.Args[2], i), func(what string, id compute.ContainerID) {
				fmt.Printf("%s %s\n", what, id)
			})
		})
	}
	err = <-failures
	wg.Wait()
	return err
}

// crashLife takes containers through their lives until something fails, and says each step once it is acknowledged.
func crashLife(s *Store, name string, say func(what string, id compute.ContainerID)) error {
	ctx := newContext()
	u, err := s.CreateUser(ctx, name, compute.RoleUser)
	if err != nil {
		return err
	}
	key, err := s.AddKey(ctx, keyNamed(u.ID, name), 10)
	if err != nil {
		return err
	}
	for {
		c, err := s.CreateContainer(ctx, boxOf(u.ID, key.ID), 3)
		if err != nil {
			return err
		}
		say("created", c.ID)
		if err := s.RecordStorage(ctx, c.ID); err != nil {
			return err
		}
		say("stored", c.ID)
		if err := s.SetStatus(ctx, c.ID, 1, running, ""); err != nil {
			return err
		}
		if _, err := s.AddIngressRule(ctx, u.ID, c.ID, compute.IngressRule{Port: 443, TargetPort: 8443}, 32); err != nil {
			return err
		}
		if _, err := s.SetDesired(ctx, u.ID, c.ID, compute.DesiredDeleted); err != nil {
			return err
		}
		say("deleted", c.ID)
		if err := s.Purge(ctx, c.ID); err != nil {
			return err
		}
		say("purged", c.ID)
	}
}
