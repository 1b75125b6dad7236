package e2e_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/pgtest"
)

// TestMigrate moves a live installation into PostgreSQL: accounts, keys, tokens and a container that runs on all the while. Then
// an older state of the database is put back, as the operator's page says, and costs nobody their data.
func TestMigrate(t *testing.T) {
	t.Parallel()
	server, err := pgtest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	url := server.URL("postgres")
	i := ownElsewhere(t)
	if err := i.start(); err != nil {
		t.Fatal(err)
	}
	a := personOn(t, i, "mover")
	old := boxOf(t, a, `{"storage_gb": 1, "memory_mb": 64}`)
	if _, err := a.ssh(a.at(old), "echo kept >/root/file; sync; echo $PPID >/run/life"); err != nil {
		t.Fatal(err)
	}
	migrate := []string{"migrate", "--from", "sqlite", "--to", "postgres", "--json", "--database", url}
	if _, err := i.run(migrate...); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("while it runs: %v", err)
	}
	if err := i.stop(); err != nil {
		t.Fatal(err)
	}
	out, err := i.run(migrate...)
	if err != nil {
		t.Fatal(err)
	}
	var moved struct {
		Installation string
		Epoch        int64
		Kept         string
		Tables       []struct {
			Table  string
			Rows   int
			SHA256 string
		}
	}
	if err := json.Unmarshal([]byte(out), &moved); err != nil || len(moved.Installation) != 32 || moved.Epoch < 2 || len(moved.Tables) < 10 {
		t.Fatalf("%s, %v", out, err)
	}
	if _, err := os.Stat(moved.Kept); err != nil {
		t.Error(err)
	}
	if err := i.startMain(); err == nil || !strings.Contains(err.Error(), "is in a PostgreSQL database") {
		t.Fatalf("without --database: %v", err)
	}

	i.flags = []string{"--database", url}
	if err := i.start(); err != nil {
		t.Fatal(err)
	}
	var c container
	if err := a.get("/compute/containers/"+old, &c); err != nil || c.Status != "running" { // with the token of before
		t.Fatalf("%+v, %v", c, err)
	}
	if err := a.writeSSHConfig(); err != nil {
		t.Fatal(err)
	}
	const look = "cat /root/file; test -s /run/life && echo one life"
	if out, err := a.ssh(a.at(old), look); err != nil || out != "kept\none life" {
		t.Fatalf("%q, %v", out, err)
	}

	// An older state is put back.
	dump := filepath.Join(t.TempDir(), "berth.dump")
	server.Run(t, "pg_dump", "--format", "custom", "--file", dump, url)
	before := a.token
	newer := boxOf(t, a, `{"storage_gb": 1, "memory_mb": 64}`)
	if err := i.stop(); err != nil {
		t.Fatal(err)
	}
	server.Run(t, "pg_restore", "--clean", "--if-exists", "--dbname", url, dump)
	if _, err := i.run("restore", "--database", url); err != nil {
		t.Fatal(err)
	}
	if err := i.start(); err != nil {
		t.Fatal(err)
	}
	if status, _, _, err := a.call(http.MethodGet, "/compute/containers", "", ""); err != nil || status != http.StatusUnauthorized {
		t.Errorf("a token of before: %d, %v", status, err)
	}
	if err := a.prepare(); err != nil {
		t.Fatal(err)
	}
	if a.token == before {
		t.Error("the token is the same")
	}
	if out, err := a.ssh(a.at(old), look); err != nil || out != "kept\none life" {
		t.Errorf("%q, %v", out, err)
	}
	if status, _, body, err := a.call(http.MethodGet, "/compute/containers/"+newer, "", ""); err != nil || status != http.StatusNotFound {
		t.Errorf("a container that the database does not know: %d %s, %v", status, body, err)
	}
	if left, err := filepath.Glob(filepath.Join(i.data, "volumes", "*"+newer+"*")); err != nil || len(left) == 0 {
		t.Errorf("its volume: %v, %v", left, err)
	}
}
