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
	"time"

	"berth/internal/config"
	"berth/internal/containerd"
)

// downTimeout bounds the end of a running berth and of its containers.
const downTimeout = 2 * time.Minute

// Down stops the berth of the data directory, if one runs, and its containers. With destroy it then removes the
// containers' storage and everything else that berth made in the data directory.
func Down(ctx context.Context, c config.Config, destroy bool, out io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("the containers belong to root; run this with sudo")
	}
	if !exists(c.DataDir) {
		_, err := fmt.Fprintf(out, "There is no berth in %s.\n", c.DataDir)
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, downTimeout, fmt.Errorf("it took more than %s", downTimeout))
	defer cancel()
	say := func(line string) { fmt.Fprintln(out, line) }
	for _, name := range []string{gatewayLockFile, dataLockFile} {
		lock, err := stopRunning(ctx, c.DataDir, name, say)
		if err != nil {
			return err
		}
		defer func() { _ = lock.release() }() // its file may be gone by then
	}
	say("Stopping containers")
	options := containerd.Options{DataDir: c.DataDir, ContainerdPath: c.Containerd, Log: newLogger(c, out)}
	if err := containerd.Down(ctx, options, destroy); err != nil {
		return err
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

// removeData removes what berth made in dir, and dir itself if nothing else is in it: a person may keep files there.
func removeData(dir string) error {
	var errs []error
	for _, pattern := range []string{
		"berth.db*", "ssh_host_*", "token*", "id_ed25519*", "ssh_config", "known_hosts", "ready.json", operatorSocket, "volumes",
		"agent", "containerd", "network.json", "lock", "gateway.lock",
	} {
		paths, _ := filepath.Glob(filepath.Join(dir, pattern)) // fails only on a bad pattern
		for _, p := range paths {
			errs = append(errs, os.RemoveAll(p))
		}
	}
	_ = os.Remove(dir) // unless something else is in it
	return errors.Join(errs...)
}

// Check is one line of the doctor.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Needed bool   `json:"needed"` // berth does not start without it
	Detail string `json:"detail,omitempty"`
}

// Doctor looks for all that this machine must have for Berth, and changes nothing.
func Doctor(ctx context.Context, c config.Config) []Check {
	options, err := engineOptions(c)
	checks := []Check{{
		Name: "machine", OK: runtime.GOOS == "linux", Needed: true, Detail: runtime.GOOS + "/" + runtime.GOARCH,
	}, {
		Name: "files", OK: err == nil, Needed: true, Detail: "base image and agent",
	}}
	if err != nil {
		checks[1].Detail = err.Error()
	}
	options.Log = slog.New(slog.DiscardHandler)
	for _, k := range containerd.Checks(ctx, options) {
		check := Check{Name: k.Name, OK: k.Problem == nil, Needed: k.Fatal}
		if k.Problem != nil {
			check.Detail = k.Problem.Error()
		}
		checks = append(checks, check)
	}
	return checks
}
