package lobby

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"berth/internal/compute"
	"berth/internal/control"
)

// serviceFunc is the one use case that the lobby calls.
type serviceFunc func(p compute.Principal) ([]control.ContainerView, error)

func (f serviceFunc) ListContainers(_ context.Context, p compute.Principal) ([]control.ContainerView, error) {
	return f(p)
}

var alice = compute.Principal{User: 7, Username: "alice", Role: compute.RoleAdmin}

func twoContainers(p compute.Principal) ([]control.ContainerView, error) {
	if p != alice {
		return nil, errors.New("asked for somebody else")
	}
	return []control.ContainerView{
		{
			Container: compute.Container{
				ID: "a1b2c3d4", Name: "dev-box", Status: compute.StatusRunning, SSHEnabled: true, InstanceType: "nano",
				MemoryMB: 512, StorageGB: 5, CreatedAt: time.Date(2026, 1, 15, 10, 30, 0, 81e6, time.UTC),
			},
			Usage: compute.Usage{MemoryMB: 128, StorageGB: 1.20004},
		},
		{Container: compute.Container{
			ID: "deadbeef", Name: "old", Status: compute.StatusFailed, StatusMessage: "no space\x1b[2J left", InstanceType: "tiny",
		}},
	}, nil
}

func run(t *testing.T, service Service, command string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = New("compute.example.com", service, nil).Run(t.Context(), Session{
		Principal: alice, Command: command, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs,
	})
	return out.String(), errs.String(), code
}

func TestCommands(t *testing.T) {
	for _, tt := range []struct {
		command      string
		service      serviceFunc
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
		{command: "ls", service: func(compute.Principal) ([]control.ContainerView, error) { return nil, nil }, code: 0, out: []string{"no containers"}},
		{
			command: "ls", service: func(compute.Principal) ([]control.ContainerView, error) { return nil, errors.New("secret: disk I/O") },
			code: 1, errs: []string{"Something went wrong on our side"}, neverInThere: "secret",
		},
		{
			command: "ls",
			service: func(compute.Principal) ([]control.ContainerView, error) {
				return nil, compute.Errorf(compute.CodeUnavailable, "Try again in a minute.")
			},
			code: 1, errs: []string{"Try again in a minute.\n"},
		},
		{command: "rm -rf /", code: 127, errs: []string{`no command "rm" here`, "ssh compute.example.com help"}},
		{command: "\x1b]0;x\x07", code: 127, errs: []string{"no command"}, neverInThere: "\x1b"},
	} {
		service := tt.service
		if service == nil {
			service = twoContainers
		}
		out, errs, code := run(t, service, tt.command)
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

// TestListJSON holds the shape of the REST contract.
func TestListJSON(t *testing.T) {
	out, _, code := run(t, serviceFunc(twoContainers), "ls --json")
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
	empty, _, _ := run(t, serviceFunc(func(compute.Principal) ([]control.ContainerView, error) { return nil, nil }), "ls --json")
	if strings.Join(strings.Fields(empty), "") != `{"containers":[]}` {
		t.Errorf("no containers: %s", empty)
	}
}

func TestWhoamiJSON(t *testing.T) {
	out, _, _ := run(t, serviceFunc(twoContainers), "whoami --json")
	var got map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if got["user_id"] != 7.0 || got["username"] != "alice" || got["role"] != "admin" {
		t.Errorf("whoami --json: %v", got)
	}
}
