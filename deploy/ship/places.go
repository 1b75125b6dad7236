package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"berth/internal/app"
)

// places is where the Berth of a cluster is reached from here; ready.json has it.
type places struct {
	APIURL     string `json:"api_url,omitempty"` // empty where only kubectl leads to it
	SSHAddr    string `json:"ssh_addr"`
	Zone       string `json:"zone"`
	User       string `json:"user"`
	Kubeconfig string `json:"kubeconfig,omitempty"`
	Kubectl    string `json:"kubectl"`
	Namespace  string `json:"namespace"`
}

func (p places) write(client app.Client) error {
	text, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	if err := client.WriteFile("ready.json", string(text)+"\n", 0o644); err != nil {
		return fmt.Errorf("write ready.json: %w", err)
	}
	return nil
}

// service is what is asked of one.
type service struct {
	Metadata struct{ Name, Namespace string }
	Spec     struct {
		Type      string
		ClusterIP string
		Ports     []struct {
			Name           string
			Port, NodePort int
		}
	}
	Status struct {
		LoadBalancer struct {
			Ingress []struct{ IP, Hostname string }
		}
	}
}

func (s service) port(name string) (port, node int, err error) {
	for _, p := range s.Spec.Ports {
		if p.Name == name {
			return p.Port, p.NodePort, nil
		}
	}
	return 0, 0, fmt.Errorf("the Service %s has no port called %s", s.Metadata.Name, name)
}

// addressWithin is how long a load balancer may take to get its address.
const addressWithin = 3 * time.Minute

// places finds out where Berth is reached.
func (c *cluster) places(ctx context.Context, say func(string, ...any)) (p places, err error) {
	p = places{Kubeconfig: c.kubeconfig, Kubectl: c.kubectl, Namespace: namespace}
	if c.dev != nil {
		// A process of this machine reaches its Services.
		var api service
		if err := c.get(ctx, &api, "--namespace", namespace, "service", "berth-api"); err != nil {
			return p, err
		}
		port, _, err := api.port("http")
		if err != nil {
			return p, err
		}
		p.APIURL = "http://" + net.JoinHostPort(api.Spec.ClusterIP, strconv.Itoa(port))
		if err := c.giveAddress(ctx); err != nil {
			return p, err
		}
	}
	var gateway service
	if err := c.get(ctx, &gateway, "--namespace", namespace, "service", "berth-gateway"); err != nil {
		return p, err
	}
	if gateway.Spec.Type == "LoadBalancer" && len(gateway.Status.LoadBalancer.Ingress) == 0 {
		say("waiting for the address of Service berth-gateway, up to %s", addressWithin)
		_, err := c.do(ctx, "", "--namespace", namespace, "wait", "--for", "jsonpath={.status.loadBalancer.ingress}",
			"service/berth-gateway", "--timeout", addressWithin.String())
		if ctx.Err() != nil {
			return p, context.Cause(ctx)
		}
		if err != nil {
			say("it has none, so a node's port is used. Does this cluster have load balancers?")
		}
		if err := c.get(ctx, &gateway, "--namespace", namespace, "service", "berth-gateway"); err != nil {
			return p, err
		}
	}
	p.SSHAddr, err = c.reach(ctx, gateway)
	return p, err
}

// reach is where a Service is reached from outside of the cluster.
func (c *cluster) reach(ctx context.Context, s service) (string, error) {
	port, node, err := s.port("ssh")
	if err != nil {
		return "", err
	}
	if list := s.Status.LoadBalancer.Ingress; len(list) > 0 {
		host := list[0].IP
		if host == "" {
			host = list[0].Hostname
		}
		return net.JoinHostPort(host, strconv.Itoa(port)), nil
	}
	if node == 0 {
		return net.JoinHostPort(s.Spec.ClusterIP, strconv.Itoa(port)), nil
	}
	// Only nodes with a gateway answer.
	address, err := c.do(ctx, "", "--namespace", namespace, "get", "pods", "--selector", "app.kubernetes.io/name=berth-gateway",
		"-o", "jsonpath={.items[0].status.hostIP}")
	return net.JoinHostPort(address, strconv.Itoa(node)), err
}

