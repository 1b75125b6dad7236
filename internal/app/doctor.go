package app

import (
	"context"
	"log/slog"
	"runtime"

	"berth/internal/compute"
	"berth/internal/config"
	"berth/internal/containerd"
	"berth/internal/k8s"
	"berth/internal/store"
)

// Check is one line of the doctor.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Needed bool   `json:"needed"` // berth does not start without it
	Detail string `json:"detail,omitempty"`
}

// Doctor looks for all that Berth must have of this machine or of its cluster. On a cluster it runs a pod for that, and two where
// isolation is to be tried thoroughly; else it changes nothing.
func Doctor(ctx context.Context, c config.Config, isolation bool) []Check {
	if c.OnKubernetes() {
		return examineCluster(ctx, c, isolation)
	}
	options, err := engineOptions(c)
	checks := []Check{{
		Name: "machine", OK: runtime.GOOS == "linux", Needed: true, Detail: runtime.GOOS + "/" + runtime.GOARCH,
	}, {
		Name: "files", OK: err == nil, Needed: true, Detail: "base image and agent",
	}}
	if err != nil {
		checks[1].Detail = err.Error()
	}
	checks = append(checks, examineRest(ctx, c)...)
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

// examineCluster looks at a cluster, with the rights of its kubeconfig.
func examineCluster(ctx context.Context, c config.Config, isolation bool) []Check {
	checks := examineRest(ctx, c)
	options, err := clusterOptions(c)
	if err != nil {
		return append(checks, Check{Name: "settings", Needed: true, Detail: err.Error()})
	}
	for _, k := range k8s.Checks(ctx, k8s.Examination{Options: options, Types: instanceTypes(c), Isolation: isolation}) {
		check := Check{Name: k.Name, OK: k.Problem == nil, Needed: k.Fatal, Detail: k.Detail}
		if k.Problem != nil {
			check.Detail = k.Problem.Error()
		}
		checks = append(checks, check)
	}
	return checks
}

// examineRest looks at what no engine is about.
func examineRest(ctx context.Context, c config.Config) []Check {
	checks := []Check{checkAddresses(c)}
	if c.Database == "" {
		return checks
	}
	check := Check{Name: "database", OK: true, Needed: true}
	if err := store.Check(ctx, c.Database); err != nil {
		check.OK, check.Detail = false, compute.UserMessage(err)
	}
	return append(checks, check)
}

// checkAddresses says which of the addresses to serve at are taken, unless it is by the Berth of this data directory.
func checkAddresses(c config.Config) Check {
	check := Check{Name: "addresses", OK: true, Needed: true}
	if served(c.DataDir) {
		return check
	}
	if err := takenAddresses(c); err != nil {
		check.OK, check.Detail = false, err.Error()
	}
	return check
}
