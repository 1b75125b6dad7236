package app

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"berth/internal/compute"
	"berth/internal/config"
	"berth/internal/link"
)

const patience = 30 * time.Second

// openPlane opens the control plane of a directory, as far as gateways see it.
func openPlane(t *testing.T, cfg config.Config) (b *berth, stop func()) {
	t.Helper()
	b, err := openState(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.openMonitor(), b.openLink(t.Context(), true)); err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	for _, l := range b.links {
		g.Go(l.serve)
	}
	return b, func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		for _, l := range b.links {
			if err := l.shutdown(ctx); err != nil {
				t.Error(err)
			}
		}
		if err := errors.Join(g.Wait(), b.close()); err != nil {
			t.Error(err)
		}
	}
}

// follow is what Gateway does, but for SSH.
func follow(t *testing.T, cfg config.Config) (*link.Replica, func()) {
	t.Helper()
	b := &berth{cfg: cfg, files: clientFiles{dir: cfg.DataDir}, log: slog.New(slog.DiscardHandler)}
	r := link.OpenReplica(b.files.path(replicaFile), link.ReplicaOptions{})
	client := link.NewClient(link.ClientOptions{Replica: r, Credential: b.readCredential, Dial: b.dialLink})
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- client.Run(ctx) }()
	return r, func() {
		cancel()
		if err := errors.Join(<-ran, r.Close()); err != nil {
			t.Error(err)
		}
	}
}

func ready(t *testing.T, r *link.Replica) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := r.Ready(ctx); err != nil {
		t.Fatal(err)
	}
}

