package api

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"berth/internal/compute"
)

// What is shown is the contract's, to the letter: the order of the names, times in UTC to the second, no command without
// SSH.
func TestObjects(t *testing.T) {
	at := time.Date(2026, 1, 15, 11, 30, 0, 999_999_999, time.FixedZone("CET", 3600))
	c := compute.Container{
		ID: "a1b2c3d4", Name: "dev <box>", Status: compute.StatusRunning, MemoryMB: 512, StorageGB: 5, InstanceType: "nano",
		SSHEnabled: true, CreatedAt: at,
	}
	off := c
	off.SSHEnabled, off.HTTPSEnabled, off.Status, off.StatusMessage = false, true, compute.StatusFailed, "no arm64 node"
	used := compute.Usage{MemoryMB: 128, StorageGB: 1.2345678}
	key := compute.SSHKey{ID: 7, Name: "laptop", PublicKey: "ssh-ed25519 AAAA", CreatedAt: at}
	token := compute.Token{
		ID: "JBSW", Name: "ci", IssuedBy: compute.IssuedByUser, Scopes: []string{"all"}, CreatedAt: at, ExpiresAt: at.Add(time.Hour),
	}
	seen := token
	seen.LastUsedAt = at.Add(time.Minute)
	for _, tc := range []struct {
		shown any
		want  string
	}{
		{NewContainer(c, used, "h.example"), `{"id":"a1b2c3d4","name":"dev <box>","status":"running","hostname":"h.example",` +
			`"ssh_command":"ssh root@h.example","memory_mb":512,"memory_used_mb":128,"storage_gb":5,"storage_used_gb":1.235,` +
			`"instance_type":"nano","created_at":"2026-01-15T10:30:00Z","ssh_enabled":true,"https_enabled":false}`},
		{NewContainer(off, compute.Usage{}, "h.example"), `{"id":"a1b2c3d4","name":"dev <box>","status":"failed",` +
			`"status_message":"no arm64 node","hostname":"h.example","memory_mb":512,"memory_used_mb":0,"storage_gb":5,` +
			`"storage_used_gb":0,"instance_type":"nano","created_at":"2026-01-15T10:30:00Z","ssh_enabled":false,` +
			`"https_enabled":true}`},
		{NewSSHKey(key), `{"id":7,"name":"laptop","public_key":"ssh-ed25519 AAAA","created_at":"2026-01-15T10:30:00Z"}`},
		{
			NewIngressRule(compute.IngressRule{ID: 1, Port: 443, TargetPort: 8443, CreatedAt: at}),
			`{"id":1,"port":443,"target_port":8443,"created_at":1768473000}`,
		},
		{NewToken(token), `{"id":"JBSW","name":"ci","scopes":["all"],"issued_by":"user",` +
			`"created_at":"2026-01-15T10:30:00Z","expires_at":"2026-01-15T11:30:00Z"}`},
		{NewToken(seen), `{"id":"JBSW","name":"ci","scopes":["all"],"issued_by":"user",` +
			`"created_at":"2026-01-15T10:30:00Z","expires_at":"2026-01-15T11:30:00Z","last_used_at":"2026-01-15T10:31:00Z"}`},
	} {
		var got strings.Builder
		e := json.NewEncoder(&got)
		e.SetEscapeHTML(false)
		if err := e.Encode(tc.shown); err != nil || got.String() != tc.want+"\n" {
			t.Errorf("%s, %v\nwant %s", got.String(), err, tc.want)
		}
	}
}
