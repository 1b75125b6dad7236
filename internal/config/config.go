// Package config is the operator's settings as one plain struct: defaults, then a file, then the environment, then flags,
// then Validate. Nothing else in Berth reads files, environment or flags for its settings.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/providers/structs"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"berth/internal/compute"
)

// Config is every setting. The tag is the name of the flag and of the file's key; the environment's is BERTH_ and the same in
// capitals with underscores (BERTH_HTTP_ADDR); BERTH_DATA is short for BERTH_DATA_DIR.
type Config struct {
	DataDir   string `koanf:"data-dir" help:"directory for all state"`
	HTTPAddr  string `koanf:"http-addr" help:"address for the REST API, host:port; port 0 picks a free one"`
	SSHAddr   string `koanf:"ssh-addr" help:"address for SSH, host:port; port 0 picks a free one"`
	Zone      string `koanf:"zone" help:"DNS zone of the containers' hostnames"`
	EngineDir string `koanf:"engine-dir" help:"directory of the containers, which control planes of one machine share; empty: the data directory"`
	Database  string `koanf:"database" help:"address of a PostgreSQL database, postgres://USER@HOST/NAME; empty: an SQLite file in the data directory"`

	ProxyProtocolFrom []string `koanf:"proxy-protocol-from" help:"networks of load balancers before ssh-addr, which tell by PROXY protocol who connects"`

	ExternalIP     string   `koanf:"external-ip" help:"IPv4 at which clients reach the gateway; empty takes ssh-addr's where that is one"`
	PublicURL      string   `koanf:"public-url" help:"the API's address as browsers see it, such as https://api.example.com; empty goes by the Host header"`
	AllowedOrigins []string `koanf:"allowed-origins" help:"addresses of other web pages that may use the API as their visitors"`

	Image      string `koanf:"image" help:"base image: its archive, made by make image; its reference in a registry, for kubernetes"`
	Agent      string `koanf:"agent" help:"agent: the binary for this machine's architecture; the reference of its image, for kubernetes"`
	Containerd string `koanf:"containerd" help:"containerd binary to start"`

	ContainerdAddress string `koanf:"containerd-address" help:"socket of a containerd that runs already, to use in place of one of berth's own"`

	Engine string `koanf:"engine" help:"what runs the containers: containerd, on this machine, or kubernetes"`

	// Of Kubernetes.
	Kubeconfig          string   `koanf:"kubeconfig" help:"file that says how the cluster is reached; empty: as one of its pods"`
	KubernetesNamespace string   `koanf:"kubernetes-namespace" help:"namespace of berth itself, whose gateways containers let in; empty: that of this pod, else berth"`
	GatewaySecret       string   `koanf:"gateway-secret" help:"Secret in that namespace that berth-api keeps filled with what gateways need: SSH host keys, and a credential for each of gateway-names; empty: none"`
	GatewayNames        []string `koanf:"gateway-names" help:"gateways that gateway-secret has a credential for"`
	KeysSecret          string   `koanf:"keys-secret" help:"Secret in that namespace by which control planes that share a database share their keys; empty: they are in the data directory alone"`
	HostKeys            string   `koanf:"host-keys" help:"directory of the SSH host keys; empty: the data directory"`
	Architecture        string   `koanf:"architecture" help:"architecture that all containers run on, amd64 or arm64; empty: that of their instance type"`
	StorageClass        string   `koanf:"storage-class" help:"class of the containers' volumes; empty: the cluster's default"`
	NodeSelector        []string `koanf:"node-selector" help:"labels of the nodes that containers run on, each KEY=VALUE"`
	Tolerations         []string `koanf:"tolerations" help:"taints of nodes that containers run on all the same, each KEY[=VALUE][:EFFECT]"`
	PriorityClass       string   `koanf:"priority-class" help:"priority of the containers' pods"`
	RuntimeClass        string   `koanf:"runtime-class" help:"RuntimeClass of the containers' pods, such as a sandbox's"`
	UserNamespaces      bool     `koanf:"user-namespaces" help:"run the containers' pods in user namespaces (hostUsers: false); nodes must be able to"`
	PullPolicy          string   `koanf:"pull-policy" help:"when nodes pull images: Always, IfNotPresent or Never; empty: as Kubernetes does"`
	PullSecrets         []string `koanf:"pull-secrets" help:"Secrets in berth's namespace with credentials for the registries of image and agent, as docker login makes them"`
	Spread              bool     `koanf:"spread" help:"spread containers over nodes where there is a choice, in place of filling one first"`
	LoadBalancers       bool     `koanf:"load-balancers" help:"ask the cluster for an address of its own for each container, at which the gateways answer"`
	LoadBalancerClass   string   `koanf:"load-balancer-class" help:"class of those load balancers; empty: the cluster's default"`

	LoadBalancerAnnotations []string `koanf:"load-balancer-annotations" help:"what else the cluster's controller is told of them, each KEY=VALUE"`

	AgentTransport string   `koanf:"agent-transport" help:"how containers' agents are reached: exec, by way of the API server, or pod, at their pods' addresses where those can be reached"`
	Resolver       string   `koanf:"resolver" help:"resolver of the containers' names, an address; empty: the cluster's"`
	Blocked        []string `koanf:"blocked" help:"networks that containers may not reach, beside private ones, such as 198.51.100.0/24"`

	Subnet      string `koanf:"subnet" help:"IPv4 subnet for the containers; empty picks a free one"`
	DNSUpstream string `koanf:"dns-upstream" help:"resolver for the containers, address:port; empty takes the host's"`

	LinkAddress    string        `koanf:"link-address" help:"where gateways reach the control plane, host:port: berth-api listens there, berth-gateway dials it; empty stays in the data directory"`
	LinkCredential string        `koanf:"link-credential" help:"the gateway's credential, made by berth gateway add; empty takes the one that berth-api left in the data directory"`
	MaxStale       time.Duration `koanf:"max-stale" help:"how long a gateway goes on admitting logins without a word from the control plane"`

	ReserveGB int      `koanf:"reserve-gb" help:"free disk space in GB below which no container is created"`
	MemoryMB  int      `koanf:"memory-mb" help:"memory in MB that all containers together may use; 0 takes three quarters of the machine's"`
	AcceptEnv []string `koanf:"accept-env" help:"environment variables that SSH clients may set, as in sshd_config's AcceptEnv"`

	TokenTTL time.Duration `koanf:"token-ttl" help:"lifetime of the token file's token"`

	ProvisionUsers bool          `koanf:"provision-users" help:"make an account for whoever signs in from elsewhere and has none"`
	HS256Secret    string        `koanf:"hs256-secret" help:"file with the secret that another program signs tokens with; empty: there is none"`
	HS256Name      string        `koanf:"hs256-name" help:"name of that program, under which its users are remembered"`
	HS256Issuer    string        `koanf:"hs256-issuer" help:"iss of its tokens; empty: they have none"`
	HS256Types     []string      `koanf:"hs256-types" help:"values of the claim type that its tokens may have"`
	HS256MaxTTL    time.Duration `koanf:"hs256-max-ttl" help:"longest lifetime of its tokens"`
	HS256Admins    []string      `koanf:"hs256-admins" help:"values of the claim user_id that are administrators"`
	OIDC           []string      `koanf:"oidc" help:"OpenID Connect issuers, each 'URL audience=NAME' or 'URL audience=NAME admin=CLAIM:VALUE'"`

	ContainersPerUser int `koanf:"containers-per-user" help:"containers that one user may have"`
	KeysPerUser       int `koanf:"keys-per-user" help:"SSH keys that one user may have"`
	RequestsPerSecond int `koanf:"requests-per-second" help:"API requests that one user may send, on average; ten times as many at once; 0 for no bound"`
	FeedClients       int `koanf:"feed-clients" help:"clients of the live feed"`
	FeedsPerUser      int `koanf:"feed-clients-per-user" help:"clients of the live feed that one user may have"`

	AdminAddr    string        `koanf:"admin-addr" help:"address for metrics and profiles, host:port, for operators alone; empty: none"`
	DrainDelay   time.Duration `koanf:"drain-delay" help:"how long /readyz says so before a stop begins, for load balancers"`
	DrainTimeout time.Duration `koanf:"drain-timeout" help:"how long a stop waits for requests that are under way"`
	AuditDays    int           `koanf:"audit-days" help:"days for which audit records are kept"`
	AuditRecords int           `koanf:"audit-records" help:"audit records that are kept at most, a third of them each of changes, of logins and sessions, and of refusals"`

	LogLevel  string `koanf:"log-level" help:"debug, info, warn or error"`
	LogFormat string `koanf:"log-format" help:"text or json"`
	AllowHTTP bool   `koanf:"allow-plain-http" help:"permit http-addr beyond loopback although it is not encrypted"`
}

