package app

import (
	"strings"
	"testing"

	"berth/internal/config"
)

// The doctor of a cluster asks nothing of this machine, and says which setting is wrong where it does not come far.
func TestDoctorOfACluster(t *testing.T) {
	s := newSite(t)
	s.cfg.Engine, s.cfg.Kubeconfig = config.EngineKubernetes, "/absent/kubeconfig"
	s.cfg.Image, s.cfg.Agent = "registry.example/base:1", "registry.example/agent:1"
	list := Doctor(t.Context(), s.cfg, true)
	last := list[len(list)-1]
	if last.Name != "cluster" || last.OK || !last.Needed || !strings.Contains(last.Detail, "--kubeconfig") || !strings.Contains(last.Detail, "/absent/kubeconfig") {
		t.Errorf("found %+v", list)
	}
	for _, c := range list {
		if c.Name == "root" || c.Name == "containerd" {
			t.Errorf("looked for %+v", c)
		}
	}
}
