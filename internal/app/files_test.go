package app

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"berth/internal/compute"
	"berth/internal/config"
	"berth/internal/sshproxy"
)

func TestInvokersName(t *testing.T) {
	for _, c := range []struct {
		in   invoker
		want string
	}{
		{invoker{uid: 0, name: "root"}, "admin"},
		{invoker{uid: 5, name: "alice"}, "alice"},
		{invoker{uid: 5, name: `CORP\Alice.B`}, "corp-alice-b"},
		{invoker{uid: 5, name: "deadbeef"}, "admin"},
		{invoker{uid: 5, name: "___"}, "admin"},
		{invoker{uid: 5, name: strings.Repeat("x", 31) + "-yz"}, strings.Repeat("x", 31)},
	} {
		if got := c.in.username(); got != c.want || compute.ValidateUsername(got) != nil {
			t.Errorf("%q is called %q, want %q", c.in.name, got, c.want)
		}
	}
}

func TestInvokersKeys(t *testing.T) {
	in := invoker{home: t.TempDir()}
	dir := filepath.Join(in.home, ".ssh")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	good, err := clientFiles{dir: t.TempDir()}.demoKey()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"b.pub": good.line + "\n", "b": "private", "a.pub": good.line, "junk.pub": "hello", "config": "Host *",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := in.identities(compute.DefaultLimits())
	if len(got) != 2 || got[0].file != filepath.Join(dir, "a.pub") || got[1].file != filepath.Join(dir, "b") {
		t.Errorf("identities are %+v", got)
	}
}

