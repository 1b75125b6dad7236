package app

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/compute"
	"berth/internal/config"
)

// The files are for the account's own keys, whatever lies in ~/.ssh by now.
func TestFirstAdminKeepsItsKey(t *testing.T) {
	cfg := config.Default()
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	b, err := openState(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	b.in.home = t.TempDir() // a person without keys
	first, err := b.firstAdmin(t.Context())
	if err != nil || len(first.identities) != 1 || first.identities[0].file != filepath.Join(cfg.DataDir, "id_ed25519") {
		t.Fatalf("first admin is %+v, %v", first, err)
	}
	other, err := clientFiles{dir: t.TempDir()}.demoKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(b.in.home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.in.home, ".ssh", "id_new.pub"), []byte(other.line), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := b.firstAdmin(t.Context())
	if err != nil || again.user.ID != first.user.ID || len(again.identities) != 1 || again.identities[0] != first.identities[0] {
		t.Errorf("at the second start it is %+v, %v", again, err)
	}
	_, err = b.operator.SetUserDisabled(t.Context(), first.user.Username, true)
	if compute.CodeOf(err) != compute.CodeConflict || !strings.Contains(compute.UserMessage(err), "`berth user add NAME --admin`") {
		t.Errorf("to disable the only admin: %v", err)
	}
	second, err := b.operator.AddUser(t.Context(), "second", true, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.operator.SetUserDisabled(t.Context(), first.user.Username, true); err != nil {
		t.Fatal(err)
	}
	if next, err := b.firstAdmin(t.Context()); err != nil || next.user.ID != second.ID {
		t.Errorf("with the first disabled it is %+v, %v", next, err)
	}
}
