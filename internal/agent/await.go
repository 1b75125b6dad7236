package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// awaitEvery is between two looks. The kernel would tell, by inotify, but bounds that for a user of the node, and a pod has to
// start also where a neighbour used it up.
const awaitEvery = 5 * time.Millisecond

// Await returns once all files are there, and those that are sockets accept connections. A kubelet runs it as the hook of a
// container that has just started, and starts the next one when it ends.
func Await(ctx context.Context, files []string) error {
	again := time.NewTicker(awaitEvery)
	defer again.Stop()
	for _, file := range files {
		for {
			err := present(file)
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("wait for %s: %w", file, err)
			case <-again.C:
			}
		}
	}
	return nil
}

func present(file string) error {
	st, err := os.Lstat(file)
	if err != nil || st.Mode()&fs.ModeSocket == 0 {
		return err
	}
	nc, err := net.Dial("unix", file)
	if err != nil {
		return err
	}
	return nc.Close()
}

// StandBy runs prepare and then does nothing until it is told to end: a pod's container may not end before the pod does.
func StandBy(prepare func() error) error {
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT) // a first process is not ended by a signal that it does not catch
	defer signal.Stop(ends)
	if err := prepare(); err != nil {
		return err
	}
	<-ends
	return nil
}

// errUnprepared keeps a tenant out of mount paths that are not as the image has them.
var errUnprepared = errors.New("the mount paths are not prepared")

// prepared says whether what has to be there before anybody enters is there.
func prepared(mark string) error {
	if mark == "" {
		return nil
	}
	if _, err := os.Lstat(mark); err != nil {
		return fmt.Errorf("%w: %w", errUnprepared, err)
	}
	return nil
}
