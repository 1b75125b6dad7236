package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"berth/internal/compute"
	"berth/internal/config"
)

const architecture = runtime.GOARCH

// Up runs every part of Berth in this process until ctx ends, and tells the person at out how it goes. Containers run on
// when it returns.
func Up(ctx context.Context, c config.Config, out io.Writer) (err error) {
	began := time.Now()
	if os.Geteuid() != 0 {
		return errors.New("berth makes namespaces, mounts and networks and needs to be root; run it with sudo")
	}
	log := newLogger(c, out)
	b, err := openState(ctx, c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	l, err := listen(c)
	if err != nil {
		return err
	}
	defer l.close()
	b.onClose(func() error { return removeQuietly(b.files.path(operatorSocket)) })
	first, err := b.firstAdmin(ctx)
	if err != nil {
		return err
	}
	if err := b.openParts(ctx, newProgress(out)); err != nil {
		return err
	}
	ready := func(ctx context.Context) error {
		return b.announce(ctx, l, first, out, time.Since(began))
	}
	defer func() { err = errors.Join(err, removeQuietly(b.files.path("ready.json"))) }()
	return b.serve(ctx, l, ready)
}

// admin is the account that the files in the data directory are for.
type admin struct {
	user       compute.User
	keys       []compute.SSHKey
	identities []identity
}

// firstAdmin returns the oldest admin that is enabled, made from the invoker's keys, or from a demo key, where there is
// none yet.
func (b *berth) firstAdmin(ctx context.Context) (admin, error) {
	a := admin{identities: b.in.identities(b.cfg.Limits())}
	if len(a.identities) == 0 {
		demo, err := b.files.demoKey()
		if err != nil {
			return a, err
		}
		a.identities = []identity{demo}
	}
	users, err := b.store.Users(ctx)
	if err != nil {
		return a, err
	}
	for _, u := range users {
		if u.Role == compute.RoleAdmin && !u.Disabled {
			a.user = u
			break
		}
	}
	if a.user.ID == 0 {
		var lines []string
		for _, id := range a.identities {
			lines = append(lines, id.line)
		}
		made, err := b.operator.AddUser(ctx, b.in.username(), true, lines)
		if err != nil {
			return a, err
		}
		a.user = compute.User{ID: made.ID, Username: made.Username, Role: made.Role}
		b.log.Info("made the first admin", "user", made.Username, "keys", len(lines))
	}
	a.keys, err = b.store.Keys(ctx, a.user.ID)
	return a, err
}

// announce writes the files that clients use and says what to type.
func (b *berth) announce(_ context.Context, l listeners, a admin, out io.Writer, took time.Duration) error {
	public := make([]ssh.PublicKey, len(b.hostKeys))
	for i, k := range b.hostKeys {
		public[i] = k.PublicKey()
	}
	if err := b.files.writeSSH(b.cfg.Zone, l.ssh.Addr(), a.user.Username, public, a.identities); err != nil {
		return fmt.Errorf("write ssh_config: %w", err)
	}
	r := Ready{
		APIURL: "http://" + dialable(l.http.Addr()), SSHAddr: dialable(l.ssh.Addr()), Zone: b.cfg.Zone,
		User: a.user.Username, PID: os.Getpid(),
	}
	if err := b.files.writeReady(r); err != nil {
		return fmt.Errorf("write ready.json: %w", err)
	}
	key := int64(1)
	if len(a.keys) > 0 {
		key = a.keys[0].ID
	}
	dir := shortPath(b.cfg.DataDir)
	_, err := fmt.Fprintf(out, `
Berth is ready after %[1]s. In another terminal:

  make a container:  curl -sS %[2]s/compute/containers -H "Authorization: Bearer $(cat %[3]s)" \
                       -H 'Content-Type: application/json' -d '{"name": "dev-box", "ssh_key_ids": [%[4]d], "ssh_enabled": true}'
  list yours:        ssh -F %[5]s %[6]s ls
  be in it:          ssh -F %[5]s root@<id>.%[6]s

Ctrl-C stops Berth; containers go on running. `+"`berth down`"+` stops them too.
`, took.Round(100*time.Millisecond), r.APIURL, filepath.Join(dir, "token"), key, filepath.Join(dir, "ssh_config"), b.cfg.Zone)
	return err
}

// shortPath is the path as a person in the working directory types it.
func shortPath(path string) string {
	wd, err := os.Getwd()
	if err != nil {
		return path
	}
	rel, err := filepath.Rel(wd, path)
	if err != nil || strings.HasPrefix(rel, "..") {
		return path
	}
	return rel
}

func newLogger(c config.Config, out io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.LogLevel)) // Validate accepted it
	o := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(out, o))
	}
	return slog.New(slog.NewTextHandler(out, o))
}