// A gateway on the same directory needs no settings; one elsewhere has a file and an address. What is revoked reaches both,
// and what does not is named.
func TestLinkOfTwoProcesses(t *testing.T) {
	cfg := config.Default()
	cfg.DataDir = filepath.Join(t.TempDir(), strings.Repeat("long", 30)) // longer than a socket's path may be
	cfg.LinkAddress = "127.0.0.1:0"
	if _, err := (&berth{cfg: cfg, files: clientFiles{dir: cfg.DataDir}}).readCredential(); err == nil ||
		!strings.Contains(err.Error(), "start berth-api with this --data-dir first") {
		t.Errorf("before the first start: %v", err)
	}
	plane, stop := openPlane(t, cfg)
	key, err := clientFiles{dir: t.TempDir()}.demoKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plane.operator.AddUser(t.Context(), "alice", false, []string{key.line}); err != nil {
		t.Fatal(err)
	}
	_, fingerprint, _, err := compute.ParsePublicKey(key.line, cfg.Limits())
	if err != nil {
		t.Fatal(err)
	}
	text, err := plane.operator.AddGateway(t.Context(), "edge")
	if err != nil {
		t.Fatal(err)
	}
	far := config.Default()
	far.DataDir, far.LinkAddress = t.TempDir(), plane.linkAddr
	far.LinkCredential = filepath.Join(t.TempDir(), "edge.pem")
	if err := os.WriteFile(far.LinkCredential, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	near := cfg
	near.LinkAddress = ""
	nearReplica, endNear := follow(t, near)
	farReplica, endFar := follow(t, far)
	for _, r := range []*link.Replica{nearReplica, farReplica} {
		ready(t, r)
		if list, err := r.Accounts(t.Context(), fingerprint); err != nil || len(list) != 1 || list[0].Username != "alice" {
			t.Errorf("the key is of %+v, %v", list, err)
		}
	}
	list, err := plane.operator.Gateways(t.Context())
	if err != nil || len(list) != 2 || list[0].Name != localGateway || list[0].Remote != "this machine" || !list[1].Connected {
		t.Errorf("gateways are %+v, %v", list, err)
	}

	within, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	u, err := plane.operator.SetUserDisabled(within, "alice", true)
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]*link.Replica{localGateway: nearReplica, "edge": farReplica} {
		list, err := r.Accounts(t.Context(), fingerprint)
		if !slices.Contains(u.Unacknowledged, name) && (err != nil || len(list) > 0) {
			t.Errorf("%s has acknowledged, and the key is of %+v, %v", name, list, err)
		}
	}
	last, err := plane.store.LastEvent(within)
	if err != nil {
		t.Fatal(err)
	}
	if late, err := plane.link.Load().Unacknowledged(within, last); err != nil || len(late) > 0 {
		t.Errorf("after %v these have not acknowledged: %q, %v", patience, late, err)
	}
	var figures strings.Builder
	plane.metrics.Write(&figures)
	for _, want := range []string{"berth_link_gateways 2\n", "berth_link_lag_events 0\n", "berth_link_dropped_total 0\n"} {
		if !strings.Contains(figures.String(), want) {
			t.Errorf("no %q in the metrics", want)
		}
	}
	if age := farReplica.Age(); age < 0 || age > patience {
		t.Errorf("a gateway that is connected heard its control plane %v ago", age)
	}
	endFar()
	if u, err = plane.operator.SetUserDisabled(within, "alice", false); err != nil || len(u.Unacknowledged) > 0 {
		t.Errorf("nothing was taken, and named are %q, %v", u.Unacknowledged, err)
	}
	if u, err = plane.operator.SetUserDisabled(within, "alice", true); err != nil || !slices.Contains(u.Unacknowledged, "edge") {
		t.Errorf("edge is away, and named are %q, %v", u.Unacknowledged, err)
	}
	endNear()
	stop()

	// Without a control plane, the operator changes the database itself; gateways go on.
	offline, err := OpenOperator(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if u, err = offline.SetUserDisabled(t.Context(), "alice", true); err != nil ||
		!slices.Equal(u.Unacknowledged, []string{"edge", localGateway}) {
		t.Errorf("no control plane runs, and named are %q, %v", u.Unacknowledged, err)
	}
	if err := offline.Close(); err != nil {
		t.Error(err)
	}

	// Both of the near ones start again: nothing is made anew.
	before, err := os.ReadFile(filepath.Join(cfg.DataDir, localCredential))
	if err != nil {
		t.Fatal(err)
	}
	_, stop = openPlane(t, cfg)
	after, err := os.ReadFile(filepath.Join(cfg.DataDir, localCredential))
	if err != nil || string(after) != string(before) {
		t.Errorf("the credential is another, %v", err)
	}
	stop()
}

// The local gateway's credential is made again where it is lost, and not where an operator revoked it.
func TestLocalCredential(t *testing.T) {
	cfg := config.Default()
	cfg.DataDir = t.TempDir()
	path := filepath.Join(cfg.DataDir, localCredential)
	start := func() (credential string, inForce []string) {
		t.Helper()
		b, stop := openPlane(t, cfg)
		defer stop()
		list, err := b.operator.Gateways(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range list {
			if g.RevokedAt == nil {
				inForce = append(inForce, g.Fingerprint)
			}
		}
		c, err := link.ReadCredential(path)
		if err != nil {
			t.Fatal(err)
		}
		return c.Fingerprint, inForce
	}
	first, inForce := start()
	if !slices.Equal(inForce, []string{first}) {
		t.Errorf("in force are %q, and the file has %s", inForce, first)
	}
	for what, spoil := range map[string]func() error{
		"removed":                       func() error { return os.Remove(path) },
		"damaged":                       func() error { return os.WriteFile(path, []byte("x"), 0o600) },
		"open to others":                func() error { return os.Chmod(path, 0o644) },
		"of an authority that was lost": func() error { return os.Remove(filepath.Join(cfg.DataDir, linkAuthority)) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		next, inForce := start()
		if next == first || !slices.Equal(inForce, []string{next}) {
			t.Errorf("%s: in force are %q, and the file has %s, after %s", what, inForce, next, first)
		}
		first = next
	}
	b, stop := openPlane(t, cfg)
	if _, err := b.operator.RevokeGateway(t.Context(), localGateway); err != nil {
		t.Fatal(err)
	}
	stop()
	if next, inForce := start(); next != first || len(inForce) > 0 {
		t.Errorf("revoked: in force are %q, and the file has %s, after %s", inForce, next, first)
	}
}
