package link

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/compute"
)

// TestNothingIsLost changes the state while both sides are killed, paused and parted in every order that a walk of random
// steps comes to. Whatever happened, the gateways end up with what the control plane says; and on the way, what one has
// acknowledged it knows.
func TestNothingIsLost(t *testing.T) {
	for walk := range 4 {
		t.Run(fmt.Sprint(walk), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(uint64(walk), 11))
			p := newPlane(t)
			wire := newProxy(t, p.addr)
			gateways := []*gateway{p.gateway("a"), p.gateway("b")}
			for _, g := range gateways { // from now on over the proxy
				g.stop()
				g.timeout = 500 * time.Millisecond
				g.dial = dialer(wire.addr())
				g.start()
			}
			w := &world{plane: p, random: random}
			for range 60 {
				for range random.IntN(4) {
					if p.server != nil {
						w.change()
					}
				}
				g := gateways[random.IntN(len(gateways))]
				switch random.IntN(10) {
				case 0:
					p.stop()
				case 1:
					g.stop()
				case 2:
					wire.hold(true)
				case 3:
					wire.hold(false)
				case 4:
					wire.cut()
				case 5:
					wire.setDown(true)
				case 6:
					wire.setDown(false)
				case 7:
					if p.server == nil {
						p.start()
					}
				case 8:
					if g.replica == nil {
						g.start()
					}
				case 9: // the file goes bad while nobody has it
					if g.replica == nil {
						damage(t, g.path, random)
					}
				}
				w.check(gateways)
			}
			wire.hold(false)
			wire.setDown(false)
			if p.server == nil {
				p.start()
			}
			for _, g := range gateways {
				if g.replica == nil {
					g.start()
				}
			}
			w.change()
			p.await(gateways...)
			for _, g := range gateways {
				p.same(g)
			}
		})
	}
}

