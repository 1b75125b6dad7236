package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// progress is what a node says to who waits for it, a line of JSON each; the last one has Ready or Error.
type progress struct {
	Say   string `json:"say,omitempty"`
	Ready bool   `json:"ready,omitempty"`
	Error string `json:"error,omitempty"`
}

// node runs the components, inside of the namespaces.
type node struct {
	layout
	began      time.Time
	components map[string]*component
	api        *http.Client // as the cluster's administrator
}

var componentNames = []string{"etcd", "containerd", "registry", "apiserver", "controller-manager", "scheduler", "kubelet", "proxy"}

// nodeProcess runs a node until it is told to stop.
func nodeProcess(ctx context.Context) error {
	n := &node{began: time.Now()}
	if len(os.Args) != 3 {
		return errUsage
	}
	if err := json.Unmarshal([]byte(os.Args[2]), &n.layout); err != nil {
		return err
	}
	syscall.CloseOnExec(saidFD)
	out := os.NewFile(saidFD, "progress")
	lines := json.NewEncoder(out)
	// Who started this and went away before it was ready wants no node.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	say := func(p progress) {
		if err := lines.Encode(p); err != nil {
			cancel(fmt.Errorf("nobody waits for this node any more: %w", err))
		}
	}

	stop, err := n.start(ctx, func(what string) { say(progress{Say: what}) })
	defer stop()
	if err != nil {
		slog.Error("not started", "error", err)
		say(progress{Error: err.Error()})
		return err
	}
	say(progress{Ready: true})
	out.Close()
	<-ctx.Done()
	return nil
}

// start brings everything up in order; stop ends what it started, also where it failed.
func (n *node) start(ctx context.Context, say func(string)) (stop func(), err error) {
	stop = func() {}
	if err := n.connectNode(); err != nil {
		return stop, err
	}
	if err := errors.Join(n.configure(), n.identify()); err != nil {
		return stop, err
	}
	n.components = map[string]*component{}
	lives := map[string]context.CancelFunc{}
	for _, c := range n.list() {
		life, end := context.WithCancel(context.WithoutCancel(ctx))
		n.components[c.name], lives[c.name] = c, end
		go c.serve(life)
	}
	end := func(names ...string) {
		for _, name := range names {
			lives[name]()
		}
		for _, name := range names {
			<-n.components[name].done
		}
	}
	closeControl, err := n.serveControl(ctx)
	if err != nil {
		return stop, err
	}
	endVolumes := func() {}
	stop = func() {
		endVolumes()
		closeControl()
		end("kubelet", "proxy", "scheduler", "controller-manager", "apiserver")
		end("etcd", "containerd", "registry") // the API server would wait for an etcd that is gone
	}
	if err := n.together(ctx, say, "containerd", "etcd", "registry"); err != nil {
		return stop, err
	}
	if err := n.load(ctx, nodeDir+"/config/pause.tar"); err != nil {
		return stop, err
	}
	if err := mountVolumes(ctx); err != nil { // before the kubelet has pods want them
		return stop, err
	}
	if err := n.together(ctx, say, "apiserver"); err != nil {
		return stop, err
	}
	if err := n.together(ctx, say, "controller-manager", "scheduler", "kubelet", "proxy"); err != nil {
		return stop, err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	if err := until(ctx, n.nodeReady); err != nil {
		return stop, fmt.Errorf("the node is not ready: %w; see log/kubelet.log", err)
	}
	say("the node is ready for pods")
	if err := n.apply(ctx); err != nil {
		return stop, err
	}
	if err := until(ctx, n.namesServed); err != nil {
		return stop, fmt.Errorf("the cluster's names are not served: %w; see kubectl -n kube-system describe pod", err)
	}
	say("names are served")
	endVolumes = n.startVolumes(ctx)
	return stop, nil
}

// together starts components and waits for all of them.
func (n *node) together(ctx context.Context, say func(string), names ...string) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, name := range names {
		group.Go(func() error { return n.components[name].do(ctx, "start") })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	say(strings.Join(names, ", "))
	return nil
}

// get asks a component, and decodes the answer where it is wanted.
func (n *node) get(ctx context.Context, url string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := n.api.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, answer.Status)
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(answer.Body).Decode(into)
}

func (n *node) containerdReady(ctx context.Context) error {
	return ctr(ctx, filepath.Join(nodeRun, "containerd.sock"), "version")
}

func (n *node) load(ctx context.Context, archive string) error {
	return ctr(ctx, filepath.Join(nodeRun, "containerd.sock"), "--namespace", "k8s.io", "images", "import", archive)
}

// ctr runs containerd's own client.
func ctr(ctx context.Context, socket string, args ...string) error {
	return command(exec.CommandContext(ctx, "ctr", append([]string{"--address", socket}, args...)...))
}

func command(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// nodeReady says whether the kubelet has said since this start that it is: what the last one said is still there.
func (n *node) nodeReady(ctx context.Context) error {
	var answer struct {
		Status struct {
			Conditions []struct {
				Type, Status, Message string
				LastHeartbeatTime     time.Time
			}
		}
	}
	if err := n.get(ctx, n.server()+"/api/v1/nodes/"+n.Name, &answer); err != nil {
		return err
	}
	for _, c := range answer.Status.Conditions {
		if c.Type != "Ready" {
			continue
		}
		if !c.LastHeartbeatTime.After(n.began.Truncate(time.Second)) {
			return errors.New("the kubelet has not reported yet")
		}
		if c.Status == "True" {
			return nil
		}
		return errors.New(c.Message)
	}
	return errors.New("the kubelet has not reported yet")
}

// apply makes the objects that every cluster has.
func (n *node) apply(ctx context.Context) error {
	return command(exec.CommandContext(ctx, nodePrograms+"/kube", "kubectl", "apply", "--server-side", "--force-conflicts",
		"--field-manager=devcluster", "--filename="+nodeDir+"/config/objects.yaml"))
}

// namesServed asks for a name by way of the Service, and so needs the proxy, CoreDNS and the pods' network.
func (n *node) namesServed(ctx context.Context) error {
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(n.dns().String(), "53"))
	}}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	addrs, err := resolver.LookupHost(ctx, "kubernetes.default.svc.cluster.local.")
	if err != nil {
		return err
	}
	if want := n.firstService().String(); !slices.Contains(addrs, want) {
		return fmt.Errorf("kubernetes.default is %v, not %s", addrs, want)
	}
	return nil
}
