package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"berth/internal/config"
)

// load returns the settings that a file's text, the environment and arguments make.
func load(t testing.TB, text string, args ...string) (config.Config, error) {
	t.Helper()
	fs := pflag.NewFlagSet("berth", pflag.ContinueOnError)
	config.Flags(fs)
	if text != "" {
		path := filepath.Join(t.TempDir(), "berth.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return config.Load(fs)
}

// cleared makes sure that the caller's environment says nothing.
func cleared(t *testing.T) {
	t.Helper()
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "BERTH_") {
			t.Setenv(name, "")
		}
	}
}

func TestLaterSourcesWin(t *testing.T) {
	cleared(t)
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	c, err := load(t, "")
	if err != nil || c.Zone != "compute.localhost" || c.DataDir != filepath.Join(wd, "data") || len(c.AcceptEnv) != 4 {
		t.Fatalf("defaults are %+v, %v", c, err)
	}
	const file = "zone: a.example\nreserve-gb: 1\nhttp-addr: 127.0.0.1:1\naccept-env: [LANG]\ntoken-ttl: 2h\n"
	if c, err = load(t, file); err != nil || c.Zone != "a.example" || c.ReserveGB != 1 || len(c.AcceptEnv) != 1 || c.TokenTTL.Hours() != 2 {
		t.Fatalf("with a file: %+v, %v", c, err)
	}
	t.Setenv("BERTH_ZONE", "b.example")
	t.Setenv("BERTH_RESERVE_GB", "2")
	t.Setenv("BERTH_ACCEPT_ENV", "A,B_*")
	t.Setenv("BERTH_DATA", "/somewhere")
	t.Setenv("BERTH_NO_SUCH_SETTING", "x")
	if c, err = load(t, file); err != nil || c.Zone != "b.example" || c.ReserveGB != 2 || len(c.AcceptEnv) != 2 || c.DataDir != "/somewhere" {
		t.Fatalf("with the environment: %+v, %v", c, err)
	}
	c, err = load(t, file, "--zone=c.example", "--data-dir=/elsewhere")
	if err != nil || c.Zone != "c.example" || c.DataDir != "/elsewhere" || c.HTTPAddr != "127.0.0.1:1" {
		t.Fatalf("with flags: %+v, %v", c, err)
	}
}