// Default returns the settings of a machine where nothing was said.
func Default() Config {
	l := compute.DefaultLimits()
	return Config{
		DataDir: "data", HTTPAddr: "127.0.0.1:7080", SSHAddr: "127.0.0.1:2222", Zone: "compute.localhost",
		Engine: EngineContainerd, AgentTransport: TransportExec, Containerd: "containerd", ReserveGB: 5,
		AcceptEnv: []string{"LANG", "LC_*", "TERM", "COLORTERM"},
		HS256Name: "shared", HS256Types: []string{"session"}, HS256MaxTTL: 24 * time.Hour, HS256Admins: []string{},
		OIDC:     []string{},
		MaxStale: 24 * time.Hour,
		TokenTTL: 24 * time.Hour, ContainersPerUser: l.ContainersPerUser, KeysPerUser: l.KeysPerUser,
		RequestsPerSecond: 50, FeedClients: 10_000, FeedsPerUser: 100,
		DrainTimeout: 15 * time.Second,
		AuditDays:    90, AuditRecords: 300_000,
		LogLevel: "info", LogFormat: "text",
	}
}

// Flags adds a flag for every setting to fs, and --config.
func Flags(fs *pflag.FlagSet) {
	fs.String("config", "", "YAML file of settings")
	d := reflect.ValueOf(Default())
	for i := range d.NumField() {
		f := d.Type().Field(i)
		name, help := f.Tag.Get("koanf"), f.Tag.Get("help")
		switch v := d.Field(i).Interface().(type) {
		case string:
			fs.String(name, v, help)
		case int:
			fs.Int(name, v, help)
		case bool:
			fs.Bool(name, v, help)
		case time.Duration:
			fs.Duration(name, v, help)
		case []string:
			fs.StringSlice(name, v, help)
		}
	}
}

