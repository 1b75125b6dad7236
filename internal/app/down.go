package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"berth/internal/audit"
	"berth/internal/config"
	"berth/internal/containerd"
	"berth/internal/link"
)

// downTimeout bounds the end of a running berth and of its containers.
const downTimeout = 2 * time.Minute

// Down stops the berth of the data directory, if one runs, and its containers. With destroy it then removes the
// containers' storage and everything else that berth made in the data directory.
func Down(ctx context.Context, c config.Config, destroy bool, out io.Writer) (err error) {
	if os.Geteuid() != 0 && !c.OnKubernetes() {
		return errors.New("the containers belong to root; run this with sudo")
	}
	// Without a database the directory is not, or no longer, a Berth's: nothing in it may be destroyed.
	remote := exists(filepath.Join(c.DataDir, elsewhereFile))
	installed := remote || exists(filepath.Join(c.DataDir, databaseFile))
	if remote && destroy {
		return fmt.Errorf("the state of %s is in a PostgreSQL database, which would go on to know its containers; delete them over the API, "+
			"then stop Berth, drop the database and remove the directory", c.DataDir)
	}
	if c.OnKubernetes() && destroy {
		return errors.New("the containers are a cluster's, which Berth asks while it runs; delete them over the API, then stop it and remove the directory")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, downTimeout, fmt.Errorf("it took more than %s", downTimeout))
	defer cancel()
	say := func(line string) { fmt.Fprintln(out, line) }
	for _, name := range []string{gatewayLockFile, dataLockFile} {
		if !installed && !exists(filepath.Join(c.DataDir, name)) {
			continue
		}
		lock, err := stopRunning(ctx, c.DataDir, name, say)
		if err != nil {
			return err
		}
		defer func() { _ = lock.release() }() // its file may be gone by then
	}
	if c.OnKubernetes() {
		say("Stopped. Containers go on running in the cluster.")
		return nil
	}
	if installed {
		say("Stopping containers")
	}
	options := containerd.Options{
		DataDir: c.EnginePath(), ContainerdPath: c.Containerd, ContainerdAddress: c.ContainerdAddress, Log: newLogger(c, out),
	}
	if err := containerd.Down(ctx, options, destroy && installed); err != nil {
		return err
	}
	if !installed {
		say("There is no berth in " + c.DataDir + "; what is there is left as it is.")
		return nil
	}
	if !destroy {
		say("Stopped. Storage and accounts are kept; `berth up` goes on with them.")
		return nil
	}
	if err := removeData(c.DataDir); err != nil {
		return fmt.Errorf("delete the data: %w", err)
	}
	say("Stopped, and deleted all that was in " + c.DataDir)
	return nil
}

// removeData removes what berth made in dir, and dir itself if nothing else is in it: a person may keep files there. The
// database goes last, so that a removal that is cut off can be repeated.
func removeData(dir string) error {
	names := []string{"token", tokenKey, "ssh_config", "known_hosts", "ready.json", operatorSocket, "network.json"}
	names = append(names, linkAuthority, localCredential, linkSocket)
	names = append(names, link.ReplicaFiles(replicaFile)...)
	for _, t := range []string{"ed25519", "ecdsa", "rsa"} {
		names = append(names, "ssh_host_"+t+"_key", "ssh_host_"+t+"_key.pub")
	}
	if public, err := os.ReadFile(filepath.Join(dir, "id_ed25519.pub")); err == nil && bytes.Contains(public, []byte(demoComment)) {
		names = append(names, "id_ed25519", "id_ed25519.pub") // not a key of the person's own
	}
	names = append(names, audit.Names(auditFile)...)
	names = append(names, audit.Names(oldGatewayAuditFile)...)
	names = append(names, link.SpoolFiles(spoolFile)...)
	names = append(names, "commits") // of versions before the link
	names = append(names, "berth.db-wal", "berth.db-shm", "berth.db.lock", "berth.db", gatewayLockFile, dataLockFile)
	var errs []error
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, e := range entries {
		if e.Name() == stagingDir || strings.HasPrefix(e.Name(), replacedDirs) { // of restores
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	for _, n := range names {
		errs = append(errs, removeQuietly(filepath.Join(dir, n)))
	}
	_ = os.Remove(dir) // unless something else is in it
	return errors.Join(errs...)
}
