package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"berth/internal/config"
)

const architecture = runtime.GOARCH

// Up runs every part of Berth in this process until ctx ends, and tells the person at out how it goes. Containers run on
// when it returns.
func Up(ctx context.Context, c config.Config, out io.Writer) error {
	return run(ctx, c, out, true)
}

// API runs the control plane alone: the database, the containers, REST, and the link to the gateways that let people in.
func API(ctx context.Context, c config.Config, out io.Writer) error {
	return run(ctx, c, out, false)
}

func run(ctx context.Context, c config.Config, out io.Writer, withGateway bool) (err error) {
	began := time.Now()
	if err := needRoot(c); err != nil {
		return err
	}
	if err := tryAddresses(c, withGateway); err != nil {
		return err
	}
	if err := shareKeys(ctx, c); err != nil {
		return err
	}
	b, err := openState(ctx, c, newLogger(c, out))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := removeQuietly(b.files.path(readyFile)); err != nil { // of one that was killed
		return err
	}
	if err := b.openVerifiers(); err != nil {
		return err
	}
	if err := b.openMonitor(); err != nil {
		return err
	}
	b.watchDatabase(b.store)
	// The sockets before the rest, so that a port that is taken is known before anything slow begins.
	api, err := b.listenTCP("http-addr", c.HTTPAddr)
	if err != nil {
		return err
	}
	operator, err := listenSocket(c.DataDir, operatorSocket)
	if err != nil {
		return err
	}
	b.onClose(func() error { return closed(operator.Close()) })
	b.openOperator(operator)
	var gateway net.Listener
	if withGateway {
		if gateway, err = b.listenTCP("ssh-addr", c.SSHAddr); err != nil {
			return err
		}
	}
	var first admin
	if withGateway || !c.OnKubernetes() { // else nobody is at the keyboard
		first, err = b.firstAdmin(ctx)
	}
	if err != nil {
		return err
	}
	if err := b.openEvents(ctx, b.store); err != nil {
		return err
	}
	if err := b.openAudit(); err != nil {
		return err
	}
	if err := b.openEngine(ctx, newProgress(out)); err != nil {
		return err
	}
	if err := b.openLink(ctx, !withGateway && c.GatewaySecret == ""); err != nil {
		return err
	}
	b.openSessions(b.dialer)
	b.openAPI(api)
	if withGateway {
		if err := b.openGateway(gateway, b.store, b.changes, b.control); err != nil {
			return err
		}
	}
	if first.user.ID != 0 {
		if err := b.writeToken(ctx, first.user.ID); err != nil {
			return err
		}
		b.tasks = append(b.tasks, b.renewToken(first.user.ID))
	}
	b.onClose(func() error { return removeQuietly(b.files.path(readyFile)) })
	return b.serve(ctx, func(ctx context.Context) error {
		b.settled(ctx)
		return b.announce(api, gateway, first, out, time.Since(began))
	})
}

// tryAddresses looks whether the addresses are free before the first start fills a new directory. A Berth that has one already
// is told that another runs there, which says more.
func tryAddresses(c config.Config, withGateway bool) error {
	if exists(filepath.Join(c.DataDir, databaseFile)) || exists(filepath.Join(c.DataDir, elsewhereFile)) {
		return nil
	}
	if !withGateway {
		c.SSHAddr = ""
	}
	return takenAddresses(c)
}

// takenAddresses says which of the addresses to serve at are taken, all at once.
func takenAddresses(c config.Config) error {
	var taken []string
	for _, a := range []struct{ setting, addr string }{{"http-addr", c.HTTPAddr}, {"ssh-addr", c.SSHAddr}, {"admin-addr", c.AdminAddr}} {
		if a.addr == "" {
			continue
		}
		l, err := net.Listen("tcp", a.addr)
		if err != nil {
			taken = append(taken, cannotListen(a.setting, a.addr, err).Error())
			continue
		}
		_ = l.Close() // nobody was accepted
	}
	if len(taken) > 0 {
		return errors.New(strings.Join(taken, "; "))
	}
	return nil
}

func needRoot(c config.Config) error {
	if os.Geteuid() != 0 && !c.OnKubernetes() {
		return errors.New("containers need namespaces, mounts and networks of the machine, so this needs root; run it with sudo")
	}
	return nil
}

// announce writes the files that clients use and says what to type. Without a gateway there is nothing to say of SSH.
func (b *berth) announce(api, gateway net.Listener, a admin, out io.Writer, took time.Duration) error {
	r := Ready{APIURL: "http://" + dialable(api.Addr()), Zone: b.cfg.Zone, User: a.user.Username, PID: os.Getpid()}
	if gateway != nil {
		r.SSHAddr = dialable(gateway.Addr())
	}
	if b.adminAddr != nil {
		r.Admin = "http://" + dialable(b.adminAddr)
	}
	if gateway != nil && a.user.ID != 0 {
		if err := b.files.writeSSH(b.cfg.Zone, gateway.Addr(), a.user.Username, b.hostKeys, a.identities); err != nil {
			return fmt.Errorf("write ssh_config: %w", err)
		}
	}
	if err := b.files.writeReady(r); err != nil {
		return fmt.Errorf("write ready.json: %w", err)
	}
	if gateway == nil {
		_, err := fmt.Fprintf(out, "The control plane is ready after %s: %s\n", took.Round(100*time.Millisecond), r.APIURL)
		return err
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
  be in it:          ssh -F %[5]s root@ID.%[6]s

Ctrl-C stops Berth; containers go on running. `+"`%[7]s`"+` stops them too.
`, took.Round(100*time.Millisecond), r.APIURL, filepath.Join(dir, "token"), key, filepath.Join(dir, "ssh_config"), b.cfg.Zone, downCommand(dir))
	return err
}

// downCommand is what a person types here to stop the Berth of dir, called as this program was.
func downCommand(dir string) string {
	line := os.Args[0] + " down"
	if os.Getenv("SUDO_UID") != "" {
		line = "sudo " + line
	}
	if dir != config.Default().DataDir {
		line += " --data-dir " + dir
	}
	return line
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
