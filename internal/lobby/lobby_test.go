package lobby

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/compute"
	"berth/internal/control"
	"berth/internal/store"
)

// meter is the one thing that listing containers asks of an engine.
type meter struct{ control.Engine }

func (meter) Usage(_ context.Context, r compute.Ref) (compute.Usage, error) {
	if r.ID == "a1b2c3d4" {
		return compute.Usage{MemoryMB: 128, StorageGB: 1.2}, nil
	}
	return compute.Usage{}, compute.Errorf(compute.CodeNotRunning, "It does not run.")
}

// harbour is a control plane's use cases on a real database.
type harbour struct {
	*control.Service
	store *store.Store
	alice compute.Principal
}

// newHarbour makes alice with these containers.
func newHarbour(t *testing.T, list ...compute.Container) *harbour {
	t.Helper()
	var next compute.ContainerID
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "berth.db"), store.Options{
		NewID: func() compute.ContainerID { return next },
		Now:   func() time.Time { return time.Date(2026, 1, 15, 10, 30, 0, 0, time.UTC) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	u, err := s.CreateUser(t.Context(), "alice", compute.RoleAdmin)
	check(err)
	line, fingerprint, _, err := compute.ParsePublicKey(
		"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJcuwQ8Py5Ef0LYq0yaKSIzaqfMiyxnwYrhErzpKBTWZ", compute.DefaultLimits())
	check(err)
	k, err := s.AddKey(t.Context(), compute.SSHKey{Owner: u.ID, Name: "laptop", PublicKey: line, Fingerprint: fingerprint}, 10)
	check(err)
	for _, c := range list {
		next = c.ID
		status, message := c.Status, c.StatusMessage
		c.Owner, c.SSHKeyIDs, c.Desired, c.Status, c.StatusMessage = u.ID, []int64{k.ID}, compute.DesiredRunning, compute.StatusPending, ""
		made, err := s.CreateContainer(t.Context(), c, 3)
		check(err)
		check(s.SetStatus(t.Context(), made.ID, made.Generation, status, message))
	}
	return &harbour{
		Service: control.New(control.Config{Store: s, Engine: meter{}, Limits: compute.DefaultLimits(), Types: compute.DefaultInstanceTypes()}),
		store:   s, alice: compute.Principal{User: u.ID, Username: u.Username, Role: u.Role},
	}
}

func twoContainers() []compute.Container {
	return []compute.Container{
		{
			ID: "a1b2c3d4", Name: "dev-box", Status: compute.StatusRunning, SSHEnabled: true, InstanceType: "nano", MemoryMB: 512,
			StorageGB: 5,
		},
		{
			ID: "deadbeef", Name: "old", Status: compute.StatusFailed, StatusMessage: "no space\x1b[2J left", InstanceType: "tiny",
			MemoryMB: 64, StorageGB: 1,
		},
	}
}

func (h *harbour) run(t *testing.T, command string) (stdout, stderr string, code int) {
	t.Helper()
	return h.runAs(t, "alice", command)
}

func (h *harbour) runAs(t *testing.T, login, command string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = New("compute.example.com", h, nil).Run(t.Context(), Session{
		Principal: h.alice, Login: login, Command: command, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs,
	})
	return out.String(), errs.String(), code
}

func TestCommands(t *testing.T) {
	h := newHarbour(t, twoContainers()...)
	for _, tt := range []struct {
		command      string
		code         int
		out, errs    []string // what is in there; nil means empty
		neverInThere string
	}{
		{command: "", code: 0, out: []string{"Hello alice", "Commands:", "ssh <id>@compute.example.com"}},
		{command: "   ", code: 0, out: []string{"Hello alice"}},
		{command: "help", code: 0, out: []string{"ls [--json]", "whoami", "ssh -J compute.example.com root@<id>.compute.example.com"}},
		{command: "whoami", code: 0, out: []string{"alice\n"}},
		{command: "whoami --yaml", code: 2, errs: []string{"--yaml", "usage: whoami [--json]"}},
		{
			command: "ls", code: 0,
			out: []string{
				"a1b2c3d4  dev-box", "running", "128/512 MB", "1.2/5 GB", "ssh a1b2c3d4@compute.example.com", "no space?[2J left",
			},
			neverInThere: "\x1b",
		},
		{command: "ls -l", code: 2, errs: []string{"usage: ls [--json]"}},
		{command: "rm -rf /", code: 127, errs: []string{`no command "rm" here`, "ssh compute.example.com help"}},
		{command: "\x1b]0;x\x07", code: 127, errs: []string{"no command"}, neverInThere: "\x1b"},
	} {
		out, errs, code := h.run(t, tt.command)
		if code != tt.code {
			t.Errorf("%q: exit code %d, want %d (%s)", tt.command, code, tt.code, errs)
		}
		check := func(what, got string, want []string) {
			if len(want) == 0 && got != "" {
				t.Errorf("%q: %s is %q, want nothing", tt.command, what, got)
			}
			for _, w := range want {
				if !strings.Contains(got, w) {
					t.Errorf("%q: %s is %q, want %q in it", tt.command, what, got, w)
				}
			}
		}
		check("stdout", out, tt.out)
		check("stderr", errs, tt.errs)
		if tt.neverInThere != "" && strings.Contains(out+errs, tt.neverInThere) {
			t.Errorf("%q: %q in the output", tt.command, tt.neverInThere)
		}
		if len(tt.errs) > 0 && strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: more than one line: %q", tt.command, errs)
		}
	}
}