// damage changes a byte of a file, or cuts it off.
func damage(t *testing.T, path string, random *rand.Rand) {
	t.Helper()
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if at := random.IntN(len(text)); random.IntN(2) == 0 {
		text[at] ^= 1 << random.IntN(8)
	} else {
		text = text[:at]
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// world makes changes and remembers what was taken away by which event.
type world struct {
	*plane
	random *rand.Rand
	users  []compute.UserID
	boxes  []compute.Container
	taken  []taken
	n      int
}

type taken struct {
	seq         int64
	id          compute.ContainerID
	fingerprint string
}

// change does something.
func (w *world) change() {
	w.t.Helper()
	ctx := context.Background()
	w.n++
	switch {
	case len(w.users) == 0, w.random.IntN(6) == 0:
		owner, key := w.user(fmt.Sprintf("u%d", w.n))
		w.users = append(w.users, owner)
		w.boxes = append(w.boxes, w.box(owner, key))
	case w.random.IntN(3) == 0: // a key that opens a container is deleted, and comes back with another number
		i := w.random.IntN(len(w.boxes))
		box := w.boxes[i]
		keys, err := w.store.Keys(ctx, box.Owner)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := w.store.DeleteKey(ctx, box.Owner, keys[0].ID); err != nil {
			w.t.Fatal(err)
		}
		w.taken = append(w.taken, taken{w.last(), box.ID, keys[0].Fingerprint})
		fingerprint := keyPrint(fmt.Sprintf("k%d", w.n))
		_, err = w.store.AddKey(ctx, compute.SSHKey{
			Owner: box.Owner, Name: "k", PublicKey: "ssh-ed25519 " + fingerprint, Fingerprint: fingerprint,
		}, 10)
		if err != nil {
			w.t.Fatal(err)
		}
	default:
		box := w.boxes[w.random.IntN(len(w.boxes))]
		if _, err := w.store.SetSSH(ctx, box.Owner, box.ID, w.random.IntN(2) == 0); err != nil {
			w.t.Fatal(err)
		}
	}
}

// check holds that nothing that a gateway acknowledged to be gone is there.
func (w *world) check(gateways []*gateway) {
	w.t.Helper()
	if w.server == nil {
		return
	}
	for _, g := range gateways {
		if g.replica == nil {
			continue
		}
		w.server.mu.Lock()
		acked := w.server.acked[g.cred.Fingerprint]
		w.server.mu.Unlock()
		for _, x := range w.taken {
			if x.seq <= acked && g.opens(x.id, x.fingerprint) {
				w.t.Errorf("a gateway has acknowledged %d, and key %s, gone at %d, opens container %s",
					acked, x.fingerprint, x.seq, x.id)
			}
		}
	}
}

// TestRevokedStaysRevoked kills both sides after an acknowledgement. The gateway that starts alone does not know the key.
func TestRevokedStaysRevoked(t *testing.T) {
	ctx := t.Context()
	p := newPlane(t)
	alice, key := p.user("alice")
	box := p.box(alice, key)
	g := p.gateway("edge")
	p.await(g)
	if !g.opens(box.ID, keyPrint("alice")) {
		t.Fatal("the key does not open the container")
	}
	if err := p.store.DeleteKey(ctx, alice, key); err != nil {
		t.Fatal(err)
	}
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if names, err := p.server.Unacknowledged(within, p.last()); err != nil || len(names) > 0 {
		t.Fatalf("not acknowledged by %v, %v", names, err)
	}
	// What is on the disk at this moment is what a kill leaves.
	path := filepath.Join(t.TempDir(), "replica")
	if err := os.WriteFile(path, readAllFile(t, g.path), 0o600); err != nil {
		t.Fatal(err)
	}
	g.stop()
	p.stop()
	g.path = path
	g.alone()
	if err := g.replica.Ready(within); err != nil {
		t.Fatal(err)
	}
	if _, err := g.replica.Target(ctx, box.ID); err != nil {
		t.Fatalf("the container itself is not there: %v", err)
	}
	if g.opens(box.ID, keyPrint("alice")) {
		t.Error("the key opens the container again")
	}
	if list, err := g.replica.Accounts(ctx, keyPrint("alice")); err != nil || len(list) > 0 {
		t.Errorf("the key is of %v, %v", list, err)
	}
}

// exec changes the database of a plane that is stopped.
func (p *plane) exec(queries ...string) {
	p.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(p.dir, "berth.db"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer db.Close()
	for _, q := range queries {
		if _, err := db.Exec(q); err != nil {
			p.t.Fatalf("%s: %v", q, err)
		}
	}
}

// TestAnotherHistory holds that a copy is not taken on where its numbers say nothing, or where what it lacks is not known.
func TestAnotherHistory(t *testing.T) {
	for name, f := range map[string]func(p *plane, w *world, old []byte){
		"a restore made a new epoch": func(p *plane, w *world, _ []byte) {
			p.exec(`UPDATE installation SET epoch = epoch + 1`, `UPDATE containers SET ssh_enabled = 0`)
		},
		"another installation": func(p *plane, w *world, _ []byte) {
			p.exec(`UPDATE installation SET id = lower(hex(randomblob(16)))`, `UPDATE containers SET ssh_enabled = 0`)
		},
		"the events are gone": func(p *plane, w *world, _ []byte) {
			p.exec(`UPDATE event_counter SET seq = seq + 5`,
				`DELETE FROM events`,
				`INSERT INTO events (seq, at, kind, owner) SELECT seq, 1, 'user.changed', 1 FROM event_counter`,
				`UPDATE containers SET ssh_enabled = 0`)
		},
		"an older copy of the database": func(p *plane, w *world, old []byte) {
			if err := os.WriteFile(filepath.Join(p.dir, "berth.db"), old, 0o600); err != nil {
				p.t.Fatal(err)
			}
		},
		"an older copy of the database, that has gone on": func(p *plane, w *world, old []byte) {
			if err := os.WriteFile(filepath.Join(p.dir, "berth.db"), old, 0o600); err != nil {
				p.t.Fatal(err)
			}
			p.start()
			for range 40 {
				w.change()
			}
			p.stop()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t)
			w := &world{plane: p, random: rand.New(rand.NewPCG(1, 1))}
			g := p.gateway("edge")
			for range 10 {
				w.change()
			}
			p.await(g)
			p.stop()
			old := readAllFile(t, filepath.Join(p.dir, "berth.db"))
			p.start()
			boxes, users := w.boxes, w.users
			for range 20 {
				w.change()
			}
			p.await(g)
			g.stop()
			p.stop()
			if w.boxes, w.users = boxes, users; strings.Contains(name, "copy") {
				w.taken = nil
			}
			f(p, w, old)
			p.start()
			g.start()
			p.await(g)
			eventually(t, "the gateway has the new version", func() bool {
				g.replica.mu.RLock()
				defer g.replica.mu.RUnlock()
				v, err := p.store.Version(context.Background())
				return err == nil && g.replica.state.version == toWireVersion(v)
			})
			p.same(g)
		})
	}
}
