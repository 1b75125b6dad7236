package k8stest

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"berth/deploy/devcluster/clustertest"
	"berth/internal/compute"
	"berth/internal/enginetest"
	"berth/internal/k8s"
)

func TestMain(m *testing.M) {
	enginetest.Victim(openMortal)
	if err := flag.Set("test.parallel", "6"); err != nil { // they mostly wait; the command line's word comes later
		panic(err)
	}
	os.Exit(m.Run())
}

// openMortal opens an engine for a control plane that may be killed.
func openMortal(config json.RawMessage) enginetest.Opening {
	return func(ctx context.Context, installation string, log *slog.Logger) (enginetest.Engine, error) {
		var o k8s.Options
		if err := json.Unmarshal(config, &o); err != nil {
			return nil, err
		}
		return opening(o)(ctx, installation, log)
	}
}

func opening(o k8s.Options) enginetest.Opening {
	return func(ctx context.Context, installation string, log *slog.Logger) (enginetest.Engine, error) {
		o.InstallationID, o.Log = installation, log
		return k8s.Open(ctx, o)
	}
}

// TestKilledAtEveryStep kills control planes at every step of what owners ask for, and sees the next one finish the work.
func TestKilledAtEveryStep(t *testing.T) {
	r := newRig(t)
	r.close()
	opt := r.opt
	opt.Log = nil
	opt.Image = r.unread // to read it takes seconds of each of a hundred lives; nothing here depends on what is in it
	enginetest.RunKilled(t, &enginetest.Mortal{
		Config: opt, Open: openMortal, Planes: 2,
		Gone: func(t *testing.T, _ enginetest.Engine, ref compute.Ref) { gone(t, r.cluster, ref) },
	})
}

// gone checks that nothing of a container is left on the cluster. Its volume goes after its namespace.
func gone(t *testing.T, c *clustertest.Cluster, ref compute.Ref) {
	t.Helper()
	if out := c.Do(t, "get", "namespace", ref.String(), "--ignore-not-found", "-o", "name"); out != "" {
		t.Errorf("left behind: %s", out)
	}
	clustertest.Eventually(t, enginetest.Timeout, func() error {
		out, err := c.Try(t, "get", "persistentvolumes", "-o", `jsonpath={range .items[*]}{.spec.claimRef.namespace}{"\n"}{end}`)
		if err == nil && strings.Contains(out, ref.String()) {
			err = fmt.Errorf("left behind: the volume of %s", ref)
		}
		return err
	})
}
