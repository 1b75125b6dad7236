package app

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"berth/internal/config"
)

// The names that parts give and the page for operators are the same.
func TestEveryMetricIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/operator/monitor.md")
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(berth_[a-z_]+)` \\|").FindAllStringSubmatch(string(page), -1) {
		told = append(told, m[1])
	}
	var made []string
	for _, file := range []string{"monitor.go", "cluster.go", "../monitor/metrics.go"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("[\"`](berth_[a-z_]+)").FindAllStringSubmatch(string(text), -1) {
			made = append(made, m[1])
		}
	}
	slices.Sort(told)
	slices.Sort(made)
	if !slices.Equal(told, slices.Compact(made)) {
		t.Errorf("the page tells of %v\nthere are %v", told, made)
	}
}

func TestAdminAddressIsTaken(t *testing.T) {
	b := state(t, nil)
	l, err := b.listenTCP("admin-addr", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.cfg.AdminAddr = l.Addr().String()
	if err := b.openMonitor(); err == nil || !strings.Contains(err.Error(), "--admin-addr") {
		t.Errorf("%v", err)
	}
	b.cfg.AdminAddr = config.Default().AdminAddr
	if err := b.openMonitor(); err != nil || b.adminAddr != nil || len(b.lastEdges) != 0 {
		t.Errorf("%v: by default there is one at %v", err, b.adminAddr)
	}
}
