package app

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/internal/compute"
)

// What an operator does is recorded, also what is refused, and for whom it was called.
func TestOperatorIsAudited(t *testing.T) {
	b := state(t, nil)
	l, err := listenSocket(b.cfg.DataDir, operatorSocket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: operatorHandler(b.operator, slog.New(slog.DiscardHandler)), ReadHeaderTimeout: time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	dialed, err := dialOperator(b.cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	elsewhere := dialed.(remote)
	elsewhere.invoker = "carol"
	u, err := elsewhere.AddUser(ctx, "ada", false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := elsewhere.AddUser(ctx, "ada", false, nil); compute.CodeOf(err) != compute.CodeConflict {
		t.Error(err)
	}
	if _, err := elsewhere.SetUserDisabled(ctx, "ada", true); err != nil {
		t.Fatal(err)
	}
	if _, err := elsewhere.SetUserDisabled(ctx, "ada", true); err != nil {
		t.Fatal(err)
	}
	if _, err := elsewhere.Users(ctx); err != nil { // who looks is not recorded
		t.Fatal(err)
	}
	if _, err := b.operator.SetUserDisabled(ctx, "ada", false); err != nil { // in the process itself
		t.Fatal(err)
	}
	if _, err := elsewhere.Token(ctx, TokenRequest{Username: "ada", Name: "ci", TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	tokens, err := elsewhere.Tokens(ctx, "ada")
	if err != nil || len(tokens) != 1 {
		t.Fatalf("%+v %v", tokens, err)
	}
	id := tokens[0].ID
	if err := elsewhere.RevokeToken(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.RevokeToken(ctx, id); compute.CodeOf(err) != compute.CodeNotFound {
		t.Error(err)
	}
	if err := elsewhere.Close(); err != nil {
		t.Error(err)
	}
	if err := srv.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	<-served

	list, _, err := b.store.Audit(ctx, compute.AuditQuery{OldestFirst: true, Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range list {
		got = append(got, strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s %s %s", r.Action, r.Target, r.OwnerName, r.CredentialID, r.Outcome, r.Code)), " "))
		if r.User != 0 || r.Credential != "operator" || r.Via != compute.ViaOperator || r.Gateway != b.audit.gateway {
			t.Errorf("%+v", r)
		}
	}
	want := []string{
		"addUser user:ada ada carol allowed",
		"addUser user:ada carol failed conflict",
		"changeUser user:ada disabled:true ada carol allowed",
		"changeUser user:ada disabled:true carol allowed",
		"changeUser user:ada disabled:false ada " + b.in.name + " allowed",
		"addToken token:" + id + " ada carol allowed",
		"revokeToken token:" + id + " ada carol allowed",
		"revokeToken token:" + id + " carol denied not_found",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	own, _, err := b.store.Audit(ctx, compute.AuditQuery{Owner: u.ID, Limit: 100})
	if err != nil || len(own) != 5 {
		t.Errorf("%d concern ada, %v", len(own), err)
	}
}

// What Berth wrote down goes with the rest, and not a file that only looks like it.
func TestAuditFilesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{
		"audit.jsonl", "audit.jsonl.1", "audit.jsonl.4", "gateway-audit.jsonl", "gateway-audit.jsonl.2", "link_audit",
		"link_audit.1", "link_audit.new", "audit.jsonl.mine",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeData(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "audit.jsonl.mine" {
		t.Errorf("left are %v, %v", left, err)
	}
}
