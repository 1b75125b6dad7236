package k8stest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"berth/deploy/devcluster/clustertest"
	"berth/internal/compute"
	"berth/internal/enginetest"
	"berth/internal/k8s"
)

// TestEngine has what only this engine promises. Its parts share a cluster and clear away what they made.
func TestEngine(t *testing.T) {
	r := newRig(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *rig)
	}{
		{"wrong kubeconfig", testWrongKubeconfig},
		{"deadlines", testDeadlines},
		{"a way that WebSockets or SPDY do not pass", testOneProtocol},
		{"no process stays after a disconnect", testDisconnect},
		{"manual edits", testManualEdits},
		{"a pod deleted by hand", testPodDeleted},
		{"an image that is not there", testNoImage},
		{"no node has room", testNoRoom},
		{"another installation's namespace", testForeign},
		{"the API server ends", testAPIServerEnds},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, r.in(t)) })
	}
}

// run makes a container that runs until the test ends.
func (r *rig) run() compute.Spec {
	r.t.Helper()
	s := r.provision()
	s.Running, s.Generation = true, 1
	if err := r.e.Apply(r.ctx(), s); err != nil {
		r.t.Fatalf("apply: %v", err)
	}
	return s
}

func (r *rig) provision() compute.Spec {
	r.t.Helper()
	s := newSpec()
	r.t.Cleanup(func() {
		if err := r.e.Remove(r.ctx(), s.Ref); err != nil {
			r.t.Errorf("remove: %v", err)
		}
	})
	if err := r.e.Provision(r.ctx(), s); err != nil {
		r.t.Fatalf("provision: %v", err)
	}
	return s
}

func (r *rig) sh(s compute.Spec, script string) (string, error) {
	nc, err := r.e.DialAgent(r.ctx(), s.Ref)
	if err != nil {
		return "", err
	}
	defer nc.Close()
	out, _, err := enginetest.Shell(r.ctx(), nc, script)
	return out, err
}

func testWrongKubeconfig(t *testing.T, r *rig) {
	wrong := r.opt
	for what, change := range map[string]func(){
		"needs to be told the installation": func() { wrong.InstallationID = "" },
		"no such file":                      func() { wrong.Kubeconfig = filepath.Join(t.TempDir(), "absent") },
		"refused": func() {
			wrong.Kubeconfig = r.kubeconfig("http://127.0.0.1:1")
		},
	} {
		wrong = r.opt
		wrong.Image = r.unread // which takes time to read
		change()
		ctx, cancel := context.WithTimeout(r.ctx(), 5*time.Second)
		if e, err := k8s.Open(ctx, wrong); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
			if err == nil {
				_ = e.Close()
			}
		}
		cancel()
	}
}

func (r *rig) kubeconfig(server string) string {
	r.t.Helper()
	file := filepath.Join(r.t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n" +
		"users: [{name: u, user: {}}]\nclusters: [{name: c, cluster: {server: \"" + server + "\"}}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return file
}

func testDeadlines(t *testing.T, r *rig) {
	s := r.run()
	nc, err := r.e.DialAgent(r.ctx(), s.Ref)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read past its deadline: %v", err)
	}
	if err := nc.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if out, status, err := enginetest.Shell(r.ctx(), nc, "echo after"); err != nil || status != 0 || out != "after\n" {
		t.Errorf("after the deadline: %q, %d, %v", out, status, err)
	}
	if _, err := nc.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read after the end: %v", err)
	}
}

