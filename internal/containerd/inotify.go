package containerd

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The kernel counts the inotify instances and watches of a container also with those of the user who made its user
// namespace: root. So one container could take all that the host and the others may have, 128 instances by default. Each
// gets a bound of its own, what a user of a machine has, and root gets room for many of them.
const (
	watchersLimit = 128     // inotify instances of one container
	watchesLimit  = 1 << 16 // files and directories that they watch

	rootWatchers = 1 << 16
	rootWatches  = 1 << 23
)

// boundWatches sets a container's own bounds. runc sets no such sysctls, and only a process in the container's user
// namespace can: a hook, which runs in it before the container's root is there.
func boundWatches(_ context.Context, _ oci.Client, _ *containers.Container, sp *oci.Spec) error {
	timeout := 10 // seconds
	script := fmt.Sprintf("echo %d >/proc/sys/user/max_inotify_instances && echo %d >/proc/sys/user/max_inotify_watches",
		watchersLimit, watchesLimit)
	sp.Hooks = &specs.Hooks{
		CreateContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Timeout: &timeout}},
	}
	return nil
}

// roomForWatches raises what root may have, unless it is as much already.
func roomForWatches(log *slog.Logger) error {
	for name, least := range map[string]int{"max_user_instances": rootWatchers, "max_user_watches": rootWatches} {
		p := "/proc/sys/fs/inotify/" + name
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		have, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		if have >= least {
			continue
		}
		if err := os.WriteFile(p, []byte(strconv.Itoa(least)), 0o644); err != nil {
			return fmt.Errorf("make room for what containers watch: %w", err)
		}
		log.Info("raised a limit of the kernel's, which counts what containers watch as root's",
			"sysctl", "fs.inotify."+name, "from", have, "to", least)
	}
	return nil
}
