package app

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"berth/internal/compute"
	"berth/internal/pgtest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := pgtest.Main(); err != nil {
		slog.Error("stop PostgreSQL", "err", err)
		code = 1
	}
	os.Exit(code)
}

func wantWords(t *testing.T, err error, words string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), words) && !strings.Contains(compute.UserMessage(err), words) {
		t.Errorf("got %v, want it to say %q", err, words)
	}
}

// An installation moves into PostgreSQL with all it has. From then on its directory is good for nothing else.
func TestMigrate(t *testing.T) {
	ctx := t.Context()
	s := newSite(t)
	id, was := s.identity(), s.users()
	token, err := os.ReadFile(s.path("token.key"))
	if err != nil {
		t.Fatal(err)
	}
	url := pgtest.NewDatabase(t)

	_, err = Migrate(ctx, s.cfg, io.Discard)
	wantWords(t, err, "--database")
	s.running(func(*berth) {
		c := s.cfg
		c.Database = url
		_, err := Migrate(ctx, c, io.Discard)
		wantWords(t, err, "stop it first")
	})
	there := s
	there.cfg.Database = url
	_, err = openState(ctx, there.cfg, slog.New(slog.DiscardHandler))
	wantWords(t, err, "`berth migrate`")

	var out bytes.Buffer
	m, err := Migrate(ctx, there.cfg, &out)
	if err != nil {
		t.Fatal(err)
	}
	if m.Installation != id.Installation || m.Epoch <= id.Epoch || m.Kept != s.path(migratedFile) || !strings.Contains(out.String(), "users") {
		t.Errorf("%+v\n%s", m, out.String())
	}
	if got := there.users(); !slices.Equal(got, was) {
		t.Errorf("users %v, were %v", got, was)
	}
	there.running(func(b *berth) { there.addUser(b, "bob") })
	if after, err := os.ReadFile(s.path("token.key")); err != nil || !bytes.Equal(token, after) {
		t.Errorf("tokens have ended: %v", err)
	}

	_, err = openState(ctx, s.cfg, slog.New(slog.DiscardHandler))
	wantWords(t, err, "is in a PostgreSQL database")
	_, err = Migrate(ctx, there.cfg, io.Discard)
	wantWords(t, err, "there is no berth.db")
	wantWords(t, Backup(ctx, s.cfg, s.path("backup.tar"), io.Discard), "pg_dump")
	wantWords(t, Restore(ctx, s.cfg, s.path("backup.tar"), io.Discard), "pg_restore")
	wantWords(t, Down(ctx, s.cfg, true, io.Discard), "drop the database")
	other := there
	other.cfg.Database = pgtest.NewDatabase(t)
	_, err = openState(ctx, other.cfg, slog.New(slog.DiscardHandler))
	wantWords(t, err, "another installation")
	if !slices.Contains(there.users(), "bob") {
		t.Error("a refusal changed something")
	}
}

// A database that was put back by other means goes on in a new epoch, and with no token of before.
func TestBeginEpoch(t *testing.T) {
	ctx := t.Context()
	s := site{t: t, cfg: newSite(t).cfg}
	wantWords(t, BeginEpoch(ctx, s.cfg, io.Discard), "--database")
	s.cfg.DataDir, s.cfg.Database = t.TempDir(), pgtest.NewDatabase(t)
	var before, after int64
	s.running(func(b *berth) {
		id, err := b.store.Identity(ctx)
		if err != nil {
			t.Fatal(err)
		}
		before = id.Epoch
	})
	if err := os.WriteFile(s.path(auditFile), []byte(`{"seq":41}`+"\n"), 0o600); err != nil { // from after the copy
		t.Fatal(err)
	}
	if err := BeginEpoch(ctx, s.cfg, io.Discard); err != nil {
		t.Fatal(err)
	}
	if exists(s.path("token.key")) {
		t.Error("tokens of before are still good")
	}
	s.running(func(b *berth) {
		id, err := b.store.Identity(ctx)
		if err != nil {
			t.Fatal(err)
		}
		after = id.Epoch
		if id.LastAudit < 41 {
			t.Errorf("audit records go on after %d: whoever follows them misses some", id.LastAudit)
		}
	})
	if after <= before {
		t.Errorf("epoch %d after %d", after, before)
	}
}

// The doctor looks at the database without changing it.
func TestDoctorLooksAtTheDatabase(t *testing.T) {
	s := newSite(t)
	find := func() Check {
		for _, c := range Doctor(t.Context(), s.cfg, false) {
			if c.Name == "database" {
				return c
			}
		}
		return Check{}
	}
	if c := find(); c.Name != "" {
		t.Errorf("%+v: it is a file", c)
	}
	s.cfg.Database = pgtest.NewDatabase(t)
	if c := find(); !c.OK {
		t.Errorf("%+v", c)
	}
	s.cfg.Database = "postgres://postgres@127.0.0.1:1/berth"
	if c := find(); c.OK || !c.Needed || !strings.Contains(c.Detail, "cannot be opened") {
		t.Errorf("%+v", c)
	}
}