// testOneProtocol goes to the API server by way of a proxy that passes one of the two protocols of exec alone.
func testOneProtocol(t *testing.T, r *rig) {
	config, err := clientcmd.BuildConfigFromFlags("", r.cluster.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.NextProtos = []string{"http/1.1"} // HTTP/2 has no upgrades
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = transport
	s := r.run()
	for _, not := range []string{"websocket", "spdy/3.1"} {
		var refused, passed atomic.Int32
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			switch strings.ToLower(q.Header.Get("Upgrade")) {
			case "":
			case not:
				refused.Add(1)
				http.Error(w, "not here", http.StatusForbidden)
				return
			default:
				passed.Add(1)
			}
			proxy.ServeHTTP(w, q)
		}))
		t.Cleanup(server.Close)
		opt := r.opt
		opt.Image, opt.Kubeconfig = r.unread, r.kubeconfig(server.URL)
		e, err := k8s.Open(r.ctx(), opt)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := (&rig{t: t, e: e}).sh(s, "echo through"); err != nil || out != "through\n" {
			t.Errorf("without %s: %q, %v", not, out, err)
		}
		if _, err := e.Usage(r.ctx(), s.Ref); err != nil {
			t.Errorf("without %s: usage: %v", not, err)
		}
		if refused.Load() == 0 || passed.Load() < 2 {
			t.Errorf("without %s: %d connections were refused, and %d passed", not, refused.Load(), passed.Load())
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

func testDisconnect(t *testing.T, r *rig) {
	s := r.run()
	nc, err := r.e.DialAgent(r.ctx(), s.Ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Close(); err != nil {
		t.Fatal(err)
	}
	clustertest.Eventually(t, 20*time.Second, func() error {
		out, err := r.sh(s, `n=0; for c in /proc/[0-9]*/cmdline; do tr '\0' ' ' < $c | grep -q '^[^ ]*agent[ ]connect' && n=$((n+1)); done 2>/dev/null; echo $n`)
		if err == nil && out != "1\n" { // the one that asks
			err = errors.New(strings.TrimSpace(out) + " processes of agent connect")
		}
		return err
	})
}

// testManualEdits changes what is ours and adds what is not; a start sets the first back and leaves the second.
func testManualEdits(t *testing.T, r *rig) {
	s := r.run()
	ns := s.String()
	r.cluster.Do(t, "-n", ns, "delete", "networkpolicy", "deny")
	r.cluster.Do(t, "-n", ns, "patch", "networkpolicy", "to-public", "--type=merge", "-p", `{"spec": {"egress": [{}]}}`)
	r.cluster.Do(t, "-n", ns, "annotate", "networkpolicy", "to-public", "team=red")
	s.Generation++
	if err := r.e.Apply(r.ctx(), s); err != nil {
		t.Fatal(err)
	}
	r.cluster.Do(t, "-n", ns, "get", "networkpolicy", "deny")
	got := r.cluster.Do(t, "-n", ns, "get", "networkpolicy", "to-public", "-o", "jsonpath={.metadata.annotations.team} {.spec.egress[0].to[0].ipBlock.except[0]}")
	if got != "red 0.0.0.0/8" {
		t.Errorf("the policy is %q", got)
	}
}

func testPodDeleted(t *testing.T, r *rig) {
	s := r.run()
	if _, err := r.sh(s, "echo kept > /root/f"); err != nil {
		t.Fatal(err)
	}
	seen := make(chan compute.Observation, 100)
	ctx, cancel := context.WithCancel(r.ctx())
	ended, synced := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		_ = r.e.Watch(ctx, func(o compute.Observation) { seen <- o }, func() { close(synced) })
	}()
	defer func() { cancel(); <-ended }()
	<-synced
	r.cluster.Do(t, "-n", s.String(), "delete", "pod", string(s.ID)+"-0", "--wait=false")
	for {
		select {
		case o := <-seen:
			if o.Ref != s.Ref || o.Phase == compute.PhaseRunning {
				continue
			}
			if o.Phase != compute.PhaseStopped || o.Message == "" {
				t.Errorf("told %+v", o)
			}
		case <-ctx.Done():
			t.Fatal("nothing was told of it")
		}
		break
	}
	if err := r.e.Apply(r.ctx(), s); err != nil {
		t.Fatal(err)
	}
	if out, err := r.sh(s, "cat /root/f"); err != nil || out != "kept\n" {
		t.Errorf("it has %q, %v", out, err)
	}
}

func testNoImage(t *testing.T, r *rig) {
	opt := r.opt
	opt.Image, opt.PullPolicy = "berth.local/absent:1", "Never"
	e, err := k8s.Open(r.ctx(), opt)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	other := &rig{t: t, e: e, cluster: r.cluster}
	s := r.provision()
	s.Running, s.Generation = true, 1
	err = other.e.Apply(r.ctx(), s)
	if compute.CodeOf(err) != compute.CodeInvalid || !strings.Contains(compute.UserMessage(err), "berth.local/absent:1") {
		t.Errorf("apply: %v", err)
	}
}

func testNoRoom(t *testing.T, r *rig) {
	s := r.provision()
	s.Running, s.Generation, s.MemoryMB = true, 1, 1<<20
	err := r.e.Apply(r.ctx(), s)
	if compute.CodeOf(err) != compute.CodeCapacity || !strings.Contains(compute.UserMessage(err), "memory") {
		t.Errorf("apply: %v", err)
	}
	s.MemoryMB, s.Generation = 128, 2 // the cause goes away
	if err := r.e.Apply(r.ctx(), s); err != nil {
		t.Errorf("start: %v", err)
	}
}

func testForeign(t *testing.T, r *rig) {
	s := r.provision()
	opt := r.opt
	opt.InstallationID = "22222222-2222-3333-4444-555555555555"
	e, err := k8s.Open(r.ctx(), opt)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	s.Running = true
	for op, err := range map[string]error{
		"provision": e.Provision(r.ctx(), s), "apply": e.Apply(r.ctx(), s), "remove": e.Remove(r.ctx(), s.Ref),
	} {
		if compute.CodeOf(err) != compute.CodeConflict {
			t.Errorf("%s: %v", op, err)
		}
	}
	list, err := e.Stored(r.ctx())
	i := slices.IndexFunc(list, func(v compute.Stored) bool { return v.Ref == s.Ref })
	if err != nil || i < 0 || !list[i].Foreign {
		t.Errorf("stored is %+v, %v", list, err)
	}
}

// testAPIServerEnds kills it under a session: the session ends, the container does not, and a new connection is possible.
func testAPIServerEnds(t *testing.T, r *rig) {
	s := r.run()
	if _, err := r.sh(s, "echo here > /tmp/mark"); err != nil {
		t.Fatal(err)
	}
	nc, err := r.e.DialAgent(r.ctx(), s.Ref)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.SetReadDeadline(time.Now().Add(enginetest.Timeout)); err != nil {
		t.Fatal(err)
	}
	r.cluster.Run(t, "restart", "--kill", "apiserver")
	if _, err := io.Copy(io.Discard, nc); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection did not end with the API server")
	}
	clustertest.Eventually(t, time.Minute, func() error {
		out, err := r.sh(s, "cat /tmp/mark")
		if err == nil && out != "here\n" {
			t.Fatalf("another life: %q", out)
		}
		return err
	})
}
