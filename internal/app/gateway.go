package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/fsnotify/fsnotify"

	"berth/internal/compute"
	"berth/internal/config"
	"berth/internal/containerd"
	"berth/internal/control"
	"berth/internal/route"
	"berth/internal/store"
)

// Gateway runs the SSH gateway alone, beside a berth-api on the same data directory. It reads the database that the other
// writes, and reaches the agents by their sockets.
func Gateway(ctx context.Context, c config.Config, out io.Writer) (err error) {
	if err := needRoot(); err != nil {
		return err
	}
	b := &berth{cfg: c, log: newLogger(c, out), audit: newAuditing()}
	defer func() { err = errors.Join(err, b.close()) }()
	if b.in, err = findInvoker(); err != nil {
		return err
	}
	b.files = clientFiles{dir: c.DataDir, in: b.in}
	if b.zone, err = route.ParseZone(c.Zone); err != nil {
		return err
	}
	database := b.files.path("berth.db")
	if !exists(database) {
		return fmt.Errorf("there is no berth in %s yet; start berth-api with this --data-dir first", c.DataDir)
	}
	lock, err := takeLock(c.DataDir, gatewayLockFile)
	if err != nil {
		return err
	}
	b.onClose(lock.release)
	gateway, err := b.listenTCP("ssh-addr", c.SSHAddr)
	if err != nil {
		return err
	}
	reader, err := store.OpenReadOnly(ctx, database)
	if err != nil {
		return err
	}
	b.onClose(reader.Close)
	if err := b.openEvents(ctx, reader); err != nil {
		return err
	}
	if err := b.watchCommits(); err != nil {
		return err
	}
	if err := b.openGatewayAudit(); err != nil {
		return err
	}
	dialer, err := containerd.NewDialer(c.DataDir)
	if err != nil {
		return err
	}
	if err := b.openGateway(gateway, reader, dialer, listing{reader}); err != nil {
		return err
	}
	return b.serve(ctx, func() error {
		a, err := b.findAdmin(ctx, reader)
		if err != nil {
			return err
		}
		if a.user.ID == 0 {
			b.log.Warn("no administrator is enabled: ssh_config is not written")
		} else if err := b.files.writeSSH(c.Zone, gateway.Addr(), a.user.Username, b.hostKeys, a.identities); err != nil {
			return fmt.Errorf("write ssh_config: %w", err)
		}
		_, err = fmt.Fprintf(out, "The gateway is ready: ssh at %s\n", dialable(gateway.Addr()))
		return err
	})
}

// watchCommits hints at new events whenever another process has written to the database.
func (b *berth) watchCommits() error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch for changes: %w", err)
	}
	b.onClose(w.Close)
	if err := w.Add(b.cfg.DataDir); err != nil {
		return fmt.Errorf("watch for changes: %w", err)
	}
	b.inner = append(b.inner, func(ctx context.Context) error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case e := <-w.Events:
				if filepath.Base(e.Name) == commitsFile {
					b.committed()
				}
			case err := <-w.Errors:
				b.log.Warn("watch for changes", "err", err)
				b.committed()
			}
		}
	})
	return nil
}

// listing is what the lobby needs, from the database alone: without the usage that only an engine measures.
type listing struct{ reader *store.Reader }

func (l listing) ListContainers(ctx context.Context, p compute.Principal) ([]control.ContainerView, error) {
	list, err := l.reader.Containers(ctx, p.User)
	views := make([]control.ContainerView, len(list))
	for i, c := range list {
		views[i] = control.ContainerView{Container: c}
	}
	return views, err
}
