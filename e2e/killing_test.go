package e2e_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestKilledWhileItWorks kills Berth, and in turn its containerd with it, at every step of creates, starts, stops and
// deletes: later by a little in every round. After each it must converge on what was asked for, and at the end nothing may
// be there of what was deleted.
func TestKilledWhileItWorks(t *testing.T) {
	t.Parallel()
	i := own(t)
	i.flags = []string{"--containers-per-user", "100"}
	if err := i.start(); err != nil {
		t.Fatal(err)
	}
	a := personOn(t, i, "victim")
	keeper := boxOf(t, a, `{"storage_gb": 1, "memory_mb": 64}`)
	if _, err := a.ssh(a.at(keeper), "echo kept >/root/file; sync"); err != nil {
		t.Fatal(err)
	}
	const (
		rounds = 24
		step   = 25 * time.Millisecond // a create takes less than rounds × step
	)
	var doomed, deleted []string
	for round := range rounds {
		began := time.Now()
		requests := make(chan error, 2)
		go func() { requests <- a.createOrDie() }()
		go func() {
			var errs []error
			for _, id := range doomed {
				errs = append(errs, a.orDie(http.MethodDelete, "/compute/containers/"+id))
			}
			errs = append(errs, a.orDie(http.MethodPost, "/compute/containers/"+keeper+[]string{"/stop", "/start"}[round%2]))
			requests <- errors.Join(errs...)
		}()
		time.Sleep(time.Until(began.Add(time.Duration(round) * step))) // where it is then is the point: anywhere
		if round%3 == 2 {
			if pid, err := i.containerd(); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
			}
		}
		if err := i.kill(); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(<-requests, <-requests); err != nil {
			t.Fatal(err)
		}
		if err := i.start(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := a.prepare(); err != nil {
			t.Fatal(err)
		}
		deleted = append(deleted, doomed...)
		var err error
		if doomed, err = a.converge(keeper, doomed); err != nil {
			t.Fatalf("killed after %v: %v", time.Duration(round)*step, err)
		}
	}
	if err := a.do(http.MethodPost, "/compute/containers/"+keeper+"/start", "", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := a.await(keeper, "running", statusLimit); err != nil {
		t.Fatal(err)
	}
	if out, err := a.ssh(a.at(keeper), "cat /root/file"); err != nil || out != "kept" {
		t.Errorf("the container that was never deleted has %q, %v", out, err)
	}
	for _, id := range doomed {
		if err := a.do(http.MethodDelete, "/compute/containers/"+id, "", nil); err != nil {
			t.Error(err)
		}
	}
	for _, id := range append(deleted, doomed...) {
		if err := i.awaitGone(id); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range []string{filepath.Join(i.data, "volumes"), filepath.Join("/run", i.name(), "c")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.Contains(e.Name(), keeper) {
				t.Errorf("left in %s: %s", dir, e.Name())
			}
		}
	}
}

// orDie sends a request whose answer a kill may cut off.
func (a *account) orDie(method, path string) error {
	status, _, body, err := a.call(method, path, "", "")
	if err == nil && status >= 300 && status != http.StatusNotFound {
		return fmt.Errorf("%s %s: %d %s", method, path, status, body)
	}
	return nil
}

func (a *account) createOrDie() error {
	status, _, body, err := a.call(http.MethodPost, "/compute/containers", "application/json",
		fmt.Sprintf(`{"name": "doomed", "memory_mb": 64, "storage_gb": 1, "ssh_key_ids": [%d], "ssh_enabled": true}`, a.keyID))
	if err == nil && status != http.StatusCreated {
		return fmt.Errorf("create: %d %s", status, body)
	}
	return nil
}

// converge waits until every container is what its owner last asked for, and works, and returns those but the keeper. What
// was to be deleted and is still listed was not: its request came too late, and it is asked for again.
func (a *account) converge(keeper string, deleting []string) ([]string, error) {
	var list struct {
		Containers []container `json:"containers"`
	}
	if err := a.get("/compute/containers", &list); err != nil {
		return nil, err
	}
	var others []string
	for _, c := range list.Containers {
		if c.ID == keeper {
			continue
		}
		if slices.Contains(deleting, c.ID) {
			if err := a.do(http.MethodDelete, "/compute/containers/"+c.ID, "", nil); err != nil {
				return nil, err
			}
			continue
		}
		others = append(others, c.ID)
		if _, err := a.await(c.ID, "running", statusLimit); err != nil {
			return nil, err
		}
		if out, err := a.ssh(a.at(c.ID), "echo works"); err != nil || out != "works" {
			return nil, fmt.Errorf("%q, %w", out, err)
		}
	}
	return others, nil
}

// TestSideBySide runs a second instance beside the shared one: they share nothing, and their containers do not reach each
// other.
func TestSideBySide(t *testing.T) {
	t.Parallel()
	here, i := person(t, "here"), own(t)
	if err := i.start(); err != nil {
		t.Fatal(err)
	}
	there := personOn(t, i, "there")
	one, two := boxOf(t, here, ""), boxOf(t, there, "")
	if out, err := here.ssh(here.at(two), "true"); err == nil {
		t.Errorf("the other instance's container is here: %q", out)
	}
	const address = `ip -4 -o address show scope global | sed 's/.* inet \([0-9.]*\).*/\1/'`
	addr, err := there.ssh(there.at(two), address)
	if err != nil {
		t.Fatal(err)
	}
	own, err := here.ssh(here.at(one), address)
	if err != nil {
		t.Fatal(err)
	}
	if addr == own {
		t.Errorf("both instances gave %s", addr)
	}
	listen := there.dial(t, two)
	s := newSession(t, listen)
	if err := s.Start(`exec perl -e 'use IO::Socket::INET; $s = IO::Socket::INET->new(LocalPort => 8080, Listen => 5) or die; while ($c = $s->accept) { print $c "hello\n"; close $c }'`); err != nil {
		t.Fatal(err)
	}
	const ask = `timeout 10 bash -c 'until read -r x </dev/tcp/ADDR/8080 && echo $x; do sleep 0.05; done' 2>/dev/null`
	if out, err := there.ssh(there.at(two), strings.ReplaceAll(ask, "ADDR", addr)); err != nil || out != "hello" {
		t.Fatalf("the listener does not answer its own container: %q, %v", out, err)
	}
	if out, err := here.ssh(here.at(one), "! timeout 3 bash -c 'read -r x </dev/tcp/"+addr+"/8080 && echo $x' 2>/dev/null"); err != nil || out != "" {
		t.Errorf("from the other instance: %q, %v", out, err)
	}
	_, port, _ := strings.Cut(strings.TrimPrefix(i.ready.APIURL, "http://"), ":")
	gateway, err := here.ssh(here.at(one), `ip route | sed -n 's/^default via \([0-9.]*\).*/\1/p'`)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := here.ssh(here.at(one), "! timeout 3 bash -c 'exec 3<>/dev/tcp/"+gateway+"/"+port+"' 2>/dev/null"); err != nil {
		t.Errorf("the other instance's API is reached from a container: %q, %v", out, err)
	}
	// One ends; the other's network is as it was.
	if err := i.stop(); err != nil {
		t.Fatal(err)
	}
	if err := i.downDelete(); err != nil {
		t.Fatal(err)
	}
	if _, err := here.ssh(here.at(one), "ping -c 1 -w 5 "+gateway+" >/dev/null || getent hosts localhost"); err != nil {
		t.Errorf("after the other instance is gone: %v", err)
	}
}
