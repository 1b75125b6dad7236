package k8s

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"berth/internal/compute"
)

var update = flag.Bool("update", false, "write the golden files anew")

func goldenSpec() compute.Spec {
	return compute.Spec{
		Ref: compute.Ref{Owner: 7, ID: "deadbeef"}, Generation: 3, Running: true, Hostname: "deadbeef.compute.example.com",
		MilliCPU: 1000, Arch: "amd64", MemoryMB: 512, StorageGB: 5, MountPaths: []string{"/root", "/srv/$data"},
	}
}

// The objects are part of what operators see and audit: a change of one shows as a change of these files.
func TestObjectsAreAsWritten(t *testing.T) {
	plain := Options{
		InstallationID: "11111111-2222-3333-4444-555555555555", Image: "registry.example/base@sha256:00", AgentImage: "registry.example/agent:1",
		GatewayNamespace: "berth",
	}
	full := plain
	full.PullPolicy, full.AcceptEnv, full.StorageClass = corev1.PullIfNotPresent, []string{"LANG", "LC_*"}, "fast"
	full.GatewayLabels = map[string]string{"app": "berth-gateway"}
	full.Resolver = netip.MustParseAddr("9.9.9.9")
	full.Blocked = []netip.Prefix{netip.MustParsePrefix("203.0.113.7/32"), netip.MustParsePrefix("2001:db8::/32")}
	full.NodeSelector = map[string]string{"tenants": "yes"}
	full.Tolerations = []corev1.Toleration{{Key: "tenants", Operator: corev1.TolerationOpExists}}
	full.PriorityClass, full.RuntimeClass, full.UserNamespaces, full.Spread = "low", "gvisor", true, true
	full.PullSecrets = []string{"registry"}
	full.LoadBalancers = &LoadBalancers{Class: "example.com/lb", Annotations: map[string]string{"example.com/proxy-protocol": "true"}}
	stopped := goldenSpec()
	stopped.Running = false
	for _, c := range []struct {
		name    string
		opt     Options
		image   image
		outside outside
		seeded  []string
		spec    compute.Spec
	}{
		{"plain", plain, image{}, outside{}, []string{"/srv/$data", "/root", "/other"}, goldenSpec()},
		{
			"full", full,
			image{command: []string{"/bin/sh", "-c", "exec $(SHELL)"}, user: "app:crew"},
			outside{
				addresses:  []netip.Addr{netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db9::9")},
				registries: []byte(`{"auths":{}}`), version: "7,",
			},
			[]string{"/root"},
			stopped,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			opt, err := c.opt.withDefaults()
			if err != nil {
				t.Fatal(err)
			}
			m := maker{opt: opt, image: c.image}
			m.image.reference = opt.Image
			all := append([]object{m.namespace(c.spec.Ref, c.outside), m.storage(c.spec)}, m.surroundings(c.spec.Ref, c.outside)...)
			var got strings.Builder
			for _, object := range append(all, m.statefulSet(c.spec, c.seeded)) {
				b, err := yaml.Marshal(object)
				if err != nil {
					t.Fatal(err)
				}
				got.WriteString("---\n" + string(b))
			}
			file := filepath.Join("testdata", c.name+".yaml")
			if *update {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != string(want) {
				t.Errorf("objects differ from %s (-update writes it anew):\n%s", file, &got)
			}
		})
	}
}