// TestNameForID holds that a command meant for a container does not run in the lobby.
func TestNameForID(t *testing.T) {
	h := newHarbour(t, twoContainers()...)
	for _, command := range []string{"", "ls", "rm -rf /"} {
		out, errs, code := h.runAs(t, "dev-box", command)
		if out != "" || !strings.Contains(errs, "ssh a1b2c3d4@compute.example.com\n") || strings.Count(errs, "\n") != 1 || code != 255 {
			t.Errorf("%q: %q, %q, %d", command, out, errs, code)
		}
	}
	for login, want := range map[string]string{
		"alice+dev-box": "ssh alice+a1b2c3d4@compute.example.com\n", "A1B2C3D4": "ssh a1b2c3d4@compute.example.com\n",
	} {
		if out, errs, code := h.runAs(t, login, "id"); out != "" || !strings.Contains(errs, want) || code != 255 {
			t.Errorf("%s: %q, %q, %d", login, out, errs, code)
		}
	}
	if out, errs, code := h.runAs(t, "root", "whoami"); out != "alice\n" || errs != "" || code != 0 {
		t.Errorf("%q, %q, %d", out, errs, code)
	}
}

func TestNoContainers(t *testing.T) {
	h := newHarbour(t)
	if out, errs, code := h.run(t, "ls"); !strings.Contains(out, "You have no containers") || errs != "" || code != 0 {
		t.Errorf("%q, %q, %d", out, errs, code)
	}
	if out, _, _ := h.run(t, "ls --json"); strings.Join(strings.Fields(out), "") != `{"containers":[]}` {
		t.Errorf("%s", out)
	}
}

// TestDatabaseFault tells the person no more than that there is one.
func TestDatabaseFault(t *testing.T) {
	h := newHarbour(t, twoContainers()...)
	if err := h.store.Close(); err != nil {
		t.Fatal(err)
	}
	out, errs, code := h.run(t, "ls")
	if out != "" || code != 1 || strings.Count(errs, "\n") != 1 || strings.Contains(errs, "sql") {
		t.Errorf("%q, %q, %d", out, errs, code)
	}
}

// TestListJSON holds the shape of the REST contract.
func TestListJSON(t *testing.T) {
	out, _, code := newHarbour(t, twoContainers()...).run(t, "ls --json")
	if code != 0 {
		t.Fatal(code)
	}
	var got struct {
		Containers []map[string]any `json:"containers"`
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Containers) != 2 {
		t.Fatalf("%d containers", len(got.Containers))
	}
	for key, want := range map[string]any{
		"id": "a1b2c3d4", "name": "dev-box", "status": "running", "hostname": "a1b2c3d4.compute.example.com",
		"ssh_command": "ssh root@a1b2c3d4.compute.example.com", "memory_mb": 512.0, "memory_used_mb": 128.0, "storage_gb": 5.0,
		"storage_used_gb": 1.2, "instance_type": "nano", "created_at": "2026-01-15T10:30:00Z", "ssh_enabled": true,
		"https_enabled": false,
	} {
		if got.Containers[0][key] != want {
			t.Errorf("%s is %v, want %v", key, got.Containers[0][key], want)
		}
	}
	if _, ok := got.Containers[1]["ssh_command"]; ok {
		t.Error("ssh_command is there while SSH is off")
	}
}

func TestWhoamiJSON(t *testing.T) {
	h := newHarbour(t)
	out, _, _ := h.run(t, "whoami --json")
	var got map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if got["user_id"] != float64(h.alice.User) || got["username"] != "alice" || got["role"] != "admin" {
		t.Errorf("whoami --json: %v", got)
	}
}