// What is written is what the stock client makes of it.
func TestSSHConfigIsReadByTheStockClient(t *testing.T) {
	f := clientFiles{dir: filepath.Join(t.TempDir(), "a dir with % and spaces")}
	if err := os.Mkdir(f.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	keys, err := sshproxy.OpenHostKeys(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	id, err := f.demoKey()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := f.demoKey(); err != nil || again != id {
		t.Errorf("the demo key changed: %v", err)
	}
	addr := &net.TCPAddr{IP: net.IPv4zero, Port: 2345}
	if err := f.writeSSH("compute.localhost", addr, "alice", keys, []identity{id}); err != nil {
		t.Fatal(err)
	}
	for host, wants := range map[string][]string{
		"compute.localhost":           {"hostname 127.0.0.1", "port 2345", "user alice", "hostkeyalias compute.localhost"},
		"a1b2c3d4.compute.localhost":  {"proxyjump compute.localhost", "hostname a1b2c3d4.compute.localhost"},
		"*@a1b2c3d4.example.com":      {},
		"root@x.compute.localhost":    {"user root"},
		"unrelated.compute.localhost": {"stricthostkeychecking true"},
	} {
		out, err := exec.CommandContext(t.Context(), "ssh", "-G", "-F", f.path("ssh_config"), host).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, want := range wants {
			if !strings.Contains("\n"+string(out), "\n"+want+"\n") {
				t.Errorf("%s: no %q in\n%s", host, want, out)
			}
		}
	}
	out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-F", "a1b2c3d4.compute.localhost", "-f", f.path("known_hosts")).Output()
	if err != nil || !strings.Contains(string(out), strings.Fields(string(ssh.MarshalAuthorizedKey(keys[0].PublicKey())))[1]) {
		t.Errorf("known_hosts does not know a container: %v, %s", err, out)
	}
}

func TestWrittenFilesReplaceSymlinks(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("safe"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := clientFiles{dir: dir}
	if err := os.Symlink(victim, f.path("token")); err != nil {
		t.Fatal(err)
	}
	if err := f.writeToken("secret"); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(victim); err != nil || string(text) != "safe" {
		t.Errorf("the symlink was followed: %q, %v", text, err)
	}
	if st, err := os.Lstat(f.path("token")); err != nil || st.Mode() != 0o600 {
		t.Errorf("token is %v, %v", st.Mode(), err)
	}
}

func TestOneProcessADirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	lock, err := lockData(dir)
	if err != nil {
		t.Fatal(err)
	}
	var busy busyError
	if _, err := lockData(dir); !errors.As(err, &busy) || busy.pid != os.Getpid() {
		t.Errorf("a second lock gives %v", err)
	}
	if err := lock.release(); err != nil {
		t.Fatal(err)
	}
	if lock, err = lockData(dir); err != nil {
		t.Fatal(err)
	}
	_ = lock.release()
}

// The operator's commands do the same through the socket of a running berth as on the database itself.
func TestOperator(t *testing.T) {
	cfg := config.Default()
	// Longer than a socket's path may be.
	cfg.DataDir = filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if _, err := OpenOperator(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "berth up") {
		t.Errorf("without an installation: %v", err)
	}
	b, err := openState(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l, err := listenSocket(cfg.DataDir, operatorSocket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: operatorHandler(b.operator, b.log), ReadHeaderTimeout: time.Second}
	served := make(chan error)
	go func() { served <- srv.Serve(l) }()

	o, err := OpenOperator(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := o.(remote); !ok {
		t.Fatalf("beside a running berth it is %T", o)
	}
	key, err := clientFiles{dir: t.TempDir()}.demoKey()
	if err != nil {
		t.Fatal(err)
	}
	checkOperator(t, o, "alice", key.line)
	if err := o.Close(); err != nil {
		t.Error(err)
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	<-served
	if err := b.close(); err != nil {
		t.Error(err)
	}
	if o, err = OpenOperator(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	checkOperator(t, o, "bob", key.line)
	if list, err := o.Users(t.Context()); err != nil || len(list) != 3 {
		t.Errorf("users are %+v, %v", list, err)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
}

func checkOperator(t *testing.T, o Operator, name, key string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	u, err := o.AddUser(ctx, name, true, []string{key, key})
	if err != nil || u.Username != name || u.Role != compute.RoleAdmin {
		t.Fatalf("AddUser = %+v, %v", u, err)
	}
	for what, err := range map[string]error{
		"taken name":  second(o.AddUser(ctx, name, false, nil)),
		"bad name":    second(o.AddUser(ctx, "No Name", false, nil)),
		"private key": second(o.AddUser(ctx, "carol", false, []string{"-----BEGIN OPENSSH PRIVATE KEY-----"})),
		"unknown":     second(o.SetUserDisabled(ctx, "nobody", true)),
		"no token":    second(o.Token(ctx, TokenRequest{Username: "nobody", Name: "x", TTL: time.Hour})),
		"long token":  second(o.Token(ctx, TokenRequest{Username: name, Name: "x", TTL: 10_000 * time.Hour})),
		"no scope":    second(o.Token(ctx, TokenRequest{Username: name, Name: "x", TTL: time.Hour, Scopes: []string{"everything"}})),
		"no name":     second(o.Token(ctx, TokenRequest{Username: name, TTL: time.Hour})),
		"no tokens":   second(o.Tokens(ctx, "nobody")),
		"no id":       o.RevokeToken(ctx, "none"),
	} {
		if compute.AsError(err) == nil {
			t.Errorf("%s: error is %v", what, err)
		}
	}
	checkTokens(t, o, name)
	if list, err := o.Users(ctx); err != nil || len(list) == 1 { // the only administrator is not to be disabled
		_, err = o.SetUserDisabled(ctx, name, true)
		if compute.CodeOf(err) != compute.CodeConflict || !strings.Contains(compute.UserMessage(err), "`berth user add NAME --admin`") {
			t.Errorf("the only administrator, disabled: %v", err)
		}
		if _, err := o.AddUser(ctx, "spare", true, nil); err != nil {
			t.Fatal(err)
		}
	}
	if u, err = o.SetUserDisabled(ctx, name, true); err != nil || !u.Disabled {
		t.Errorf("disabled is %+v, %v", u, err)
	}
	if _, err := o.Token(ctx, TokenRequest{Username: name, Name: "x", TTL: time.Hour}); compute.CodeOf(err) != compute.CodeForbidden {
		t.Errorf("a token for a disabled user: %v", err)
	}
	if u, err = o.SetUserDisabled(ctx, name, false); err != nil || u.Disabled {
		t.Errorf("enabled is %+v, %v", u, err)
	}
	checkGateways(ctx, t, o, "edge-"+name)
}

func checkGateways(ctx context.Context, t *testing.T, o Operator, name string) {
	t.Helper()
	text, err := o.AddGateway(ctx, name)
	if err != nil || strings.Count(text, "-----BEGIN") != 3 {
		t.Fatalf("AddGateway = %q, %v", text, err)
	}
	for what, err := range map[string]error{
		"taken name": second(o.AddGateway(ctx, name)),
		"bad name":   second(o.AddGateway(ctx, "No Name")),
		"unknown":    second(o.RevokeGateway(ctx, "nobody")),
	} {
		if compute.AsError(err) == nil {
			t.Errorf("%s: error is %v", what, err)
		}
	}
	if g, err := o.RevokeGateway(ctx, name); err != nil || g.Name != name || g.RevokedAt == nil {
		t.Errorf("RevokeGateway = %+v, %v", g, err)
	}
	if _, err := o.AddGateway(ctx, name); err != nil {
		t.Errorf("a name that is free again: %v", err)
	}
	list, err := o.Gateways(ctx)
	mine := slices.DeleteFunc(list, func(g GatewayInfo) bool { return g.Name != name })
	if err != nil || len(mine) != 2 || (mine[0].RevokedAt == nil) == (mine[1].RevokedAt == nil) {
		t.Errorf("Gateways = %+v, %v", list, err)
	}
}

// What berth did not make is not its to destroy, whatever directory a person names.
func TestDownLeavesOthersFiles(t *testing.T) {
	cfg := config.Default()
	cfg.DataDir = filepath.Join(t.TempDir(), "not-berths")
	theirs := map[string]string{
		"volumes/photos/1": "photo", "agent/smith": "agent", "containerd/notes": "notes", "token.txt": "token",
		"id_ed25519": "private", "id_ed25519.pub": "ssh-ed25519 AAAA me@home",
	}
	for name, text := range theirs {
		p := filepath.Join(cfg.DataDir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string) {
		t.Helper()
		for name, text := range theirs {
			if got, err := os.ReadFile(filepath.Join(cfg.DataDir, name)); err != nil || string(got) != text {
				t.Errorf("%s: %s holds %q, %v", when, name, got, err)
			}
		}
	}
	var out strings.Builder
	if err := Down(t.Context(), cfg, true, &out); err != nil || !strings.Contains(out.String(), "no berth in") {
		t.Errorf("down where no berth is: %q, %v", out.String(), err)
	}
	check("no berth")
	b, err := openState(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.close(); err != nil {
		t.Fatal(err)
	}
	if err := Down(t.Context(), cfg, true, &out); err != nil {
		t.Errorf("down where a berth was: %v", err)
	}
	check("a berth")
	if list, err := filepath.Glob(filepath.Join(cfg.DataDir, "*")); err != nil || len(list) != 6 {
		t.Errorf("left are %q, %v", list, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestProgressTellsQuarters(t *testing.T) {
	var b strings.Builder
	p := newProgress(io.Writer(&b))
	for i := range int64(101) {
		p.step("Importing", i<<20, 100<<20)
	}
	want := "Importing …\n  25% of 100 MiB\n  50% of 100 MiB\n  75% of 100 MiB\n  100% of 100 MiB\n"
	if b.String() != want {
		t.Errorf("it says %q", b.String())
	}
}