func TestBadSettings(t *testing.T) {
	cleared(t)
	for arg, want := range map[string]string{
		"--engine=docker":                    "containerd or kubernetes",
		"--engine=kubernetes":                "image, agent",
		"--kubernetes-namespace=Berth":       "no name",
		"--storage-class=a/b":                "no name",
		"--gateway-names=a_b":                "gateway-names",
		"--node-selector=disktype":           "KEY=VALUE",
		"--node-selector=a b=c":              "KEY=VALUE",
		"--tolerations==x":                   "with :EFFECT",
		"--tolerations=tenants=yes:Sometime": "NoExecute",
		"--pull-policy=Sometimes":            "IfNotPresent",
		"--pull-secrets=a/b":                 "no name",
		"--load-balancer-class=a b":          "not a class",
		"--load-balancer-annotations=a b=c":  "KEY=VALUE",
		"--agent-transport=http":             "exec or pod",
		"--architecture=riscv64":             "arm64",
		"--resolver=kube-dns":                "no address",
		"--blocked=198.51.100.1/24":          "first address",

		"--http-addr=0.0.0.0:80":           "allow-plain-http",
		"--http-addr=:80":                  "allow-plain-http",
		"--http-addr=80":                   "host:port",
		"--http-addr=127.0.0.1:x":          "port",
		"--ssh-addr=127.0.0.1:70000":       "port",
		"--ssh-addr=example.com:22":        "IP address",
		"--proxy-protocol-from=10.0.0.1/8": "proxy-protocol-from",
		"--zone=Compute.Example":           "zone",
		"--zone=a..b":                      "zone",
		"--zone=":                          "zone",
		"--external-ip=::1":                "external-ip",
		"--external-ip=0.0.0.0":            "external-ip",
		"--external-ip=example.com":        "external-ip",
		"--public-url=example.com":         "public-url",
		"--public-url=https://a.b/":        "public-url",
		"--public-url=HTTPS://a.b":         "public-url",
		"--public-url=https://u@a.b":       "public-url",
		"--public-url=ftp://a.b":           "public-url",
		"--allowed-origins=null":           "allowed-origins",
		"--allowed-origins=*":              "allowed-origins",
		// A tenant's page is no page of the operator's, whatever the spelling.
		"--public-url=https://api.compute.localhost":                        "in the zone",
		"--public-url=https://api.compute.localhost.:8443":                  "in the zone",
		"--allowed-origins=https://a.b,http://a1b2c3d4.compute.localhost:1": "in the zone",
		"--feed-clients=0":                                    "feed-clients",
		"--feed-clients=5":                                    "feed-clients",
		"--feed-clients-per-user=0":                           "feed-clients",
		"--audit-days=0":                                      "audit-days",
		"--audit-days=4000":                                   "audit-days",
		"--audit-records=2999":                                "audit-records",
		"--subnet=10.0.0.1/16":                                "subnet",
		"--subnet=fd00::/64":                                  "subnet",
		"--dns-upstream=9.9.9.9":                              "dns-upstream",
		"--reserve-gb=-1":                                     "reserve-gb",
		"--containerd-address=unix:///run/c.sock":             "containerd-address",
		"--containerd-address=c.sock":                         "containerd-address",
		"--containerd-address=/" + strings.Repeat("long", 27): "containerd-address",
		"--token-ttl=1s":                                      "token-ttl",
		"--containers-per-user=0":                             "containers-per-user",
		"--keys-per-user=9999":                                "keys-per-user",
		"--log-format=xml":                                    "log-format",
		"--log-level=loud":                                    "log-level",
	} {
		if _, err := load(t, "", arg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v", arg, err)
		}
	}
	for text, want := range map[string]string{
		"zoen: a.example":   `"zoen"`,
		"zone: [":           "settings",
		"zone:\n  deep: er": "zone.deep",
		"reserve-gb: lots":  "settings",
	} {
		if _, err := load(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error is %v", text, err)
		}
	}
	if _, err := load(t, "", "--config=/no/such/file"); err == nil {
		t.Error("a file that is not there is taken for an empty one")
	}
	if _, err := load(t, "", "--http-addr=0.0.0.0:80", "--allow-plain-http"); err != nil {
		t.Error(err)
	}
}

func TestOrigins(t *testing.T) {
	cleared(t)
	t.Setenv("BERTH_ALLOWED_ORIGINS", "https://dash.example.com,http://127.0.0.1:5173")
	c, err := load(t, "", "--public-url=https://compute.localhost")
	if err != nil || len(c.AllowedOrigins) != 2 || c.AllowedOrigins[1] != "http://127.0.0.1:5173" || c.PublicURL != "https://compute.localhost" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestGatewayIP(t *testing.T) {
	for _, tc := range []struct{ external, ssh, want string }{
		{"", "127.0.0.1:2222", "127.0.0.1"},
		{"", "localhost:2222", "127.0.0.1"},
		{"", "192.0.2.7:22", "192.0.2.7"},
		{"", "0.0.0.0:22", ""},
		{"", ":22", ""},
		{"", "[::]:22", ""},
		{"", "[::1]:22", ""},
		{"192.0.2.9", "0.0.0.0:22", "192.0.2.9"},
		{"192.0.2.9", "127.0.0.1:22", "192.0.2.9"},
	} {
		c := config.Default()
		c.ExternalIP, c.SSHAddr = tc.external, tc.ssh
		if got := c.GatewayIP(); got != tc.want {
			t.Errorf("external-ip %q, ssh-addr %q: %q, want %q", tc.external, tc.ssh, got, tc.want)
		}
	}
}

func FuzzFile(f *testing.F) {
	f.Add("zone: a.example\naccept-env: [LANG]")
	f.Add("token-ttl: 2h\nallow-plain-http: true")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := load(t, text); err == nil && c.Validate() != nil {
			t.Errorf("%q is loaded and not valid: %v", text, c.Validate())
		}
	})
}