// giveAddress does for the gateway's Service what a cloud would: it gives it an address that no other has.
func (c *cluster) giveAddress(ctx context.Context) error {
	var all struct{ Items []service }
	if err := c.get(ctx, &all, "services", "--all-namespaces"); err != nil {
		return err
	}
	var taken []string
	for _, s := range all.Items {
		for _, at := range s.Status.LoadBalancer.Ingress {
			if s.Metadata.Namespace == namespace && s.Metadata.Name == "berth-gateway" {
				return nil
			}
			taken = append(taken, at.IP)
		}
	}
	pool, err := netip.ParsePrefix(c.dev.LoadBalancers)
	if err != nil {
		return fmt.Errorf("the development cluster's addresses: %w", err)
	}
	for at := pool.Addr().Next(); pool.Contains(at); at = at.Next() {
		if !slices.Contains(taken, at.String()) {
			_, err := c.do(ctx, "", "--namespace", namespace, "patch", "service", "berth-gateway", "--subresource=status", "--type=merge",
				"--patch", fmt.Sprintf(`{"status":{"loadBalancer":{"ingress":[{"ip":%q}]}}}`, at))
			return err
		}
	}
	return errors.New("the development cluster has no address left for a load balancer")
}

// hostKeys are what the gateways prove themselves with.
func (c *cluster) hostKeys(ctx context.Context) ([]ssh.Signer, error) {
	var secret struct{ Data map[string][]byte }
	if err := c.get(ctx, &secret, "--namespace", namespace, "secret", "berth-gateway"); err != nil {
		return nil, err
	}
	var keys []ssh.Signer
	for name, text := range secret.Data {
		if !strings.HasPrefix(name, "ssh_host_") {
			continue
		}
		key, err := ssh.ParsePrivateKey(text)
		if err != nil {
			return nil, fmt.Errorf("%s in Secret berth-gateway: %w", name, err)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("the Secret berth-gateway has no host keys: see kubectl --namespace berth logs deployment/berth-api")
	}
	slices.SortFunc(keys, func(a, b ssh.Signer) int { return strings.Compare(a.PublicKey().Type(), b.PublicKey().Type()) })
	return keys, nil
}

// berth runs the operator's command in the control plane's pod.
func (c *cluster) berth(ctx context.Context, stdin string, args ...string) (string, error) {
	return c.do(ctx, stdin, append([]string{
		"--namespace", namespace, "exec", "--stdin", "deployment/berth-api", "--container", "api", "--", "berth",
	}, args...)...)
}

// addAdmin makes an administrator with the caller's keys, unless there is an account of that name.
func (c *cluster) addAdmin(ctx context.Context, client app.Client, user string) error {
	text, err := c.berth(ctx, "", "user", "ls", "--json")
	if err != nil {
		return err
	}
	var list []struct {
		Username string `json:"username"`
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return fmt.Errorf("berth user ls: %w", err)
	}
	for _, u := range list {
		if u.Username == user {
			return nil
		}
	}
	keys, err := client.Keys()
	if err != nil {
		return err
	}
	_, err = c.berth(ctx, strings.Join(keys, "\n")+"\n", "user", "add", user, "--admin", "--key", "-")
	return err
}

// kubectl is what to type for it here.
func (p places) kubectl() string {
	line := p.Kubectl
	if p.Kubeconfig != "" {
		line += " --kubeconfig " + p.Kubeconfig
	}
	return line
}

// tell says what to type next.
func (p places) tell(out io.Writer, o options, user string, took time.Duration) {
	fmt.Fprintf(out, "\nBerth is ready on the cluster after %s.", took.Round(time.Second))
	api := p.APIURL
	if api == "" {
		api = "http://127.0.0.1:7080"
		fmt.Fprintf(out, ` Its API is the Service berth-api, for a proxy with TLS of yours; until then:

  reach the API:     %s --namespace %s port-forward service/berth-api 7080
`, p.kubectl(), namespace)
	} else {
		fmt.Fprint(out, "\n\n")
	}
	token, config := filepath.Join(o.data, "token"), filepath.Join(o.data, "ssh_config")
	fmt.Fprintf(out, `  make a container:  curl -sS %[1]s/compute/containers -H "Authorization: Bearer $(cat %[2]s)" \
                       -H 'Content-Type: application/json' -d '{"name": "dev-box", "ssh_key_ids": [1], "ssh_enabled": true}'
  list yours:        ssh -F %[3]s %[4]s ls
  be in it:          ssh -F %[3]s root@ID.%[4]s

  what it lacks:     %[6]s --namespace %[7]s exec deployment/berth-api -- berth doctor

You are %[5]s there; the token is good for 24 hours, and another `+"`make deploy`"+` brings one, and upgrades. `+"`make undeploy`"+` removes Berth.
`, api, token, config, o.zone, user, p.kubectl(), namespace)
	if p.APIURL == "" {
		fmt.Fprintf(out, "SSH arrives at %s: have the DNS names %s and *.%s lead there.\n", p.SSHAddr, o.zone, o.zone)
	}
}
