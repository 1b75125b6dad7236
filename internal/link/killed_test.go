package link

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"berth/internal/compute"
)

// gatewayChild is a gateway in a process of its own: address, credential and replica are its arguments.
func gatewayChild() error {
	cred, err := ReadCredential(os.Args[2])
	if err != nil {
		return err
	}
	r := OpenReplica(os.Args[3], ReplicaOptions{})
	r.slack = 4 << 10 // so that compactions are killed, too
	return NewClient(ClientOptions{Replica: r, Credential: always(cred), Dial: dialer(os.Args[1])}).Run(context.Background())
}

// TestKilled kills a gateway at instants spread over what it does. Its file is always whole, and has all that was
// acknowledged.
func TestKilled(t *testing.T) {
	p := newPlane(t)
	alice, key := p.user("alice")
	box := p.box(alice, key)
	text, fingerprint, err := p.ca.Issue("edge")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.store.AddGateway(t.Context(), "edge", fingerprint); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cred, path := filepath.Join(dir, "edge.pem"), filepath.Join(dir, "replica")
	if err := os.WriteFile(cred, text, 0o600); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(3, 3))
	acked := func() int64 {
		p.server.mu.Lock()
		defer p.server.mu.Unlock()
		return p.server.acked[fingerprint]
	}
	for round := range 12 {
		cmd := exec.Command(os.Args[0], p.addr, cred, path)
		cmd.Env = append(os.Environ(), childEnv+"=gateway")
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		at := p.last()
		eventually(t, "the child is in step", func() bool { return acked() >= at })
		lost := make(map[int64]string) // fingerprints of alice's keys that are gone, by the event
		kill := time.NewTimer(time.Duration(random.IntN(150)) * time.Millisecond)
		for killed := false; !killed; {
			select {
			case <-kill.C:
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait() // it was killed
				killed = true
			default:
				print := keyPrint(fmt.Sprintf("%d-%d", round, p.last()))
				k, err := p.store.AddKey(t.Context(), compute.SSHKey{
					Owner: alice, Name: "k", PublicKey: "ssh-ed25519 " + print, Fingerprint: print,
				}, 10)
				if err != nil {
					t.Fatal(err)
				}
				if err := p.store.DeleteKey(t.Context(), alice, k.ID); err != nil {
					t.Fatal(err)
				}
				lost[p.last()] = print
			}
		}
		eventually(t, "the server has seen the end", func() bool { return len(p.server.Connected()) == 0 })
		known := acked()
		f, st, err := readFile(path, newCodec())
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := f.close(); err != nil {
			t.Fatal(err)
		}
		if st.version.Seq < known {
			t.Errorf("round %d: %d was acknowledged, and %d is on the disk", round, known, st.version.Seq)
		}
		for seq, print := range lost {
			if seq <= st.version.Seq && len(st.users(print)) > 0 {
				t.Errorf("round %d: at %d, the key that went at %d is there", round, st.version.Seq, seq)
			}
		}
		if _, err := st.target(box.ID); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
	}
}