// Load returns the settings that the file of --config, the environment and the flags of fs make together, validated, with
// DataDir absolute.
func Load(fs *pflag.FlagSet) (Config, error) {
	k := koanf.New(".")
	if err := k.Load(structs.Provider(Default(), "koanf"), nil); err != nil {
		return Config{}, fmt.Errorf("read defaults: %w", err)
	}
	if path, _ := fs.GetString("config"); path != "" {
		own := koanf.New(".")
		if err := own.Load(file.Provider(path), yaml.Parser()); err != nil {
			return Config{}, fmt.Errorf("read the settings in %s: %w", path, err)
		}
		for _, key := range own.Keys() {
			if !k.Exists(key) {
				return Config{}, fmt.Errorf("%s: there is no setting %q; `berth up --help` lists them", path, key)
			}
		}
		if err := k.Merge(own); err != nil {
			return Config{}, fmt.Errorf("read the settings in %s: %w", path, err)
		}
	}
	err := k.Load(env.Provider(".", env.Opt{Prefix: "BERTH_", TransformFunc: func(key, value string) (string, any) {
		name := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(key, "BERTH_")), "_", "-")
		if name == "data" {
			name = "data-dir"
		}
		switch {
		case !k.Exists(name) || value == "":
			return "", nil
		case isList(name):
			return name, strings.Split(value, ",")
		}
		return name, value
	}}), nil)
	if err != nil {
		return Config{}, fmt.Errorf("read the environment: %w", err)
	}
	if err := k.Load(posflag.Provider(fs, ".", k), nil); err != nil {
		return Config{}, fmt.Errorf("read flags: %w", err)
	}
	var c Config
	if err := k.Unmarshal("", &c); err != nil {
		return Config{}, fmt.Errorf("read settings: %s", oneLine(err))
	}
	if c.DataDir, err = filepath.Abs(c.DataDir); err != nil {
		return Config{}, err
	}
	if c.EngineDir != "" {
		if c.EngineDir, err = filepath.Abs(c.EngineDir); err != nil {
			return Config{}, err
		}
	}
	return c, c.Validate()
}

