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
		"--http-addr=0.0.0.0:80":     "allow-plain-http",
		"--http-addr=:80":            "allow-plain-http",
		"--http-addr=80":             "host:port",
		"--http-addr=127.0.0.1:x":    "port",
		"--ssh-addr=127.0.0.1:70000": "port",
		"--ssh-addr=example.com:22":  "IP address",
		"--zone=Compute.Example":     "zone",
		"--zone=a..b":                "zone",
		"--zone=":                    "zone",
		"--subnet=10.0.0.1/16":       "subnet",
		"--subnet=fd00::/64":         "subnet",
		"--dns-upstream=9.9.9.9":     "dns-upstream",
		"--reserve-gb=-1":            "reserve-gb",
		"--token-ttl=1s":             "token-ttl",
		"--containers-per-user=0":    "containers-per-user",
		"--keys-per-user=9999":       "keys-per-user",
		"--log-format=xml":           "log-format",
		"--log-level=loud":           "log-level",
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

func FuzzFile(f *testing.F) {
	f.Add("zone: a.example\naccept-env: [LANG]")
	f.Add("token-ttl: 2h\nallow-plain-http: true")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := load(t, text); err == nil && c.Validate() != nil {
			t.Errorf("%q is loaded and not valid: %v", text, c.Validate())
		}
	})
}
