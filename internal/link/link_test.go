package link

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"

	"berth/internal/compute"
)

// same holds a replica to the store: every answer is the same, but for what only the control plane needs.
func (p *plane) same(g *gateway) {
	p.t.Helper()
	ctx := context.Background()
	users, err := p.store.Users(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	got, err := g.replica.Users(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	if !reflect.DeepEqual(got, users) {
		p.t.Errorf("users are %v, want %v", got, users)
	}
	for _, u := range users {
		keys, err := p.store.Keys(ctx, u.ID)
		if err != nil {
			p.t.Fatal(err)
		}
		for _, k := range keys {
			want, err := p.store.Accounts(ctx, k.Fingerprint)
			if err != nil {
				p.t.Fatal(err)
			}
			if got, err := g.replica.Accounts(ctx, k.Fingerprint); err != nil || !reflect.DeepEqual(got, want) {
				p.t.Errorf("key %s is of %v (%v), want %v", k.Fingerprint, got, err, want)
			}
		}
		want, err := p.store.Containers(ctx, u.ID)
		if err != nil {
			p.t.Fatal(err)
		}
		boxes, err := g.replica.Containers(ctx, u.ID)
		if err != nil {
			p.t.Fatal(err)
		}
		for i := range want {
			want[i] = known(want[i])
		}
		for i := range boxes {
			boxes[i] = known(boxes[i])
		}
		byID := func(a, b compute.Container) int { return strings.Compare(string(a.ID), string(b.ID)) }
		slices.SortFunc(want, byID)
		slices.SortFunc(boxes, byID)
		if !reflect.DeepEqual(boxes, want) {
			p.t.Errorf("containers of %s are\n%+v, want\n%+v", u.Username, boxes, want)
		}
		for _, c := range want {
			p.sameTarget(g, c.ID)
		}
	}
	list, err := p.store.Reconcilable(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, c := range list {
		p.sameTarget(g, c.ID)
	}
}

func (p *plane) sameTarget(g *gateway, id compute.ContainerID) {
	p.t.Helper()
	want, werr := p.store.Target(context.Background(), id)
	got, err := g.replica.Target(context.Background(), id)
	if werr != nil || err != nil {
		if compute.CodeOf(werr) != compute.CodeOf(err) || err == nil || werr == nil {
			p.t.Errorf("target %s: %v, want %v", id, err, werr)
		}
		return
	}
	want.Container, got.Container = known(want.Container), known(got.Container)
	for i := range want.Keys {
		k := &want.Keys[i]
		*k = compute.SSHKey{ID: k.ID, Owner: k.Owner, Fingerprint: k.Fingerprint}
	}
	if !reflect.DeepEqual(got, want) {
		p.t.Errorf("target %s is\n%+v, want\n%+v", id, got, want)
	}
}

// known is what gateways know of a container.
func known(c compute.Container) compute.Container {
	c.MountPaths, c.Generation, c.StorageMade = nil, 0, false
	if len(c.SSHKeyIDs) == 0 {
		c.SSHKeyIDs = nil
	}
	return c
}

// sharedKey is one that several accounts have.
func sharedKey(owner compute.UserID) compute.SSHKey {
	return compute.SSHKey{Owner: owner, Name: "b", PublicKey: "ssh-ed25519 b", Fingerprint: keyPrint("b")}
}

// TestFollows goes through everything that a gateway must learn of.
func TestFollows(t *testing.T) {
	ctx := t.Context()
	p := newPlane(t)
	alice, key := p.user("alice")
	box := p.box(alice, key)
	g := p.gateway("edge")
	p.await(g)
	p.same(g)
	step := func(name string, f func() error) {
		t.Helper()
		if err := f(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		p.await(g)
		p.same(g)
		if t.Failed() {
			t.Fatalf("after: %s", name)
		}
	}
	var second compute.SSHKey
	step("a key is added", func() (err error) {
		second, err = p.store.AddKey(ctx, sharedKey(alice), 10)
		return err
	})
	step("somebody else has the same key", func() error {
		bob, _ := p.user("bob")
		_, err := p.store.AddKey(ctx, sharedKey(bob), 10)
		return err
	})
	var other compute.Container
	step("another container", func() error { other = p.box(alice, key, second.ID); return nil })
	step("SSH is off", func() error { _, err := p.store.SetSSH(ctx, alice, box.ID, false); return err })
	step("SSH is on", func() error { _, err := p.store.SetSSH(ctx, alice, box.ID, true); return err })
	step("it fails", func() error {
		return p.store.SetStatus(ctx, box.ID, box.Generation, compute.StatusFailed, "no room")
	})
	step("its message is no text", func() error {
		return p.store.SetStatus(ctx, box.ID, box.Generation, compute.StatusFailed, "the container said \xff\xfe")
	})
	step("stop", func() error { _, err := p.store.SetDesired(ctx, alice, other.ID, compute.DesiredStopped); return err })
	step("a key is deleted", func() error { return p.store.DeleteKey(ctx, alice, key) })
	step("a user is disabled", func() error { _, err := p.store.SetUserDisabled(ctx, alice, true); return err })
	step("a user is enabled", func() error { _, err := p.store.SetUserDisabled(ctx, alice, false); return err })
	step("delete", func() error { _, err := p.store.SetDesired(ctx, alice, box.ID, compute.DesiredDeleted); return err })
	step("purge", func() error { return p.store.Purge(ctx, box.ID) })

	g.stop()
	g.alone()
	p.same(g)
}