// isList says whether a setting is a list.
func isList(name string) bool {
	t := reflect.TypeFor[Config]()
	for i := range t.NumField() {
		if f := t.Field(i); f.Tag.Get("koanf") == name {
			return f.Type.Kind() == reflect.Slice
		}
	}
	return false
}

// oneLine is the decoder's error without its heading, which comes with an empty line below.
func oneLine(err error) string {
	text := err.Error()
	if _, list, ok := strings.Cut(text, "\n\n"); ok {
		text = list
	}
	return strings.Join(strings.Fields(text), " ")
}

// Networks returns a setting's networks. One that Validate refuses is left out.
func Networks(setting []string) (list []netip.Prefix) {
	for _, n := range setting {
		if p, err := netip.ParsePrefix(n); err == nil {
			list = append(list, p)
		}
	}
	return list
}

// checkNetwork refuses what is no network, and one that has bits of an address in it, as slips of a digit do.
func checkNetwork(setting, network string, bad func(setting, format string, args ...any)) {
	if p, err := netip.ParsePrefix(network); err != nil || p.Masked() != p {
		bad(setting, "%q is no network by its first address, such as 198.51.100.0/24", network)
	}
}

var zoneLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Validate says, in words for the operator, what is wrong with every setting that is.
func (c Config) Validate() error {
	var errs []error
	bad := func(setting, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", setting, fmt.Sprintf(format, args...)))
	}
	if err := checkAddr(c.HTTPAddr, Default().HTTPAddr); err != nil {
		bad("http-addr", "%v", err)
	}
	if err := checkAddr(c.SSHAddr, Default().SSHAddr); err != nil {
		bad("ssh-addr", "%v", err)
	}
	if host, _, err := net.SplitHostPort(c.HTTPAddr); err == nil && !c.AllowHTTP && !loopback(host) {
		bad("http-addr", "%q is not loopback, and plain HTTP would show tokens to the network; put a TLS proxy in front, or set allow-plain-http", c.HTTPAddr)
	}
	if len(c.Zone) > 240 {
		bad("zone", "a zone has at most 240 characters")
	}
	for label := range strings.SplitSeq(c.Zone, ".") {
		if !zoneLabel.MatchString(label) {
			bad("zone", "%q is not a DNS name in lowercase, such as compute.example.com", c.Zone)
			break
		}
	}
	if ip, err := netip.ParseAddr(c.ExternalIP); c.ExternalIP != "" && (err != nil || !ip.Is4() || ip.IsUnspecified()) {
		bad("external-ip", "%q is not an IPv4 address, such as 192.0.2.1", c.ExternalIP)
	}
	for _, n := range c.ProxyProtocolFrom {
		checkNetwork("proxy-protocol-from", n, bad)
	}
	c.checkOrigins(bad)
	if c.Subnet != "" {
		if p, err := netip.ParsePrefix(c.Subnet); err != nil || !p.Addr().Is4() || p.Masked() != p || p.Bits() < 16 || p.Bits() > 29 {
			bad("subnet", "%q is not an IPv4 network from /16 to /29 by its first address, such as 10.99.0.0/22", c.Subnet)
		}
	}
	if c.DNSUpstream != "" {
		if _, err := netip.ParseAddrPort(c.DNSUpstream); err != nil {
			bad("dns-upstream", "%q is not address:port, such as 9.9.9.9:53", c.DNSUpstream)
		}
	}
	if c.LinkAddress != "" {
		if host, port, err := net.SplitHostPort(c.LinkAddress); err != nil || host == "" {
			bad("link-address", "%q is not host:port, such as 10.0.0.1:7443", c.LinkAddress)
		} else if _, err := net.LookupPort("tcp", port); err != nil {
			bad("link-address", "%q has no port from 0 to 65535", c.LinkAddress)
		}
	}
	if c.MaxStale < time.Minute || c.MaxStale > 30*24*time.Hour {
		bad("max-stale", "choose from 1m to 720h")
	}
	if c.ReserveGB < 0 || c.MemoryMB < 0 {
		bad("reserve-gb, memory-mb", "a negative amount means nothing")
	}
	if c.TokenTTL < time.Minute || c.TokenTTL > 30*24*time.Hour {
		bad("token-ttl", "choose from 1m to 720h")
	}
	c.checkSignIn(bad)
	if c.ContainersPerUser < 1 || c.ContainersPerUser > 1000 {
		bad("containers-per-user", "choose from 1 to 1000")
	}
	if c.KeysPerUser < 1 || c.KeysPerUser > 1000 {
		bad("keys-per-user", "choose from 1 to 1000")
	}
	if c.RequestsPerSecond < 0 || c.RequestsPerSecond > 1_000_000 {
		bad("requests-per-second", "it is from 0 to 1000000, and %d was given", c.RequestsPerSecond)
	}
	if c.FeedClients < 1 || c.FeedClients > 1_000_000 || c.FeedsPerUser < 1 || c.FeedsPerUser > c.FeedClients {
		bad("feed-clients, feed-clients-per-user", "choose from 1 to 1000000 clients, and no more for a user than for all")
	}
	c.checkKubernetes(bad)
	c.checkOperations(bad)
	c.checkDatabase(bad)
	if a := c.ContainerdAddress; a != "" && (!filepath.IsAbs(a) || len(a) > 107) {
		bad("containerd-address", "%q is not the path of a unix socket, such as /run/containerd/containerd.sock", a)
	}
	if c.AuditDays < 1 || c.AuditDays > 3650 {
		bad("audit-days", "choose from 1 to 3650")
	}
	if c.AuditRecords < 3000 || c.AuditRecords > 30_000_000 {
		bad("audit-records", "choose from 3000 to 30000000")
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		bad("log-format", "choose text or json")
	}
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		bad("log-level", "choose debug, info, warn or error")
	}
	return errors.Join(errs...)
}

var webOrigin = regexp.MustCompile(`^https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$`)

// checkOrigins refuses what no browser sends as an Origin, and pages that tenants may serve.
func (c Config) checkOrigins(bad func(setting, format string, args ...any)) {
	check := func(setting, origin string) {
		u, err := url.Parse(origin)
		switch {
		case err != nil || !webOrigin.MatchString(origin):
			bad(setting, "%q is not scheme://host in lowercase, without a path, such as https://api.example.com", origin)
		case strings.HasSuffix(strings.TrimSuffix(u.Hostname(), "."), "."+c.Zone):
			bad(setting, "%q is in the zone %s, where pages are the containers'", origin, c.Zone)
		}
	}
	if c.PublicURL != "" {
		check("public-url", c.PublicURL)
	}
	for _, origin := range c.AllowedOrigins {
		check("allowed-origins", origin)
	}
}

// GatewayIP is the IPv4 at which clients reach the gateway; empty where the settings do not tell.
func (c Config) GatewayIP() string {
	if c.ExternalIP != "" {
		return c.ExternalIP
	}
	host, _, err := net.SplitHostPort(c.SSHAddr)
	if err != nil {
		return ""
	}
	if host == "localhost" {
		return "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.Is4() || ip.IsUnspecified() {
		return ""
	}
	return ip.String()
}

func checkAddr(addr, example string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not host:port, such as %s", addr, example)
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return fmt.Errorf("%q has no port from 0 to 65535", addr)
	}
	if host != "" && host != "localhost" && net.ParseIP(host) == nil {
		return fmt.Errorf("the host of %q is not an IP address of this machine", addr)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Limits returns the domain's limits as configured.
func (c Config) Limits() compute.Limits {
	l := compute.DefaultLimits()
	l.ContainersPerUser, l.KeysPerUser = c.ContainersPerUser, c.KeysPerUser
	return l
}

// Beside returns the path of a file that was built together with this program: name beside the running binary, or dir/name
// one level above it; empty when there is none.
func Beside(paths ...string) string {
	exe, err := os.Executable()
	if err != nil {
		return ""
	}
	if exe, err = filepath.EvalSymlinks(exe); err != nil {
		return ""
	}
	for _, p := range paths {
		p = filepath.Join(filepath.Dir(exe), p)
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return ""
}
